"""Fine-tune a model with TRL's SFTTrainer.

Rows are ready for training (``input_ids``, ``labels``): sft_lab does templates and masks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import transformers
import trl

from sft_lab.core.errors import ConfigError
from sft_lab.core.log import log
from sft_lab.core.progress import is_shown
from sft_lab.training import loss_head
from sft_lab.training.callbacks import (
    MetricsCallback,
    ProgressBar,
    ResumeLogging,
    Watch,
    log_held_out_loss,
    train_until_signal,
)
from sft_lab.training.checkpoints import Unlogged, last_checkpoint
from sft_lab.training.config import Budget, Full, Lora, LossHead, planned_steps, resolve_precision
from sft_lab.training.optimizers import let_checkpoints_load, put_average
from sft_lab.training.peft_config import build_peft_config
from sft_lab.training.schedule import settle_schedule
from sft_lab.training.sft_config import build_sft_config
from sft_lab.training.trl_trainer import MeasuredTrainer, SampleCallback, attending_with, count_one_gpu


@dataclass
class Trained:
    """The result of a training.

    Attributes:
        model: with its adapter; None if it is sharded (FSDP, DeepSpeed): see ``saved``.
        steps: optimizer steps done.
        tokens: training tokens seen by this process, without padding.
        seconds: of the training loop in this process.
        watching_seconds: the part of it spent on held-out loss and samples.
        precision: of the arithmetic.
        epochs: passes over the rows.
        saved: the folder to which a sharded model was written.
    """

    model: Any
    steps: int
    tokens: int
    seconds: float
    watching_seconds: float
    precision: str
    epochs: float
    saved: Path | None = None


def train(
    model: Any,
    tokenizer: Any,
    rows: datasets.Dataset,
    options: Full,
    *,
    folder: Path,
    seed: int,
    watch: Watch,
    reference_rows: int | None = None,
    new_tokens: list[int] | None = None,
    attention: str | None = None,
) -> Trained:
    """Fine-tune a model on prepared rows, from the last checkpoint in ``folder`` if there is one.

    Args:
        model: a Transformers causal language model.
        tokenizer: its tokenizer, with a padding token.
        rows: ``input_ids``, ``labels`` (-100: not trained), and ``weights`` of the labels if there are any.
        options: of the trainer.
        folder: for checkpoints.
        seed: of data order and adapter weights.
        watch: how training is watched.
        reference_rows: the number of rows before filters and dedup, which ``budget=steps`` counts; None: of ``rows``.
        new_tokens: ids added to the tokenizer, trained beside an adapter and saved with it.
        attention: for training; None: the model's own, with which held-out loss is always measured.

    Raises:
        ConfigError: for an option that the installed libraries refuse.
    """
    args = build_sft_config(options, folder, seed, watched=watch.measure is not None)
    count_one_gpu(args)
    if options.budget is Budget.steps and options.max_steps <= 0:
        counted_rows = len(rows) if reference_rows is None else reference_rows
        args.max_steps = planned_steps(counted_rows, options, args.world_size)
    with attending_with(model, attention) as own_attention:
        trainer = build_trainer(model, tokenizer, rows, options, args, watch, own_attention, new_tokens or [])
        settle_schedule(trainer, options, len(rows))

        checkpoint = last_checkpoint(folder)
        if checkpoint:
            log.info("train: resuming from %s", checkpoint.name)
            let_checkpoints_load(args.optim)
            if unlogged := Unlogged.read(checkpoint):
                watch.tokens_before = unlogged.tokens
                trainer.add_callback(ResumeLogging(trainer, unlogged))
        began = time.monotonic()
        try:
            was_finished = bool(checkpoint and trainer.load_finished(checkpoint))
            if not was_finished:
                train_until_signal(trainer, checkpoint)
                put_average(trainer.optimizer)
        except ImportError as error:  # such as an optimizer's package
            reason = " ".join(str(error).split())
            raise ConfigError(f"trainer: needs a package that is not installed: {reason}") from error
    seconds = time.monotonic() - began

    saved = None
    if not was_finished and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        saved = folder / "whole"
        trainer.save_model(str(saved))
    trained_model = None if saved else trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    trainer.accelerator.free_memory()
    return Trained(
        model=trained_model,
        steps=trainer.state.global_step,
        tokens=trainer.total_tokens,
        seconds=seconds,
        watching_seconds=watch.clock.seconds,
        precision=resolve_precision(options.precision),
        epochs=float(trainer.state.epoch or 0.0),
        saved=saved,
    )


def build_trainer(
    model: Any,
    tokenizer: Any,
    rows: datasets.Dataset,
    options: Full,
    args: trl.SFTConfig,
    watch: Watch,
    own_attention: str,
    new_tokens: list[int],
) -> MeasuredTrainer:
    """Return the trainer, with the adapter, the callbacks and the loss head."""
    has_weights = loss_head.WEIGHTS in rows.column_names
    ready = rows.select_columns(["input_ids", "labels", *[loss_head.WEIGHTS] * has_weights])
    adapter = build_peft_config(options, model, new_tokens)
    transformers.set_seed(args.seed)  # adapter weights must not depend on earlier random numbers
    try:
        with _no_cache_files():
            trainer = MeasuredTrainer(
                model=model,
                args=args,
                train_dataset=ready,
                eval_dataset=ready.select([0]) if watch.measure else None,  # never read: see evaluate
                processing_class=tokenizer,
                peft_config=adapter,
                callbacks=_callbacks(options, watch, args, own_attention),
            )
    except ValueError as error:
        raise ConfigError(f"trainer: rejected by TRL or PEFT: {error}") from error

    # TRL uses the old name of this field, Transformers' trainer the new one.
    args.activation_checkpointing_kwargs = args.gradient_checkpointing_kwargs
    # TRL holds adapters of 4-bit weights in bfloat16: small updates would be lost, and a resumed training would have
    # them in float32. The gradient scaler of fp16 needs float32, too.
    if args.fp16 or options.holding.four_bit:
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    if trainer.aux_loss_enabled:  # TRL requests these logits in each step; in a saved config they break generation
        trainer.model.config.get_text_config().output_router_logits = False

    trainer.remove_callback(transformers.PrinterCallback)
    trainer.watch, trainer.own_attention = watch, own_attention
    trainer.measures_last = args.metric_for_best_model is not None  # some schedulers need it too
    trainer.plain_head = loss_head.takes_plain(trainer, LossHead.plain if has_weights else options.loss_head)
    if isinstance(options, Lora):
        trainer.loraplus_lr_ratio = options.loraplus_lr_ratio
    if has_weights:
        trainer.read_columns(ready.column_names)
        loss_head.pass_on_weights(trainer)
    return trainer


def _callbacks(options: Full, watch: Watch, args: trl.SFTConfig, own_attention: str) -> list[Any]:
    """Return the callbacks: metrics, samples, early stopping, and a progress bar or log lines for the user."""
    callbacks: list[Any] = [MetricsCallback(watch)]
    if args.process_index == 0 and is_shown():
        bar = ProgressBar()
        callbacks.append(bar)
        watch.show(bar.show)
    elif args.process_index == 0:
        watch.show(log_held_out_loss)
    if watch.samples_every:
        callbacks.append(SampleCallback(watch, own_attention))
    if options.early_stopping_patience and watch.measure:
        callbacks.append(transformers.EarlyStoppingCallback(options.early_stopping_patience))
    return callbacks


@contextmanager
def _no_cache_files() -> Iterator[None]:
    """Keep packed blocks out of the store, where datasets would write them beside the rows; it may be read-only."""
    was_enabled = datasets.is_caching_enabled()
    datasets.disable_caching()
    try:
        yield
    finally:
        if was_enabled:
            datasets.enable_caching()
