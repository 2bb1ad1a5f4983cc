"""Load: files of every kind, what is dropped and why, ids and groups."""

from __future__ import annotations

import bz2
import csv
import datetime
import gzip
import hashlib
import json
import lzma
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft_lab.core import store
from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError, SourceError
from sft_lab.core.store import Store
from sft_lab.data.load import LeadingAssistant, Loaded, OnError, Turns
from sft_lab.data.mixture import Ingredient, Mixture
from sft_lab.data.sources import File, Hub
from sft_lab.data.split import Hash

QUESTIONS = [{"question": f"What is {n} + 1?", "answer": f'It is\n{n + 1}, "of course".'} for n in range(30)]


def talk(*turns: str, **more: Any) -> dict[str, Any]:
    """Give a conversation: ``talk("u Hi?", "a Hello.")``."""
    roles = {"u": "human", "a": "gpt", "s": "system"}
    return {**more, "conversations": [{"from": roles[turn[0]], "value": turn[2:]} for turn in turns]}


def load(context: StageContext, path: Path | str, **knobs: Any) -> Loaded:
    return File(path=str(path), **knobs)(context)


def outcomes(loaded: Loaded) -> list[str]:
    return [reason or "kept" for reason in loaded.selection.reason]


# What becomes of a conversation

USABLE = [
    (["u Hi?", "a Hello."], "", ["u Hi?", "a Hello."], ["u Hi?", "a Hello."]),
    (["u Hi?", "a Hello.", "u Bye."], "", ["u Hi?", "a Hello."], ["u Hi?", "a Hello."]),
    (["u 1", "a 2", "u 3", "a 4"], "", ["u 1", "a 2"], ["u 1", "a 2", "u 3", "a 4"]),
    (["s Be kind.", "u Hi?", "a Hello."], "Be kind.", ["u Hi?", "a Hello."], ["u Hi?", "a Hello."]),
    (["s Be kind.", "s Be brief.", "u 1", "a 2"], "Be kind.\n\nBe brief.", ["u 1", "a 2"], ["u 1", "a 2"]),
    (["u 1", "u 2", "a 3", "a 4"], "", ["u 1\n\n2", "a 3\n\n4"], ["u 1\n\n2", "a 3\n\n4"]),
    (["u 1", "a ", "a 4"], "", ["u 1", "a 4"], ["u 1", "a 4"]),
    (["u ", "a  indented\n"], "", ["u ", "a  indented\n"], ["u ", "a  indented\n"]),
]


@pytest.mark.parametrize(("turns", "system", "first", "every"), USABLE)
@pytest.mark.parametrize("wanted", Turns)
def test_what_is_kept_of_a_conversation(
    context: StageContext, write: Any, turns: list[str], system: str, first: list[str], every: list[str], wanted: Turns
) -> None:
    rows = load(context, write(talk(*turns)), turns=wanted).rows
    said = [f"{turn['role'][0]} {turn['content']}" for turn in rows.column("messages")[0]]
    assert said == ([f"s {system}"] if system else []) + (first if wanted is Turns.first else every)
    assert rows.column("system") == [system]
    kept = first if wanted is Turns.first else every
    assert rows.column("prompt") == ["\n".join(text[2:] for text in kept[::2])]
    assert rows.column("answer") == ["\n".join(text[2:] for text in kept[1::2])]


@pytest.mark.parametrize(
    ("turns", "drop", "cut"),
    [
        ([], "empty", "empty"),
        (["a Hello."], "begins_with_assistant", "no_answer"),
        (["a Hello.", "u Hi?"], "begins_with_assistant", "no_answer"),
        (["a Hello.", "u Hi?", "a Well."], "begins_with_assistant", "kept"),
        (["s Be kind.", "a Hello.", "u Hi?", "a Well."], "begins_with_assistant", "kept"),
        (["u Hi?"], "no_answer", "no_answer"),
        (["s Be kind."], "no_answer", "no_answer"),
        (["s Be kind.", "u Hi?"], "no_answer", "no_answer"),
        (["u Hi?", "s Be kind.", "a Hello."], "unreadable", "unreadable"),
    ],
)
def test_reasons(context: StageContext, write: Any, turns: list[str], drop: str, cut: str) -> None:
    path = write(talk(*turns))
    assert outcomes(load(context, path)) == [drop]
    assert outcomes(load(context, path, leading_assistant=LeadingAssistant.cut)) == [cut]


def test_an_order_in_the_middle_is_no_matter_to_the_first_exchange(context: StageContext, write: Any) -> None:
    path = write(talk("s One.", "u 1", "a 2", "s Two.", "u 3", "a 4"))
    loaded = load(context, path, turns=Turns.first)
    assert loaded.rows.column("system") == ["One."]
    assert outcomes(load(context, path, turns=Turns.all)) == ["unreadable"]


