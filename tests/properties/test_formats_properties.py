"""Row formats: any record comes out as a row or as a reason, whatever it holds."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from example_counts import tried
from hypothesis import example, given
from hypothesis import strategies as st
from row_strategies import STRINGS, TEXTS, json_values

from sft_lab.core.context import StageContext
from sft_lab.core.errors import SourceError
from sft_lab.core.store import Store
from sft_lab.data.formats import COLUMNS_OF, CONVERSATION_KEYS, Format
from sft_lab.data.load import BadAnswers, Consecutive, LeadingAssistant, Loaded, OnError, Turns
from sft_lab.data.messages import ROLE_KEYS, ROLES, TEXT_KEYS, THOUGHT_KEYS, Message, RecordReason
from sft_lab.data.sources import File

KNOWN = sorted({*(key for ways in COLUMNS_OF.values() for keys in ways for key in keys), *ROLE_KEYS, *TEXT_KEYS,
                *THOUGHT_KEYS, "input", "system", "context", "id", "type", "tools", "label", "name", "function",
                "arguments", "parameters"})  # fmt: skip
ANY = json_values(st.sampled_from(KNOWN))
ROLE = st.one_of(st.sampled_from(sorted(ROLES)), st.sampled_from(["tool", " GPT ", "", "text"]))
# What a turn may have besides role and text: right more often than not, else few rows would get past it.
ARGUMENTS = st.one_of(
    st.dictionaries(STRINGS, STRINGS, max_size=2), st.sampled_from(["{}", '{"a": "\\ud800"}', "x", ""])
)
FUNCTION = st.fixed_dictionaries({"name": st.sampled_from(["f", "g", ""])}, optional={"arguments": ARGUMENTS})
NAMES_OF_CALLS = st.sampled_from(["a", "b", ""])
CALL = st.one_of(FUNCTION, st.fixed_dictionaries({"function": FUNCTION}, optional={"id": NAMES_OF_CALLS}), ANY)
BESIDE = {
    "tool_calls": st.lists(CALL, max_size=2),
    "tool_call_id": NAMES_OF_CALLS,
    **dict.fromkeys(THOUGHT_KEYS, STRINGS),
    "weight": st.sampled_from([0, 1, 0.5, -1, "high"]),
    "train": st.booleans(),
    "name": TEXTS,
}
TURN = st.one_of(
    st.fixed_dictionaries(
        {}, optional={**dict.fromkeys(ROLE_KEYS, ROLE), **dict.fromkeys(TEXT_KEYS, STRINGS), **BESIDE}
    ),
    ANY,
)
# Parts of a conversation with tools, which may come in any order: a question, an answer, calls, their results, or one
# result for which there may have been no call.
USER_TURN = st.fixed_dictionaries({"role": st.just("user"), "content": TEXTS})
ANSWER = st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXTS}, optional=BESIDE)
RESULT = st.fixed_dictionaries({"role": st.just("tool"), "content": TEXTS}, optional={"tool_call_id": NAMES_OF_CALLS})
CALLS = st.lists(NAMES_OF_CALLS, min_size=1, max_size=2).map(
    lambda ids: {"role": "assistant", "tool_calls": [{"id": call, "function": {"name": "f"}} for call in ids]}
)
CALLS_AND_RESULTS = CALLS.map(
    lambda turn: [turn, *({"role": "tool", "tool_call_id": call["id"], "content": "1"} for call in turn["tool_calls"])]
)
PARTS = st.one_of(CALLS_AND_RESULTS, *(turn.map(lambda turn: [turn]) for turn in (USER_TURN, ANSWER, CALLS, RESULT)))
TALK_WITH_TOOLS = st.lists(PARTS, max_size=5).map(
    lambda parts: [{"role": "user", "content": "Hi?"}, *itertools.chain.from_iterable(parts)]
)
TURNS = st.one_of(st.lists(TURN, max_size=4), TALK_WITH_TOOLS)
# A record as people have them, one with any value in the right place, and any JSON at all.
CELL = st.one_of(STRINGS, TURNS, ANY)
RECORD = st.one_of(st.dictionaries(st.sampled_from(KNOWN), CELL, max_size=5), json_values(), json_values(STRINGS))
CONVERSATION = st.fixed_dictionaries(
    {"messages": TURNS}, optional={"system": TEXTS, "tools": st.lists(FUNCTION, max_size=2), "label": st.booleans()}
)
TALK = st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), TEXTS), max_size=5)

CUTS = {
    "turns": st.sampled_from(list(Turns)),
    "leading_assistant": st.sampled_from(list(LeadingAssistant)),
    "consecutive": st.sampled_from(list(Consecutive)),
    "bad_answers": st.sampled_from(list(BadAnswers)),
}
SETTINGS = {
    **CUTS,
    "format": st.sampled_from(list(Format)),
    "group": st.sampled_from(["auto", "content", "id_prefix", "id", "system"]),
    "on_error": st.sampled_from(list(OnError)),
    "columns": st.sampled_from([{}, {}, {"prompt": "question", "answer": "value", "system": "id"}, {"text": "value"}]),
    "shuffle_seed": st.none() | st.integers(0, 3),
}


@contextmanager
def file_of(content: bytes, name: str = "rows.jsonl") -> Iterator[tuple[Path, StageContext]]:
    """A file and a store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        yield path, StageContext(Store(Path(folder, "store")))


