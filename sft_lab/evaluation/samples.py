"""Samples: prompts answered by a model, greedily unless asked otherwise, so that equal weights give equal answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sft_lab.text import CONTROL_TOKENS

BATCH = 8  # prompts answered together


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: without special tokens, stripped.
        ended: it ended its turn; else it was cut at the most tokens allowed.
        stray: control tokens in what it wrote before the end, of its own family or of another.
    """

    text: str
    ended: bool
    stray: list[str]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    *,
    end_ids: list[int],
    max_new_tokens: int,
    sampling: dict[str, float | int] | None = None,
) -> list[Answer]:
    """Answer prompts.

    Args:
        model: a causal language model; put in evaluation mode and back.
        tokenizer: its tokenizer, with a padding token.
        prompts: token ids of each, special tokens and all.
        end_ids: tokens that end an answer.
        max_new_tokens: of one answer.
        sampling: ``temperature``, ``top_p`` and ``top_k`` of Transformers' generation; None: greedy.
    """
    training = model.training
    model.eval()
    answers: dict[int, Answer] = {}
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))  # little padding
    how = {"do_sample": True, **sampling} if sampling else dict.fromkeys(("temperature", "top_p", "top_k"))
    try:
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            ids, mask = _left_padded([prompts[place] for place in batch], tokenizer.pad_token_id)
            device = next(model.parameters()).device
            with torch.no_grad():
                written = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    max_new_tokens=max_new_tokens,
                    **({"do_sample": False} | how),
                    use_cache=True,
                    eos_token_id=end_ids,
                    pad_token_id=tokenizer.pad_token_id,
                )
            for place, row in zip(batch, written[:, ids.shape[1] :].tolist(), strict=True):
                answers[place] = _answer(tokenizer, row, end_ids)
    finally:
        model.train(training)
    return [answers[place] for place in range(len(prompts))]


def _left_padded(prompts: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Give ids and attention mask, shape (prompts, longest); padding before the text, since answers follow it."""
    longest = max(map(len, prompts))
    ids = [[pad_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def _answer(tokenizer: Any, ids: list[int], end_ids: list[int]) -> Answer:
    end = next((place for place, token in enumerate(ids) if token in end_ids), None)
    whole = tokenizer.decode(ids[:end], skip_special_tokens=False)
    known = {*CONTROL_TOKENS, *tokenizer.all_special_tokens}
    stray = sorted(token for token in known if token in whole)
    return Answer(tokenizer.decode(ids[:end], skip_special_tokens=True).strip(), end is not None, stray)
