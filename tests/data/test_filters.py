"""Filters: what each drops and why; a new one needs only two files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

import sft_lab
from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError, ModelError
from sft_lab.core.rows import Rows
from sft_lab.core.stage import Selector
from sft_lab.core.store import Store
from sft_lab.core.text import On
from sft_lab.data import filters
from sft_lab.data.filters import filter_schemas
from sft_lab.data.filters.answered import Answered
from sft_lab.data.filters.length import Length
from sft_lab.dedup.exact import Exact, Keep


def table(*rows: tuple[str, str]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"prompt": [p for p, _ in rows], "answer": [a for _, a in rows]})


def test_answered(context: StageContext) -> None:
    rows = table(("Hi?", "Hello."), (" \n", "Hello."), ("Hi?", "\t "), ("", ""), ("Hi", "Hello."), ("Hi?", " No "))
    plain = Answered()(rows, context)
    assert plain.reason == ["", "empty_prompt", "empty_answer", "empty_prompt", "", ""]
    assert plain.score.tolist() == [6, 0, 0, 0, 6, 2]
    strict = Answered(min_prompt_chars=3, min_answer_chars=3)(rows, context)
    assert strict.reason == ["", "empty_prompt", "empty_answer", "empty_prompt", "short_prompt", "short_answer"]
    assert strict.score.tolist() == [6, 0, 0, 0, 2, 2]


def test_each_answer_of_a_conversation_is_judged_and_empty_ones_are_none(context: StageContext) -> None:
    def talk(*answers: str) -> list[dict[str, str]]:
        turns = [({"role": "user", "content": "Hi?"}, {"role": "assistant", "content": answer}) for answer in answers]
        return [message for exchange in turns for message in exchange]

    talks = [talk("Hello.", "No"), talk("Hello.", "", "Well."), talk("", "")]
    rows = table(*[("Hi?", "".join(message["content"] for message in messages[1::2])) for messages in talks])
    rows = rows.add_column("messages", talks)
    assert Answered(min_answer_chars=3)(rows, context).reason == ["short_answer", "", "empty_answer"]
    assert Answered()(rows, context).score.tolist() == [2, 5, 0]


def test_zero_width_and_format_characters_alone_are_blank(context: StageContext) -> None:
    rows = table(
        ("Hi?", "\u200b"), ("\ufeff \u200e\n", "Hello."), ("Hi?", "\u200b \u200d"), ("Hi?", "\u200bNo"), ("\u0301", "!")
    )
    found = Answered()(rows, context)
    assert found.reason == ["empty_answer", "empty_prompt", "empty_answer", "", ""]
    assert found.score.tolist() == [0, 0, 0, 3, 1]


def test_length_counts_prompt_and_answer_without_template_tokens(context: StageContext, tiny: Any) -> None:
    rows = table(("one two", "three"), ("one two", "three " * 9), ("one", ""), ("one two three four", "five"))
    sizes = [
        [len(tiny(text, add_special_tokens=False)["input_ids"]) for text in (row["prompt"], row["answer"])]
        for row in rows
    ]
    totals = [sum(size) for size in sizes]
    assert context.token_counts(Rows.of(rows)).tolist() == sizes
    assert Length(max_tokens=max(totals))(rows, context).reason == [""] * 4
    limits = Length(max_tokens=totals[1] - 1, min_tokens=totals[0], min_answer_tokens=sizes[3][1] + 1)(rows, context)
    assert limits.score.tolist() == totals
    assert limits.reason[1:3] == ["over_max_tokens", "under_min_tokens"]
    assert limits.reason[3] == "under_min_answer_tokens"


def test_a_bound_is_inside(context: StageContext) -> None:
    rows = table(("one", "two"))
    (size,) = Length()(rows, context).score.tolist()
    assert Length(max_tokens=int(size), min_tokens=int(size))(rows, context).reason == [""]
    assert Length(max_tokens=int(size) - 1)(rows, context).reason == ["over_max_tokens"]
    assert Length(min_tokens=int(size) + 1)(rows, context).reason == ["under_min_tokens"]


def test_another_tokenizer_is_another_result(tmp_path: Path, tiny: Any, sentencepiece: Any) -> None:
    store, rows = Store(tmp_path), table(("one", "two"))
    one, two, again = (StageContext(store, lambda tokens=tokens: tokens) for tokens in (tiny, sentencepiece, tiny))
    assert Length()(rows, one).score.tolist() != Length()(rows, two).score.tolist()
    Length()(rows, again)
    assert [entry.hit for entry in again.entries] == [True]


@pytest.mark.parametrize(
    ("make", "knobs"),
    [
        (Answered, {"min_prompt_chars": 0}),
        (Answered, {"min_answer_chars": 0}),
        (Length, {"max_tokens": 0}),
        (Length, {"min_tokens": -1}),
        (Length, {"min_tokens": 9, "max_tokens": 8}),
        (Length, {"min_answer_tokens": 9, "max_tokens": 8}),
    ],
)
def test_impossible_values_are_refused(make: type[Selector], knobs: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(knobs))):
        make(**knobs)


def test_every_file_is_a_filter_and_has_an_option_file() -> None:
    """Adding a filter is one file in sft_lab/data/filters and one in conf/filter; nothing else knows their names."""
    folder = Path(filters.__file__).parent
    names = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    found = filter_schemas()
    assert names == set(found) == {"answered", "language", "length", "pattern", "reviewed"}
    assert all(issubclass(schema, Selector) for schema in found.values())
    options = {path.stem for path in (Path(sft_lab.__file__).parents[1] / "conf" / "filter").glob("*.yaml")}
    assert options == {*names, "none"}
    imports = [f"{start}{name}" for name in names for start in ("filters.", "filters import ")]
    elsewhere = [path for path in folder.parents[1].rglob("*.py") if path.parent != folder]
    assert not [path for path in elsewhere if any(line in path.read_text("utf-8") for line in imports)]
    assert all(schema.check is filters.Filter.check or name == "reviewed" for name, schema in found.items())
    assert Answered().check() == []
    assert Answered().insists_on() == set()


def test_filters_and_exact_dedup_need_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFT_LAB_STORE", str(tmp_path))
    rows = table(("Hi?", "Hello."), ("Hi?", "hello. "), ("Hi?", ""))
    assert Answered()(rows).reason == ["", "", "empty_answer"]
    assert Exact()(rows).reason == ["", "duplicate", ""]
    assert Exact(keep=Keep.singletons)(rows).nearest == ["1", "0", ""]
    assert Exact(on=On.both)(rows).dropped == {"duplicate": 1}
    with pytest.raises(ModelError, match=r"run\.context"):
        Length()(rows)


def test_a_selection_is_computed_once(context: StageContext) -> None:
    rows = table(("Hi?", "Hello."))
    first, second, other = (
        Answered()(rows, context),
        Answered()(rows, context),
        Answered(min_answer_chars=9)(rows, context),
    )
    assert [entry.hit for entry in context.entries] == [False, True, False]
    assert first.reason == second.reason == [""]
    assert other.reason == ["short_answer"]
    np.testing.assert_array_equal(first.score, second.score)
