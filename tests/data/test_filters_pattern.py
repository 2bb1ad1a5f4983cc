"""The pattern filter: which rows it keeps, and its errors for wrong and endless patterns."""

from __future__ import annotations

import logging
import re
import time
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError, SourceError
from sft_lab.core.rows import Rows
from sft_lab.core.text import On
from sft_lab.data.filters.pattern import Pattern

TALK = (
    ("What is tea?", "A drink made of leaves."),
    ("What is coffee?", "As an AI language model, I do not drink coffee."),
    ("Write me a tea poem", "Leaves.\nSteam."),
    ("Add 2 and 2", "4"),
)


def table(rows: tuple[tuple[str, str], ...] = TALK) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"prompt": [p for p, _ in rows], "answer": [a for _, a in rows]})


def test_a_row_stays_when_a_keep_pattern_matches_and_no_drop_pattern_does(context: StageContext) -> None:
    found = Pattern(keep=["tea", "coffee"], drop=["poem", "as an ai"])(table(), context)
    assert found.reason == ["", "pattern_matches", "pattern_matches", "no_pattern_matches"]
    # The place of the pattern that decided: keep[0], drop[1], drop[0], none.
    np.testing.assert_array_equal(found.score, [0, 1, 0, np.nan])
    assert Pattern(drop=["as an AI"])(table(), context).dropped == {"pattern_matches": 1}
    assert Pattern(keep=[r"\d"])(table(), context).dropped == {"no_pattern_matches": 3}


def test_the_text_it_looks_at(context: StageContext) -> None:
    def kept(on: On, pattern: str) -> list[int]:
        return np.flatnonzero(Pattern(keep=[pattern], on=on)(table(), context).kept).tolist()

    assert kept(On.prompt, "coffee") == [1]
    assert kept(On.answer, "leaves") == [0, 2]
    assert kept(On.both, "leaves|what") == [0, 1, 2]
    assert kept(On.both, "^4") == []  # the text begins with the prompt
    assert kept(On.both, r"2\n4$") == [3]
    assert kept(On.both, "(?m)^4") == [3]


def test_capitals_count_only_when_asked(context: StageContext) -> None:
    assert Pattern(keep=["LEAVES"])(table(), context).kept.tolist() == [True, False, True, False]
    assert not Pattern(keep=["LEAVES"], ignore_case=False)(table(), context).kept.any()
    assert Pattern(keep=["Leaves"], ignore_case=False)(table(), context).kept.tolist() == [False, False, True, False]


def test_the_log_says_what_each_pattern_decided(context: StageContext, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sft_lab"):
        Pattern(keep=["tea"], drop=["poem", "absent"])(table(), context)
    assert [record.getMessage() for record in caplog.records] == [
        "pattern: keep[0]='tea' decided 1 of 4 rows",
        "pattern: drop[0]='poem' decided 1 of 4 rows",
        "pattern: drop[1]='absent' decided 0 of 4 rows",
    ]


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({}, "keep=[] and drop=[]"),
        ({"drop": ["fine", "(open"]}, "drop[1]='(open': not a regular expression (missing )"),
        ({"keep": ["*"]}, "keep[0]='*': not a regular expression (nothing to repeat at position 0)"),
        ({"keep": [""]}, "keep[0]='': must be a regular expression"),
        ({"keep": ["a"], "time_limit": 0}, "time_limit=0"),
    ],
)
def test_wrong_knobs_are_refused_when_made(knobs: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        Pattern(**knobs)


def test_a_pattern_without_an_end_is_an_error_that_names_pattern_and_row(context: StageContext) -> None:
    rows = table((("fine", "aaa"), ("endless", "a" * 200 + "b")))
    began = time.process_time()  # however busy the machine is
    with pytest.raises(SourceError, match=r"drop\[0\]='\(a\|aa\)\+\$' took more than time_limit=0.2 s on row 1 \("):
        Pattern(drop=["(a|aa)+$"], on=On.answer, time_limit=0.2)(rows, context)
    assert time.process_time() - began < 20
    assert context.entries == []  # nothing half done is stored


def test_the_time_limit_is_no_other_result(context: StageContext) -> None:
    Pattern(keep=["tea"])(table(), context)
    Pattern(keep=["tea"], time_limit=1)(table(), context)
    assert [entry.hit for entry in context.entries] == [False, True]


@pytest.mark.slow
@settings(deadline=None)  # an example took longer than hypothesis allows on a busy machine
@given(
    texts=st.lists(st.text("ab\n", max_size=6), min_size=1, max_size=6),
    keep=st.lists(st.sampled_from(["a", "^b", "ab$", "a.b"]), max_size=2),
    drop=st.lists(st.sampled_from(["b", "^a", "aa"]), min_size=1, max_size=2),
)
def test_it_decides_as_python_s_re_does(texts: list[str], keep: list[str], drop: list[str]) -> None:
    rows = Rows.of(datasets.Dataset.from_dict({"prompt": texts, "answer": texts}))
    kept = Pattern(keep=keep, drop=drop, on=On.answer).select(rows, StageContext()).kept
    expected = [
        (not keep or any(re.search(one, text) for one in keep)) and not any(re.search(one, text) for one in drop)
        for text in texts
    ]
    assert kept.tolist() == expected
