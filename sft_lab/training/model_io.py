"""Saving the tuned model to ``model/``, and loading it for measuring and generating."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sft_lab.core.errors import FolderError, SftLabError
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
    """Write adapter or model, the tokenizer with training's chat template, and the tokens that end an answer.

    Args:
        model: with or without an adapter.
        tokenizer: whose ``chat_template`` is set.
        jinja: the template's text.
        folder: for the files.
        end_ids: tokens that end an answer, for ``generation_config.json``.
        base_name: of the base model, for an adapter's config; empty: where it was loaded from.
        base_revision: of the base model.
    """
    folder.mkdir(parents=True, exist_ok=True)

    # The adapter contains the rows of new tokens; PEFT would save the whole resized matrix as well.
    options = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
    for adapter in getattr(model, "peft_config", {}).values():
        if base_name:
            adapter.base_model_name_or_path, adapter.revision = base_name, base_revision
    model.save_pretrained(folder, safe_serialization=True, **options)
    follow_mask(folder)

    tokenizer.chat_template = jinja
    tokenizer.save_pretrained(folder)

    generation = copy.deepcopy(model.generation_config)
    generation.eos_token_id, generation.pad_token_id = end_ids, tokenizer.pad_token_id
    # save_pretrained refuses the sampling settings of some published models once anything has changed.
    generation.to_json_file(folder / "generation_config.json")


def load(folder: Path, load_base: Callable[[], Any], load_whole: Callable[[Path], Any]) -> Any:
    """Return the tuned model; after full training, the base model is not loaded.

    Args:
        folder: ``model/`` of a run.
        load_base: returns the base model, on which an adapter is put.
        load_whole: returns the model with all its weights in a folder, such as ``Model.load_saved``.

    Raises:
        FolderError: if it has no weights, or they cannot be loaded.
    """
    has_adapter = (folder / "adapter_config.json").exists()
    if not has_adapter and not (folder / "config.json").exists():
        raise FolderError(f"{folder}: has no model; the run ended before it was saved")
    if not any(folder.glob("*.safetensors")):  # PEFT would read a pickle instead, or ask the Hub
        raise FolderError(f"{folder}: has no weights in safetensors, the only format that is loaded; train it again")

    if has_adapter:
        refuse_other_adapters(folder / "adapter_config.json")
    base = load_base() if has_adapter else None
    try:
        if has_adapter:
            import peft

            return peft.PeftModel.from_pretrained(base, folder)
        return load_whole(folder)
    except SftLabError:
        raise
    except Exception as error:  # for a broken folder, the libraries may raise anything
        reason = (str(error).strip().splitlines() or [""])[0]
        raise FolderError(f"{folder}: cannot be loaded ({type(error).__name__}: {reason}); train it again") from error
