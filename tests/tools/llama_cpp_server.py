"""Serves a GGUF file with llama.cpp on loopback, prints the address, and ends with its standard input."""

import os
import socket
import sys

import xllamacpp

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
options = xllamacpp.CommonParams()
options.model.path, options.port, options.n_ctx = sys.argv[1], port, 512
options.n_parallel, options.n_gpu_layers, options.warmup, options.fit_params = 1, 0, False, False
options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
options.verbosity = 0
server = xllamacpp.Server(options)
print(server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)
