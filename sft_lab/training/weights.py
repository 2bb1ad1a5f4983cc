"""How the weights of a model are held: in which data type, in 4 bits, and on which device they are loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sft_lab.core.errors import ModelError
from sft_lab.core.hardware import fast_bf16

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Holding:
    """How a training holds the weights of its model.

    Attributes:
        trained: all of them are trained; otherwise they are frozen under an adapter.
        four_bit: frozen in 4 bits.
        precision: of the arithmetic: ``bf16``, ``fp16`` or ``fp32``.
    """

    trained: bool = False
    four_bit: bool = False
    precision: str = "fp32"


FROZEN = Holding()


def resolve_dtype(dtype: str, holding: Holding, checkpoint: Callable[[], Any]) -> str:
    """Return the data type in which weights are held.

    Trained weights are float32 unless the user chose another type: AdamW's updates are so small that in bfloat16 most
    of them would be rounded away (at a learning rate of 2e-5, 16% of the weights moved in six steps).

    Args:
        dtype: one of ``DTYPES``.
        holding: by the training.
        checkpoint: returns the type of the weights on disk, None where its config does not say.
    """
    import torch

    if dtype != "auto":
        return dtype
    if holding.trained or not torch.cuda.is_available():
        return "float32"
    if holding.precision == "fp16":
        return "float16"
    return str(checkpoint() or "auto").removeprefix("torch.")


def four_bit_kwargs(holding: Holding) -> dict[str, Any]:
    """Return the keywords of ``from_pretrained`` for 4-bit weights (QLoRA, Dettmers et al., NeurIPS 2023).

    Raises:
        ModelError: without bitsandbytes or a GPU.
    """
    import torch
    import transformers

    if not (torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes")):
        raise ModelError(
            "trainer.quantization=nf4: needs bitsandbytes and a GPU that PyTorch can use; trainer=lora needs neither"
        )
    has_bf16 = holding.precision != "fp16" and fast_bf16("cuda")
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if has_bf16 else torch.float16,
    )
    return {"quantization_config": config}


def device_kwargs() -> dict[str, Any]:
    """Return the keywords of ``from_pretrained`` that load weights onto the GPU, where there is one.

    Loaded first into the machine's memory, a model of 7 billion parameters would take 14.5 GB there. The device is a
    number, since Transformers' trainer takes any other name for a model that is spread over several.
    """
    import torch

    return {"device_map": {"": torch.cuda.current_device()}} if torch.cuda.is_available() else {}
