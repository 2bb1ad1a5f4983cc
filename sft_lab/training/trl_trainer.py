"""The one adapter to TRL and the Transformers trainer.

Rows come in ready (``input_ids``, ``labels``): templates, masks and cutting are ours. Held-out loss is our measure
too, so the trainer's own evaluation, a mean of batch means, never runs. The log goes out as we name it.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from accelerate.utils import broadcast_object_list
from transformers.trainer_utils import rotate_checkpoints

from sft_lab.core.errors import ConfigError
from sft_lab.core.interrupt import noted
from sft_lab.core.io import sync
from sft_lab.core.log import log
from sft_lab.training import loss_head
from sft_lab.training.callbacks import Bar, Event, Recorder, Stopper, Watch, tell_measured
from sft_lab.training.checkpoints import last_checkpoint, out_of_patience
from sft_lab.training.config import Budget, Full, LossHead, planned_steps, refuse_no_step, resolve_precision
from sft_lab.training.peft_config import peft_config

# Seconds that several processes wait for one another; the first measures the base model while the others wait.
PATIENCE = 4 * 3600


@dataclass
class Trained:
    """What training leaves.

    Attributes:
        model: the trained model, adapter included; None where it lies in shares (FSDP, DeepSpeed): see ``saved``.
        steps: optimizer steps done.
        tokens: training tokens seen by this process, padding not counted.
        seconds: of the training loop in this process.
        watching_seconds: of it, spent on held-out loss.
        precision: the arithmetic that was used.
        epochs: passes over the rows.
        saved: where a model in shares was written whole.
    """

    model: Any
    steps: int
    tokens: int
    seconds: float
    watching_seconds: float
    precision: str
    epochs: float
    saved: Path | None = None


def sft_config(options: Full, folder: Path, seed: int, *, watched: bool) -> trl.SFTConfig:
    """Map our knobs to the fields that the installed SFTConfig has.

    Raises:
        ConfigError: for a pass-through field that TRL does not have, or a value that it refuses.
    """
    known = {found.name for found in dataclasses.fields(trl.SFTConfig)}
    if unknown := sorted(set(options.sft_config) - known):
        near = [name for one in unknown for name in difflib.get_close_matches(one, known, n=1)]
        raise ConfigError(
            f"trainer.sft_config={unknown}: no field of TRL {trl.__version__}'s SFTConfig; "
            + (f"did you mean {' or '.join(near)}?" if near else "leave it out")
        )
    same_name = (
        "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
        "learning_rate", "lr_scheduler_type", "weight_decay", "max_grad_norm", "optim", "max_length", "packing",
        "load_best_model_at_end",
    )  # fmt: skip
    values = {name: getattr(options, name) for name in same_name}
    # The old name is TRL's default and warns unless it is taken back.
    values |= {"activation_checkpointing": options.activation_checkpointing, "gradient_checkpointing": None}
    for name in ("warmup_steps", "logging_steps", "eval_steps", "save_steps"):
        steps = getattr(options, name)
        values[name] = steps if steps < 1 else int(steps)
    if options.warmup_steps < 1 and "warmup_ratio" in known:  # its name before warmup_steps took shares
        values["warmup_ratio"], values["warmup_steps"] = options.warmup_steps, 0
    values |= {
        "output_dir": str(folder),
        "seed": seed,
        "data_seed": seed,
        "bf16": resolve_precision(options.precision) == "bf16",
        "fp16": False,
        "packing_strategy": options.packing_strategy.name,
        "eval_packing": False,
        "completion_only_loss": False,
        # TRL packs what it prepares; rows that are not packed are ready as they are.
        "dataset_kwargs": {"skip_prepare_dataset": not options.packing},
        "eval_strategy": "steps" if watched else "no",
        "save_strategy": "steps",
        "save_total_limit": 2 if options.load_best_model_at_end else 1,
        "metric_for_best_model": "eval_loss" if watched and options.chooses else None,
        "greater_is_better": False if watched and options.chooses else None,
        "logging_nan_inf_filter": False,
        "restore_callback_states_from_checkpoint": True,  # early stopping goes on counting
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    values |= {"ddp_timeout": PATIENCE, **options.sft_config}
    try:
        return trl.SFTConfig(**{name: value for name, value in values.items() if name in known})
    except (TypeError, ValueError, ImportError, OSError) as error:
        raise ConfigError(f"trainer: refused by TRL or Transformers: {' '.join(str(error).split())}") from error


class _Trainer(trl.SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with our held-out measure in the place of its own."""

    watch: Watch
    control: Any
    plain_head = False
    measures_last = True

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As TRL does, scaling and metrics too, with the plain head in the place of its tiles."""
        if not self.plain_head:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        mask = inputs.get("attention_mask")
        seen = mask.sum() if mask is not None else torch.tensor(labels.numel(), device=labels.device)
        told = loss_head.score(model, labels, **inputs)
        items = told.tokens if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        loss = told.loss / items.clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        told_all = torch.stack([told.tokens, told.correct, seen, told.entropy.detach()]).double()
        tokens, correct, seen_all, entropy = self.accelerator.reduce(told_all).tolist()
        self._metrics["train"]["entropy"].append(entropy / max(tokens, 1))
        self._metrics["train"]["mean_token_accuracy"].append(correct / max(tokens, 1))
        self._total_train_tokens += int(seen_all)
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure, unless these are the last weights and nobody here asks: they are measured when training is over."""
        if not self.measures_last and self.state.global_step >= self.state.max_steps:
            return {}
        assert self.watch.measure is not None
        with self.watch.clock.running(), _own_arithmetic(self.model):
            # Every process measures, since a model in shares is only whole in all of them; the first is believed.
            measured = self.watch.measure(self.model, self.state.global_step)
            if self.args.world_size > 1:
                measured = broadcast_object_list([measured])[0]
        self.watch.record({"step": self.state.global_step, "epoch": self.state.epoch or 0.0, **measured})
        metrics = {f"eval_{name.removeprefix('eval/')}": value for name, value in measured.items()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As Transformers does, but the older checkpoint goes when the new one is on the disk, and not before."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()  # each process has a file in it
        if self.args.should_save:
            folder = Path(self.args.output_dir)
            sync(folder / f"checkpoint-{self.state.global_step}")
            rotate_checkpoints(str(folder), limit, self.state.best_model_checkpoint, use_mtime=True)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Ours is written at the end."""


class _Sampler(transformers.TrainerCallback):  # type: ignore[misc]
    """Has the fixed prompts answered now and then."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_step_end(self, _: Any, state: Any, __: Any, model: Any = None, **___: Any) -> None:
        if self.watch.sample and state.global_step % self.watch.samples_every == 0:
            with self.watch.clock.running(), _own_arithmetic(model):
                self.watch.sample(model, state.global_step)


def _both(one: Callable[[Event], None], other: Callable[[Event], None]) -> Callable[[Event], None]:
    def take(event: Event) -> None:
        one(event)
        other(event)

    return take


@contextmanager
def _no_cache_files() -> Iterator[None]:
    """Keep packed blocks out of the store: datasets would put them beside the rows, also where they may not be."""
    before = datasets.is_caching_enabled()
    datasets.disable_caching()
    try:
        yield
    finally:
        if before:
            datasets.enable_caching()


@contextmanager
def _own_arithmetic(model: Any) -> Iterator[None]:
    """Take accelerate's autocast off the model for a while: held-out loss is measured in one arithmetic everywhere."""
    wrapped = model.__dict__.get("forward")
    if not hasattr(model, "_original_forward"):
        yield
        return
    model.forward = model._original_forward  # noqa: SLF001
    try:
        yield
    finally:
        model.forward = wrapped


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
) -> Trained:
    """Fine-tune ``model`` on ready rows; go on from the last checkpoint in ``folder`` if there is one.

    Args:
        model: a Transformers causal language model.
        tokenizer: its tokenizer, with a padding token.
        rows: ``input_ids`` and ``labels`` (-100: not trained).
        options: the trainer's knobs.
        folder: for checkpoints.
        seed: of data order and adapter weights.
        watch: how training is watched.
        reference_rows: of the training side before filters and dedup, what ``budget=steps`` counts; None: ``rows``.
        new_tokens: ids that were added to the tokenizer, trained beside an adapter and saved with it.

    Raises:
        ConfigError: for a knob that the installed libraries refuse.
    """
    args = sft_config(options, folder, seed, watched=watch.measure is not None)
    if options.budget is Budget.steps and options.max_steps <= 0:
        counted = len(rows) if reference_rows is None else reference_rows
        args.max_steps = planned_steps(counted, options, args.world_size)
    ready = rows.select_columns(["input_ids", "labels"])
    adapter = peft_config(options, model, new_tokens or [])
    transformers.set_seed(seed)  # of the adapter: whatever was drawn before, stored results or new ones
    try:
        with _no_cache_files():
            trainer = _Trainer(
                model=model,
                args=args,
                train_dataset=ready,
                eval_dataset=ready.select([0]) if watch.measure else None,  # never read: see evaluate
                processing_class=tokenizer,
                peft_config=adapter,
                callbacks=_callbacks(options, watch, args),
            )
    except ValueError as error:
        raise ConfigError(f"trainer: refused by TRL or PEFT: {error}") from error
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.watch = watch
    trainer.measures_last = args.metric_for_best_model is not None  # some schedulers ask for it too
    trainer.plain_head = _takes_plain_head(trainer, options.loss_head)
    _say_plan(trainer, options, len(rows))
    checkpoint = last_checkpoint(folder)
    if checkpoint:
        log.info("train: goes on from %s", checkpoint.name)
    began = time.monotonic()
    taken = False
    try:
        taken = bool(checkpoint and _take_finished(trainer, checkpoint))
        if not taken:
            _train(trainer, checkpoint)
    except ImportError as error:  # of an optimizer's package, say
        raise ConfigError(f"trainer: needs a package that is not installed: {' '.join(str(error).split())}") from error
    seconds = time.monotonic() - began
    whole = None
    if not taken and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        whole = folder / "whole"
        trainer.save_model(str(whole))
    model = None if whole else trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    trainer.accelerator.free_memory()
    return Trained(
        model=model,
        steps=trainer.state.global_step,
        tokens=int(trainer._total_train_tokens),  # noqa: SLF001 - TRL logs it, but not at the last step
        seconds=seconds,
        watching_seconds=watch.clock.seconds,
        precision=resolve_precision(options.precision),
        epochs=float(trainer.state.epoch or 0.0),
        saved=whole,
    )


