"""Saved weights: what a run left in ``model/``, loaded again for measuring and answering."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sft_lab.errors import FolderError


def load(base: Any, folder: Path) -> Any:
    """Give the tuned model.

    Args:
        base: the model that was tuned, as ``Model.load`` gives it; an adapter is put onto it.
        folder: ``model/`` of a run.

    Raises:
        FolderError: if there are no weights in it.
    """
    if (folder / "adapter_config.json").exists():
        import peft

        return peft.PeftModel.from_pretrained(base, folder)
    if (folder / "config.json").exists():
        return type(base).from_pretrained(folder, dtype=base.dtype, use_safetensors=True).to(base.device)
    raise FolderError(f"{folder}: holds no model; the run has not come so far")
