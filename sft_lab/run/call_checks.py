"""Tool calls in the answers of a run: how they are read, and how many are valid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sft_lab.evaluation.tool_calls import are_valid, describe_calls

if TYPE_CHECKING:
    from sft_lab.core.rows import Rows
    from sft_lab.data.call_form import CallForm
    from sft_lab.evaluation.generation import Answer
    from sft_lab.run.questions import Output


def has_tools(rows: Rows) -> bool:
    """Return whether some row has tools or calls one."""
    tools = rows.column("tools") if "tools" in rows.table.column_names else []
    return any(tools) or any("tool_calls" in message for messages in rows.column("messages") for message in messages)


def drop_call_tokens(answers: Sequence[Answer], form: CallForm) -> list[Answer]:
    """Return answers whose stray tokens no longer include those that the template writes around calls."""
    own = form.opening + form.following + form.between + form.closing
    return [replace(answer, stray=[token for token in answer.stray if token not in own]) for answer in answers]


def call_numbers(outputs: Sequence[Output], form: CallForm | None) -> dict[str, float]:
    """Return the share of valid calls of a known tool among the answers where a call was expected; nothing without."""
    expected = [output for output in outputs if output.is_call]
    if form is None or not expected:
        return {}
    valid = [are_valid(form.parse(output.answer.raw), schemas_of(output.tools)) for output in expected]
    return {"outputs/call_share": sum(valid) / len(valid)}


def calls_as_text(
    answers: Sequence[Answer], tools: Sequence[list[dict[str, Any]]], form: CallForm | None
) -> list[str]:  # fmt: skip
    """Return the calls in each answer as readable text, empty for an answer without any; an empty list without a form.

    Args:
        answers: of a model.
        tools: that each was given, as JSON schemas.
        form: how the template writes calls.
    """
    if form is None:
        return []
    pairs = zip(answers, tools, strict=True)
    return [describe_calls(form.parse(answer.raw), schemas) for answer, schemas in pairs]


def schemas_of(tools: str | None) -> list[dict[str, Any]]:
    """Return the JSON schemas in a row's column of tools."""
    return [tool for tool in json.loads(tools or "[]") if isinstance(tool, dict)]
