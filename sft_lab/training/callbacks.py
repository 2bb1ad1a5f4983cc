"""How a training is watched: what each log entry becomes, and a bar on a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from sft_lab.core.interrupt import Request
from sft_lab.core.log import log
from sft_lab.core.progress import Stopwatch

# What a trainer log entry is called in metrics.jsonl; the rest of it is not kept.
NAMES = {
    "loss": "train/loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "mean_token_accuracy": "train/mean_token_accuracy",
    "entropy": "train/entropy",
    "num_tokens": "train/num_tokens",
}

Event = dict[str, float]


@dataclass
class Watch:
    """How training is watched.

    Attributes:
        measure: gives the held-out metrics of a model at a step, None without held-out rows.
        record: takes each logging event.
        tokens_before: seen before the checkpoint that training goes on from.
        sample: answers the fixed prompts with a model, at a step.
        samples_every: optimizer steps between samples; 0: none.
    """

    measure: Callable[[Any, int], Event] | None
    record: Callable[[Event], None]
    tokens_before: int = 0
    sample: Callable[[Any, int], None] | None = None
    samples_every: int = 0
    clock: Stopwatch = field(default_factory=Stopwatch, init=False)  # of what is no training


class Recorder(transformers.TrainerCallback):  # type: ignore[misc]
    """Passes each log entry on under our names, and stops at a loss that is no number."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.seen, self.since = 0.0, time.monotonic() - self.watch.clock.seconds

    def on_log(self, _: Any, state: Any, control: Any, logs: Event | None = None, **__: Any) -> None:
        event = {NAMES[name]: float(value) for name, value in (logs or {}).items() if name in NAMES}
        if "train/loss" not in event:
            return
        if "train/num_tokens" in event:  # TRL counts from 0 again when it goes on
            event["tokens_per_second"] = self._speed(event["train/num_tokens"])
            event["train/num_tokens"] += self.watch.tokens_before
        self.watch.record({"step": state.global_step, "epoch": state.epoch or 0.0, **event})
        if not math.isfinite(event["train/loss"]):
            log.warning("train: the loss is %s at step %d; training stops", event["train/loss"], state.global_step)
            control.should_training_stop = True

    def _speed(self, tokens: float) -> float:
        """Tokens per second of training since the last log entry."""
        now = time.monotonic() - self.watch.clock.seconds
        speed = (tokens - self.seen) / max(now - self.since, 1e-9)
        self.seen, self.since = tokens, now
        return speed


class Stopper(transformers.TrainerCallback):  # type: ignore[misc]
    """Saves a checkpoint and stops training at the end of the step in which a signal has asked for it."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> None:
        if self._is_asked(args):
            self.stopped = control.should_save = control.should_training_stop = True
            log.warning("train: interrupted; its checkpoint is saved at step %d", state.global_step)

    def _is_asked(self, args: Any) -> bool:
        """Whether any process of the training was asked: all must stop at the same step."""
        if args.world_size == 1:
            return bool(self.request)
        asked = torch.tensor(int(bool(self.request)), device=args.device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        return bool(asked)


def tell_measured(event: Event) -> None:
    """Say in the log what was measured: where there is no bar, hours may pass without a line."""
    if "eval/loss" in event and event["step"]:
        log.info("train: step %d: held-out loss %.4f", event["step"], event["eval/loss"])


class Bar(transformers.TrainerCallback):  # type: ignore[misc]
    """A progress bar on a terminal, with the last that was measured."""

    SHOWN = (
        ("train/loss", "loss {:.3f}"), ("eval/loss", "held-out {:.3f}"), ("gap", "gap {:+.3f}"),
        ("learning_rate", "rate {:.1e}"), ("grad_norm", "norm {:.2g}"),
        ("train/mean_token_accuracy", "accuracy {:.0%}"), ("tokens_per_second", "{:,.0f} tokens/s"),
    )  # fmt: skip

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        columns = (TextColumn("train"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(),
                   TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True)))  # fmt: skip
        self.progress = Progress(*columns, console=Console(stderr=True), transient=True, expand=True)
        self.last: Event = {}

    def tell(self, event: Event) -> None:
        """Show a logging event."""
        self.last |= event
        told = (form.format(self.last[name]) for name, form in self.SHOWN if name in self.last)
        if self.progress.live.is_started:
            self.progress.update(self.task, description="  ".join(told))

    def on_train_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        self.progress.start()
        self.task = self.progress.add_task("", total=state.max_steps)

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        self.progress.update(self.task, completed=state.global_step)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.progress.stop()
