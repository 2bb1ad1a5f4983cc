"""An estimate of the time that semantic dedup will take, for ``sft-lab plan``."""

from __future__ import annotations

import os

from sft_lab.core.hardware import fast_bf16
from sft_lab.dedup.exact import Dedup
from sft_lab.dedup.graph_options import Index
from sft_lab.dedup.semantic import Semantic

LEAST_ROWS = 20_000  # fewer take seconds
DIM = 384  # of MiniLM; time is proportional to it

# On one core of an AMD EPYC (Zen 5), measured by benchmarks/neighbor_graph.py and embedding.py.
BF16_RATE, FP32_RATE = 350e9, 90e9  # operations a second of the exact search
IVF_SECONDS = 1.2e-7  # for each row to the power of 1.5
MINILM_TEXTS, STATIC_TEXTS = 40, 2000  # a second; answers of about 1,300 characters


def forecast(dedup: Dedup, rows: int, threads: int | None) -> str:
    """Return how long embedding and search will take on this machine; empty if that is seconds or unknown.

    Args:
        dedup: the option.
        rows: the most rows that it will see.
        threads: for arithmetic; None: one for each core.
    """
    if not isinstance(dedup, Semantic) or rows < LEAST_ROWS:
        return ""
    import torch

    if torch.cuda.is_available():
        return ""
    cores = threads or os.cpu_count() or 1
    pairs = rows * (rows - 1) / 2
    exact = 2 * DIM * pairs / ((BF16_RATE if fast_bf16("cpu") else FP32_RATE) * cores)
    inverted = IVF_SECONDS * rows**1.5 / cores
    search = f"{_duration(inverted)} with an inverted file (dedup.index=exact: {_duration(exact)})"
    if dedup.index is not Index.ivf:
        search = f"{_duration(exact)} for all pairs (dedup.index=ivf: {_duration(inverted)}, nearly all of them)"
    text = f"Neighbor graph of up to {rows:,} texts, on {cores} core{'s' if cores > 1 else ''}: about {search}"
    if "minilm" not in dedup.embedder.name_or_path.lower():
        return text
    minilm, static = (_duration(rows / (rate * cores)) for rate in (MINILM_TEXTS, STATIC_TEXTS))
    if dedup.embedder.distill:
        return f"{text}; embedding them first: about {static}"
    return f"{text}; embedding them first: about {minilm} (dedup/embedder=static_bundled: {static})"


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1, seconds):.0f} s"