def lines_of(records: list[Any]) -> bytes:
    return "".join(f"{json.dumps(record)}\n" for record in records).encode()


def checked(loaded: Loaded, *, turns: Turns = Turns.all, consecutive: Consecutive = Consecutive.join) -> Loaded:
    """What holds of every loaded source: each record is a row or has a reason, and rows are texts that can be used."""
    found = loaded.selection
    assert set(found.reason) <= {"", *get_args(RecordReason)}
    assert all(bool(reason) == bool(cause) for reason, cause in zip(found.reason, found.cause, strict=True))
    assert len(set(found.ids)) == len(found.ids) == len(found.reason)
    kept = [row_id for row_id, reason in zip(found.ids, found.reason, strict=True) if not reason]
    assert sorted(loaded.rows.column("id")) == sorted(kept)
    columns = map(loaded.rows.column, ("prompt", "answer", "messages", "group", "system", "tools"))
    for prompt, answer, messages, group, system, tools in zip(*columns, strict=True):
        assert isinstance(prompt, str)
        assert isinstance(answer, str)
        assert group
        assert all(schema.get("function", schema)["name"] for schema in json.loads(tools or "[]"))
        if not messages:  # plain text
            assert (prompt, bool(answer)) == ("", True)
            continue
        has_system = messages[0]["role"] in ("system", "developer")
        assert (messages[0]["content"] if has_system else "") == system
        talk = messages[1:] if has_system else messages
        hold_for_talk(talk, turns, consecutive)
        assert "\n".join(message["content"] for message in talk if message["role"] == "user") == prompt
        said = [
            message["content"] or message.get("tool_calls") or "" for message in talk if message["role"] == "assistant"
        ]
        assert all(text in answer for text in said)
    return loaded


def hold_for_talk(talk: list[Message], turns: Turns, consecutive: Consecutive) -> None:
    """What holds of a row's messages after the system's: a template can write them in their order."""
    roles = [message["role"] for message in talk]
    assert set(roles) <= {"user", "assistant", "tool"}
    assert (roles[0], roles[-1]) == ("user", "assistant")
    if turns is Turns.first:
        assert "user" not in roles[roles.index("assistant") :]
    ids: set[str | None] = set()
    for before, message in itertools.pairwise(talk):
        calls = json.loads(message.get("tool_calls") or "[]")
        ids.update(call.get("id") for call in calls)
        for call in calls:
            assert call["function"]["name"].strip()
            arguments = call["function"]["arguments"]
            assert isinstance(json.loads(arguments) if isinstance(arguments, str) else arguments, dict)
        assert message.get("weight") is None or 0 <= message["weight"] < math.inf
        assert message.get("reasoning_content") != ""
        if message["role"] == "tool":
            assert before["role"] in ("assistant", "tool")
            assert None in ids or not ids or message.get("tool_call_id") in {None, *ids}
        elif message["role"] == before["role"] and consecutive is not Consecutive.keep:
            # Joined, unless fields that belong to one of them would be lost.
            assert consecutive is Consecutive.join
            assert {*fields_of(before), *fields_of(message)} > {"role", "content"}


def fields_of(message: Message) -> set[str]:
    return {name for name, value in message.items() if value is not None}


def cuts_of(how: dict[str, Any]) -> dict[str, Any]:
    return {name: how[name] for name in ("turns", "consecutive") if name in how}


TOOL_TALK: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "How warm is Rome?"},
        {"role": "assistant", "thinking": "Ask.", "tool_calls": [{"id": "a", "function": {"name": "f"}}]},
        {"role": "tool", "content": "31", "tool_call_id": "a"},
        {"role": "assistant", "content": "31 degrees.", "weight": 0.5},
        {"role": "user", "content": "And Oslo?"},
        {"role": "assistant", "content": "No idea."},
    ],
    "tools": [{"name": "f", "parameters": {"type": "object"}}],
}


