"""An estimate of training's memory from shapes alone, without loading weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sft_lab.training.optimizers import adam_moments
from sft_lab.training.peft_config import build_peft_config

if TYPE_CHECKING:
    import torch

    from sft_lab.core.context import StageContext
    from sft_lab.training.config import Full
    from sft_lab.training.models import Model
    from sft_lab.training.weights import Holding

NF4_BITS = 4.127  # per number, with its share of the quantized scale of its block (Dettmers et al., 2023)


@dataclass(frozen=True)
class Footprint:
    """The memory of a training, as far as shapes tell; the GPU's libraries take about a gigabyte more.

    Attributes:
        parameters: of the model, adapter included.
        trained: the number of parameters that train.
        weights: bytes.
        gradients: bytes.
        optimizer: bytes of AdamW's moments; None for another optimizer.
        activations: bytes that a batch of the longest rows keeps for its gradients, calculated for Llama's architecture
            and not measured; None for a config without the usual names.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int | None
    activations: int | None


def estimate_footprint(model: Model, options: Full, context: StageContext, *, on_gpu: bool | None = None) -> Footprint:
    """Return the size of a training's weights, gradients, optimizer state and activations.

    Args:
        model: whose shape is used.
        options: of the trainer; an adapter is put on the empty model as in training.
        context: for the tokenizer and a converted model.
        on_gpu: estimate it for a GPU with bf16 even if this machine has none; None: for this machine.
    """
    config = model.config(context)  # before slow imports: the model may not be here yet
    import torch
    import transformers

    holding = replace(options.holding, precision="bf16") if on_gpu else options.holding
    dtype = model.arithmetic(context, holding, on_gpu=on_gpu)["dtype"]
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(
            config,
            dtype="float32" if dtype == "auto" else dtype,
            attn_implementation="eager",  # not the config's, which may be a kernel of the Hub
            **model.trust(),
        )
    return footprint_of(empty, options, holding)


def footprint_of(empty: Any, options: Full, holding: Holding | None = None) -> Footprint:
    """Return the footprint of a model without weights (device ``meta``); ``holding``: None for the trainer's here."""
    import peft
    import torch

    holding = holding or options.holding
    with torch.device("meta"):
        quantized = _quantized_weights(empty) if holding.four_bit else []
        adapter = build_peft_config(options, empty, [], is_empty=True)
        trained_model = peft.get_peft_model(empty, adapter) if adapter else empty

    parameters = list(trained_model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    weights = sum(parameter.nbytes for parameter in parameters)
    weights -= sum(weight.nbytes - int(weight.numel() * NF4_BITS / 8) for weight in quantized)

    numbers, gradients = sum(parameter.numel() for parameter in trained), sum(parameter.nbytes for parameter in trained)
    return Footprint(
        parameters=sum(parameter.numel() for parameter in parameters),
        trained=numbers,
        weights=weights,
        gradients=gradients,
        optimizer=adam_moments(options.optim, numbers, gradients),
        activations=_activations(empty.config, holding, options),
    )


def _quantized_weights(model: Any) -> list[torch.Tensor]:
    """Return the weights that bitsandbytes holds in 4 bits: those of all linear layers except the LM head."""
    import torch

    head = model.get_output_embeddings()
    return [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]


def _activations(config: Any, holding: Holding, options: Full) -> int | None:
    """Return the bytes that a batch keeps: for each token and layer, the inputs of every operation with a gradient.

    Attention scores are not included, since neither sdpa nor FlashAttention keeps them, nor are logits, which TRL's
    loss head computes in tiles.
    """
    text = config.get_text_config()
    try:
        hidden, inner, layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
        heads = text.num_attention_heads
        groups = getattr(text, "num_key_value_heads", None) or heads
        width = getattr(text, "head_dim", None) or hidden // heads
    except AttributeError:
        return None
    compute = 4 if holding.precision == "fp32" else 2  # bytes per number in matrix products
    stream = 4 if holding.trained or holding.precision == "fp32" else 2  # and between layers
    query, key_value = heads * width, 2 * groups * width
    norms = 2 * (stream + 4) * hidden  # computed in float32
    attention = compute * (2 * query + key_value)
    mlp = compute * 3 * inner  # gate, up, and their product's factor
    inputs = compute * (2 * hidden + query + inner)  # of the linear layers
    layer = norms + attention + mlp + inputs

    tokens = options.per_device_train_batch_size * options.max_length
    if options.activation_checkpointing:
        return int(tokens * (layers * stream * hidden + layer))
    return int(tokens * layers * layer)
