"""The memory that a training holds, from shapes alone: no weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import peft
import torch
import transformers

from sft_lab.training.peft_config import build_peft_config

if TYPE_CHECKING:
    from sft_lab.core.context import StageContext
    from sft_lab.training.config import Full
    from sft_lab.training.models import Model

ADAM_MOMENTS = 2  # of each trained number, in its own type


@dataclass(frozen=True)
class Footprint:
    """What a training holds whatever its batch size; activations come on top.

    Attributes:
        parameters: numbers of the model, adapter included.
        trained: how many of them are trained.
        weights: bytes.
        gradients: bytes.
        optimizer: bytes of AdamW's moments; None for another optimizer.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int | None


def estimate_footprint(model: Model, options: Full, context: StageContext) -> Footprint:
    """Return the size of a training's weights, gradients and optimizer state.

    Args:
        model: whose shape is read.
        options: of the trainer; an adapter is put on the empty model as training would.
        context: for the tokenizer and a converted model.
    """
    holding = options.holding
    dtype = model.arithmetic(context, holding)["dtype"]
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(model.config(context), dtype=dtype, **model.trust())
        linear_bytes = sum(module.weight.nbytes for module in empty.modules() if isinstance(module, torch.nn.Linear))
        adapter = build_peft_config(options, empty, [])
        trained_model = peft.get_peft_model(empty, adapter) if adapter else empty

    parameters = list(trained_model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    weights = sum(parameter.nbytes for parameter in parameters)
    if holding.four_bit:  # linear layers in 4 bits; the scales of their blocks are a hundredth of that
        weights -= linear_bytes - linear_bytes * 4 // (8 * parameters[0].element_size())

    gradients = sum(parameter.nbytes for parameter in trained)
    return Footprint(
        parameters=sum(parameter.numel() for parameter in parameters),
        trained=sum(parameter.numel() for parameter in trained),
        weights=weights,
        gradients=gradients,
        optimizer=ADAM_MOMENTS * gradients if options.optim.startswith("adamw") else None,
    )
