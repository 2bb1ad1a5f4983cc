"""Questions whose answers are known, taken from conversations."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from sft_lab.core.types import IGNORED
from sft_lab.data.label_rules import LabelRules
from sft_lab.data.preparation import Ready


class Question(NamedTuple):
    """A prompt whose answer is known; ``ids``: its tokens, up to the answer."""

    prompt: str
    reference: str
    ids: list[int]


def easiest_questions(ready: Ready, count: int, rules: LabelRules) -> list[Question]:
    """Return the first questions of the ``count`` conversations with the shortest answers, in their order."""
    examples = zip(ready.tokens["input_ids"], ready.tokens["labels"], strict=True)
    prompts = [ids[: next((i for i, label in enumerate(labels) if label != IGNORED), 0)] for ids, labels in examples]
    columns = (ready.rows.column("prompt"), ready.rows.column("messages"))
    borders = itertools.pairwise([*ready.first_examples.tolist(), len(prompts)])
    questions = []
    for prompt, messages, (first, stop) in zip(*columns, borders, strict=True):
        if messages:
            answered = messages[min(rules.weights(messages))]
            questions.append(Question(prompt, answered["content"], min(prompts[first:stop], key=len)))
    order = sorted(range(len(questions)), key=lambda index: len(questions[index].reference))
    return [questions[index] for index in sorted(order[:count])]
