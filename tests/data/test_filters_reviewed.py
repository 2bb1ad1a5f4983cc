"""The filter by a reviewer's decisions, from CSV or JSON Lines."""

from __future__ import annotations

import csv
import io
import json
import logging
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError
from sft_lab.data.filters.reviewed import Reviewed

ROWS = datasets.Dataset.from_dict(
    {"id": ["0-aa", "1-bb", "2-cc"], "prompt": ["a", "b", "c"], "answer": ["x", "y", "z"]}
)


def decisions(folder: Path, text: str, name: str = "decisions.csv") -> Reviewed:
    (folder / name).write_text(text, encoding="utf-8")
    return Reviewed(path=str(folder / name))


def test_csv_with_other_columns_and_undecided_rows(tmp_path: Path, context: StageContext) -> None:
    by_hand = decisions(
        tmp_path, '\ufeffnote,id,decision,answer\n"no, not this",1-bb,Drop,"two\nlines"\n,0-aa, keep,\n,2-cc,,\n'
    )
    assert by_hand.check() == []
    assert by_hand(ROWS, context).reason == ["", "reviewed_drop", ""]
    assert by_hand.insists_on() == {"0-aa"}
    by_hand.only = True
    assert by_hand(ROWS, context).reason == ["", "reviewed_drop", "not_reviewed"]


def test_json_lines(tmp_path: Path, context: StageContext) -> None:
    lines = [{"id": "2-cc", "decision": "drop", "by": {"name": "me"}}, {"id": "0-aa", "decision": None}]
    by_hand = decisions(tmp_path, "\n".join(map(json.dumps, lines)) + "\n\n", "d.jsonl")
    assert by_hand(ROWS, context).reason == ["", "", "reviewed_drop"]
    assert by_hand.insists_on() == set()


def test_ids_that_are_not_in_view_are_counted_in_one_line(
    tmp_path: Path, context: StageContext, caplog: pytest.LogCaptureFixture
) -> None:
    by_hand = decisions(tmp_path, "id,decision\n0-aa,keep\n7-xx,drop\n8-yy,keep\n9-zz,\n")
    with caplog.at_level(logging.WARNING, "sft_lab"):
        assert by_hand(ROWS, context).reason == ["", "", ""]
    (record,) = caplog.records
    assert record.getMessage().startswith("reviewed: 2 of 3 decided ids are not among these 3 rows;")


def test_decisions_with_semicolons_between_their_fields(tmp_path: Path, context: StageContext) -> None:
    assert decisions(tmp_path, "id;decision\n0-aa;drop\n")(ROWS, context).reason == ["reviewed_drop", "", ""]


def test_changed_decisions_are_another_result_and_a_moved_file_is_not(tmp_path: Path, context: StageContext) -> None:
    text = "id,decision\n0-aa,drop\n"
    assert decisions(tmp_path, text)(ROWS, context).reason == ["reviewed_drop", "", ""]
    assert decisions(tmp_path, text, "moved.csv")(ROWS, context).reason == ["reviewed_drop", "", ""]
    assert decisions(tmp_path, "id,decision\n1-bb,drop\n")(ROWS, context).reason == ["", "reviewed_drop", ""]
    assert [entry.hit for entry in context.entries] == [False, True, False]


def test_the_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Reviewed(path="d.csv").path == str(tmp_path / "d.csv")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Reviewed(path="~/d.csv").path == str(tmp_path / "d.csv")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("d.csv", "id,decision\n0-aa,keep\n1-bb,maybe\n", "d.csv, line 3: decision=maybe: must be keep, drop or empty"),
        ("d.csv", "id:decision\n0-aa:keep\n", "d.csv, line 2: no id and no decision; the columns are id:decision"),
        ("d.csv", "id,verdict\n0-aa,keep\n", "d.csv, line 2: no decision; the columns are id, verdict"),
        (
            "d.csv",
            "id,decision\n0-aa,keep\n0-aa,keep\n0-aa,drop\n",
            "d.csv, line 4: 0-aa is marked drop, but keep in line 2",
        ),
        ("d.csv", "id,decision\n,keep\n", "d.csv, line 2: id is empty"),
        ("d.csv", "id,decision\n0-aa,keep,more\n", "d.csv, line 2: more fields than columns"),
        ("d.csv", 'id,decision\n0-aa,"keep\n', "not CSV"),
        ("d.jsonl", '{"id": "0-aa", "decision": "keep"}\nid: 1\n', "d.jsonl, line 2: not JSON"),
        ("d.jsonl", "[1]\n", "d.jsonl, line 1: must be an object with id and decision, not a list"),
        ("d.jsonl", '{"id": "0-aa"}\n', "d.jsonl, line 1: no decision; the columns are id"),
        ("d.xlsx", "id,decision\n", "d.xlsx: must end in .csv or .jsonl"),
    ],
)
def test_errors_name_file_and_line_before_the_run_and_in_it(
    tmp_path: Path, context: StageContext, name: str, text: str, says: str
) -> None:
    by_hand = decisions(tmp_path, text, name)
    (problem,) = by_hand.check()
    assert says in problem
    with pytest.raises(ConfigError) as error:
        by_hand(ROWS, context)
    assert str(error.value) == problem
    assert context.entries == []


def test_a_file_that_is_not_there(tmp_path: Path, context: StageContext) -> None:
    by_hand = Reviewed(path=str(tmp_path / "none.csv"))
    assert by_hand.check() == [
        f"filter.reviewed.path={tmp_path}/none.csv: no such file; give a .csv or .jsonl file of decisions"
    ]
    with pytest.raises(ConfigError, match="no such file"):
        by_hand(ROWS, context)


def test_bytes_that_are_no_utf_8(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes("id,decision\n0-aä,keep\n".encode("latin-1"))
    assert "not UTF-8" in Reviewed(path=str(tmp_path / "d.csv")).check()[0]


@given(st.dictionaries(st.from_regex(r"[0-9]{1,3}-[0-9a-f]{4}", fullmatch=True), st.sampled_from(["keep", "drop", ""])))
def test_what_csv_and_json_lines_say_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, given: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("said")
    text = io.StringIO()
    writer = csv.DictWriter(text, ["decision", "id"])
    writer.writeheader()
    records = [{"id": row_id, "decision": decision} for row_id, decision in given.items()]
    writer.writerows(records)
    as_csv = decisions(folder, text.getvalue())
    as_lines = decisions(folder, "\n".join(map(json.dumps, records)), "d.jsonl")
    assert as_csv.insists_on() == as_lines.insists_on() == {key for key, value in given.items() if value == "keep"}
