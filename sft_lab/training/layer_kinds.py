"""Layers that keep a state from token to token: rows that share a packed block would leak into one another."""

from __future__ import annotations

import re
from typing import Any

from sft_lab.core.errors import ConfigError

# Attention knows the rows' borders by their positions. These kinds do so in some kernels alone, which none of our tests
# has shown to keep rows apart.
STATEFUL = re.compile("linear|mamba|recurrent|conv|hybrid|rwkv|ssm|lstm|delta", re.IGNORECASE)
FIELDS = ("layer_types", "layers_block_type", "block_types")


def stateful_kind(config: Any) -> str:
    """Return the kind of a model's layers that keep a state, by its config; empty where all layers are attention."""
    text_config = config.get_text_config(decoder=True)
    kinds = [kind for name in FIELDS for kind in getattr(text_config, name, None) or ()]
    return next((kind for kind in (*kinds, text_config.model_type) if STATEFUL.search(str(kind))), "")


def refuse_leaking_blocks(config: Any) -> None:
    """Refuse packing for a model with layers that keep a state.

    Raises:
        ConfigError: naming the kind of layer.
    """
    if kind := stateful_kind(config):
        raise ConfigError(
            f"trainer.packing=true: this model ({config.model_type}) has layers of the kind {kind}, which keep a state "
            "from token to token, so that rows in one block would leak into one another; set trainer.packing=false"
        )
