"""The adapter as PEFT is asked for it, for training and for reckoning what a training holds."""

from __future__ import annotations

from typing import Any

from sft_lab.training.options import Full, Lora


def peft_config(options: Full, model: Any, new_tokens: list[int]) -> Any:
    """Give PEFT's config, None for full training: the adapter, and the rows of tokens the model did not know."""
    if not isinstance(options, Lora):
        return None
    import peft

    modules = options.peft.target_modules
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


def _vocabulary_layers(model: Any) -> list[str]:
    """Names of the input embeddings and the LM head; where they are one matrix PEFT keeps them one."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [name for name, module in model.named_modules() if any(module is layer for layer in layers)]
