"""The context length of a model."""

from __future__ import annotations

import re
from typing import Any

from sft_lab.core.log import log


def positions_of(config: Any) -> int | None:
    """Return the context length in a model's config; None if it has none."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def learned_positions(model: Any) -> int | None:
    """Return the size of a model's table of position embeddings; None without one, as in rotary models.

    In GPT-2 and OPT a token past the end of the table raises an IndexError.
    """
    import torch

    has_table = any(
        isinstance(module, torch.nn.Embedding) and re.search("pos|wpe", name.rpartition(".")[2])
        for name, module in model.named_modules()
    )
    return positions_of(model.config) if has_table else None


def within_positions(length: int, config: Any) -> int:
    """Return a length in tokens, capped at the size of the model's table of position embeddings."""
    positions = positions_of(config)
    if positions is None or length <= positions or (model := empty_model(config)) is None:
        return length
    return learned_positions(model) or length


def empty_model(config: Any) -> Any | None:
    """Return a model without weights (on the meta device); None if its code does not allow that.

    The attention that the config names is not used: it may be a kernel that Transformers would fetch from the Hub.
    """
    import torch
    import transformers

    try:
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(
                config, attn_implementation="eager", trust_remote_code=False
            )
    except Exception as error:  # noqa: BLE001 - a model's code may raise anything; loading it will report it
        log.debug("an empty model cannot be made: %s", error)
        return None