def test_cut_keeps_what_follows_the_first_user_turn(context: StageContext, write: Any) -> None:
    path = write(talk("a Hello.", "u 1", "a 2", "u 3", "a 4"))
    rows = load(context, path, leading_assistant=LeadingAssistant.cut, turns=Turns.first).rows
    assert (rows.column("prompt"), rows.column("answer")) == (["1"], ["2"])


def test_a_row_that_cannot_be_used_is_never_an_exception(context: StageContext, tmp_path: Path) -> None:
    lines = [
        json.dumps(talk("u Hi?", "a Hello.", id="good")),
        "[1, 2]", '"text"', "null", "7", "{}", "", "   ",
        json.dumps({"conversations": [{"from": "narrator", "value": "x"}]}),
        json.dumps({"conversations": 5}),
        json.dumps({"id": "has no turns"}),
        json.dumps({"conversations": None}),
        '{"conversations": [{"from": "human", "value": 1e999}]}',
        json.dumps(talk("u \ud800?", "a \0", id="\ud800")),
        json.dumps(talk("u Hi?", "a Hello.", id=None)),
    ]  # fmt: skip
    path = tmp_path / "odd.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    loaded = load(context, path)
    assert outcomes(loaded) == ["kept", *["unreadable"] * 8, "empty", "unreadable", "kept", "kept"]
    assert loaded.rows.column("source_id") == ["good", "?", ""]
    assert loaded.rows.column("answer")[1] == "\0"
    assert loaded.rows.column("id") == [loaded.selection.ids[row] for row in (0, 11, 12)]


def test_records_may_lack_columns(context: StageContext, write: Any) -> None:
    path = write(
        {"id": 1},
        {"question": "Who?"},
        {"question": "Who?", "answer": "She."},
        {"answer": "x", "question": "y", "z": 1},
    )
    loaded = load(context, path)
    assert outcomes(loaded) == ["unreadable", "unreadable", "kept", "kept"]
    assert loaded.rows.column("prompt") == ["Who?", "y"]


def test_columns_are_looked_for_in_every_record(context: StageContext, write: Any) -> None:
    path = write(*[[] for _ in range(300)], {"question": "Who?", "answer": "She.", "topic": "t"})
    loaded = load(context, path, group="topic")
    assert (len(loaded.selection.ids), loaded.rows.column("group")) == (301, ["topic:t"])


# Files


