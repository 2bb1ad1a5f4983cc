"""Checkpoints of an interrupted training."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sft_lab.core.io import read_json, write_json

UNLOGGED = "unlogged.json"  # in a checkpoint


@dataclass
class Unlogged:
    """The sums since training's last log entry, for a checkpoint between two entries.

    Attributes:
        loss: the sum of the losses of these steps.
        last_logged: the step of the last log entry.
        metrics: of TRL, by name, with a value for each batch.
        tokens: trained since the first step.
    """

    loss: float
    last_logged: int
    metrics: dict[str, list[float]]
    tokens: int

    def write(self, checkpoint: Path) -> None:
        """Write the sums into the folder of a checkpoint."""
        write_json(checkpoint / UNLOGGED, asdict(self))

    @classmethod
    def read(cls, checkpoint: Path) -> Unlogged | None:
        """Return the sums in a checkpoint; None if it has none, like those of older versions."""
        try:
            content = read_json(checkpoint / UNLOGGED)
            metrics = {name: [_number(value) for value in values] for name, values in content["metrics"].items()}
            return cls(_number(content["loss"]), int(content["last_logged"]), metrics, int(content["tokens"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)  # JSON has no NaN


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in a folder; None if there is none."""
    steps = {
        int(step): path
        for path in folder.glob("checkpoint-*")
        if (step := path.name.removeprefix("checkpoint-")).isdigit()
    }
    newest_first = (steps[step] for step in sorted(steps, reverse=True))
    return next(filter(_is_complete, newest_first), None)


def _is_complete(checkpoint: Path) -> bool:
    """Return whether the file that is written last is valid; a kill may have cut it short."""
    try:
        read_json(checkpoint / "trainer_state.json")
    except (OSError, ValueError):
        return False
    return True


def is_out_of_patience(state: Any, trainer: Any) -> bool:
    """Return whether early stopping had ended the training with this state."""
    import transformers

    patience = next(
        (
            callback.early_stopping_patience
            for callback in trainer.callback_handler.callbacks
            if isinstance(callback, transformers.EarlyStoppingCallback)
        ),
        None,
    )
    saved = (state.stateful_callbacks or {}).get("EarlyStoppingCallback") or {}
    count: int = saved.get("attributes", {}).get("early_stopping_patience_counter", 0)
    return patience is not None and count >= patience
