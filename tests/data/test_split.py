"""The split: held-out rows never change."""

from __future__ import annotations

import random
import re
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError, SourceError
from sft_lab.core.rows import Rows
from sft_lab.data.filters.answered import Answered
from sft_lab.data.preparation import Preparation
from sft_lab.data.sources import File
from sft_lab.data.split import FromFile, Hash, Sides, Source, group_hash

Row = tuple[str, int]  # group, number within the group


def table(rows: list[Row], answer: str = "It is {}.", **more: list[str]) -> datasets.Dataset:
    """One row each, its text and id by group and number, as load would give them whatever their order."""
    names = [f"{group}/{number}" for group, number in rows]
    columns = {
        "id": [f"{position}-{name}" for position, name in enumerate(names)],
        "prompt": [f"What is {name}?" for name in names],
        "answer": [answer.format(name) for name in names],
        "group": [group for group, _ in rows],
    }
    return datasets.Dataset.from_dict({**columns, **more})


def names(rows: Rows) -> list[str]:
    return [row_id.split("-", 1)[1] for row_id in rows.column("id")]


MANY = [(f"g{n // 2}", n) for n in range(600)]


@pytest.fixture
def sides(context: StageContext) -> Sides:
    return Hash(max_eval_rows=1000)(table(MANY), context)


def test_about_the_share_is_held_out(sides: Sides) -> None:
    assert 35 <= len(sides.held_out) <= 85
    assert len(sides.train) + len(sides.held_out) == 600
    assert sides.side.dropped == {"held_out": len(sides.held_out)}


def test_held_out_rows_that_are_too_long_to_be_measured_are_noticed(context: StageContext) -> None:
    short = table(MANY)
    Hash(max_eval_tokens=200)(short, context)
    assert not context.notices
    answers = [answer + " again" * 300 * (n % 4 // 2) for n, answer in enumerate(short["answer"])]
    Hash(max_eval_tokens=200)(short.remove_columns("answer").add_column("answer", answers), context)
    (notice,) = context.notices
    assert "held-out rows have more than split.max_eval_tokens=200 tokens" in notice


def test_a_group_stays_on_one_side(sides: Sides) -> None:
    assert not set(sides.train.column("group")) & set(sides.held_out.column("group"))


def test_a_known_group_is_where_it_always_was() -> None:
    """These numbers are a promise: another hash would move the held-out rows of everyone."""
    assert group_hash("id_prefix:QWJhYvA") == 0.37973173689905126
    assert group_hash("content:") == 0.5344121734582423
    assert 0 <= group_hash("\ud800") < 1


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 40).map("g{}".format), st.integers(0, 3)), unique=True, max_size=80),
    others=st.lists(st.tuples(st.integers(41, 90).map("g{}".format), st.integers(0, 3)), unique=True, max_size=40),
    share=st.floats(0.05, 0.9),
    seed=st.integers(),
)
def test_order_and_other_rows_move_nothing(rows: list[Row], others: list[Row], share: float, seed: int) -> None:
    split = Hash(eval_share=share)
    more = rows + others
    random.Random(seed).shuffle(more)
    out, wider = (Rows.of(table(given_rows)) for given_rows in (rows, more))
    held = dict(zip(names(out), split.is_held_out(out), strict=True))
    held_then = dict(zip(names(wider), split.is_held_out(wider), strict=True))
    assert {name: held_then[name] for name in held} == held
    raised = Hash(eval_share=min(0.99, share + 0.05)).is_held_out(out)
    assert not (np.array([*held.values()], bool) & ~raised).any()


def test_neither_order_nor_limit_moves_the_rows_in_use(context: StageContext) -> None:
    split = Hash(max_eval_rows=20)
    shuffled = random.Random(1).sample(MANY, len(MANY))
    one, two, three = (
        split(table(MANY), context),
        split(table(shuffled), context),
        split(table(MANY), context, File(path="none", limit=7).surplus),
    )
    assert set(names(one.held_out)) == set(names(two.held_out)) == set(names(three.held_out))
    assert one.fingerprint == two.fingerprint == three.fingerprint
    assert len(three.train) == 7


