"""The arithmetic of measuring: in the data type of the weights, if the attention allows it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from sft_lab.core.hardware import fast_bf16


def in_weight_dtype(model: Any) -> AbstractContextManager[Any]:
    """Return a context in which a model computes in the data type of its weights.

    FlashAttention's kernels do not support float32; with them float32 weights are used under autocast, as in training.
    """
    attention = str(getattr(model.config, "_attn_implementation", None) or "")
    weight = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    if "flash" not in attention or weight.dtype != torch.float32:
        return nullcontext()
    dtype = torch.bfloat16 if fast_bf16(weight.device.type) else torch.float16
    autocast: AbstractContextManager[Any] = torch.autocast(weight.device.type, dtype)
    return autocast
