"""The steps of a training: settled and logged once rows, or packed blocks, are known."""

from __future__ import annotations

from typing import Any

from sft_lab.core.log import log
from sft_lab.core.text import count_of
from sft_lab.training.config import Full, planned_steps, refuse_no_step
from sft_lab.training.optimizers import averages_weights


def settle_schedule(trainer: Any, options: Full, rows: int) -> None:
    """Log rows and steps, and how many epochs they are where steps are set and not epochs."""
    args = trainer.args
    blocks = len(trainer.train_dataset)
    refuse_no_step(blocks, options, args.world_size)
    steps_of_epochs = planned_steps(blocks, options, args.world_size)
    steps = args.max_steps if args.max_steps > 0 else steps_of_epochs
    if averages_weights(args.optim):
        args.warmup_steps = args.get_warmup_steps(steps)  # for the optimizer's own warm-up, which takes no share
        if args.lr_scheduler_type != "constant":
            log.warning("train: optim=%s needs no schedule; set trainer.lr_scheduler_type=constant", options.optim)
    if args.lr_scheduler_type != "constant" and (warmup := args.get_warmup_steps(steps)) >= steps:
        log.warning("train: warm-up takes %d of %d steps; lower trainer.warmup_steps", warmup, steps)

    plan = count_of(rows, "row")
    if options.packing:
        plan += f" packed into {count_of(blocks, 'block')}"
    plan += f", {count_of(steps, 'optimizer step')}"
    if args.max_steps > 0:
        epochs = f"{steps / steps_of_epochs * options.num_train_epochs:.3g}"
        plan += f", which is {epochs} {'epoch' if epochs == '1' else 'epochs'}"
    plan += f", loss_head={'plain' if trainer.plain_head else 'trl'}"
    if args.world_size > 1:
        plan += f", {args.world_size} processes ({trainer.accelerator.distributed_type.value})"
    log.info("train: %s", plan)