@tried(4, 2000)
@given(st.lists(RECORD, max_size=4), st.fixed_dictionaries({}, optional=SETTINGS))
@example([{"messages": [1, "a", None]}, {"messages": {}}, {"messages": None}, [], 1], {})
@example([{"prompt": "\ud800", "completion": "a\udfff"}], {})
@example([{"conversations": [{"from": 1, "value": []}]}, {"conversations": [{"from": "gpt", "value": [None]}]}], {})
def test_any_json_is_rows_and_reasons_or_one_error(records: list[Any], how: dict[str, Any]) -> None:
    with file_of(lines_of(records)) as (path, context):
        try:
            loaded = checked(File(path=str(path), **how)(context), **cuts_of(how))
        except SourceError as error:
            assert len(str(error)) > 20  # noqa: PT017 - whatever is raised, it must be this
            return
        assert len(loaded.selection.ids) == len(records)


@tried(10, 2000)
@given(st.lists(CONVERSATION, min_size=1, max_size=3), st.fixed_dictionaries({}, optional=CUTS))
@example([TOOL_TALK, {**TOOL_TALK, "tools": "?"}, {**TOOL_TALK, "label": False}], {})
@example(
    [TOOL_TALK, {"messages": TOOL_TALK["messages"][1:]}, {"messages": TOOL_TALK["messages"][::2]}],
    {"turns": Turns.first, "leading_assistant": LeadingAssistant.cut},
)
@example(
    [{"messages": TOOL_TALK["messages"][:1] * 2 + TOOL_TALK["messages"][-1:]}, TOOL_TALK],
    {"consecutive": Consecutive.drop},
)
def test_any_conversation_is_a_row_that_a_template_can_write_or_a_reason(
    records: list[dict[str, Any]], how: dict[str, Any]
) -> None:
    with file_of(lines_of(records)) as (path, context):
        loaded = checked(File(path=str(path), **how)(context), **cuts_of(how))
        assert len(loaded.selection.ids) == len(records)


NAMES = st.sampled_from(["r.jsonl", "r.json", "r.csv", "r.jsonl.gz", "r.json.gz", "r.parquet"])


def _parquet(cells: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"prompt": cells, "completion": cells}), sink)
    return sink.getvalue()


NOT_UTF8 = _parquet(pa.array([b"\x80"]).view(pa.utf8()))
NO_DATE = _parquet(pa.array([10**7], pa.int32()).view(pa.date32()))  # in the year 29349


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """Any bytes, and right files with some of their bytes changed, cut off or put in."""
    name = draw(NAMES)
    rows = [{"prompt": text, "completion": text} for text in draw(st.lists(TEXTS, max_size=3))]
    content = {
        "jsonl": lines_of(rows),
        "json": json.dumps(rows).encode(),
        "csv": ("prompt,completion\n" + "".join(f'"{row["prompt"]}","b"\n' for row in rows)).encode(),
        "parquet": _parquet([row["prompt"] for row in rows]),
    }[name.split(".")[1]]
    content = gzip.compress(content, mtime=0) if name.endswith(".gz") else content
    kind = draw(st.sampled_from(["any", "changed", "cut", "more"]))
    place = draw(st.integers(0, max(0, len(content) - 1)))
    if kind == "any":
        content = draw(st.binary(max_size=60))
    elif kind == "changed":
        content = content[:place] + draw(st.binary(min_size=1, max_size=2)) + content[place + 1 :]
    elif kind == "cut":
        content = content[:place]
    else:
        content = content[:place] + draw(st.binary(max_size=8)) + content[place:]
    return name, content


@tried(4, 2000)
@given(files(), st.sampled_from(list(OnError)))
@example(("r.parquet", NOT_UTF8), OnError.fail)
@example(("r.parquet", NO_DATE), OnError.skip)
def test_any_bytes_are_rows_and_reasons_or_one_error(file: tuple[str, bytes], on_error: OnError) -> None:
    name, content = file
    with file_of(content, name) as (path, context):
        try:
            checked(File(path=str(path), on_error=on_error)(context))
        except SourceError as error:
            assert str(path.name) in str(error) or "dataset." in str(error)  # noqa: PT017


def rows_of(records: list[Any], **how: Any) -> list[tuple[Any, ...]]:
    """Return what is read, as rows of the table."""
    with file_of(lines_of(records)) as (path, context):
        rows = File(path=str(path), **how)(context).rows
        return [*zip(*map(rows.column, ("id", "system", "prompt", "answer", "messages", "group")), strict=True)]


