"""What a cut-off training left: its newest whole checkpoint, and whether it had come to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sft_lab.core.io import read_json


def last_checkpoint(folder: Path) -> Path | None:
    """Find the newest whole checkpoint in a folder, None without one."""
    found = [one for one in folder.glob("checkpoint-*") if one.name.removeprefix("checkpoint-").isdigit()]
    newest = sorted(found, key=lambda one: int(one.name.removeprefix("checkpoint-")), reverse=True)
    return next(filter(_is_whole, newest), None)


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint's last file was written to its end; a kill leaves a part, which starts nothing."""
    try:
        read_json(checkpoint / "trainer_state.json")
    except (OSError, ValueError):
        return False
    return True


def out_of_patience(state: Any, trainer: Any) -> bool:
    """Whether early stopping had ended the training that left this state."""
    import transformers

    patience = [one.early_stopping_patience for one in trainer.callback_handler.callbacks
                if isinstance(one, transformers.EarlyStoppingCallback)]  # fmt: skip
    told = (state.stateful_callbacks or {}).get("EarlyStoppingCallback") or {}
    counted = told.get("attributes", {}).get("early_stopping_patience_counter", 0)
    return bool(patience) and counted >= patience[0]