def test_a_seed_is_no_knob_of_a_split() -> None:
    from dataclasses import fields

    assert {field.name for field in fields(Hash)} == {
        "filter", "test_share", "eval_share", "min_eval_rows", "max_eval_rows", "max_eval_tokens"
    }  # fmt: skip


def test_other_held_out_rows_are_another_fingerprint(context: StageContext) -> None:
    assert (
        Hash(max_eval_rows=20)(table(MANY), context).fingerprint
        != Hash(max_eval_rows=21)(table(MANY), context).fingerprint
    )


def test_a_limit_keeps_the_first_rows_of_the_training_side(context: StageContext) -> None:
    whole, some = Hash()(table(MANY), context), Hash()(table(MANY), context, File(path="none", limit=50).surplus)
    assert names(some.train) == names(whole.train)[:50]
    assert some.side.dropped == {"over_limit": len(whole.train) - 50, "held_out": whole.side.dropped["held_out"]}
    assert Hash()(table(MANY), context, File(path="none", limit=10_000).surplus).side.dropped == whole.side.dropped


def test_the_smallest_hashes_are_used(context: StageContext) -> None:
    sides = Hash(max_eval_rows=9)(table(MANY), context)
    every = sorted((group_hash(group), f"{group}/{number}") for group, number in MANY if group_hash(group) < 0.1)
    assert sorted(names(sides.held_out)) == sorted(name for _, name in every[:9])
    assert sides.held_out_selection.dropped == {"over_max_eval_rows": len(every) - 9}


def test_held_out_rows_must_be_usable(context: StageContext) -> None:
    rows = table(MANY)
    answers = rows["answer"][:]
    answers[::6], answers[2::6] = [" "] * 100, ["long " * 60] * 100
    sides = Hash(max_eval_tokens=50)(rows.remove_columns("answer").add_column("answer", answers), context)
    assert set(sides.held_out_selection.dropped) == {"unanswered", "over_max_eval_tokens"}
    assert {answer[:5] for answer in sides.held_out.column("answer")} == {"It is"}
    assert "over_max_eval_tokens" not in Hash()(rows, context).held_out_selection.dropped


def test_too_few_held_out_rows_are_a_shortage(context: StageContext) -> None:
    sides = Hash()(table(MANY[:20]), context)
    assert re.match(r"split.min_eval_rows=8: only [0-7] held-out rows .* split.eval_share=0", sides.shortage)
    (advised,) = re.findall(r"raise split.eval_share to (0\.\d+), give more rows", sides.shortage)
    assert not Hash(eval_share=float(advised))(table(MANY[:20]), context).shortage
    assert len(sides.train) + len(sides.held_out) == 20
    assert "only 0 held-out rows" in Hash(eval_share=0.5)(table(MANY, answer=" "), context).shortage
    assert Hash()(table(MANY), context).shortage == ""


def test_no_share_no_held_out_rows(context: StageContext) -> None:
    sides = Hash(eval_share=0)(table(MANY[:3]), context, File(path="none", limit=2).surplus)
    assert (len(sides.train), len(sides.held_out), len(sides.held_out_selection.ids)) == (2, 0, 0)


def test_the_sources_own_split(context: StageContext) -> None:
    split = ["train"] * 590 + ["test"] * 10
    sides = Source()(table(MANY, source_split=split), context)
    assert names(sides.held_out) == [f"{group}/{number}" for group, number in MANY[590:]]
    for one_split in (table(MANY), table(MANY, source_split=[""] * 600), table(MANY, source_split=["train"] * 600)):
        with pytest.raises(ConfigError, match="split=hash"):
            Source()(one_split, context)


@pytest.mark.parametrize(
    "knobs",
    [{"eval_share": 1.0}, {"eval_share": -0.1}, {"min_eval_rows": 0}, {"max_eval_rows": 7}, {"max_eval_tokens": 0}],
)
def test_impossible_values_are_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(knobs))):
        Hash(**knobs)


