"""Processes of a distributed job, cores for tokenizers, and whether the hardware has bf16."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_PARALLEL = "TOKENIZERS_PARALLELISM"  # read by tokenizers at each call


def rank() -> int | None:
    """Return this process's rank as torchrun sets it; None outside distributed training."""
    return int(os.environ["RANK"]) if "RANK" in os.environ and "LOCAL_RANK" in os.environ else None


def world() -> int:
    """Return the number of processes that train this job."""
    return 1 if rank() is None else int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def encoding_on_every_core() -> Iterator[None]:
    """Let tokenizers encode a batch of texts on all cores; ``RAYON_NUM_THREADS`` limits their number.

    It has no effect in a process forked from one that has encoded: the fork lacks the threads and would wait for them
    forever (https://github.com/huggingface/transformers/issues/5486).
    """
    before = os.environ.get(_PARALLEL)
    if os.getpid() == _first_to_encode():
        os.environ[_PARALLEL] = "true"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_PARALLEL, None)
        else:
            os.environ[_PARALLEL] = before


@cache
def _first_to_encode() -> int:
    """Return the id of the process that called first; forked processes inherit the cached value."""
    return os.getpid()


def fast_bf16(device: str) -> bool:
    """Return whether the hardware multiplies in bf16; ``device``: ``cuda``, or anything else for the processor."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch lack it
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
