"""Saved weights: what a run leaves in ``model/``, and how it is loaded again for measuring and answering."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from sft_lab.core.errors import FolderError
from sft_lab.core.io import follow_mask
from sft_lab.training.peft_config import refuse_other_adapters


def save(
    model: Any,
    tokenizer: Any,
    jinja: str,
    folder: Path,
    *,
    end_ids: list[int],
    base_name: str = "",
    base_revision: str | None = None,
) -> None:
    """Write adapter or model, the tokenizer with the chat template that was trained, and where an answer ends.

    Args:
        model: with or without an adapter.
        tokenizer: is given the template.
        jinja: the template's text.
        folder: for the files.
        end_ids: tokens that end an answer, for ``generation_config.json``.
        base_name: what an adapter's config calls the base model; empty: what it was loaded from.
        base_revision: of that name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Rows of new tokens are in the adapter by themselves; PEFT would put the whole resized matrix beside them.
    adapter = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
    for found in getattr(model, "peft_config", {}).values():
        if base_name:
            found.base_model_name_or_path, found.revision = base_name, base_revision
    model.save_pretrained(folder, safe_serialization=True, **adapter)
    follow_mask(folder)
    tokenizer.chat_template = jinja
    tokenizer.save_pretrained(folder)
    generation = copy.deepcopy(model.generation_config)
    generation.eos_token_id, generation.pad_token_id = end_ids, tokenizer.pad_token_id
    # As it is: save_pretrained refuses what some published models say of sampling once anything else has changed.
    generation.to_json_file(folder / "generation_config.json")


def load(base: Any, folder: Path) -> Any:
    """Give the tuned model.

    Args:
        base: the model that was tuned, as ``Model.load`` gives it; an adapter is put onto it.
        folder: ``model/`` of a run.

    Raises:
        FolderError: if there are no weights in it.
    """
    if not any((folder / name).exists() for name in ("adapter_config.json", "config.json")):
        raise FolderError(f"{folder}: holds no model; the run has not come so far")
    if not any(folder.glob("*.safetensors")):  # PEFT would read a pickle in their place, or ask the Hub
        raise FolderError(f"{folder}: holds no weights in safetensors, and no others are read; train it again")
    try:
        if (folder / "adapter_config.json").exists():
            import peft

            refuse_other_adapters(folder / "adapter_config.json")
            return peft.PeftModel.from_pretrained(base, folder)
        kind = type(base)
        return kind.from_pretrained(folder, dtype=base.dtype, use_safetensors=True, trust_remote_code=False).to(
            base.device
        )
    except FolderError:
        raise
    except Exception as error:  # a broken folder of a stranger makes the libraries raise anything
        said = (str(error).strip().splitlines() or [""])[0]
        raise FolderError(f"{folder}: cannot be loaded ({type(error).__name__}: {said}); train it again") from error
