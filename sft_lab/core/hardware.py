"""What the machine can do, asked in one place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_PARALLEL = "TOKENIZERS_PARALLELISM"  # read by tokenizers at each call


def rank() -> int | None:
    """This process's number among those that train one job together, as torchrun tells it; None: it trains alone."""
    return int(os.environ["RANK"]) if "RANK" in os.environ and "LOCAL_RANK" in os.environ else None


def world() -> int:
    """How many processes train this job together."""
    return 1 if rank() is None else int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def encoding_on_every_core() -> Iterator[None]:
    """Let tokenizers share a batch of texts among the cores; ``RAYON_NUM_THREADS`` in the environment lowers how many.

    Around encoding alone, and not in a process forked from one that has encoded: it has none of the threads, and would
    wait for them for ever (https://github.com/huggingface/transformers/issues/5486).
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
    """Give the process that asks first; those forked from it know."""
    return os.getpid()


def fast_bf16(device: str) -> bool:
    """Whether the hardware multiplies in bf16; ``device``: ``cuda``, else the processor."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does without
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
