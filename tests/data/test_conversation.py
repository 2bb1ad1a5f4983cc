"""Conversations: which turns become a row, how the others are counted, and the cause of every dropped row."""

from __future__ import annotations

import json
import math
from typing import Any, get_args

import pytest

from sft_lab.core import parquet
from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError
from sft_lab.data.load import BadAnswers, Consecutive, LeadingAssistant, Loaded, Turns
from sft_lab.data.messages import RecordReason
from sft_lab.data.sources import File
from sft_lab.data.trained_turns import TrainOn

ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


def talk(*turns: str, **columns: Any) -> dict[str, Any]:
    """Return a record: ``talk("u Hi?", "a Hello.")``."""
    return {"messages": [{"role": ROLES[turn[0]], "content": turn[2:]} for turn in turns], **columns}


def turns_of(loaded: Loaded, row: int = 0) -> list[str]:
    return [f"{message['role'][0]} {message['content']}" for message in loaded.rows.column("messages")[row]]


def load(context: StageContext, path: Any, **knobs: Any) -> Loaded:
    return File(path=str(path), **{"turns": Turns.all, **knobs})(context)


def test_a_system_column_stands_before_any_kind_of_conversation(context: StageContext, write: Any) -> None:
    for name, record in {
        "messages": talk("u Hi?", "a Hello."),
        "sharegpt": {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]},
        "pair": {"prompt": "Hi?", "completion": "Hello."},
        "question": {"question": "Hi?", "answer": "Hello."},
        "alpaca": {"instruction": "Hi?", "output": "Hello."},
        "preference": {"prompt": "Hi?", "chosen": "Hello.", "rejected": "No."},
    }.items():
        loaded = load(context, write(record | {"system": "Be kind."}, name=f"{name}.jsonl"))
        assert turns_of(loaded) == ["s Be kind.", "u Hi?", "a Hello."], name
        assert loaded.rows.column("system") == ["Be kind."]
    assert not any("system" in notice for notice in context.notices)


@pytest.mark.parametrize(("column", "system"), [("Be kind.", "Be kind."), ("Be brief.", "Be brief.\n\nBe kind.")])
def test_a_system_column_and_a_system_turn(context: StageContext, write: Any, column: str, system: str) -> None:
    loaded = load(context, write(talk("s Be kind.", "u Hi?", "a Hello.", system=column)))
    assert loaded.rows.column("system") == [system]


def test_the_history_of_alpaca_is_earlier_turns(context: StageContext, write: Any) -> None:
    record = {
        "instruction": "And now?",
        "input": "",
        "output": "Three.",
        "history": [["One?", "One."], ["Two?", "Two."]],
    }
    loaded = load(context, write(record, record | {"history": []}, record | {"history": "[[1]]"}))
    assert turns_of(loaded) == ["u One?", "a One.", "u Two?", "a Two.", "u And now?", "a Three."]
    assert turns_of(loaded, 1) == ["u And now?", "a Three."]
    assert loaded.selection.cause[2] == "history is not a list of pairs"
    assert not any("history" in notice and "not read" in notice for notice in context.notices)


@pytest.mark.parametrize("column", ["label", "kto_tag"])
def test_answers_marked_as_bad_are_dropped_unless_they_are_wanted(
    context: StageContext, write: Any, column: str
) -> None:
    pair = {"prompt": "Hi?", "completion": "Go away."}
    path = write(pair | {column: False}, pair | {column: True}, pair | {column: "False"}, pair | {column: 0}, pair)
    loaded = load(context, path)
    assert loaded.selection.reason == ["bad_answer", "", "bad_answer", "", ""]
    assert loaded.selection.cause[0] == f"{column} is false: its answer is a bad example"
    assert f"`{column}` in 1 row;" in context.notices[0]  # the number: another kind of label
    kept = load(StageContext(context.store), path, bad_answers=BadAnswers.keep)
    assert kept.selection.reason == [""] * 5
    plain_text = load(context, write({"text": "Once upon a time.", column: False}, name="text.jsonl"))
    assert plain_text.selection.reason == [""]


