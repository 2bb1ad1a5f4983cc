"""Messages: tools, calls, thoughts, weights and names survive every kind of file and are exported as JSON objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft_lab.core.context import StageContext
from sft_lab.data.load import Loaded, Turns
from sft_lab.data.sources import File

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


def call(name: str, arguments: Any, call_id: str = "c1") -> dict[str, Any]:
    return {"type": "function", "id": call_id, "function": {"name": name, "arguments": arguments}}


USER = {"role": "user", "content": "How warm is it in Rome?"}
CALL = {"role": "assistant", "content": "", "tool_calls": [call("weather", {"city": "Rome"})]}
RESULT = {"role": "tool", "content": "31", "tool_call_id": "c1", "name": "weather"}
ANSWER = {"role": "assistant", "content": "31 degrees.", "reasoning_content": "Only say the number."}
TALK = [USER, CALL, RESULT, ANSWER]


def load(context: StageContext, path: Path, **knobs: Any) -> Loaded:
    return File(path=str(path), turns=Turns.all, **knobs)(context)


def messages_of(loaded: Loaded) -> list[dict[str, Any]]:
    """Return the messages of the first row, their calls as objects."""
    messages = loaded.rows.column("messages")[0]
    return [
        message | ({"tool_calls": json.loads(message["tool_calls"])} if "tool_calls" in message else {})
        for message in messages
    ]


def test_messages_of_openai_are_carried_with_all_that_is_given(context: StageContext, write: Any) -> None:
    developer = {"role": "developer", "content": "Be short."}
    user = {**USER, "name": "ann"}
    answer = {**ANSWER, "weight": 0.5}
    loaded = load(context, write({"messages": [developer, user, CALL, RESULT, answer], "tools": [WEATHER]}))
    assert messages_of(loaded) == [developer, user, CALL, RESULT, answer]
    assert [json.loads(text) for text in loaded.rows.column("tools")] == [[WEATHER]]
    assert loaded.rows.column("system") == ["Be short."]
    assert loaded.rows.column("prompt") == [USER["content"]]
    assert loaded.rows.column("answer") == [json.dumps(CALL["tool_calls"]) + "\n31 degrees."]
    assert not context.notices


def test_other_names_of_the_same(context: StageContext, write: Any) -> None:
    turns = [
        {"from": "human", "value": "How warm is it in Rome?"},
        {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": "Rome"}})},
        {"from": "observation", "value": "31"},
        {"from": "gpt", "value": "31 degrees.", "thinking": "Only say the number.", "train": False},
        {"from": "human", "value": "And the time?"},
        {"from": "gpt", "value": None, "function_call": {"name": "clock", "arguments": "{}"}},
    ]
    record = {"conversations": turns, "tools": json.dumps([WEATHER, CLOCK]), "system": "Be short."}
    loaded = load(context, write(record))
    without_id = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    assert messages_of(loaded) == [
        {"role": "system", "content": "Be short."},
        USER,
        {"role": "assistant", "content": "", "tool_calls": [without_id]},
        {"role": "tool", "content": "31"},
        {**ANSWER, "weight": 0.0},
        {"role": "user", "content": "And the time?"},
        {"role": "assistant", "content": "",
         "tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": "{}"}}]},
    ]  # fmt: skip
    assert [json.loads(text) for text in loaded.rows.column("tools")] == [[WEATHER, CLOCK]]
    assert not context.notices


@pytest.mark.parametrize("is_nested", [False, True])
def test_arguments_may_be_called_parameters(context: StageContext, write: Any, is_nested: bool) -> None:
    call: dict[str, Any] = {"name": "weather", "parameters": {"city": "Rome"}}
    turns = [USER, {"role": "assistant", "tool_calls": [{"function": call} if is_nested else call]}]
    loaded = load(context, write({"messages": turns, "tools": [WEATHER]}))
    (message,) = messages_of(loaded)[1:]
    assert message["tool_calls"] == [
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    ]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "json feature", "jsonl"])
def test_what_arrow_pads_with_nulls_is_taken_out_again(context: StageContext, tmp_path: Path, kind: str) -> None:
    """One column holds the schemas of different tools, each with the fields of all of them."""
    other = [USER, {**CALL, "tool_calls": [call("clock", {"zone": {"hours": 2}})]}]
    records = [
        {"messages": TALK, "tools": [WEATHER], "chat_template_kwargs": {"thinking": True}},
        {"messages": other, "tools": [CLOCK], "chat_template_kwargs": {"date": "today"}},
    ]
    path = tmp_path / f"rows.{kind.removesuffix(' feature')}"
    if kind == "json feature":
        json_list = datasets.List(datasets.Json())
        features = datasets.Features(
            {"messages": json_list, "tools": json_list, "chat_template_kwargs": datasets.Json()}
        )
        datasets.Dataset.from_list(records, features=features).to_parquet(path := tmp_path / "rows.parquet")
    elif kind == "jsonl":  # as an export of an Arrow table writes it
        path.write_text("".join(json.dumps(record) + "\n" for record in pa.Table.from_pylist(records).to_pylist()))
        assert "null" in path.read_text()
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        table = pa.Table.from_pylist(records)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    rows = load(context, path).rows
    assert messages_of(load(context, path)) == TALK
    assert [json.loads(text) for text in rows.column("tools")] == [[WEATHER], [CLOCK]]
    assert [json.loads(text) for text in rows.column("template_kwargs")] == [{"thinking": True}, {"date": "today"}]
    arguments = json.loads(rows.column("messages")[1][1]["tool_calls"])[0]["function"]["arguments"]
    assert arguments == {"zone": {"hours": 2}}


def test_plain_rows_have_two_fields_and_no_tools(context: StageContext, write: Any) -> None:
    rows = load(context, write({"prompt": "Hi?", "completion": "Hello.", "tools": "[]", "documents": []})).rows
    assert rows.column("messages") == [[{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]]
    assert rows.column("tools") == rows.column("template_kwargs") == rows.column("documents") == [None]


@pytest.mark.parametrize("page", ["many_turns", "tools", "thoughts"])
def test_the_rows_in_the_documentation_are_read(context: StageContext, write: Any, page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in text.split("```json\n")[1:]]
    lines = [line for block in blocks for line in block.splitlines() if "assistant" in line or "gpt" in line]
    assert len(lines) >= 2
    for number, line in enumerate(lines):
        loaded = load(context, write(json.loads(line), name=f"{number}.jsonl"))
        assert loaded.selection.reason == [""]
        assert not context.notices