SPELLED = {"user": ["human", "user", "prompter", " Human"], "assistant": ["gpt", "assistant", "CHATGPT", "bard"],
           "system": ["system"]}  # fmt: skip


@tried(5, 1500)
@given(st.lists(TALK, min_size=1, max_size=3), st.sampled_from(list(Turns)), st.sampled_from(list(LeadingAssistant)),
       st.data())  # fmt: skip
def test_a_talk_reads_the_same_in_every_spelling(
    talks: list[list[tuple[str, str]]], turns: Turns, leading: LeadingAssistant, data: st.DataObject
) -> None:
    role_key, text_key = data.draw(st.sampled_from(ROLE_KEYS)), data.draw(st.sampled_from(TEXT_KEYS))
    column = data.draw(st.sampled_from(CONVERSATION_KEYS))

    def spelled(role: str) -> str:
        return data.draw(st.sampled_from(SPELLED[role]))

    openai = [{"messages": [{"role": role, "content": text} for role, text in talk]} for talk in talks]
    sharegpt = [{column: [{role_key: spelled(role), text_key: text} for role, text in talk]} for talk in talks]
    parts = [
        {"messages": [{"content": [{"type": "text", "text": text}], "role": role} for role, text in talk]}
        for talk in talks
    ]
    how: dict[str, Any] = {"turns": turns, "leading_assistant": leading}
    known = rows_of(openai, **how)
    assert rows_of(sharegpt, **how) == known
    assert rows_of(parts, **how) == known


@tried(5, 1500)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_a_pair_reads_the_same_in_every_format(pairs: list[tuple[str, str]]) -> None:
    ways = [
        [{"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]} for a, b in pairs],
        [{"instruction": a, "output": b} for a, b in pairs],
        [{"output": b, "instruction": a, "input": ""} for a, b in pairs],
        [{"prompt": a, "completion": b} for a, b in pairs],
        [{"question": a, "answer": b} for a, b in pairs],
        [{"prompt": a, "chosen": b, "rejected": "no"} for a, b in pairs],
    ]
    first, *others = map(rows_of, ways)
    assert others == [first] * len(others)
    own = {"prompt": "q", "answer": "x"}
    assert rows_of([{"q": a, "x": b, "text": "t"} for a, b in pairs], columns=own) == first


@tried(5, 1500)
@given(st.lists(st.dictionaries(st.sampled_from(KNOWN), CELL, max_size=5), min_size=1, max_size=3), st.randoms())
def test_the_order_of_keys_is_nothing(records: list[dict[str, Any]], random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            names = list(value)
            random.shuffle(names)
            return {name: shuffled(value[name]) for name in names}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    def told(rows: list[Any]) -> Any:
        try:
            return rows_of(rows)
        except SourceError:
            return "refused"

    assert told([shuffled(record) for record in records]) == told(records)


@tried(5, 1500)
@given(st.lists(TALK, min_size=1, max_size=4), st.lists(TALK, max_size=3))
def test_an_id_is_the_place_and_the_content_alone(talks: list[Any], more: list[Any]) -> None:
    def records(talks: list[Any]) -> list[Any]:
        return [{"conversations": [{"from": role, "value": text} for role, text in talk]} for talk in talks]

    assert rows_of(records(talks + more))[: len(rows_of(records(talks)))] == rows_of(records(talks))
    moved = rows_of([*records([[("user", "Hi"), ("assistant", "Ho")]]), *records(talks)])[1:]
    assert [row[0].split("-")[1] for row in moved] == [row[0].split("-")[1] for row in rows_of(records(talks))]
    assert [row[1:] for row in moved] == [row[1:] for row in rows_of(records(talks))]


@tried(5, 300)
@given(st.sampled_from(["[", '{"a":', '{"messages":[']), st.integers(900, 1100), st.sampled_from(["id", "prompt"]))
def test_deep_records_are_no_way_out(opening: str, depth: int, column: str) -> None:
    closing = "".join("]" if mark == "[" else "}" for mark in reversed(opening) if mark in "[{")
    deep = f"{opening * depth}1{closing * depth}"
    line = f'{{"completion": "a", "{column}": {deep}, "x": 1}}\n{{"prompt": "p", "completion": "b"}}\n'
    with file_of(line.encode()) as (path, context):
        try:
            checked(File(path=str(path), group=column)(context))
        except SourceError as error:
            assert "line 1" in str(error)  # noqa: PT017
