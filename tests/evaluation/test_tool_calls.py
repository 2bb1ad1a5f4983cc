"""Whether a call fits one of the tools."""

from __future__ import annotations

from typing import Any

import pytest

from sft_lab.evaluation.tool_calls import are_valid, call_problem, describe_calls

PLACE = {"type": "object", "required": ["x"], "properties": {"x": {"type": "number"}}}
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"enum": ["C", "F"]},
        "places": {"type": "array", "items": PLACE},
        "note": {"type": ["string", "null"]},
        "odd": {"type": "color"},
    },
    "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}, {"name": "now"}]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"city": "Rome", "days": 3, "unit": "C", "places": [{"x": 1.5}], "note": None, "odd": 7}, ""),
        ({"city": "Rome", "days": 3.0}, ""),
        ({}, "arguments lacks city"),
        ({"city": 3}, 'arguments.city is not of type "string"'),
        ({"city": "Rome", "days": True}, 'arguments.days is not of type "integer"'),
        ({"city": "Rome", "days": 3.5}, 'arguments.days is not of type "integer"'),
        ({"city": "Rome", "unit": "K"}, 'arguments.unit is not one of ["C", "F"]'),
        ({"city": "Rome", "places": [{"x": 1}, {}]}, "arguments.places[1] lacks x"),
        ({"city": "Rome", "note": 3}, 'arguments.note is not of type ["string", "null"]'),
        ({"city": "Rome", "town": "Rome"}, "arguments has no town"),
    ],
)
def test_arguments(arguments: dict[str, Any], problem: str) -> None:
    assert call_problem("weather", arguments, TOOLS) == problem
    assert are_valid([("weather", arguments)], TOOLS) is (not problem)


def test_tools_with_and_without_parameters() -> None:
    assert call_problem("now", {"anything": 1}, TOOLS) == ""
    assert call_problem("then", {}, TOOLS) == "no such tool"
    assert not are_valid([], TOOLS)
    assert not are_valid([("now", {}), ("then", {})], TOOLS)
    for parameters in ("none", {"required": "city"}, {"properties": 3}, {"type": {}}, {"enum": 3}):  # no schemas
        assert call_problem("odd", {"city": 1}, [{"name": "odd", "parameters": parameters}]) == ""
    deep: dict[str, Any] = {}
    for _ in range(2000):
        deep = {"properties": {"a": deep}}
    assert call_problem("odd", {"a": {"a": {}}}, [{"name": "odd", "parameters": deep}]) == ""


def test_calls_for_a_reader() -> None:
    calls = [("weather", {"city": "القاهرة"}), ("then", {})]
    assert describe_calls(calls, TOOLS) == 'weather {"city": "القاهرة"}\nthen {}  (no such tool)'
