"""How a training is watched: what each log entry becomes, and a bar on a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import transformers

from sft_lab.bench import log

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
        measure: gives the held-out metrics of a model, None without held-out rows.
        record: takes each logging event.
        tokens_before: seen before the checkpoint that training goes on from.
    """

    measure: Callable[[Any], Event] | None
    record: Callable[[Event], None]
    tokens_before: int = 0
    seconds: float = field(default=0.0, init=False)


class Recorder(transformers.TrainerCallback):  # type: ignore[misc]
    """Passes each log entry on under our names, and stops at a loss that is no number."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_log(self, _: Any, state: Any, control: Any, logs: Event | None = None, **__: Any) -> None:
        event = {NAMES[name]: float(value) for name, value in (logs or {}).items() if name in NAMES}
        if "train/loss" not in event:
            return
        if "train/num_tokens" in event:  # TRL counts from 0 again when it goes on
            event["train/num_tokens"] += self.watch.tokens_before
        self.watch.record({"step": state.global_step, "epoch": state.epoch or 0.0, **event})
        if not math.isfinite(event["train/loss"]):
            log.warning("train: the loss is %s at step %d; training stops", event["train/loss"], state.global_step)
            control.should_training_stop = True


class Bar(transformers.TrainerCallback):  # type: ignore[misc]
    """A progress bar on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=Console(stderr=True), transient=True)

    def on_train_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        self.progress.start()
        self.task = self.progress.add_task("train", total=state.max_steps)

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        self.progress.update(self.task, completed=state.global_step)

    def on_log(self, _: Any, __: Any, ___: Any, logs: Event | None = None, **____: Any) -> None:
        if logs and "loss" in logs:
            self.progress.update(self.task, description=f"train  loss {float(logs['loss']):.3f}")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.progress.stop()
