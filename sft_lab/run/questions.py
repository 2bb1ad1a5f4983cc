"""Questions whose answers are known, taken from conversations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sft_lab.core.rows import Rows
from sft_lab.core.types import IGNORED
from sft_lab.data.preparation import Ready
from sft_lab.data.trained_turns import LabelRules
from sft_lab.evaluation.generation import Answer
from sft_lab.run.call_checks import calls_as_text, schemas_of

if TYPE_CHECKING:
    from sft_lab.data.call_form import CallForm


class Question(NamedTuple):
    """A prompt whose answer is known.

    Attributes:
        prompt: its text.
        reference: the answer; of one that calls tools, what the template writes.
        ids: tokens of the prompt, up to the answer.
        row: its position among the rows.
        tools: JSON text of the tools that the model is given; None without any.
        is_call: whether the answer calls tools.
    """

    prompt: str
    reference: str
    ids: list[int]
    row: int
    tools: str | None = None
    is_call: bool = False


class Output(NamedTuple):
    """A model's answer to a question; ``calls``: the tool calls in it for a reader, None where there are no tools."""

    prompt: str
    reference: str
    answer: Answer
    tools: str | None = None
    is_call: bool = False
    calls: str | None = None


def shortest_questions(
    ready: Ready, count: int, rules: LabelRules, decode: Callable[[list[int]], str]
) -> list[Question]:
    """Return the first questions of the ``count`` conversations with the shortest answers, in the order of the rows.

    Args:
        ready: the conversations.
        count: how many at most.
        rules: which turns train.
        decode: returns the text of tokens.
    """
    labels = ready.tokens["labels"]
    starts = [next((i for i, label in enumerate(row) if label != IGNORED), 0) for row in labels]
    prompts = [ids[:start] for ids, start in zip(ready.tokens["input_ids"], starts, strict=True)]
    tools = ready.rows.column("tools") if "tools" in ready.rows.table.column_names else [None] * len(ready.rows)
    columns = (ready.rows.column("prompt"), ready.rows.column("messages"), tools)
    borders = itertools.pairwise([*ready.first_examples.tolist(), len(prompts)])
    questions, sizes = [], []
    for row, (prompt, messages, schemas, (first, stop)) in enumerate(zip(*columns, borders, strict=True)):
        if messages:
            answered = messages[min(rules.weights(messages))]
            example = min(range(first, stop), key=starts.__getitem__)
            reference, is_call = answered["content"], "tool_calls" in answered
            if is_call:
                reference = decode([*itertools.takewhile(IGNORED.__ne__, labels[example][starts[example] :])])
            questions.append(Question(prompt, reference, prompts[example], row, schemas, is_call))
            sizes.append(len(answered["content"]))  # so that calls, which seldom have a text, are among them
    order = sorted(range(len(questions)), key=sizes.__getitem__)
    return [questions[index] for index in sorted(order[:count])]


def answer_questions(
    questions: list[Question],
    generate_answers: Callable[[list[list[int]]], list[Answer]],
    form: CallForm | None = None,
) -> list[Output]:
    """Return a model's answers to questions, in their order.

    Args:
        questions: to be answered.
        generate_answers: by the model, to tokens of prompts.
        form: how calls are written; None where there are no tools.
    """
    answers = generate_answers([question.ids for question in questions])
    tools = [schemas_of(question.tools) for question in questions]
    calls: Sequence[str | None] = calls_as_text(answers, tools, form) if form else [None] * len(questions)
    return [
        Output(question.prompt, question.reference, answer, question.tools, question.is_call, described)
        for question, answer, described in zip(questions, answers, calls, strict=True)
    ]


def question_rows(questions: list[Question], rows: Rows) -> list[dict[str, Any]]:
    """Return the rows that questions were taken from, each as its columns and the ``reference`` answer."""
    asked_rows = rows.take(np.array([question.row for question in questions], np.int64))
    columns = {name: asked_rows.column(name) for name in rows.table.column_names}
    return [
        {**dict(zip(columns, values, strict=True)), "reference": question.reference}
        for question, *values in zip(questions, *columns.values(), strict=True)
    ]
