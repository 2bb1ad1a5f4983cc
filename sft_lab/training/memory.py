"""What a training holds in memory, from shapes alone: no weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import peft
import torch
import transformers

from sft_lab.training.peft_config import peft_config

if TYPE_CHECKING:
    from sft_lab.core.context import StageContext
    from sft_lab.training.config import Full
    from sft_lab.training.models import Model

ADAM = 2  # moments of each trained number, in its own type


@dataclass(frozen=True)
class Footprint:
    """Bytes that a training holds whatever its batch; activations come on top.

    Attributes:
        parameters: of the model, adapter included.
        trained: how many of them are trained.
        weights, gradients: bytes.
        optimizer: bytes of AdamW's moments; None for another optimizer.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int | None


def footprint(model: Model, options: Full, context: StageContext) -> Footprint:
    """Reckon a training's weights, gradients and optimizer state.

    Args:
        model: whose shape is read.
        options: of the trainer; an adapter is put onto the empty model as training would.
        context: for the tokenizer and a converted model.
    """
    kind = model.dtype if model.dtype != "auto" else "auto" if torch.cuda.is_available() else "float32"
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(model.config(context), dtype=kind, **model.trust())
        linear = sum(part.weight.nbytes for part in empty.modules() if isinstance(part, torch.nn.Linear))
        config = peft_config(options, empty, [])
        whole = peft.get_peft_model(empty, config) if config else empty
    found = list(whole.parameters())
    trained = [one for one in found if one.requires_grad]
    weights = sum(one.nbytes for one in found)
    if options.four_bit:  # linear layers in 4 bits; scales of the blocks are a hundredth of that
        weights -= linear - linear * 4 // (8 * found[0].element_size())
    gradients = sum(one.nbytes for one in trained)
    return Footprint(
        sum(one.numel() for one in found),
        sum(one.numel() for one in trained),
        weights,
        gradients,
        ADAM * gradients if options.optim.startswith("adamw") else None,
    )
