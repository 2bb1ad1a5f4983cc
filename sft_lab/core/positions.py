"""How many tokens a model can read at once, and whether there is anything beyond."""

from __future__ import annotations

import re
from typing import Any

from sft_lab.core.log import log


def positions_of(config: Any) -> int | None:
    """Return how many tokens a model was made to read at once, None where its config does not tell."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def learned_positions(model: Any) -> int | None:
    """Return the rows of a model's table of positions, None for one without, as rotary models are.

    GPT-2 and OPT look positions up: a token past the table ends in an IndexError.
    """
    import torch

    has_table = any(
        isinstance(module, torch.nn.Embedding) and re.search("pos|wpe", name.rpartition(".")[2])
        for name, module in model.named_modules()
    )
    return positions_of(model.config) if has_table else None


def within_positions(length: int, config: Any) -> int:
    """Return a length in tokens, or what the model's table of positions has where that is less."""
    positions = positions_of(config)
    if positions is None or length <= positions or (model := empty_model(config)) is None:
        return length
    return learned_positions(model) or length


def empty_model(config: Any) -> Any | None:
    """Return a model's modules without weights, None where its own code cannot make them so."""
    import torch
    import transformers

    try:
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - code of a model's own raises what it likes; loading it will tell
        log.debug("an empty model cannot be made: %s", error)
        return None
