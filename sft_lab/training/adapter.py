"""The adapter as PEFT is asked for it, for training and for reckoning what a training holds."""

from __future__ import annotations

import difflib
from typing import Any

from sft_lab.errors import ConfigError
from sft_lab.training.options import Full, Lora


def peft_config(options: Full, model: Any, new_tokens: list[int]) -> Any:
    """Give PEFT's config, None for full training: the adapter, and the rows of tokens the model did not know."""
    if not isinstance(options, Lora):
        return None
    import peft

    modules = options.peft.target_modules
    if modules != ["all-linear"]:
        _refuse_unmatched(modules, model)
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=options.peft.r,
        lora_alpha=options.peft.lora_alpha,
        lora_dropout=options.peft.lora_dropout,
        target_modules="all-linear" if modules == ["all-linear"] else modules,
        use_dora=options.peft.use_dora,
        use_rslora=options.peft.use_rslora,
        trainable_token_indices=dict.fromkeys(_vocabulary_layers(model), new_tokens) if new_tokens else None,
    )


def _refuse_unmatched(names: list[str], model: Any) -> None:
    """Refuse a name that no module has: PEFT itself is content with one of several.

    Raises:
        ConfigError: naming those, and the nearest there are.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    if missing := [name for name in names if not any(f".{module}".endswith(f".{name}") for module in modules)]:
        weighty = [name for name, module in modules.items() if getattr(module, "weight", None) is not None]
        known = list(dict.fromkeys(name.rpartition(".")[2] for name in weighty if not name.endswith("norm")))
        near = [close for name in missing for close in difflib.get_close_matches(name, known, n=1)]
        raise ConfigError(
            f"trainer.peft.target_modules={missing}: no module of the model has this name; "
            + (f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}")
        )


def _vocabulary_layers(model: Any) -> list[str]:
    """Names of the input embeddings and the LM head; where they are one matrix PEFT keeps them one."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [name for name, module in model.named_modules() if any(module is layer for layer in layers)]
