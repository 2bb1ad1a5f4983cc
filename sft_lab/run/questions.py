"""Questions whose answers are known, taken from conversations."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sft_lab.core.rows import Rows
from sft_lab.core.types import IGNORED
from sft_lab.data.label_rules import LabelRules
from sft_lab.data.preparation import Ready
from sft_lab.evaluation.generation import Answer


class Question(NamedTuple):
    """A prompt whose answer is known; ``ids``: its tokens, up to the answer; ``row``: its position among the rows."""

    prompt: str
    reference: str
    ids: list[int]
    row: int


class Output(NamedTuple):
    """A model's answer to a question."""

    prompt: str
    reference: str
    answer: Answer


def easiest_questions(ready: Ready, count: int, rules: LabelRules) -> list[Question]:
    """Return the first questions of the ``count`` conversations with the shortest answers, in their order."""
    examples = zip(ready.tokens["input_ids"], ready.tokens["labels"], strict=True)
    prompts = [ids[: next((i for i, label in enumerate(labels) if label != IGNORED), 0)] for ids, labels in examples]
    columns = (ready.rows.column("prompt"), ready.rows.column("messages"))
    borders = itertools.pairwise([*ready.first_examples.tolist(), len(prompts)])
    questions = []
    for row, (prompt, messages, (first, stop)) in enumerate(zip(*columns, borders, strict=True)):
        if messages:
            answered = messages[min(rules.weights(messages))]
            questions.append(Question(prompt, answered["content"], min(prompts[first:stop], key=len), row))
    order = sorted(range(len(questions)), key=lambda index: len(questions[index].reference))
    return [questions[index] for index in sorted(order[:count])]


def answer_questions(
    questions: list[Question], generate_answers: Callable[[list[list[int]]], list[Answer]]
) -> list[Output]:
    """Return a model's answers to questions, in their order."""
    answers = generate_answers([question.ids for question in questions])
    return [
        Output(question.prompt, question.reference, answer) for question, answer in zip(questions, answers, strict=True)
    ]


def rows_asked(questions: list[Question], rows: Rows) -> list[dict[str, Any]]:
    """Return the rows that questions were taken from, each as its columns and the ``reference`` answer."""
    asked_rows = rows.take(np.array([question.row for question in questions], np.int64))
    columns = {name: asked_rows.column(name) for name in rows.table.column_names}
    return [
        {**dict(zip(columns, values, strict=True)), "reference": question.reference}
        for question, *values in zip(questions, *columns.values(), strict=True)
    ]