@pytest.mark.parametrize("form", ["list", "json text", "lists by name"])
def test_a_conversation_under_a_name_of_ones_own(context: StageContext, write: Any, form: str) -> None:
    turns: Any = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello.", "mood": "glad"}]
    if form == "json text":
        turns = json.dumps(turns)
    elif form == "lists by name":
        turns = {"role": ["user", "assistant"], "content": ["Hi?", "Hello."], "mood": [None, "glad"]}
    tool = {"name": "clock"}
    record = {"dialog": turns, "order": "Be kind.", "functions": [tool], "system": "Old."}
    columns = {"messages": "dialog", "system": "order", "tools": "functions"}
    loaded = load(context, write(record, {"order": "x"}), columns=columns)
    assert turns_of(loaded) == ["s Be kind.", "u Hi?", "a Hello."]
    assert json.loads(loaded.rows.column("tools")[0]) == [tool]
    assert loaded.selection.reason == ["", "empty"]
    assert "`dialog[].mood` in 1 row" in context.notices[0]
    assert "`system` in 1 row" in context.notices[0]
    assert "functions" not in context.notices[0]


def test_own_columns_that_are_no_row_form_are_refused() -> None:
    for columns in ({"messages": "a", "prompt": "b"}, {"messages": "a", "text": "b"}, {"tools": "a"}):
        with pytest.raises(ConfigError, match=r"of messages \(optionally system, tools\)"):
            File(path="x.jsonl", columns=columns)


def test_empty_turns_inside_a_conversation_stay_and_are_counted(context: StageContext, write: Any) -> None:
    loaded = load(context, write(talk("u 1", "a ", "u Hello?", "a 2"), talk("u 1", "a \n"), talk("u 1", "a ", "a 2")))
    assert turns_of(loaded) == ["u 1", "a ", "u Hello?", "a 2"]
    assert loaded.turns == {"read": 5, "empty_turn": 1, "joined_turn": 1}


def test_what_is_not_used_of_a_conversation_is_counted(context: StageContext, write: Any) -> None:
    path = write(
        talk("u 1", "a 2", "u 3", "a 4", "u 5"), talk("a 0", "u 1", "a 2"), talk("u 1"), talk("u 1", "a 2", "t 3"),
        talk("u 1", "u 2", "a 3", "a 4", "a 5"),
    )  # fmt: skip
    cut = LeadingAssistant.cut
    every = load(context, path, leading_assistant=cut)
    assert every.selection.reason == ["", "", "no_answer", "", ""]
    assert every.turns == {
        "read": 8, "trailing_user_turn": 1, "before_first_user_turn": 1, "trailing_tool_result": 1, "joined_turn": 3,
    }  # fmt: skip
    first = load(context, path, leading_assistant=cut, turns=Turns.first)
    assert turns_of(first) == ["u 1", "a 2"]
    assert first.turns["after_first_exchange"] == 1
    assert "trailing_user_turn" not in first.turns


def test_two_turns_of_one_role_are_joined_or_kept_apart_or_the_row_goes(context: StageContext, write: Any) -> None:
    path = write(talk("u 1", "u 2", "a 3", "a 4"), talk("u 1", "a 2"))
    for choice, turns, counted in (
        (Consecutive.join, ["u 1\n\n2", "a 3\n\n4"], {"read": 3, "joined_turn": 2}),
        (Consecutive.keep, ["u 1", "u 2", "a 3", "a 4"], {"read": 3, "consecutive_turn": 2}),
    ):
        loaded = load(context, path, consecutive=choice)
        assert (turns_of(loaded), loaded.turns) == (turns, counted)
    loaded = load(context, path, consecutive=Consecutive.drop)
    assert (loaded.selection.reason, loaded.turns) == (["consecutive_turns", ""], {"read": 1})
    assert loaded.selection.cause == ["two turns of the user in a row", ""]


def test_turns_that_are_marked_or_come_before_the_last_are_counted_where_they_do_not_train(
    context: StageContext, write: Any
) -> None:
    record = talk("u 1", "a 2", "u 3", "a 4", "u 5", "a 6")
    record["messages"][1]["train"] = record["messages"][3]["weight"] = 0
    path = write(record, talk("u 1", "a 2"))
    assert load(context, path, train_on=TrainOn.marked).turns == {"read": 4, "weight_0": 2}
    assert load(context, path, train_on=TrainOn.last).turns == {"read": 4, "before_last_turn": 2}
    assert load(context, path).turns == {"read": 4}
    record["messages"][1]["content"] = ""
    path = write(record, name="another.jsonl")
    assert load(context, path, train_on=TrainOn.marked).turns == {"read": 3, "empty_turn": 1, "weight_0": 1}


def test_a_system_turn_at_the_end_is_no_turn_without_a_name(context: StageContext, write: Any) -> None:
    record = talk("u 1", "a 2")
    record["messages"].append({"role": "system", "content": "Be brief."})
    loaded = load(context, write(record, talk("u 1", "a 2")))
    assert loaded.selection.cause[0] == "a system turn in the middle of a conversation"
    assert "" not in loaded.turns


