"""The starter set: what its note says is so. Every planted fault is caught for its reason, every good row survives."""

from __future__ import annotations

import json
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sft_lab import compose
from sft_lab.core.context import StageContext
from sft_lab.core.packages import package_path

FILE = package_path("package:sft_lab/starter/conversations.jsonl")
CAUGHT = {  # id prefix: (stage, reason)
    "fault-empty-reply-": ("filter.answered", "empty_answer"),
    "fault-empty-": ("load", "empty"),
    "fault-unreadable-": ("load", "unreadable"),
    "fault-begins-with-assistant-": ("load", "begins_with_assistant"),
    "fault-no-answer-": ("load", "no_answer"),
    "fault-over-long-": ("filter.length", "over_max_tokens"),
    "fault-near-held-out-": ("decontaminate", "near_held_out"),
    "fault-equals-held-out-": ("decontaminate", "equals_held_out"),
    "fault-equal-": ("dedup.semantic", "duplicate"),
    "fault-near-": ("dedup.semantic", "near_duplicate"),
}


def conversations() -> list[dict[str, Any]]:
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def expected(name: str) -> tuple[str, str] | None:
    return next((caught for prefix, caught in CAUGHT.items() if name.startswith(prefix)), None)


@pytest.fixture(scope="module")
def prepared():
    """The stages over all first exchanges, with the real embedder; only the tokenizer is the small one."""
    run = compose(["model=tiny_random", "dataset.limit=null", "dataset.turns=first", "split.max_eval_rows=128"])
    context = StageContext(load_tokenizer=lambda: run.model.load_tokenizer(StageContext()))
    return run.prepare(context)


def test_the_note_counts_right() -> None:
    kinds = Counter(row["id"].split("-")[0] for row in conversations())
    assert kinds == {
        "knowledge": 62, "howto": 44, "math": 36, "rewrite": 36, "json": 36, "arabic": 48, "repeated": 2, "fault": 26,
    }  # fmt: skip
    note = (FILE.parent / "README.md").read_text(encoding="utf-8")
    faults = Counter(row["id"].rpartition("-")[0] for row in conversations() if row["id"].startswith("fault"))
    for name, count in faults.items():
        assert f"| `{name}-*` | {count} |" in note


def test_every_fault_is_caught_for_its_reason_and_nothing_else_is_dropped(prepared) -> None:
    names = [row["id"] for row in conversations()]
    dropped = prepared.train_flow.dropped().to_pydict()
    got = {
        names[int(row_id.partition("-")[0])]: (stage, reason)
        for row_id, stage, reason in zip(dropped["id"], dropped["stage"], dropped["reason"], strict=True)
        if reason != "held_out"
    }
    assert got == {name: expected(name) for name in names if expected(name)}


def test_near_rows_name_the_row_they_copy(prepared) -> None:
    rows = conversations()
    dropped = prepared.train_flow.dropped().to_pydict()
    for stage, row_id, nearest in zip(dropped["stage"], dropped["id"], dropped["nearest"], strict=True):
        if stage in ("decontaminate", "dedup.semantic"):
            copy, kept = (rows[int(name.partition("-")[0])]["id"] for name in (row_id, nearest))
            assert copy.startswith("fault-")
            assert not kept.startswith("fault-")


def test_rows_of_alike_phrasing_survive(prepared) -> None:
    names = [row["id"] for row in conversations()]
    stays = {names[int(row_id.partition("-")[0])] for row_id in prepared.train.rows.column("id")}
    stays |= {names[int(row_id.partition("-")[0])] for row_id in prepared.sides.held_out_rows.column("id")}
    assert {f"knowledge-{number:03}" for number in range(21, 29)} <= stays
    assert {f"arabic-{number:03}" for number in range(1, 49)} <= stays


def test_the_default_demo_meets_every_kind_of_fault() -> None:
    run = compose(["model=tiny_random"])
    flow = run.prepare(StageContext(load_tokenizer=lambda: run.model.load_tokenizer(StageContext()))).train_flow
    met = {(stage["stage"], reason) for stage in flow.stages for reason in stage["dropped"]}
    assert set(CAUGHT.values()) <= met


def test_fixed_format_answers_are_json_and_texts_are_clean() -> None:
    for row in conversations():
        if row["id"].startswith("fault"):
            continue
        turns = row["conversations"]
        assert all(turn["value"] == turn["value"].strip() != "" for turn in turns)
        if row["id"].startswith("json-"):
            assert json.loads(turns[-1]["value"]) is not None
            assert "\n" not in turns[-1]["value"]


def test_no_two_good_rows_share_an_answer() -> None:
    answers = Counter(
        next(turn["value"] for turn in row["conversations"] if turn["from"] == "gpt")
        for row in conversations()
        if not row["id"].startswith("fault")
    )
    assert answers.most_common(1)[0][1] == 1


def test_the_shipped_tokenizer_is_the_one_the_script_trains() -> None:
    from sft_lab.training.tiny_random import TOKENIZER_FOLDER

    script = Path(__file__).parents[2] / "benchmarks" / "train_tiny_tokenizer.py"
    trained = runpy.run_path(str(script))["train_tokenizer"](Path(FILE)).backend_tokenizer.to_str()
    shipped = (TOKENIZER_FOLDER / "tokenizer.json").read_text(encoding="utf-8")
    assert json.loads(trained)["model"] == json.loads(shipped)["model"]
