"""TRL's SFTConfig, made from the trainer options."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import trl

from sft_lab.core.errors import ConfigError
from sft_lab.training.config import Full, resolve_precision
from sft_lab.training.sft_fields import unknown_field_problem

# Seconds for which the processes of a training wait for each other: only the first one measures the base model.
DDP_TIMEOUT = 4 * 3600

SAME_NAME = (
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "lr_scheduler_type", "weight_decay", "max_grad_norm", "optim", "max_length", "packing", "load_best_model_at_end",
    "activation_checkpointing",
)  # fmt: skip


def build_sft_config(options: Full, folder: Path, seed: int, *, watched: bool) -> trl.SFTConfig:
    """Return the SFTConfig of the installed TRL.

    Args:
        options: of the trainer.
        folder: for checkpoints.
        seed: of weights and data order.
        watched: whether there are held-out rows to measure.

    Raises:
        ConfigError: for an unknown field in ``options.sft_config``, or a value that TRL refuses.
    """
    known = {field.name for field in dataclasses.fields(trl.SFTConfig)}
    if problem := unknown_field_problem(options.sft_config, known):
        raise ConfigError(problem)

    values = {name: getattr(options, name) for name in SAME_NAME}
    values |= _steps(options, known)
    values |= _fixed_values(options, watched=watched)
    values |= {"output_dir": str(folder), "seed": seed, "data_seed": seed}
    values |= options.sft_config
    try:
        return trl.SFTConfig(**{name: value for name, value in values.items() if name in known})
    except (TypeError, ValueError, ImportError, OSError) as error:
        raise ConfigError(f"trainer: rejected by TRL or Transformers: {' '.join(str(error).split())}") from error


def _steps(options: Full, known: set[str]) -> dict[str, float]:
    """Return the fields that are a number of steps, or a share of all steps if below 1."""
    values: dict[str, float] = {}
    for name in ("warmup_steps", "logging_steps", "eval_steps", "save_steps"):
        steps = getattr(options, name)
        values[name] = steps if steps < 1 else int(steps)
    if options.warmup_steps < 1 and "warmup_ratio" in known:  # older versions, in which warmup_steps takes no share
        values["warmup_ratio"], values["warmup_steps"] = options.warmup_steps, 0
    return values


def _fixed_values(options: Full, *, watched: bool) -> dict[str, Any]:
    """Return the fields that follow from other options, from the hardware, or from how sft_lab uses TRL."""
    selects = watched and options.uses_held_out_loss
    precision = resolve_precision(options.precision)
    return {
        "gradient_checkpointing": None,  # the old name of activation_checkpointing, on by default in TRL
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "packing_strategy": options.packing_strategy.name,
        "eval_packing": False,
        "completion_only_loss": False,
        # TRL packs rows when it prepares them; rows that are not packed need no preparation.
        "dataset_kwargs": {"skip_prepare_dataset": not options.packing},
        "eval_strategy": "steps" if watched else "no",
        "save_strategy": "steps",
        "save_total_limit": 2 if options.load_best_model_at_end else 1,
        "metric_for_best_model": "eval_loss" if selects else None,
        "greater_is_better": False if selects else None,
        "logging_nan_inf_filter": False,
        "restore_callback_states_from_checkpoint": True,  # early stopping continues its count
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_timeout": DDP_TIMEOUT,
    }
