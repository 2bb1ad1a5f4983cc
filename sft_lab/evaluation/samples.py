"""Samples: fixed prompts answered by a model, greedily, so that the same weights give the same answer."""

from __future__ import annotations

from typing import Any

import torch

Message = dict[str, str]


def generate(model: Any, tokenizer: Any, prompts: list[str], *, end_ids: list[int], max_new_tokens: int) -> list[str]:
    """Answer rendered prompts.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, with a padding token.
        prompts: rendered texts, special tokens and all.
        end_ids: tokens that end an answer.
        max_new_tokens: of one answer.

    Returns:
        The answers without special tokens.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    answers = []
    try:
        for prompt in prompts:
            ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(device)
            with torch.no_grad():
                written = model.generate(
                    **{name: ids[name] for name in ("input_ids", "attention_mask")},
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    use_cache=True,
                    eos_token_id=end_ids,
                    pad_token_id=tokenizer.pad_token_id,
                )
            new = written[0, ids["input_ids"].shape[1] :]
            answers.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    finally:
        model.train(training)
    return answers
