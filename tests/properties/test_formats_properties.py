"""Row formats: any record comes out as a row or as a reason, whatever it holds."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
from sft_lab.data.load import LeadingAssistant, Loaded, OnError, Turns
from sft_lab.data.messages import ROLE_KEYS, ROLES, TEXT_KEYS
from sft_lab.data.sources import File

REASONS = {"", "unreadable", "empty", "begins_with_assistant", "no_answer"}
KNOWN = sorted({*(key for ways in COLUMNS_OF.values() for keys in ways for key in keys), *ROLE_KEYS, *TEXT_KEYS,
                "input", "system", "context", "id", "type"})  # fmt: skip
ROLE = st.one_of(st.sampled_from(sorted(ROLES)), st.sampled_from(["tool", " GPT ", "", "text"]))
TURN = st.one_of(
    st.fixed_dictionaries({}, optional={**dict.fromkeys(ROLE_KEYS, ROLE), **dict.fromkeys(TEXT_KEYS, STRINGS)}),
    json_values(st.sampled_from(KNOWN)),
)
# A record as people have them, one with any value in the right place, and any JSON at all.
CELL = st.one_of(STRINGS, st.lists(TURN, max_size=4), json_values(st.sampled_from(KNOWN)))
RECORD = st.one_of(st.dictionaries(st.sampled_from(KNOWN), CELL, max_size=5), json_values(), json_values(STRINGS))
TALK = st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), TEXTS), max_size=5)

SETTINGS = {
    "format": st.sampled_from(list(Format)),
    "turns": st.sampled_from(list(Turns)),
    "leading_assistant": st.sampled_from(list(LeadingAssistant)),
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


def checked(loaded: Loaded) -> Loaded:
    """What holds of every loaded source: each record is a row or has a reason, and rows are texts that can be used."""
    found = loaded.selection
    assert set(found.reason) <= REASONS
    assert len(set(found.ids)) == len(found.ids) == len(found.reason)
    kept = [row_id for row_id, reason in zip(found.ids, found.reason, strict=True) if not reason]
    assert sorted(loaded.rows.column("id")) == sorted(kept)
    for prompt, answer, messages, group in zip(*map(loaded.rows.column, ("prompt", "answer", "messages", "group")),
                                               strict=True):  # fmt: skip
        assert isinstance(prompt, str)
        assert isinstance(answer, str)
        assert group
        talk = messages[1:] if messages and messages[0]["role"] == "system" else messages
        assert [message["role"] for message in talk] == ["user", "assistant"] * (len(talk) // 2)
        assert "\n".join(message["content"] for message in talk[::2]) == prompt or not talk
    return loaded


@tried(4, 2000)
@given(st.lists(RECORD, max_size=4), st.fixed_dictionaries({}, optional=SETTINGS))
@example([{"messages": [1, "a", None]}, {"messages": {}}, {"messages": None}, [], 1], {})
@example([{"prompt": "\ud800", "completion": "a\udfff"}], {})
@example([{"conversations": [{"from": 1, "value": []}]}, {"conversations": [{"from": "gpt", "value": [None]}]}], {})
def test_any_json_is_rows_and_reasons_or_one_error(records: list[Any], how: dict[str, Any]) -> None:
    with file_of(lines_of(records)) as (path, context):
        try:
            loaded = checked(File(path=str(path), **how)(context))
        except SourceError as error:
            assert len(str(error)) > 20  # noqa: PT017 - whatever is raised, it must be this
            return
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
