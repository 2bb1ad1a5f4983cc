"""Generation of answers, greedy by default, so that equal weights give equal answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from sft_lab.core.positions import learned_positions
from sft_lab.core.text import CONTROL_TOKENS
from sft_lab.evaluation.arithmetic import in_weight_dtype

BATCH = 8  # prompts answered together


@dataclass(frozen=True)
class Answer:
    """A model's answer to a prompt.

    Attributes:
        text: without special tokens, stripped.
        ended: whether the model ended its turn, and was not cut off at ``max_new_tokens``.
        stray: control tokens in the text before its end, of this or another model family.
        raw: the text with its control tokens, with which tool calls may begin; empty if it was not kept.
    """

    text: str
    ended: bool
    stray: list[str]
    raw: str = field(default="", compare=False)


def generate(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    *,
    end_ids: list[int],
    max_new_tokens: int,
    sampling: dict[str, float | int] | None = None,
) -> list[Answer]:
    """Return the model's answers to prompts, in their order.

    A model with learned positions stops at the last one; if a prompt leaves none, its answer is empty.

    Args:
        model: a causal language model; put in evaluation mode and back.
        tokenizer: with a padding token.
        prompts: token ids of each, special tokens included.
        end_ids: tokens that end an answer.
        max_new_tokens: in an answer.
        sampling: ``temperature``, ``top_p`` and ``top_k`` of Transformers' generation; None: greedy.
    """
    training = model.training
    model.eval()
    _switch_off_router_logits(model)
    answers: dict[int, Answer] = {}
    limit = learned_positions(model)
    room = {index: max_new_tokens if limit is None else limit - len(ids) for index, ids in enumerate(prompts)}
    answers |= {index: Answer("", ended=False, stray=[]) for index in room if room[index] < 1}
    # prompts of similar length need little padding
    order = sorted((index for index in room if room[index] >= 1), key=lambda index: len(prompts[index]))
    strategy = {"do_sample": True, **sampling} if sampling else dict.fromkeys(("temperature", "top_p", "top_k"))
    try:
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            ids, mask = _left_padded([prompts[index] for index in batch], tokenizer.pad_token_id)
            device = next(model.parameters()).device
            with torch.no_grad(), in_weight_dtype(model):
                written = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    max_new_tokens=min(max_new_tokens, room[batch[-1]]),
                    **({"do_sample": False} | strategy),
                    use_cache=True,
                    eos_token_id=end_ids,
                    pad_token_id=tokenizer.pad_token_id,
                )
            for index, row in zip(batch, written[:, ids.shape[1] :].tolist(), strict=True):
                answers[index] = _answer(tokenizer, row, end_ids)
    finally:
        model.train(training)
    return [answers[index] for index in range(len(prompts))]


def _switch_off_router_logits(model: Any) -> None:
    """Switch off a mixture of experts' router logits, whose balancing loss fails when generating with a cache."""
    config = model.config.get_text_config()
    if getattr(config, "output_router_logits", False):
        config.output_router_logits = False


def _left_padded(prompts: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, shape (prompts, longest); padding comes first, since answers follow."""
    longest = max(map(len, prompts))
    ids = [[pad_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def _answer(tokenizer: Any, ids: list[int], end_ids: list[int]) -> Answer:
    end = next((index for index, token in enumerate(ids) if token in end_ids), None)
    raw_text = tokenizer.decode(ids[:end], skip_special_tokens=False)
    control_tokens = {*CONTROL_TOKENS, *tokenizer.all_special_tokens}
    stray = sorted(token for token in control_tokens if token in raw_text)
    text = tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
    if end is None:  # perhaps cut within a character of several tokens
        text = text.rstrip("\ufffd")
    return Answer(text, end is not None, stray, raw_text)
