"""A rehearsal of training before any data is read: what would be refused, tried on an empty model."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import peft
import torch
import transformers
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from sft_lab.core.errors import ConfigError
from sft_lab.core.positions import empty_model, learned_positions, positions_of
from sft_lab.training.config import Full, Lora
from sft_lab.training.layer_kinds import refuse_leaking_blocks
from sft_lab.training.peft_config import build_peft_config

if TYPE_CHECKING:
    from sft_lab.core.context import StageContext
    from sft_lab.training.models import Model

REHEARSED_STEPS = 1000  # of a schedule whose length depends on the rows


def rehearse(args: transformers.TrainingArguments) -> None:
    """Make optimizer, schedule and data loader once, as ``Trainer.train`` will.

    Raises:
        ConfigError: for what they refuse, and for checkpoints from which a training cannot resume.
    """
    if args.save_only_model:
        raise ConfigError(
            "trainer.sft_config.save_only_model=true: an interrupted training would resume without its optimizer, "
            "and end with other weights; leave it out, checkpoints are removed when a run ends well"
        )
    optimizer = _optimizer(args)
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
        raise ConfigError(f"trainer.sft_config.dataloader_*: refused by PyTorch ({_line(error)})") from error


def _optimizer(args: transformers.TrainingArguments) -> torch.optim.Optimizer:
    """Return the optimizer over one number; plain SGD where it needs the layers of a model."""
    weight = torch.nn.Parameter(torch.zeros(1))
    plain = torch.optim.SGD([weight], lr=args.learning_rate)
    name = getattr(args.optim, "value", args.optim)
    try:
        kind, kwargs = transformers.Trainer.get_optimizer_cls_and_kwargs(args, torch.nn.Linear(1, 1))
        is_class = isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
        if not is_class or "model" in kwargs:
            return plain
        optimizer: torch.optim.Optimizer = kind([weight], **kwargs)
    except ImportError as error:
        raise ConfigError(f"trainer.optim={name}: needs a package that is not installed: {_line(error)}") from error
    except (TypeError, ValueError, KeyError) as error:
        if args.optim_target_modules:  # of a model that is not here
            return plain
        raise ConfigError(
            f"trainer.optim={name}: refused by Transformers or PyTorch ({_line(error)}); its settings go into "
            "trainer.sft_config: optim_args, optim_target_modules, adam_beta1, adam_beta2, adam_epsilon"
        ) from error
    return optimizer


def _refuse_schedule(args: transformers.TrainingArguments, optimizer: torch.optim.Optimizer) -> None:
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
            f"trainer.lr_scheduler_type={name}: refused by Transformers ({_line(error)}); it takes "
            f"trainer.sft_config.lr_scheduler_kwargs={{{kwargs}}}"
        ) from error


def refuse_misfit(model: Model, options: Full, context: StageContext) -> None:
    """Refuse options that do not fit the model's shape; its weights are not loaded.

    Raises:
        ConfigError: for an adapter on modules that the model does not have, rows longer than its learned positions, or
            packing for a model whose layers keep a state.
    """
    holding = options.holding
    if holding.trained and model.dtype == "float16" and holding.precision == "fp16":
        raise ConfigError(
            "model.dtype=float16: weights that are trained must be float32 under trainer.precision=fp16, whose scaled "
            "gradients float16 cannot hold; set model.dtype=auto"
        )
    config = model.config(context)
    if options.packing:
        refuse_leaking_blocks(config)
    positions = positions_of(config)
    is_too_long = positions is not None and options.max_length > positions
    names_modules = isinstance(options, Lora) and (
        options.peft.target_modules != ["all-linear"] or bool(options.peft.config)
    )
    if not (is_too_long or names_modules):
        return
    if (empty := empty_model(config)) is None:
        return

    if is_too_long and learned_positions(empty):
        raise ConfigError(
            f"trainer.max_length={options.max_length}: the model has learned {positions:,} positions and none beyond; "
            f"set trainer.max_length={positions}, and longer rows are dropped and counted"
        )
    if names_modules and (adapter := build_peft_config(options, empty, [], is_empty=True)):
        try:
            with torch.device("meta"):
                peft.get_peft_model(empty, adapter)
        except Exception as error:  # PEFT lets through what a wrong field leads to, such as an IndexError
            raise ConfigError(f"trainer.peft: refused by PEFT: {_line(error)}") from error


def warn_of_long_rows(rows: Any, model: Model, options: Full, context: StageContext) -> None:
    """Notice rows longer than the model was made for; past learned positions, ``refuse_misfit`` has refused them."""
    positions = positions_of(model.config(context))
    if positions is None or options.max_length <= positions:
        return
    longest = max(map(len, rows["input_ids"]), default=0)
    if longest > positions:
        context.notice(
            f"the longest row has {longest:,} tokens and the model was made for {positions:,}: it is trained past its "
            f"limit; trainer.max_length={positions} drops longer rows"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