def _train(trainer: Any, checkpoint: Path | None) -> None:
    """Train; on Ctrl-C and SIGTERM to the end of the step, with its measurement if one is due, and a checkpoint."""
    notice = "sft-lab: stopping after this step, with a checkpoint; Ctrl-C again ends at once"
    with noted(notice) as request:
        stopper = Stopper(request)
        trainer.add_callback(stopper)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if stopper.stopped or request:
            request.obey()


def _callbacks(options: Full, watch: Watch, args: trl.SFTConfig) -> list[Any]:
    """What looks on: the record, a bar or log lines, samples, early stopping."""
    found: list[Any] = [Recorder(watch)]
    if args.process_index == 0 and sys.stderr.isatty():
        found.append(Bar())
        watch.record = _both(watch.record, found[-1].tell)
    elif args.process_index == 0:
        watch.record = _both(watch.record, tell_measured)
    if watch.samples_every:
        found.append(_Sampler(watch))
    if options.early_stopping_patience and watch.measure:
        found.append(transformers.EarlyStoppingCallback(options.early_stopping_patience))
    return found


def _takes_plain_head(trainer: Any, wanted: LossHead) -> bool:
    """Choose the loss head; TRL's where the plain one would not give the same loss."""
    if wanted is LossHead.trl or (wanted is LossHead.auto and trainer.args.device.type != "cpu"):
        return False
    reasons = {
        "a mixture of experts has a second loss": trainer.aux_loss_enabled,
        "sft_config asks for another loss": trainer.args.loss_type != "nll" or trainer.label_smoother is not None,
        "the work is parallel inside a row": trainer.accelerator.parallelism_config is not None,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if not reason and not loss_head.fits(trainer.model):
        reason = "this model's LM head cannot be run at some positions alone"
    if reason:
        log.info("train: loss_head=trl, since %s", reason)
    return reason is None


def _say_plan(trainer: Any, options: Full, rows: int) -> None:
    """Log what will be done; where steps are given and not epochs, how many epochs that will be."""
    blocks = len(trainer.train_dataset)
    refuse_no_step(blocks, options, trainer.args.world_size)
    of_epochs = planned_steps(blocks, options, trainer.args.world_size)
    steps = trainer.args.max_steps if trainer.args.max_steps > 0 else of_epochs
    if trainer.args.lr_scheduler_type != "constant" and (warmup := trainer.args.get_warmup_steps(steps)) >= steps:
        log.warning("train: warm-up takes %d of %d steps; lower trainer.warmup_steps", warmup, steps)
    log.info(
        "train: %d rows%s, %d optimizer steps%s, loss_head=%s%s",
        rows,
        f" packed into {blocks} blocks" if options.packing else "",
        steps,
        f", which is {steps / of_epochs * options.num_train_epochs:.3g} epochs" if trainer.args.max_steps > 0 else "",
        "plain" if trainer.plain_head else "trl",
        f", {trainer.args.world_size} processes ({trainer.accelerator.distributed_type.value})"
        if trainer.args.world_size > 1
        else "",
    )


def _take_finished(trainer: Any, checkpoint: Path) -> bool:
    """Take the weights of a training that had done all its steps when it was cut off.

    The Transformers trainer would do one more step before it saw that there is none to do.
    """
    state = transformers.TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if state.global_step < state.max_steps and not out_of_patience(state, trainer):
        return False
    best = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    trainer._load_from_checkpoint(best or str(checkpoint))  # noqa: SLF001 - as resuming does
    trainer.state = state
    return True
