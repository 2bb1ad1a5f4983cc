"""How a model's weights are held (data type, 4 bits, device), and which attention may run."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sft_lab.core.errors import ModelError
from sft_lab.core.hardware import fast_bf16

TRUST_KERNEL = "SFT_LAB_TRUST_KERNEL"  # the one attention of the Hub whose code may run
# Packages for the attentions that Transformers fetches from the Hub if they are not installed.
FLASH_PACKAGES = {
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn",
}
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Holding:
    """How a training holds the weights of its model.

    Attributes:
        trained: whether all of them train; otherwise they are frozen beside an adapter.
        four_bit: whether they are frozen in 4 bits.
        precision: of the arithmetic: ``bf16``, ``fp16`` or ``fp32``.
    """

    trained: bool = False
    four_bit: bool = False
    precision: str = "fp32"


FROZEN = Holding()


def resolve_dtype(dtype: str, holding: Holding, checkpoint: Callable[[], Any], *, on_gpu: bool | None = None) -> str:
    """Return the data type in which weights are held.

    Weights that train are float32 unless the user chose another type: in bfloat16, most of AdamW's small updates would
    be rounded away (at a learning rate of 2e-5, only 16% of the weights moved in six steps).

    Args:
        dtype: one of ``DTYPES``.
        holding: by the training.
        checkpoint: returns the type of the weights on disk, None if its config does not give one.
        on_gpu: whether training is to use a GPU; None: if this machine has one.
    """
    import torch

    on_gpu = torch.cuda.is_available() if on_gpu is None else on_gpu

    if dtype != "auto":
        return dtype
    if holding.trained or not on_gpu:
        return "float32"
    if holding.precision == "fp16":
        return "float16"
    return str(checkpoint() or "auto").removeprefix("torch.")


def four_bit_dtype(holding: Holding) -> str:
    """Return the type in which 4-bit weights are multiplied: float32 on a CPU, bf16 where the GPU has it."""
    import torch

    if not torch.cuda.is_available():
        return "float32"
    return "bfloat16" if holding.precision != "fp16" and fast_bf16("cuda") else "float16"


def four_bit_kwargs(holding: Holding) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` for 4-bit weights (QLoRA, Dettmers et al., NeurIPS 2023).

    Raises:
        ModelError: without bitsandbytes.
    """
    import transformers

    if not importlib.util.find_spec("bitsandbytes"):
        raise ModelError(
            "trainer.quantization=nf4: needs bitsandbytes (pip install bitsandbytes); trainer=lora does not"
        )
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=four_bit_dtype(holding),
    )
    return {"quantization_config": config}


def keep_trainable(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights when a model is evaluated on a CPU with AVX512-BF16.

    Gradients do not pass through repacked weights: training after a measurement would be wrong without an error.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def device_kwargs() -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that load weights directly onto the GPU, if there is one.

    In the machine's memory, a model of 7 billion parameters would take 14.5 GB. The device is a number, since by any
    other name Transformers' trainer would assume a model that is spread over several.
    """
    import torch

    return {"device_map": {"": torch.cuda.current_device()}} if torch.cuda.is_available() else {}


def refused_attention(attention: str) -> str:
    """Return why an attention must not be used; empty if it may.

    Code that the package ``kernels`` would fetch from the Hub is refused unless the user's environment allows it: a
    config, which may come from elsewhere, cannot.
    """
    package = FLASH_PACKAGES.get(attention)
    is_missing = package is not None and not importlib.util.find_spec(package)
    is_fetched = "/" in attention or (is_missing and importlib.util.find_spec("kernels"))
    if not is_fetched or attention == os.environ.get(TRUST_KERNEL):
        return ""
    return (
        f"model.attn_implementation={attention}: is code from the Hub; read it, then set {TRUST_KERNEL}={attention} to "
        "let only this code run"
    )


def packing_attention(attention: str | None, precision: str) -> str | None:
    """Return the attention for training on packed rows; None: the model's own.

    Without FlashAttention, a batch of packed rows is one long row, in which each token is compared with every other.

    Args:
        attention: chosen by the user; None: by Transformers.
        precision: of training; FlashAttention does not support ``fp32``.
    """
    if attention is not None or not takes_flash_attention(precision):
        return None
    if importlib.util.find_spec("flash_attn"):
        return "flash_attention_2"
    kernel = os.environ.get(TRUST_KERNEL, "")
    return kernel if "flash" in kernel and importlib.util.find_spec("kernels") else None


def takes_flash_attention(precision: str) -> bool:
    """Return whether FlashAttention could be used here; it needs a GPU with bf16, and does not support fp32."""
    import torch

    return precision != "fp32" and torch.cuda.is_available() and fast_bf16("cuda")
