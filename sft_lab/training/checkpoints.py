"""Checkpoints of an interrupted training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sft_lab.core.io import read_json


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