def test_turns_that_would_not_say_the_same_as_one_are_kept_apart(context: StageContext, write: Any) -> None:
    def answers(*extras: dict[str, Any]) -> dict[str, Any]:
        turns = [{"role": "assistant", "content": str(n), **extra} for n, extra in enumerate(extras)]
        return {"messages": [{"role": "user", "content": "Hi?"}, *turns]}

    calls = [{"type": "function", "function": {"name": "clock", "arguments": {}}}]
    for extras in (({}, {"reasoning_content": "Hm."}), ({"weight": 0}, {"weight": 1}), ({"tool_calls": calls}, {}),
                   ({"name": "ann"}, {"name": "bob"})):  # fmt: skip
        loaded = load(context, write(answers(*extras)))
        assert turns_of(loaded) == ["u Hi?", "a 0", "a 1"], extras
        assert loaded.turns == {"read": 2, "consecutive_turn": 1}
    call_alone = {"tool_calls": calls, "content": None}
    for choice in Consecutive:  # a text, and the calls that go with it: one turn, however it is written
        loaded = load(context, write(answers({}, call_alone, call_alone), name="calls.jsonl"), consecutive=choice)
        assert turns_of(loaded) == ["u Hi?", "a 0"]
        assert json.loads(loaded.rows.column("messages")[0][1]["tool_calls"]) == calls * 2
        assert loaded.turns == {"read": 3}


def test_results_of_two_calls_stay_two_messages(context: StageContext, write: Any) -> None:
    calls = [{"id": name, "function": {"name": "clock", "arguments": {}}} for name in "xy"]
    call = {"role": "assistant", "tool_calls": calls}
    results = [{"role": "tool", "tool_call_id": name, "content": name} for name in "xy"]
    user = {"role": "user", "content": "Hi?"}
    end = {"role": "assistant", "content": "Noon."}
    loaded = load(context, write({"messages": [user, call, *results, end]}), consecutive=Consecutive.drop)
    assert turns_of(loaded) == ["u Hi?", "a ", "t x", "t y", "a Noon."]


CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]}


def calls(arguments: Any) -> dict[str, Any]:
    return {
        "messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]
    }


USER = {"role": "user", "content": "Hi?"}
END = {"role": "assistant", "content": "Hello."}
NESTED: Any = "x"
for _ in range(50):
    NESTED = [NESTED]
CAUSES = [
    (talk("u Hi?", "a Hello.") | {"messages": [{"role": "narrator", "content": "x"}, END]},
     "unreadable", "unknown role 'narrator'"),
    ({"messages": [{"speaker": "x", "content": "x"}]}, "unreadable", "a turn with 'speaker', 'content' has no role"),
    ({"messages": [{}]}, "unreadable", "a turn with no keys has no role"),
    ({"messages": 7}, "unreadable", "a conversation is a number, not a list of turns"),
    ({"messages": [7]}, "unreadable", "a turn is a number, not an object with role and content"),
    ({"messages": "[{"}, "unreadable", "a conversation: not JSON ('[{')"),
    ({"messages": [USER, {"role": "assistant", "content": 7}]}, "unreadable", "a number where text belongs"),
    ({"messages": [USER, {"role": "assistant", "content": NESTED}]}, "unreadable",
     "content is a list with a list in it, not only parts of type text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, END]}, "not_text",
     "content has a part of type 'image_url'"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}, END]}, "not_text",
     "content has a part of type 'input_audio'"),
    ({"messages": [USER, {**END, "weight": "high"}]}, "unreadable", "weight is 'high', not a number of at least 0"),
    ({"messages": [USER, {**END, "weight": -1}]}, "unreadable", "weight is -1, not a number of at least 0"),
    (calls("{'a': 1}"), "bad_tool_call", "the arguments of a tool call: not JSON (\"{'a': 1}\")"),
    (calls("[1]"), "bad_tool_call", "the arguments of a tool call are a list, not an object"),
    (calls([1]), "bad_tool_call", "the arguments of a tool call are a list, not an object"),
    ({"messages": [USER, {**END, "tool_calls": [{"function": {"arguments": "{}"}}]}]}, "bad_tool_call",
     "a tool call names no function"),
    ({"messages": [USER, {**END, "tool_calls": ["f()"]}]}, "bad_tool_call", "a tool call is text, not an object"),
    ({"conversations": [{"from": "human", "value": "Hi?"}, {"from": "function_call", "value": "f()"}]}, "bad_tool_call",
     "a function-call turn: not JSON ('f()')"),
    ({"conversations": [{"from": "human", "value": "Hi?"}, {"from": "function_call", "value": None}]}, "bad_tool_call",
     "a function-call turn has no call"),
    ({"messages": [USER, {"role": "tool", "content": "1"}, END]}, "bad_tool_call", "a tool result without a call"),
    ({"messages": [USER, CALL, {"role": "tool", "content": "1", "tool_call_id": "d"}, END]}, "bad_tool_call",
     "a tool result's tool_call_id matches no earlier call"),
    ({"messages": [USER, END], "tools": "clock"}, "bad_tools", "tools: not JSON ('clock')"),
    ({"messages": [USER, END], "tools": [{"type": "function"}]}, "bad_tools", "a tool has no name"),
    ({"messages": [USER, END], "tools": [3]}, "bad_tools", "a tool is a number, not a JSON schema"),
    ({"messages": [USER, END], "tools": [{"name": "f", "parameters": "city"}]}, "bad_tools",
     "a tool's parameters are not a JSON schema"),
    ({"messages": [USER, END], "chat_template_kwargs": "[1]"}, "unreadable",
     "chat_template_kwargs is a list, not an object"),
    (talk("u Hi?", "s Be kind.", "a Hello."), "unreadable", "a system turn in the middle of a conversation"),
    (talk("u Hi?"), "no_answer", "no assistant turn answers a user turn"),
    (talk("a Hello."), "begins_with_assistant", "an assistant turn comes before any user turn"),
    ({"messages": []}, "empty", "no turns and no text"),
    ({"score": 1}, "unreadable", "no messages or conversations or conversation"),
    ({"messages": [USER, {**END, "content": math.nan}]}, "nan_for_text", "NaN where text belongs"),
    (talk("u Hi?", "a Hello.", label=False), "bad_answer", "label is false: its answer is a bad example"),
    (talk("u Hi?", "u Hello?", "a Hello."), "consecutive_turns", "two turns of the user in a row"),
]  # fmt: skip


