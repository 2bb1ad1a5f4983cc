"""What the machine can do, asked in one place."""

from __future__ import annotations

from typing import Any


def fast_bf16(device: str) -> bool:
    """Whether the hardware multiplies in bf16; ``device``: ``cuda``, else the processor."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does without
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
