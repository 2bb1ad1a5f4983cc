"""What the machine can do, asked in one place."""

from __future__ import annotations

import os
from typing import Any


def rank() -> int | None:
    """This process's number among those that train one job together, as torchrun tells it; None: it trains alone."""
    return int(os.environ["RANK"]) if "RANK" in os.environ and "LOCAL_RANK" in os.environ else None


def world() -> int:
    """How many processes train this job together."""
    return 1 if rank() is None else int(os.environ.get("WORLD_SIZE", "1"))


def fast_bf16(device: str) -> bool:
    """Whether the hardware multiplies in bf16; ``device``: ``cuda``, else the processor."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does without
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