def test_every_reason_has_a_case() -> None:
    assert {reason for _, reason, _ in CAUSES} == {*get_args(RecordReason)}


@pytest.mark.parametrize(("record", "reason", "cause"), CAUSES)
def test_every_dropped_row_has_a_reason_and_a_cause(
    context: StageContext, write: Any, record: dict[str, Any], reason: str, cause: str
) -> None:
    loaded = load(context, write(record, talk("u Hi?", "a Hello.")), consecutive=Consecutive.drop)
    assert (loaded.selection.reason[0], loaded.selection.cause[0]) == (reason, cause)
    assert loaded.selection.reason[1] == loaded.selection.cause[1] == ""


def test_a_selection_of_an_older_version_has_no_causes(tmp_path: Any) -> None:
    old = {name: kind for name, kind in parquet.DROPPED.items() if name != "cause"}
    values: dict[str, Any] = {"id": ["1-a"], "stage": ["load"], "reason": ["empty"], "score": [0.5], "nearest": [""]}
    parquet.write(tmp_path / "dropped.parquet", values, old)
    table = parquet.read(tmp_path / "dropped.parquet", parquet.DROPPED)
    assert table.to_pylist() == [{**{name: column[0] for name, column in values.items()}, "cause": ""}]


@pytest.mark.parametrize("record", [
    {"messages": [USER, {**END, "tool_calls": []}], "tools": [{"name": f"tool{n}"} for n in range(1000)]},
    {"messages": [USER, {**END, "reasoning_content": "Well. " * 200_000}]},
    {"messages": [USER, END] * 5000},
    {"messages": [USER, {**CALL, "tool_calls": json.dumps(CALL["tool_calls"])}]},
    {"messages": [USER, {**END, "tool_calls": [{"name": "f", "arguments": ""}]}]},
    {"messages": [USER, {**END, "content": "<tool_call>{}</tool_call>"}, {"role": "tool", "content": ""}, END]},
], ids=["1,000 tools", "a thought of 1 MB", "10,000 turns", "calls as text", "no arguments", "Hermes"])  # fmt: skip
def test_what_is_large_or_empty_but_right_is_carried(context: StageContext, write: Any, record: dict[str, Any]) -> None:
    loaded = load(context, write(record))
    assert loaded.selection.reason == [""]
    assert len(loaded.rows.column("messages")[0]) == len(record["messages"])
    tools = loaded.rows.column("tools")[0]
    assert len(json.loads(tools or "[]")) == len(record.get("tools", []))
