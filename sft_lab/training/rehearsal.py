"""What a training would be refused for, found before any data is read: with an empty model and nothing to train."""

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
from sft_lab.training.peft_config import peft_config

if TYPE_CHECKING:
    from sft_lab.core.context import StageContext
    from sft_lab.training.models import Model

REHEARSED_STEPS = 1000  # of a schedule whose length only the rows tell


def rehearse(args: transformers.TrainingArguments) -> None:
    """Make optimizer, schedule and loader once, as ``Trainer.train`` will.

    Raises:
        ConfigError: for what they refuse, and for checkpoints that a training cannot go on from.
    """
    if args.save_only_model:
        raise ConfigError(
            "trainer.sft_config.save_only_model=true: a training that is cut off would go on without its optimizer, "
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
    """Return the optimizer over one number; a plain one where it asks for a model's own layers."""
    weight = torch.nn.Parameter(torch.zeros(1))
    plain = torch.optim.SGD([weight], lr=args.learning_rate)
    if args.optim_target_modules:
        return plain
    name = getattr(args.optim, "value", args.optim)
    try:
        kind, kwargs = transformers.Trainer.get_optimizer_cls_and_kwargs(args, torch.nn.Linear(1, 1))
        is_class = isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
        made: torch.optim.Optimizer = kind([weight], **kwargs) if is_class and "model" not in kwargs else plain
    except ImportError as error:
        raise ConfigError(f"trainer.optim={name}: needs a package that is not installed: {_line(error)}") from error
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"trainer.optim={name}: refused by Transformers or PyTorch ({_line(error)}); its settings go into "
            "trainer.sft_config: optim_args, optim_target_modules, adam_beta1, adam_beta2, adam_epsilon"
        ) from error
    return made


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
        ours = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
        takes = [key for key in inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[name]).parameters if key not in ours]
        raise ConfigError(
            f"trainer.lr_scheduler_type={name}: refused by Transformers ({_line(error)}); it takes "
            f"trainer.sft_config.lr_scheduler_kwargs={{{', '.join(f'{key}: ...' for key in takes)}}}"
        ) from error


def refuse_misfit(model: Model, options: Full, context: StageContext) -> None:
    """Look at the model's shape, without its weights, for modules and positions that the options ask for.

    Raises:
        ConfigError: for an adapter on modules that the model has not, or rows longer than its learned positions.
    """
    positions = positions_of(config := model.config(context))
    too_long = positions is not None and options.max_length > positions
    named = isinstance(options, Lora) and options.peft.target_modules != ["all-linear"]
    if not (too_long or named):
        return
    if (empty := empty_model(config)) is None:
        return
    if too_long and learned_positions(empty):
        raise ConfigError(
            f"trainer.max_length={options.max_length}: the model has learned {positions:,} positions and none beyond; "
            f"set trainer.max_length={positions}, and longer rows are dropped and counted"
        )
    if adapter := peft_config(options, empty, []) if named else None:
        try:
            with torch.device("meta"):
                peft.get_peft_model(empty, adapter)
        except ValueError as error:
            raise ConfigError(f"trainer.peft: refused by PEFT: {_line(error)}") from error


def say_long_rows(rows: Any, model: Model, options: Full, context: StageContext) -> None:
    """Say that rows are longer than the model was made for; those with learned positions were refused before."""
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
