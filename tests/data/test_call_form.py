"""How templates write tool calls, and which calls are in a model's answer."""

from __future__ import annotations

import json
from typing import Any

import chat_shapes
import pytest

from sft_lab.data.call_form import CallForm
from sft_lab.data.renderer import Renderer
from sft_lab.data.template_input import arguments_as_text

SHAPES = ["LLAMA3", "QWEN25", "QWEN3", "MISTRAL", "DEEPSEEK", "CHANNELS"]
SINGLE = ("LLAMA3", "CHANNELS")  # they write one call in a turn
CALLS = [("get_weather", {"city": "Rome }\n</tool_call>", "days": [1, {"a": "{"}]}), ("now", {})]


def renderer(name: str) -> Renderer:
    shape = getattr(chat_shapes, name)
    return Renderer(shape.tokenizer, shape.jinja)


def form(name: str) -> CallForm:
    calls = CallForm.of(renderer(name))
    assert calls
    return calls


def written(name: str, calls: list[tuple[str, dict[str, Any]]]) -> str:
    """What the template writes of a turn with these calls, behind the generation prompt."""
    bound = renderer(name)
    tool_calls = [
        {"id": f"call{number:05}", "type": "function", "function": {"name": function, "arguments": arguments}}
        for number, (function, arguments) in enumerate(calls)
    ]
    turn: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": tool_calls}
    turn = arguments_as_text(turn) if bound.call_style[1] else turn
    tools = [{"type": "function", "function": {"name": function, "parameters": {}}} for function, _ in calls]
    messages, inputs = [{"role": "user", "content": "a"}, turn], {"tools": tools}
    rendered, turns, _ = bound.turns(messages, inputs, [1])
    rendered = rendered if turns else bound.last_turn(messages, inputs)
    start, end = rendered.spans[0]
    return rendered.text[start:end]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("calls", [CALLS[:1], CALLS[1:], CALLS], ids=["nested", "no arguments", "two"])
def test_what_a_template_writes_is_read_back(name: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    if len(calls) > 1 and name in SINGLE:
        pytest.skip("it writes one call in a turn")
    calls = [(function, json.loads(json.dumps(arguments))) for function, arguments in calls]
    text = written(name, calls)
    assert form(name).parse(text) == calls
    assert form(name).parse(text.removesuffix(form(name).end)) == calls
    assert form(name).parse(f"<think>\nA call: {text}\n</think>\n\nNo call.") == []


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_no_call(name: str) -> None:
    text = written(name, CALLS[:1])
    for broken in ("", "Rome is warm.", text[: text.index("days")], text.replace('"days"', "days"), json.dumps(CALLS)):
        assert form(name).parse(broken) == []


def test_white_space_is_free_and_a_broken_second_call_spoils_the_first() -> None:
    calls = form("QWEN25")
    good = '<tool_call>{"name": "now",   "arguments":{}}\n\n</tool_call>'
    assert calls.parse(f"I look.\n{good}") == [("now", {})]
    assert calls.parse(good + good.replace("now", "then")) == [("now", {}), ("then", {})]
    assert calls.parse(good + '\n<tool_call>\n{"name": "then", "arguments": {"a": }}\n</tool_call>') == []
    assert calls.parse('{"name": "now", "arguments": {}}') == []  # without the template's own words


@pytest.mark.parametrize("name", ["CHATML", "GEMMA", "PHI"])
def test_templates_without_calls(name: str) -> None:
    assert CallForm.of(renderer(name)) is None
