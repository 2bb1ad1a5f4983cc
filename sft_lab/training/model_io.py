"""Saved weights: what a run leaves in ``model/``, and how it is loaded again for measuring and generating."""

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
    """Write adapter or model, the tokenizer with the chat template of training, and the tokens that end an answer.

    Args:
        model: with or without an adapter.
        tokenizer: its ``chat_template`` is set.
        jinja: the template's text.
        folder: for the files.
        end_ids: tokens that end an answer, for ``generation_config.json``.
        base_name: the base model in an adapter's config; empty: what it was loaded from.
        base_revision: of that name.
    """
    folder.mkdir(parents=True, exist_ok=True)

    # The adapter holds the rows of new tokens itself; PEFT would put the resized matrix beside them.
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
    # save_pretrained would refuse the sampling settings of some published models once anything else has changed.
    generation.to_json_file(folder / "generation_config.json")


def load(folder: Path, load_base: Callable[[], Any], load_whole: Callable[[Path], Any]) -> Any:
    """Return the tuned model; where all weights were trained, the base model is not loaded beside it.

    Args:
        folder: ``model/`` of a run.
        load_base: returns the model that was tuned; an adapter is put on it.
        load_whole: returns the model whose weights are all in a folder, as ``Model.load_saved`` does.

    Raises:
        FolderError: if it holds no weights, or they cannot be loaded.
    """
    has_adapter = (folder / "adapter_config.json").exists()
    if not has_adapter and not (folder / "config.json").exists():
        raise FolderError(f"{folder}: holds no model; the run ended before it was saved")
    if not any(folder.glob("*.safetensors")):  # PEFT would read a pickle in their place, or ask the Hub
        raise FolderError(f"{folder}: holds no weights in safetensors, and no others are read; train it again")

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
    except Exception as error:  # a broken folder makes the libraries raise anything
        reason = (str(error).strip().splitlines() or [""])[0]
        raise FolderError(f"{folder}: cannot be loaded ({type(error).__name__}: {reason}); train it again") from error
