"""The prompted base model: a system prompt and examples before each prompt, a baseline that needs no training.

The messages before the prompt are called its prefix.
"""

from __future__ import annotations

import bisect
import itertools
from typing import TYPE_CHECKING

from sft_lab.core.text import normalize
from sft_lab.core.types import IGNORED
from sft_lab.data.split import group_hash

if TYPE_CHECKING:
    from sft_lab.data.split import Sides
    from sft_lab.evaluation.config import Baseline

MAX_EXAMPLE_CHARACTERS = 200  # of an example's prompt, and of its answer: examples cost context
Messages = list[dict[str, str]]


def few_shot_prefix(baseline: Baseline, sides: Sides) -> Messages:
    """Return the system prompt and the examples.

    Examples are single exchanges, chosen by hash from the training side as it was loaded, so that they are the same
    for every filter and threshold; none has a held-out row's answer.
    """
    system_prompt, rows = baseline.system_prompt, sides.train
    prefix = [{"role": "system", "content": system_prompt}] if system_prompt else []
    if not baseline.examples:
        return prefix

    held_out_answers = {normalize(answer) for (answers,) in sides.held_out_rows.batches("answer") for answer in answers}
    candidates = (
        (group_hash(f"example:{row_id.split('-', 1)[-1]}"), prompt, answer)
        for batch in rows.batches("id", "prompt", "answer", "messages")
        for row_id, prompt, answer, messages in zip(*batch, strict=True)
        if count_answers(messages) == 1
        and 0 < len(prompt) <= MAX_EXAMPLE_CHARACTERS
        and 0 < len(answer) <= MAX_EXAMPLE_CHARACTERS
        and normalize(answer) not in held_out_answers
    )
    chosen: list[tuple[float, str, str]] = []  # the smallest so far
    for candidate in candidates:
        if candidate not in chosen:
            bisect.insort(chosen, candidate)
            del chosen[baseline.examples :]
    for _, prompt, answer in chosen:
        prefix += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return prefix


def count_answers(messages: Messages) -> int:
    """Return how many messages are the assistant's."""
    return sum(message["role"] == "assistant" for message in messages)


def with_prefix(prefix: Messages, messages: Messages, *, takes_system: bool = True) -> Messages:
    """Return a conversation with the prefix before it.

    Two system messages become one, since many templates know one only; where a template takes none, its text goes
    before the first user message's. Plain text, which has no messages, stays as it is.
    """
    if not messages:
        return []
    if not prefix or prefix[0]["role"] != "system":
        number = 1 if messages[0]["role"] == "system" else 0
        return [*messages[:number], *prefix, *messages[number:]]

    system_prompt, examples = prefix[0]["content"], prefix[1:]
    if not takes_system:
        first, *rest = [*examples, *messages]
        return [{**first, "content": f"{system_prompt}\n\n{first['content']}"}, *rest]
    if messages[0]["role"] == "system":
        joined = f"{system_prompt}\n\n{messages[0]['content']}"
        return [{"role": "system", "content": joined}, *examples, *messages[1:]]
    return [*prefix, *messages]


def mask_first_answers(labels: list[int], count: int) -> list[int]:
    """Return labels without the first ``count`` labelled stretches: the answers of the examples."""
    kept: list[int] = []
    stretches = itertools.groupby(labels, key=lambda label: label != IGNORED)
    for number, (_, stretch) in enumerate(stretches):
        values = list(stretch)
        # Stretches alternate, and the first one is unlabelled.
        kept += [IGNORED] * len(values) if number < 2 * count else values
    return kept
