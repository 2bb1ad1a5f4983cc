"""Checkpoints of an interrupted training: the newest complete one, and that of a training that had ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sft_lab.core.io import read_json


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in a folder; None without one."""
    steps = {
        int(step): path
        for path in folder.glob("checkpoint-*")
        if (step := path.name.removeprefix("checkpoint-")).isdigit()
    }
    newest_first = (steps[step] for step in sorted(steps, reverse=True))
    return next(filter(_is_complete, newest_first), None)


def _is_complete(checkpoint: Path) -> bool:
    """Return whether the file that is written last is valid; a kill may leave a part of it."""
    try:
        read_json(checkpoint / "trainer_state.json")
    except (OSError, ValueError):
        return False
    return True


def load_finished(trainer: Any, checkpoint: Path) -> bool:
    """Load the weights of a training that had done all its steps when it was interrupted.

    The Transformers trainer would do one more step before it saw that none is left.

    Returns:
        Whether it had.
    """
    import transformers

    state = transformers.TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if state.global_step < state.max_steps and not _is_out_of_patience(state, trainer):
        return False
    best = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    trainer._load_from_checkpoint(best or str(checkpoint))  # noqa: SLF001 - as resuming does
    trainer.state = state
    return True


def _is_out_of_patience(state: Any, trainer: Any) -> bool:
    """Return whether early stopping had ended the training that left this state."""
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