def save(rows: list[dict[str, Any]], path: Path) -> Path:
    """Write rows in the form that the name asks for."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.write(json.dumps(rows, indent=1) if ".json" in path.suffixes else "\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("name", ["a.json", "a.jsonl.gz", "a.json.gz", "a.csv", "a.parquet", "A.JSONL"])
def test_every_kind_of_file_gives_the_same_rows(context: StageContext, tmp_path: Path, name: str) -> None:
    expected = load(context, save(QUESTIONS, tmp_path / "b.jsonl")).rows
    rows = load(context, save(QUESTIONS, tmp_path / name)).rows
    assert rows.table.column_names == expected.table.column_names
    for column in rows.table.column_names:
        assert rows.column(column) == expected.column(column)
    assert rows.column("answer")[0] == 'It is\n1, "of course".'


def test_conversations_of_a_parquet_file(context: StageContext, tmp_path: Path) -> None:
    rows = [talk("u Hi?", "a Hello.", id="1_0"), talk("s Be kind.", "u Hi?", "a Hello.", id="2_0"), talk()]
    one, two = (load(context, save(rows, tmp_path / name)) for name in ("a.parquet", "a.jsonl"))
    assert outcomes(one) == outcomes(two) == ["kept", "kept", "empty"]
    assert one.selection.ids == two.selection.ids
    assert one.rows.column("messages") == two.rows.column("messages")


def test_values_that_json_does_not_know(context: StageContext, tmp_path: Path) -> None:
    row = {**QUESTIONS[0], "when": datetime.date(2026, 1, 1), "score": float("nan"), "raw": b"\xff"}
    plain = load(context, save(QUESTIONS[:1], tmp_path / "b.jsonl"))
    assert load(context, save([row], tmp_path / "a.parquet")).selection.ids == plain.selection.ids


def test_a_byte_order_mark_is_no_part_of_a_name(context: StageContext, tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl", "a.json"):
        path = save(QUESTIONS, tmp_path / name)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert len(load(context, path).rows) == 30


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_csv_file_with_semicolons_or_tabs_gives_the_same_rows(
    context: StageContext, tmp_path: Path, mark: str
) -> None:
    file = tmp_path / "a.csv"
    file.write_text(f'سؤال{mark}جواب\n"a, b{mark} c"{mark}yes\n', encoding="utf-8")
    loaded = load(context, file, columns={"prompt": "سؤال", "answer": "جواب"})
    assert (loaded.rows.column("prompt"), loaded.rows.column("answer")) == ([f"a, b{mark} c"], ["yes"])


@pytest.mark.parametrize("encoding", ["cp1256", "utf-16", "utf-16-be"])
def test_no_row_of_a_file_in_another_encoding_is_advised_to_be_left_out(
    context: StageContext, tmp_path: Path, encoding: str
) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes("question,answer\nمن؟,هي\n".encode(encoding))
    with pytest.raises(SourceError, match=r"iconv -f (windows-1256|utf-16(be)?) ") as raised:
        load(context, file)
    assert "on_error" not in str(raised.value)


def test_a_glob_reads_in_the_order_of_names(context: StageContext, tmp_path: Path) -> None:
    root = tmp_path / "files"
    (root / "in").mkdir(parents=True)
    for name, rows in [("b.jsonl", QUESTIONS[1:2]), ("in/c.csv", QUESTIONS[2:3]), ("a.json", QUESTIONS[:1])]:
        save(rows, root / name)
    assert load(context, root / "?.js*").rows.column("answer") == [row["answer"] for row in QUESTIONS[:2]]
    assert load(context, root / "**" / "*.*").rows.column("answer") == [row["answer"] for row in QUESTIONS[:3]]


def test_a_name_with_brackets_is_a_name(context: StageContext, tmp_path: Path) -> None:
    assert len(load(context, save(QUESTIONS, tmp_path / "rows [1].jsonl")).rows) == 30


def broken(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    line = json.dumps(talk("u Hi?", "a Hello."))
    whole = gzip.compress((f"{line}\n" * 2000).encode())
    contents = {
        "syntax.jsonl": f"{line}\n{line[:-3]}\n".encode(),
        "deep.jsonl": f"{line}\n{'[' * 100_000}\n".encode(),
        "list.jsonl": f"[\n{line}\n]".encode(),
        "latin.jsonl": '{"question": "Où?", "answer": "Là."}'.encode("latin-1"),
        "latin.json": '[{"question": "Où?", "answer": "Là."}]'.encode("latin-1"),
        "wide.csv": "question,answer\nWho?,She.".encode("utf-16"),
        "cut.jsonl.gz": whole[: len(whole) // 2],
        "damaged.jsonl.gz": whole[:40] + b"\0\0\0\0" + whole[44:],
        "not.jsonl.gz": line.encode(),
        "object.json": line.encode(),
        "lines.json": f"{line}\n{line}".encode(),
        "quote.csv": b'question,answer\nWho?,"She.\nWhat?,That.\n',
        "not.parquet": b"PAR1 or not",
        "empty.jsonl": b"",
        "blank.jsonl": b"\n \n",
        "empty.json": b"[]",
        "empty.csv": b"",
        "header.csv": b"question,answer\n",
    }
    path.write_bytes(contents[name])
    return path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("syntax.jsonl", "line 2: not JSON"),
        ("deep.jsonl", "line 2: not JSON"),
        ("list.jsonl", "line 1: not JSON"),
        ("latin.jsonl", "not UTF-8"),
        ("latin.json", "not UTF-8"),
        ("wide.csv", "line 1: is UTF-16"),
        ("cut.jsonl.gz", "cannot be read completely"),
        ("damaged.jsonl.gz", "cannot be read completely"),
        ("not.jsonl.gz", "cannot be read completely"),
        ("object.json", "must be a list of records, not a dict"),
        ("lines.json", "or name the file .jsonl"),
        ("quote.csv", "line 3: not CSV"),
        ("not.parquet", "not a parquet file"),
        ("empty.jsonl", "has no records"),
        ("blank.jsonl", "has no records"),
        ("empty.json", "has no records"),
        ("empty.csv", "has no records"),
        ("header.csv", "has no records"),
    ],
)
def test_a_broken_file_is_named_with_its_fault(context: StageContext, tmp_path: Path, name: str, words: str) -> None:
    path = broken(tmp_path, name)
    with pytest.raises(SourceError) as raised:
        load(context, path)
    assert words in str(raised.value)
    assert name in str(raised.value)
    assert [entry.stage for entry in context.store.listing() if entry.stage != "file"] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("syntax.jsonl", ["kept", "unreadable"]),
        ("latin.jsonl", ["unreadable"]),
        ("cut.jsonl.gz", ["kept", "unreadable"]),
        ("quote.csv", ["unreadable"]),
        ("not.parquet", ["unreadable"]),
        ("object.json", ["unreadable"]),
        ("wide.csv", ["unreadable"]),
    ],
)
def test_what_is_broken_can_be_left_out_and_is_counted(
    context: StageContext, tmp_path: Path, caplog: Any, name: str, expected: list[str]
) -> None:
    caplog.set_level("WARNING", "sft_lab")
    path = broken(tmp_path, name)
    save([talk("u Hi?", "a Hello.")] * 3, tmp_path / "zz.jsonl")
    found = outcomes(load(context, tmp_path / "*.*", on_error=OnError.skip))
    assert found[-3:] == ["kept"] * 3
    assert list(dict.fromkeys(found[:-3])) == expected
    assert found.count("unreadable") == 1
    assert str(path) in caplog.text


def test_behind_a_broken_line_reading_goes_on(context: StageContext, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("WARNING", "sft_lab")
    path = tmp_path / "a.jsonl"
    good = [json.dumps(row).encode() for row in QUESTIONS[:4]]
    path.write_bytes(b"\n".join([good[0], b"{", good[1], b"\xff", good[2], b"}", b"{{", b"nope", good[3]]))
    loaded = load(context, path, on_error=OnError.skip)
    assert outcomes(loaded) == ["kept", "unreadable"] * 3 + ["unreadable", "unreadable", "kept"]
    for words in ("line 2", "line 4: not UTF-8", "2 more parts"):
        assert words in caplog.text
    assert "line 7" not in caplog.text


def test_a_file_that_changes_while_it_is_read_is_refused(
    context: StageContext, tmp_path: Path, monkeypatch: Any
) -> None:
    path = save(QUESTIONS, tmp_path / "a.jsonl")
    loads = json.loads

    def slow_reader(line: str, **more: Any) -> Any:
        path.write_text("{}\n")  # somebody writes while we read
        return loads(line, **more)

    monkeypatch.setattr(json, "loads", slow_reader)
    with pytest.raises(SourceError, match="changed while it was read"):
        load(context, path)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.json", "a.csv", "a.jsonl.gz"])
@pytest.mark.parametrize("replaced", [True, False])
def test_rows_never_stand_under_the_hash_of_other_bytes(
    context: StageContext, tmp_path: Path, monkeypatch: Any, name: str, replaced: bool
) -> None:
    """Another process replaces the file, or writes into it, between the first byte and the last row."""
    path = save(QUESTIONS, tmp_path / name)
    other = save([{**row, "answer": "other"} for row in QUESTIONS], tmp_path / f"other-{name}")
    turned: list[str] = []

    def at_first_row(event: str, arguments: Any) -> None:
        if event == "open" and str(arguments[0]) == str(path) and not turned:
            turned.append(name)
            monkeypatch.setattr("os.fstat", changing)

    fstat = os.fstat

    def changing(handle: int) -> os.stat_result:  # called as soon as the file is open
        monkeypatch.setattr("os.fstat", fstat)
        before = fstat(handle)
        other.replace(path) if replaced else path.write_bytes(other.read_bytes())
        return before

    sys.addaudithook(at_first_row)
    with pytest.raises(SourceError, match=f"{name}: changed while it was read"):
        load(context, path)
    assert list(context.store.listing()) == []
    assert set(load(StageContext(Store(context.store.root)), path).rows.column("answer")) == {"other"}


def test_a_file_read_twice_by_a_run_has_one_content(context: StageContext, tmp_path: Path) -> None:
    path = save(QUESTIONS, tmp_path / "a.parquet")
    load(context, path)
    save(QUESTIONS[:3], path)
    with pytest.raises(SourceError, match="changed since this run first read it"):
        load(context, path, turns=Turns.first)


def test_the_files_of_a_glob_are_listed_once_in_a_run(context: StageContext, tmp_path: Path) -> None:
    """A file that comes to lie beside the others while they are read is in neither rows nor key."""
    save(QUESTIONS[:2], tmp_path / "a.jsonl")
    source = File(path=str(tmp_path / "*.jsonl"))
    key = source.fingerprint(context.store)
    save(QUESTIONS[2:4], tmp_path / "b.jsonl")
    assert len(source(context).rows) == 2
    assert source.fingerprint(context.store) == key
    assert len(source(StageContext(Store(context.store.root))).rows) == 4


@pytest.mark.parametrize("name", ["me/set", "set", "json"])
def test_a_hub_name_is_never_a_local_path(context: StageContext, tmp_path: Path, monkeypatch: Any, name: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    save(QUESTIONS, tmp_path / name / "train.jsonl")
    save(QUESTIONS, tmp_path / "train.json")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=f"dataset.name={name}"):
        Hub(name=name, revision="a" * 40)(context)
    assert list(context.store.listing()) == []


def test_many_files_take_seconds(context: StageContext, tmp_path: Path, monkeypatch: Any) -> None:
    """Each file's hash as an entry of its own took 13 ms; all files of a glob are one entry."""
    monkeypatch.setattr(store, "FRESH", -1.0)
    for number in range(300):
        save(QUESTIONS[:1], tmp_path / f"{number}.jsonl")
    load(context, tmp_path / "*.jsonl")
    assert [entry.stage for entry in context.store.listing()] == ["file", "load"]
    opened: list[str] = []
    sys.addaudithook(lambda event, found: opened.append(str(found[0])) if event == "open" else None)
    assert len(load(StageContext(Store(context.store.root)), tmp_path / "*.jsonl").rows) == 300
    assert [path for path in opened if path.endswith(".jsonl")] == []


