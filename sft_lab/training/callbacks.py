"""Callbacks of the Transformers trainer (metrics, stopping on a signal, a progress bar), and training's log lines."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from sft_lab.core.interrupt import Request, deferred
from sft_lab.core.log import log
from sft_lab.core.progress import Stopwatch
from sft_lab.training.checkpoints import Unlogged

# The trainer's metrics that are recorded, by their names in metrics.jsonl.
METRIC_NAMES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "mean_token_accuracy": "train/mean_token_accuracy",
    "entropy": "train/entropy",
    "num_tokens": "train/num_tokens",
}

Event = dict[str, float]


@dataclass
class Watch:
    """How training is watched.

    Attributes:
        measure: returns the held-out metrics of a model at a step; the third argument: all processes, each with the
            whole model, measure together. None without held-out rows.
        record: called with each logging event.
        tokens_before: trained before the checkpoint from which training resumes.
        sample: has a model answer the fixed prompts at a step.
        samples_every: optimizer steps between samples; 0: none.
        is_hopeless: returns whether a search ends the training, given the share of it that is done and a measurement.
        clock: of the time spent on measuring and sampling, which does not count as training.
    """

    measure: Callable[[Any, int, bool], Event] | None
    record: Callable[[Event], None]
    tokens_before: int = 0
    sample: Callable[[Any, int], None] | None = None
    samples_every: int = 0
    is_hopeless: Callable[[float, Event], bool] | None = None
    clock: Stopwatch = field(default_factory=Stopwatch, init=False)

    def show(self, display: Callable[[Event], None]) -> None:
        """Pass each logging event on to a display after recording it."""
        record = self.record

        def record_and_show(event: Event) -> None:
            record(event)
            display(event)

        self.record = record_and_show


class MetricsCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Records each log entry under sft_lab's metric names, and stops training if the loss is not finite."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.last_tokens = 0.0
        self.last_time = self._training_time()

    def on_log(self, _: Any, state: Any, control: Any, logs: Event | None = None, **__: Any) -> None:
        event = {METRIC_NAMES[name]: float(value) for name, value in (logs or {}).items() if name in METRIC_NAMES}
        if "train/loss" not in event:
            return

        if "train/num_tokens" in event:
            event["tokens_per_second"] = self._tokens_per_second(event["train/num_tokens"])
            event["train/num_tokens"] += self.watch.tokens_before  # TRL counts from 0 again when training resumes
        self.watch.record({"step": state.global_step, "epoch": state.epoch or 0.0, **event})

        if not math.isfinite(event["train/loss"]):
            log.warning("train: the loss is %s at step %d; training stops", event["train/loss"], state.global_step)
            control.should_training_stop = True

    def _training_time(self) -> float:
        return time.monotonic() - self.watch.clock.seconds

    def _tokens_per_second(self, tokens: float) -> float:
        """Return the speed since the last log entry, not counting time spent on measuring."""
        now = self._training_time()
        speed = (tokens - self.last_tokens) / max(now - self.last_time, 1e-9)
        self.last_tokens, self.last_time = tokens, now
        return speed


class ResumeLogging(transformers.TrainerCallback):  # type: ignore[misc]
    """Has the trainer continue the sums of its next log entry, once it has set them to zero."""

    def __init__(self, trainer: Any, unlogged: Unlogged) -> None:
        self.trainer, self.unlogged = trainer, unlogged

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.resume_logging(self.unlogged)


class StopCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Saves a checkpoint and stops training at the end of the step during which a signal came."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> None:
        if self._is_stop_requested(args):
            self.stopped = control.should_save = control.should_training_stop = True
            log.warning("train: interrupted; checkpoint saved at step %d", state.global_step)

    def _is_stop_requested(self, args: Any) -> bool:
        """Return whether any process got a signal; all must stop at the same step."""
        if args.world_size == 1:
            return bool(self.request)
        is_requested = torch.tensor(int(bool(self.request)), device=args.device)
        torch.distributed.all_reduce(is_requested, torch.distributed.ReduceOp.MAX)
        return bool(is_requested)


def train_until_signal(trainer: Any, checkpoint: Path | None) -> None:
    """Train; on Ctrl-C or SIGTERM, finish the step with its measurement, if one is due, and a checkpoint."""
    with deferred("sft-lab: stopping after this step, with a checkpoint") as request:
        stop = StopCallback(request)
        trainer.add_callback(stop)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if stop.stopped or request:
            request.obey()


def log_held_out_loss(event: Event) -> None:
    """Log a held-out measurement, for users without a progress bar."""
    if "eval/loss" in event and event["step"]:
        log.info("train: step %d: held-out loss %.4f", event["step"], event["eval/loss"])


class ProgressBar(transformers.TrainerCallback):  # type: ignore[misc]
    """A progress bar on a terminal, with the latest metrics."""

    FORMATS = (
        ("train/loss", "loss {:.3f}"),
        ("eval/loss", "held-out {:.3f}"),
        ("gap", "gap {:+.3f}"),
        ("train/learning_rate", "rate {:.1e}"),
        ("train/grad_norm", "norm {:.2g}"),
        ("train/mean_token_accuracy", "accuracy {:.0%}"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
    )

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        self.progress = Progress(
            TextColumn("train"),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True)),
            console=Console(stderr=True),
            transient=True,
            expand=True,
        )
        self.latest: Event = {}

    def show(self, event: Event) -> None:
        """Show the metrics of a logging event beside the bar."""
        self.latest |= event
        texts = [form.format(self.latest[name]) for name, form in self.FORMATS if name in self.latest]
        if self.progress.live.is_started:
            self.progress.update(self.task, description="  ".join(texts))

    def on_train_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        self.progress.start()
        self.task = self.progress.add_task("", total=state.max_steps)

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        self.progress.update(self.task, completed=state.global_step)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.progress.stop()
