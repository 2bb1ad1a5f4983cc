"""Training with TRL's SFTTrainer.

Rows are ready for training (``input_ids``, ``labels``): sft_lab does templates and masks. It also measures held-out
loss, so the trainer's own evaluation, a mean of batch means, never runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from accelerate.utils import DistributedType, broadcast_object_list
from transformers.trainer_utils import rotate_checkpoints

from sft_lab.core.errors import ConfigError, Pruned
from sft_lab.core.io import sync
from sft_lab.core.log import log
from sft_lab.core.progress import is_shown
from sft_lab.training import loss_head
from sft_lab.training.callbacks import (
    Event,
    MetricsCallback,
    ProgressBar,
    ResumeLogging,
    Watch,
    log_held_out_loss,
    train_until_signal,
)
from sft_lab.training.checkpoints import Unlogged, is_out_of_patience, last_checkpoint
from sft_lab.training.config import Budget, Full, Lora, LossHead, planned_steps, resolve_precision
from sft_lab.training.optimizers import let_checkpoints_load, put_average
from sft_lab.training.peft_config import build_loraplus_optimizer, build_peft_config
from sft_lab.training.schedule import settle_schedule
from sft_lab.training.sft_config import build_sft_config


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


class _Trainer(trl.SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with sft_lab's held-out loss and its loss head."""

    watch: Watch
    control: Any
    plain_head = False
    measures_last = True
    own_attention: str  # the model's, with which it is measured
    optimizer: Any  # of Transformers' trainer
    loraplus_lr_ratio: float | None = None

    def create_optimizer(self, model: Any = None) -> Any:
        """Return Transformers' optimizer, or LoRA+'s."""
        if self.optimizer is None and (ratio := self.loraplus_lr_ratio):
            self.optimizer = build_loraplus_optimizer(self.model if model is None else model, self.args, ratio)
        return super().create_optimizer(model)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return TRL's loss, by the plain head if it is chosen, with TRL's scaling and metrics."""
        if not self.plain_head:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

        labels = inputs.pop("labels")
        mask = inputs.get("attention_mask")
        input_tokens = mask.sum() if mask is not None else torch.tensor(labels.numel(), device=labels.device)
        sums = loss_head.compute_token_sums(model, labels, **inputs)
        items = sums.tokens if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        loss = sums.loss / items.clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        self._add_metrics(sums, input_tokens)
        return loss

    def _add_metrics(self, sums: loss_head.TokenSums, input_tokens: torch.Tensor) -> None:
        of_process = torch.stack([sums.tokens, sums.correct, input_tokens, sums.entropy.detach()]).double()
        tokens, correct, seen, entropy = self.accelerator.reduce(of_process).tolist()
        metrics = self._metrics["train"]
        metrics["entropy"].append(entropy / max(tokens, 1))
        metrics["mean_token_accuracy"].append(correct / max(tokens, 1))
        self._total_train_tokens += int(seen)
        metrics["num_tokens"] = [self._total_train_tokens]

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return the held-out metrics under the trainer's names.

        The final weights are measured after training, unless the trainer needs their metrics here.
        """
        if not self.measures_last and self.state.global_step >= self.state.max_steps:
            return {}
        assert self.watch.measure is not None

        put_average(self.optimizer)
        with (
            self.watch.clock.running(),
            _without_autocast(self.model),
            _attention(self.model, self.own_attention),
        ):
            # All processes measure: if each has the whole model, they share the rows; a sharded model needs all of them
            # for every row. The first one's result counts.
            is_copied = self.accelerator.distributed_type in (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
            event = self.watch.measure(self.model, self.state.global_step, is_copied)
            if self.args.world_size > 1:
                event = broadcast_object_list([event])[0]
        self.watch.record({"step": self.state.global_step, "epoch": self.state.epoch or 0.0, **event})
        self._end_if_hopeless(event)

        metrics = {f"eval_{name.removeprefix('eval/')}": value for name, value in event.items()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _end_if_hopeless(self, event: Event) -> None:
        """End all processes of the training if a search has seen better ones at the same point."""
        if self.watch.is_hopeless is None or self.control.should_training_stop:
            return  # it is at its end, or interrupted, in which case the signal counts
        share = self.state.global_step / self.state.max_steps
        is_hopeless = self.watch.is_hopeless(share, event)
        if self.args.world_size > 1:
            is_hopeless = broadcast_object_list([is_hopeless])[0]
        if is_hopeless:
            loss = event["eval/loss"]
            raise Pruned(f"at {share:.0%} of the training, with a held-out loss of {loss:.4f}")

    def _load_best_model(self) -> None:
        """Load the best weights, which are an average already where the optimizer makes one."""
        put_average(self.optimizer)
        super()._load_best_model()

    def resume_logging(self, unlogged: Unlogged) -> None:
        """Continue the sums for the next log entry, which Transformers and TRL reset when training resumes."""
        self._tr_loss = torch.tensor(unlogged.loss, device=self.args.device)
        self._globalstep_last_logged = unlogged.last_logged
        self._metrics["train"].update(unlogged.metrics)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint as Transformers does, but remove the older one only after the new one is on disk."""
        # A checkpoint that only an interrupted training has must not change the weights.
        if not self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            put_average(self.optimizer)
        folder = Path(self.args.output_dir)
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        loss = self.accelerator.reduce(self._tr_loss.clone(), reduction="mean").item()
        tokens = self.watch.tokens_before + int(self._total_train_tokens)
        if self.args.should_save:
            Unlogged(loss, self._globalstep_last_logged, dict(self._metrics["train"]), tokens).write(checkpoint)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit = limit

        self.accelerator.wait_for_everyone()  # each process writes a file
        if self.args.should_save:
            sync(checkpoint)
            rotate_checkpoints(str(folder), limit, self.state.best_model_checkpoint, use_mtime=True)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Do nothing: sft_lab writes its own card."""


class _SampleCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Makes the model answer the fixed prompts every ``samples_every`` steps."""

    def __init__(self, watch: Watch, attention: str) -> None:
        self.watch = watch
        self.attention = attention

    def on_step_end(self, _: Any, state: Any, __: Any, model: Any = None, optimizer: Any = None, **___: Any) -> None:
        if self.watch.sample and state.global_step % self.watch.samples_every == 0:
            put_average(optimizer)
            with self.watch.clock.running(), _without_autocast(model), _attention(model, self.attention):
                self.watch.sample(model, state.global_step)


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


@contextmanager
def _without_autocast(model: Any) -> Iterator[None]:
    """Remove accelerate's autocast from the model, so that held-out loss has the same arithmetic everywhere."""
    wrapped = model.__dict__.get("forward")
    if not hasattr(model, "_original_forward"):
        yield
        return
    model.forward = model._original_forward  # noqa: SLF001
    try:
        yield
    finally:
        model.forward = wrapped


@contextmanager
def _attention(model: Any, name: str | None) -> Iterator[str]:
    """Let a model use another attention (None: its own), and yield its own."""
    own_attention = model.config._attn_implementation  # noqa: SLF001 - set_attn_implementation has no counterpart
    if name in (None, own_attention):
        yield own_attention
        return
    model.set_attn_implementation(name, allow_all_kernels=True)  # the user has allowed it if it is a kernel of the Hub
    try:
        yield own_attention
    finally:
        model.set_attn_implementation(own_attention, allow_all_kernels=True)


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
    if args.n_gpu > 1:  # CUDA was initialized before the others could be hidden, as in a notebook
        args._n_gpu = 1  # noqa: SLF001 - as Transformers' trainer does for a model on one of them
    if options.budget is Budget.steps and options.max_steps <= 0:
        counted_rows = len(rows) if reference_rows is None else reference_rows
        args.max_steps = planned_steps(counted_rows, options, args.world_size)
    with _attention(model, attention) as own_attention:
        trainer = _build_trainer(model, tokenizer, rows, options, args, watch, own_attention, new_tokens or [])
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
            was_finished = bool(checkpoint and _load_finished(trainer, checkpoint))
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
        tokens=int(trainer._total_train_tokens),  # noqa: SLF001 - TRL logs it, but not at the last step
        seconds=seconds,
        watching_seconds=watch.clock.seconds,
        precision=resolve_precision(options.precision),
        epochs=float(trainer.state.epoch or 0.0),
        saved=saved,
    )


def _build_trainer(
    model: Any,
    tokenizer: Any,
    rows: datasets.Dataset,
    options: Full,
    args: trl.SFTConfig,
    watch: Watch,
    own_attention: str,
    new_tokens: list[int],
) -> _Trainer:
    """Return the trainer, with the adapter, the callbacks and the loss head."""
    has_weights = loss_head.WEIGHTS in rows.column_names
    ready = rows.select_columns(["input_ids", "labels", *[loss_head.WEIGHTS] * has_weights])
    adapter = build_peft_config(options, model, new_tokens)
    transformers.set_seed(args.seed)  # adapter weights must not depend on earlier random numbers
    try:
        with _no_cache_files():
            trainer = _Trainer(
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
        trainer._signature_columns = ready.column_names  # noqa: SLF001 - the columns in a batch
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
        callbacks.append(_SampleCallback(watch, own_attention))
    if options.early_stopping_patience and watch.measure:
        callbacks.append(transformers.EarlyStoppingCallback(options.early_stopping_patience))
    return callbacks


def _load_finished(trainer: Any, checkpoint: Path) -> bool:
    """Load the weights of a training that was interrupted after its last step.

    Transformers' trainer would do one more step before noticing that none is left.

    Returns:
        Whether it was.
    """
    state = transformers.TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if state.global_step < state.max_steps and not is_out_of_patience(state, trainer):
        return False
    best = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    trainer._load_from_checkpoint(best or str(checkpoint))  # noqa: SLF001 - as resuming does
    trainer.state = state
    return True
