"""A rehearsal of training on an empty model, before any data is read, to refuse early what would fail."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

from sft_lab.core.errors import ConfigError
from sft_lab.core.positions import empty_model, learned_positions, positions_of
from sft_lab.training.config import Full, Lora
from sft_lab.training.peft_config import build_peft_config

if TYPE_CHECKING:
    import torch
    import transformers

    from sft_lab.core.context import StageContext
    from sft_lab.training.models import Model

REHEARSED_STEPS = 1000  # if the schedule's length depends on the rows
# Kinds of layers that keep a state from token to token. Attention separates the rows of a packed block by their
# positions; these do so only in some kernels, which our tests do not cover.
STATEFUL = re.compile("linear|mamba|recurrent|conv|hybrid|rwkv|ssm|lstm|delta", re.IGNORECASE)
LAYER_FIELDS = ("layer_types", "layers_block_type", "block_types")


def rehearse(args: transformers.TrainingArguments) -> None:
    """Make optimizer, schedule and data loader once, as ``Trainer.train`` will.

    Raises:
        ConfigError: if one of them refuses an option, or training could not resume from its checkpoints.
    """
    import torch

    if args.save_only_model:
        raise ConfigError(
            "trainer.sft_config.save_only_model=true: an interrupted run would resume without its optimizer and end "
            "with different weights; leave it out (checkpoints are removed when a run finishes)"
        )
    optimizer = _optimizer(args, torch.nn.Linear(1, 1))
    _refuse_schedule(args, optimizer)
    try:
        torch.utils.data.DataLoader(
            [0],
            num_workers=args.dataloader_num_workers,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trainer.sft_config.dataloader_*: rejected by PyTorch ({_line(error)})") from error


def _optimizer(args: transformers.TrainingArguments, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer for a single parameter or a model's; SGD if it needs layers and the model has none."""
    import torch
    import transformers

    weight = torch.nn.Parameter(torch.zeros(1))
    plain = torch.optim.SGD([weight], lr=args.learning_rate)
    name = getattr(args.optim, "value", args.optim)
    has_layers = not isinstance(model, torch.nn.Linear)
    try:
        kind, kwargs = transformers.Trainer.get_optimizer_cls_and_kwargs(args, model)
        is_class = isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
        if not is_class or "model" in kwargs:
            return plain
        optimizer: torch.optim.Optimizer = kind(**({"params": [weight]} | kwargs))
    except ImportError as error:
        raise ConfigError(f"trainer.optim={name}: needs a package that is not installed: {_line(error)}") from error
    except (TypeError, ValueError, KeyError) as error:
        if args.optim_target_modules and not has_layers:
            return plain
        raise ConfigError(
            f"trainer.optim={name}: rejected by Transformers or PyTorch ({_line(error)}); its settings go into "
            "trainer.sft_config: optim_args, optim_target_modules, adam_beta1, adam_beta2, adam_epsilon"
        ) from error
    return optimizer


def _refuse_schedule(args: transformers.TrainingArguments, optimizer: torch.optim.Optimizer) -> None:
    import transformers
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    steps = args.max_steps if args.max_steps > 0 else REHEARSED_STEPS
    try:
        transformers.get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
    except (TypeError, ValueError, KeyError) as error:
        name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        set_by_trainer = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
        parameters = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[name]).parameters
        kwargs = ", ".join(f"{key}: ..." for key in parameters if key not in set_by_trainer)
        raise ConfigError(
            f"trainer.lr_scheduler_type={name}: rejected by Transformers ({_line(error)}); it needs "
            f"trainer.sft_config.lr_scheduler_kwargs={{{kwargs}}}"
        ) from error


def refuse_misfit(
    model: Model, options: Full, context: StageContext, args: transformers.TrainingArguments | None = None
) -> None:
    """Refuse options that do not fit the model's shape; its weights are not loaded.

    Args:
        model: whose shape is read.
        options: of the trainer.
        context: for the tokenizer and a converted model.
        args: of Transformers' trainer, for an optimizer that treats some modules apart.

    Raises:
        ConfigError: for an adapter or optimizer on missing modules, rows longer than the learned positions, packing
            with stateful layers, or weights whose type does not fit the precision.
    """
    # Precision is resolved, which imports torch, only where it matters.
    if model.dtype == "float16" and options.holding.trained and options.holding.precision == "fp16":
        raise ConfigError(
            "model.dtype=float16: trained weights must be float32 with trainer.precision=fp16, since float16 cannot "
            "hold the scaled gradients; set model.dtype=auto"
        )
    config = model.config(context)
    if options.packing:
        refuse_leaking_blocks(config)
    positions = positions_of(config)
    is_too_long = positions is not None and options.max_length > positions
    names_modules = isinstance(options, Lora) and (
        options.peft.target_modules != ["all-linear"] or bool(options.peft.config)
    )
    has_targets = args is not None and bool(args.optim_target_modules)
    if not (is_too_long or names_modules or has_targets):
        return
    if (empty := empty_model(config)) is None:
        return

    if is_too_long and learned_positions(empty):
        raise ConfigError(
            f"trainer.max_length={options.max_length}: the model has only {positions:,} learned positions; set "
            f"trainer.max_length={positions} (longer rows are dropped and counted)"
        )
    if (names_modules or has_targets) and (adapter := build_peft_config(options, empty, [], is_empty=True)):
        import peft
        import torch

        try:
            with torch.device("meta"):
                empty = peft.get_peft_model(empty, adapter)
        except Exception as error:  # a wrong field may lead to any error inside PEFT, such as an IndexError
            raise ConfigError(f"trainer.peft: rejected by PEFT: {_line(error)}") from error
    if args is not None and has_targets:
        _optimizer(args, empty)


def stateful_kind(config: Any) -> str:
    """Return the kind of a model's stateful layers according to its config; empty if all layers are attention."""
    text_config = config.get_text_config(decoder=True)
    kinds = [kind for name in LAYER_FIELDS for kind in getattr(text_config, name, None) or ()]
    return next((kind for kind in (*kinds, text_config.model_type) if STATEFUL.search(str(kind))), "")


def refuse_leaking_blocks(config: Any) -> None:
    """Refuse packing for a model with stateful layers.

    Raises:
        ConfigError: naming the kind of layer.
    """
    if kind := stateful_kind(config):
        raise ConfigError(
            f"trainer.packing=true: this model ({config.model_type}) has {kind} layers, which carry state from token "
            "to token, so rows in one block would leak into each other; set trainer.packing=false"
        )


def warn_of_long_rows(rows: Any, model: Model, options: Full, context: StageContext) -> None:
    """Notice rows longer than the model's context; with learned positions, ``refuse_misfit`` has refused them."""
    positions = positions_of(model.config(context))
    if positions is None or options.max_length <= positions:
        return
    longest = max(map(len, rows["input_ids"]), default=0)
    if longest > positions:
        context.notice(
            f"the longest row has {longest:,} tokens, more than the {positions:,} that the model was made for; "
            f"trainer.max_length={positions} drops longer rows"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