def test_pieces_of_one_talk_and_the_knobs_of_load_keep_their_side(context: StageContext, write: Any) -> None:
    """From a file on: what is read of a conversation, and what is dropped, moves no other row."""
    talks = [
        {
            "id": f"t{n // 3}_{n % 3}",
            "conversations": [{"from": "human", "value": f"{n}?"}, {"from": "gpt", "value": f"{n}!"}],
        }
        for n in range(240)
    ]
    spoiled = [{**row, "conversations": []} if n % 5 == 0 else row for n, row in enumerate(talks)]
    split = Hash(max_eval_rows=1000)
    out, left = (
        set(split(File(path=str(write(*rows, name=name)))(context).rows, context).held_out.column("source_id"))
        for name, rows in (("all.jsonl", talks), ("spoiled.jsonl", spoiled))
    )
    assert left == {row["id"] for n, row in enumerate(talks) if row["id"] in out and n % 5}
    assert len(out) % 3 == 0


def test_a_source_without_a_usable_row_says_why(context: StageContext, write: Any) -> None:

    loaded = File(path=str(write({"conversations": []}, {"conversations": [{"from": "gpt", "value": "x"}]}, {})))(
        context
    )
    with pytest.raises(
        SourceError,
        match=r"no usable record \(3 records read\): .*1 empty \(no turns.*1 begins_with_assistant \(.*1 unreadable \(",
    ):
        Preparation(context, 100, loss_on_all=False).split(loaded, Hash())


def test_a_file_of_ones_own_is_held_out(context: StageContext, write: Any) -> None:
    train = File(path=str(write(*({"question": f"{n}?", "answer": "Yes."} for n in range(20)), name="train.jsonl")))
    out = write(*({"q": f"held {n}?", "a": "No."} for n in range(9)), name="out.jsonl")
    split = FromFile(path=str(out), columns={"prompt": "q", "answer": "a"})
    loaded = train(context, held_out=split.source())
    sides = split(loaded.rows, context, train.surplus)
    assert sides.train.column("prompt") == [f"{n}?" for n in range(20)]
    assert sorted(sides.held_out.column("prompt")) == [f"held {n}?" for n in range(9)]
    assert sides.side.dropped == {"held_out": 9}
    assert split.check() == []
    assert "split.path=" in FromFile(path="none.jsonl").check()[0]


def test_what_the_model_is_for_chooses_the_held_out_rows(context: StageContext) -> None:
    wanted = {"answered": Answered(min_prompt_chars=len("What is g100/201?"))}
    plain, chosen = (
        Hash(eval_share=0.5, min_eval_rows=1, max_eval_rows=600, filter=keep)(table(MANY), context)
        for keep in ({}, wanted)
    )
    assert set(names(chosen.held_out)) < set(names(plain.held_out))
    assert "short_prompt" in chosen.held_out_selection.dropped
    assert names(chosen.train) == names(plain.train)
    assert chosen.fingerprint != plain.fingerprint


def test_a_third_side_moves_no_held_out_row_and_is_apart_from_both(context: StageContext) -> None:
    two, three = (Hash(eval_share=0.2, test_share=share)(table(MANY), context) for share in (0, 0.3))
    assert names(three.held_out) == names(two.held_out)
    assert set(names(three.train)) | set(names(three.test_rows)) == set(names(two.train))
    assert not set(names(three.train)) & set(names(three.test_rows))
    assert 0.2 * len(MANY) < len(three.test_rows) < 0.4 * len(MANY)
    assert three.side.dropped["test"] == len(three.test_rows)
    assert sorted(names(three.measured)) == sorted(names(three.held_out_rows) + names(three.test_rows))
    groups = [
        {name.split("/")[0] for name in names(rows)} for rows in (three.train, three.held_out_rows, three.test_rows)
    ]
    assert sum(map(len, groups)) == len(set().union(*groups))
    with pytest.raises(ConfigError, match=r"test_share=0\.8"):
        Hash(eval_share=0.2, test_share=0.8)


@pytest.mark.parametrize("texts", [MANY[:1], MANY[:1] * 100], ids=["one row", "one group"])
def test_no_share_is_advised_where_none_would_do(context: StageContext, texts: list[Row]) -> None:
    shortage = Hash()(table(texts), context).shortage
    assert "; give more rows, or set split.eval_share=0" in shortage