def test_a_folder_with_brackets_is_a_name_and_links_lead_nowhere_twice(context: StageContext, tmp_path: Path) -> None:
    inside = tmp_path / "[proj]" / "in"
    inside.mkdir(parents=True)
    save(QUESTIONS[:2], inside / "a.jsonl")
    (inside / "loop").symlink_to("..")
    (inside / "again").symlink_to(".")
    (inside / "b.jsonl").symlink_to("a.jsonl")
    for pattern in ("[proj]/**/*.jsonl", "[proj]/in/?.jsonl", "*proj?/in/[a-b].jsonl", "[proj]/**/in/*.jsonl"):
        assert len(load(context, tmp_path / pattern).rows) == 2, pattern
    assert File(path=str(tmp_path / "[q]" / "*.jsonl")).check()


@pytest.mark.parametrize("name", ["a.jsonl.bz2", "a.jsonl.xz", "a.json.xz", "a.csv.gz"])
def test_packed_files(context: StageContext, tmp_path: Path, name: str) -> None:
    plain = save(QUESTIONS, tmp_path / name.rpartition(".")[0]).read_bytes()
    pack = {"bz2": bz2.compress, "xz": lzma.compress, "gz": gzip.compress}[name.rpartition(".")[2]]
    (tmp_path / name).write_bytes(pack(plain))
    assert (
        load(context, tmp_path / name).selection.ids == load(context, tmp_path / name.rpartition(".")[0]).selection.ids
    )
    (tmp_path / name).write_bytes(pack(plain)[:-9])
    with pytest.raises(SourceError, match=f"{name}: cannot be read completely"):
        load(StageContext(Store(context.store.root)), tmp_path / name)
    misnamed = tmp_path / "b.jsonl"
    misnamed.write_bytes(pack(plain))
    with pytest.raises(SourceError, match=rf"compressed as \.{name.rpartition('.')[2]}; rename it to b\.jsonl\."):
        load(context, misnamed)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_two_columns_of_one_name_are_refused(context: StageContext, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.csv":
        path.write_text("prompt,completion,completion\nHi?,Hello.,a note\n")
    else:
        columns = [pa.array([text]) for text in ("Hi?", "Hello.", "a note")]
        pq.write_table(pa.Table.from_arrays(columns, names=["prompt", "completion", "completion"]), path)
    for on_error in OnError:
        with pytest.raises(SourceError, match="more than one column named completion"):
            load(context, path, on_error=on_error)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_line_longer_than_any_record_is_named(context: StageContext, tmp_path: Path, caplog: Any, name: str) -> None:
    long = {"question": "Long?", "answer": "x" * 5000}
    path = save([QUESTIONS[0], long, QUESTIONS[2]], tmp_path / name)
    number = 4 if name == "a.csv" else 2  # the first answer holds a line break
    with pytest.raises(SourceError, match=rf"{name}, line {number}: longer than dataset.max_record_mb=0.001"):
        load(context, path, max_record_mb=0.001)
    caplog.set_level("WARNING", "sft_lab")
    assert outcomes(load(context, path, max_record_mb=0.001, on_error=OnError.skip)) == ["kept", "unreadable", "kept"]
    assert len(load(StageContext(Store(context.store.root / "b")), path).rows) == 3


def test_a_file_is_read_once_for_its_rows_and_its_fingerprint(
    context: StageContext, tmp_path: Path, monkeypatch: Any
) -> None:
    path = save(QUESTIONS, tmp_path / "a.jsonl")
    long_ago = path.stat().st_mtime - 60
    os.utime(path, (long_ago, long_ago))
    opened: list[str] = []
    sys.addaudithook(lambda event, found: opened.append(str(found[0])) if event == "open" else None)
    load(context, path)
    File(path=str(path)).fingerprint(context.store)
    load(context, path, limit=3)
    load(context, path, turns=Turns.first)  # another reading of the same bytes
    assert opened.count(str(path)) == 2


def test_a_hash_is_known_to_other_processes_once_the_file_is_no_longer_fresh(
    context: StageContext, tmp_path: Path, monkeypatch: Any
) -> None:
    path = save(QUESTIONS, tmp_path / "a.jsonl")
    monkeypatch.setattr(store, "FRESH", -1.0)
    value = context.store.sha256(path)
    another = Store(context.store.root)
    assert another.knows_sha256([path])
    assert another.sha256(path) == value == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text("other")
    assert another.sha256(path) == value  # an open store goes by what was read
    assert not Store(context.store.root).knows_sha256([path])


def test_a_seed_shuffles_the_rows_and_moves_none_to_the_other_side(context: StageContext, tmp_path: Path) -> None:
    path = save(QUESTIONS, tmp_path / "a.jsonl")
    plain, one, same, other = (load(context, path, shuffle_seed=seed).rows for seed in (None, 1, 1, 2))
    assert one.column("id") == same.column("id") != other.column("id")
    assert sorted(one.column("id")) == sorted(other.column("id")) == sorted(plain.column("id"))
    split = Hash(eval_share=0.3, min_eval_rows=1)
    held = {row_id: out for rows in (plain, one, other) for row_id, out in
            zip(rows.column("id"), split.is_held_out(rows), strict=True)}  # fmt: skip
    assert [held[row_id] for row_id in plain.column("id")] == list(split.is_held_out(plain))


# Mixtures


def sources(tmp_path: Path, sizes: dict[str, int], **more: Any) -> dict[str, Ingredient]:
    for name, size in sizes.items():
        rows = [{"question": f"{name} {n}?", "answer": f"{n}."} for n in range(size)]
        save(rows, tmp_path / f"{name}.jsonl")
    found = {name: Ingredient(path=str(tmp_path / f"{name}.jsonl")) for name in sizes}
    for key, values in more.items():
        for name, value in values.items():
            setattr(found[name], key, value)
    return found


@pytest.mark.parametrize(
    ("sizes", "knobs", "limit", "expected"),
    [
        ({"a": 30, "b": 10}, {}, None, {"a": 30, "b": 10}),
        ({"a": 30, "b": 10}, {}, 20, {"a": 15, "b": 5}),
        ({"a": 30, "b": 10}, {"limit": {"a": 5}}, None, {"a": 5, "b": 10}),
        ({"a": 30, "b": 10}, {"share": {"a": 0.5, "b": 0.5}}, None, {"a": 10, "b": 10}),
        ({"a": 30, "b": 10}, {"share": {"a": 0.5, "b": 0.5}}, 11, {"a": 6, "b": 5}),
        ({"a": 30, "b": 10}, {"share": {"a": 3, "b": 1}}, None, {"a": 30, "b": 10}),
        ({"a": 30, "b": 10}, {"share": {"a": 9, "b": 1}}, None, {"a": 30, "b": 3}),
        ({"a": 30, "b": 10}, {"share": {"a": 1, "b": 1}, "limit": {"b": 4}}, None, {"a": 4, "b": 4}),
        ({"a": 30, "b": 10, "c": 10}, {}, 7, {"a": 4, "b": 2, "c": 1}),
    ],
)
def test_shares_and_limits_of_a_mixture(
    context: StageContext, tmp_path: Path, sizes: Any, knobs: Any, limit: Any, expected: Any
) -> None:
    mixture = Mixture(sources=sources(tmp_path, sizes, **knobs), limit=limit)
    rows = mixture(context).rows
    assert Counter(rows.column("source")) == sizes
    left = rows.take(~mixture.surplus(rows))
    assert Counter(left.column("source")) == expected
    for name, count in expected.items():  # the first ones of each
        asked = [text for text in left.column("prompt") if text.startswith(name)]
        assert asked == [f"{name} {n}?" for n in range(count)]


def test_a_mixture_reads_each_source_in_its_own_form_and_its_groups_stay_apart(
    context: StageContext, tmp_path: Path
) -> None:
    save([talk("u Hi?", "a Hello.", id=f"{n}_0") for n in range(20)], tmp_path / "talks.jsonl")
    save([{"q": f"{n}?", "a": "Yes.", "id": f"{n}_1"} for n in range(20)], tmp_path / "pairs.csv")
    mixture = Mixture(
        sources={
            "talks": Ingredient(path=str(tmp_path / "talks.jsonl")),
            "pairs": Ingredient(path=str(tmp_path / "pairs.csv"), columns={"prompt": "q", "answer": "a"}),
        }
    )
    loaded = mixture(context)
    assert loaded.grouped_by == "id_prefix"
    assert len(set(loaded.rows.column("group"))) == 40
    assert len(set(loaded.rows.column("id"))) == 40
    before = mixture.fingerprint(context.store)
    save([{"q": "new?", "a": "Yes.", "id": "1_1"}], tmp_path / "pairs.csv")
    assert mixture.fingerprint(Store(context.store.root)) != before


@pytest.mark.parametrize("kind", ["jsonl", "json", "jsonl.gz", "json.gz", "csv", "parquet"])
def test_another_file_is_another_entry(context: StageContext, tmp_path: Path, kind: str) -> None:
    keys = []
    for name, rows in (("a", QUESTIONS), ("b", QUESTIONS[:-1])):
        path = save(rows, tmp_path / f"{name}.{kind}")
        first, again = (File(path=str(path))(StageContext(Store(context.store.root))).rows for _ in range(2))
        assert first.key == again.key
        assert len(first) == len(rows)
        keys.append(first.key)
    assert keys[0] != keys[1]


def test_another_broken_file_is_another_entry(context: StageContext, tmp_path: Path) -> None:
    keys = set()
    for name, rows in (("a", QUESTIONS), ("b", QUESTIONS[::-1])):
        path = save(rows * 400, tmp_path / f"{name}.jsonl.gz")
        path.write_bytes(path.read_bytes()[:-300])
        keys.add(load(context, path, on_error=OnError.skip).rows.key)
    assert len(keys) == 2


def test_a_run_sees_a_file_as_it_was_when_it_was_read(context: StageContext, tmp_path: Path) -> None:
    path = save(QUESTIONS, tmp_path / "a.jsonl")
    before = load(context, path).rows.key
    fingerprint = File(path=str(path)).fingerprint(context.store)
    save(QUESTIONS[:-1], path)
    assert File(path=str(path)).fingerprint(context.store) == fingerprint  # what the manifest says of this run
    assert load(context, path).rows.key == before
    assert File(path=str(path)).fingerprint(Store(context.store.root)) != fingerprint


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Mixture, "sources={}"),
        (
            lambda: Mixture(sources={"a": Ingredient(path="a", share=1), "b": Ingredient(path="b")}),
            "give one to every source or to none",
        ),
        (Ingredient, "path=None"),
        (lambda: Ingredient(path="a", name="b/c"), "not both"),
        (lambda: Ingredient(path="a", share=0), "share=0"),
        (lambda: Ingredient(path="a", limit=0), "limit=0"),
        (lambda: Ingredient(path="a", columns={"text": "t", "prompt": "p"}), "columns="),
        (lambda: Mixture(sources={"a": Ingredient(path="a")}, columns={"text": "t"}), "for each source"),
    ],
)
def test_impossible_mixtures(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        make()


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    mixture = Mixture(sources={"a": Ingredient(path=str(tmp_path / "none.jsonl"))})
    assert mixture.check()[0].startswith("dataset.sources.a: path=")


def test_a_comma_that_cuts_a_text_makes_the_row_unreadable(context: StageContext, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question,answer\nWho?,"She, of course."\nWho?,She, of course.\nWho?\n', encoding="utf-8")
    loaded = load(context, path)
    assert outcomes(loaded) == ["kept", "unreadable", "kept"]
    assert loaded.rows.column("answer") == ["She, of course.", ""]


def test_check_needs_files_of_a_known_kind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    assert "no such file" in File(path=str(tmp_path / "none*.jsonl")).check()[0]
    assert "is not a supported file type" in File(path=str(tmp_path / "*.txt")).check()[0]
    assert File(path=str(save(QUESTIONS, tmp_path / "a.jsonl"))).check() == []


def test_the_fingerprint_changes_with_the_bytes_alone(context: StageContext, tmp_path: Path) -> None:
    path = save(QUESTIONS, tmp_path / "a.jsonl")
    before, key = File(path=str(path)).fingerprint(context.store), load(context, path).rows.key
    path.touch()
    moved = save(QUESTIONS, tmp_path / "elsewhere.jsonl")
    assert File(path=str(path), limit=3, turns=Turns.first).fingerprint(context.store) == before
    assert File(path=str(moved)).fingerprint(context.store) == before
    assert load(context, moved, limit=3).rows.key == key
    path.write_bytes(path.read_bytes() + b"\n")
    assert File(path=str(path)).fingerprint(Store(context.store.root)) != before


# Ids and groups


def test_ids_are_unique_though_source_ids_repeat(context: StageContext, write: Any) -> None:
    rows = load(context, write(*[talk("u Hi?", "a Hello.", id="same")] * 3, talk("u Hi?", "a Well.", id="same"))).rows
    assert rows.column("source_id") == ["same"] * 4
    positions, contents = zip(*(row_id.split("-") for row_id in rows.column("id")), strict=True)
    assert positions == ("0", "1", "2", "3")
    assert contents[0] == contents[1] == contents[2] != contents[3]


def numbered(*ids: str) -> list[dict[str, Any]]:
    return [talk(f"u Question {n}?", f"a Answer {n}.", id=row_id) for n, row_id in enumerate(ids)]


PIECES = [f"talk{n // 2}_{n % 2}" for n in range(40)]  # two pieces of each of twenty conversations


@pytest.mark.parametrize(
    ("ids", "group", "rule", "groups"),
    [
        (PIECES, "auto", "id_prefix", 20),
        (PIECES, "content", "content", 40),
        (PIECES, "id", "id", 40),
        ([f"identity_{n}" for n in range(1000)], "auto", "content", 1000),
        ([f"identity_{n}" for n in range(40)], "id_prefix", "id_prefix", 1),
        ([*PIECES[:-1], "unnumbered"], "auto", "content", 40),
        ([f"a_{n}" for n in range(4)] + [f"b{n}_0" for n in range(36)], "auto", "id_prefix", 37),
        ([f"a_{n}" for n in range(5)] + [f"b{n}_0" for n in range(35)], "auto", "content", 40),
    ],
)
def test_groups(context: StageContext, write: Any, ids: list[str], group: str, rule: str, groups: int) -> None:
    loaded = load(context, write(*numbered(*ids)), group=group)
    assert loaded.grouped_by == rule
    assert len(set(loaded.rows.column("group"))) == groups


def test_pieces_of_a_conversation_that_are_split_up_are_noticed(context: StageContext, write: Any) -> None:
    load(context, write(*numbered(*[f"identity_{n}" for n in range(1000)]), name="one.jsonl"))
    load(context, write(*numbered(*PIECES), name="pieces.jsonl"))
    assert context.notices == []
    ids = [*(f"a_{n}" for n in range(5)), *(f"b{n}_0" for n in range(35))]
    for _ in ("computed", "stored"):
        context.notices.clear()
        load(context, write(*numbered(*ids)))
        (notice,) = context.notices
    assert "5 of 40, have ids that begin with a_; " in notice
    assert "set dataset.group=id_prefix" in notice


def test_pieces_of_one_conversation_share_a_group(context: StageContext, write: Any) -> None:
    group = load(context, write(*numbered(*PIECES))).rows.column("group")
    assert group[::2] == group[1::2]
    assert len(set(group[::2])) == 20


def test_equal_texts_share_a_content_group_however_they_are_written(context: StageContext, write: Any) -> None:
    path = write(talk("u Who?", "a  SHE\n did."), talk("u who?", "a She did."), talk("u who?", "a He did."))
    one, two, three = load(context, path).rows.column("group")
    assert one == two != three


def test_an_own_column_groups_and_rows_without_it_stand_alone(context: StageContext, write: Any) -> None:
    path = write(
        *[{**row, "topic": topic} for row, topic in zip(QUESTIONS, ["a", "b", "a", None, None, "", 7], strict=False)]
    )
    loaded = load(context, path, group="topic")
    group = loaded.rows.column("group")
    assert loaded.grouped_by == "topic"
    assert (group[0], group[1], group[2], group[6]) == ("topic:a", "topic:b", "topic:a", "topic:7")
    assert len(set(group)) == 6


def test_a_group_that_is_no_column_is_an_error_that_lists_them(context: StageContext, write: Any) -> None:
    with pytest.raises(SourceError, match=r"dataset.group=topics: .*\['question', 'answer', 'topic'\]"):
        load(context, write({**QUESTIONS[0], "topic": "a"}), group="topics")
    with pytest.raises(SourceError, match="not every id"):
        load(context, write(*numbered("a_1", "b"), name="others.jsonl"), group="id_prefix")


def test_fields_that_are_not_read_are_named_once_with_their_rows(context: StageContext, write: Any) -> None:
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello.", "score": 0}]
    record = {"messages": turns, "conversations": talk("u Old?", "a Old.")["conversations"], "score": 0.5, "empty": ""}
    for _ in range(2):  # computed, then stored
        again = StageContext(context.store)
        loaded = load(again, write(record, record))
        assert loaded.rows.column("prompt") == ["Hi?", "Hi?"]
        (notice,) = again.notices
        for words in ("`score` in 2 rows", "`conversations` in 2 rows", "`messages[].score` in 2 rows"):
            assert words in notice
        assert "empty" not in notice


def test_no_field_of_a_turn_or_part_that_is_read_is_named(context: StageContext, write: Any) -> None:
    parts = [{"type": "text", "text": "Hi?"}]
    asked, answered = {"role": "user", "content": parts}, {"role": "assistant", "content": "Hello."}
    loaded = load(
        context, write({"messages": [asked, answered]}, {"messages": [answered | {"role": "user"}, answered]})
    )
    assert outcomes(loaded) == ["kept", "kept"]
    assert not context.notices


def test_many_fields_that_are_not_read_are_cut_short(context: StageContext, write: Any) -> None:
    load(context, write({"prompt": "Hi?", "completion": "Hello.", **{f"score{n:02}": n + 1 for n in range(50)}}))
    (notice,) = context.notices
    assert "`score11` in 1 row and 38 more" in notice


def test_nan_where_text_belongs_is_a_cause_of_its_own(context: StageContext, tmp_path: Path) -> None:
    path = tmp_path / "nan.jsonl"
    path.write_text('{"prompt": "Hi?", "completion": NaN}\n{"prompt": "Hi?", "completion": "Hello."}\n')
    assert outcomes(load(context, path)) == ["nan_for_text", "kept"]


@pytest.mark.parametrize("export", ["json text", "lists by name"])
def test_exports_of_turns_are_read(context: StageContext, write: Any, export: str) -> None:
    turns = [{"role": "user", "content": "Which way?"}, {"role": "assistant", "content": "Left."}]
    messages = json.dumps(turns) if export == "json text" else {key: [turn[key] for turn in turns] for key in turns[0]}
    uneven = '[{"role": "user"' if export == "json text" else {"role": ["user", "assistant"], "content": ["Which way?"]}
    loaded = load(context, write({"messages": messages}, {"messages": uneven}))
    assert outcomes(loaded) == ["kept", "unreadable"]
    assert (loaded.rows.column("prompt"), loaded.rows.column("answer")) == (["Which way?"], ["Left."])
