"""Rows and selections."""

from __future__ import annotations

import math
from pathlib import Path

import datasets
import numpy as np
import pytest

from sft_lab.core.errors import SourceError
from sft_lab.core.rows import Rows
from sft_lab.core.selection import Selection

PLAIN = {"prompt": ["a?", "b?", "c?", "d?"], "answer": ["A", "B", "C", "D"]}


def rows(**more: list[object]) -> Rows:
    return Rows.of(datasets.Dataset.from_dict({**PLAIN, **more}))


def kept(*flags: int) -> np.ndarray:
    return np.array(flags, bool)


def test_a_view_is_narrowed_in_source_order() -> None:
    some = rows().take(kept(1, 0, 1, 1)).take(kept(0, 1, 1))
    assert len(some) == 2
    assert some.column("answer") == ["C", "D"]
    assert some.positions.tolist() == [2, 3]
    assert some.take(kept(0, 0)).column("answer") == []


def test_two_ways_to_one_view_are_one_key() -> None:
    assert rows().key == rows().key
    assert rows().take(kept(1, 0, 1, 1)).take(kept(0, 1, 1)).key == rows().take(kept(0, 0, 1, 1)).key
    assert rows().take(kept(1, 1, 1, 1)).key == rows().key
    views = [
        rows(),
        rows().take(kept(1, 1, 1, 0)),
        rows().take(kept(0, 1, 1, 1)),
        rows(id=[*"wxyz"]),
        rows(more=[*"wxyz"]),
    ]
    assert len({view.key for view in views}) == 5
    assert (
        rows().take(kept(1, 0, 0, 0)).key
        != Rows.of(datasets.Dataset.from_dict({"prompt": ["b?"], "answer": ["B"]})).key
    )


def test_the_key_is_of_content_and_not_of_how_it_is_held() -> None:
    shuffled = datasets.Dataset.from_dict({name: values[::-1] for name, values in PLAIN.items()})
    assert Rows.of(shuffled.select([3, 2, 1, 0])).key == rows().key


def test_a_plain_set_gets_what_load_would_give_it() -> None:
    made = rows(system=["", "Be kind.", " ", ""])
    assert made.column("id") == ["0", "1", "2", "3"]
    assert made.column("messages")[1] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "b?"},
        {"role": "assistant", "content": "B"},
    ]
    assert made.column("messages")[2] == [{"role": "user", "content": "c?"}, {"role": "assistant", "content": "C"}]
    assert len(set(made.column("group"))) == 4
    assert Rows.of(made) is made


def test_what_a_plain_set_has_is_taken() -> None:
    talk = [{"role": "user", "content": "x"}]
    made = rows(id=[7, 8, 9, 10], group=[*"aabb"], messages=[talk] * 4)
    assert (made.column("id"), made.column("group")) == (["7", "8", "9", "10"], [*"aabb"])
    assert made.column("messages") == [talk] * 4


def test_none_is_an_empty_text_and_a_number_is_refused() -> None:
    empty = Rows.of(datasets.Dataset.from_dict({"prompt": ["a?", None], "answer": [None, "B"]}))
    assert (empty.column("prompt"), empty.column("answer")) == (["a?", ""], ["", "B"])
    with pytest.raises(SourceError, match="column answer: contains 0"):
        Rows.of(datasets.Dataset.from_dict({"prompt": ["a?"], "answer": [0]}))
    with pytest.raises(SourceError, match=r"\['prompt', 'reply'\].*missing \['answer'\]"):
        Rows.of(datasets.Dataset.from_dict({"prompt": ["a?"], "reply": ["A"]}))


def test_no_rows() -> None:
    none = Rows.of(datasets.Dataset.from_dict({"prompt": [], "answer": []}))
    assert (len(none), none.column("messages")) == (0, [])


def test_a_selection_counts_and_shows_what_it_dropped() -> None:
    found = Selection.of(rows(), ["near", "", "near", "long"], [0.9, math.nan, 0.8, 7], ["1", "", "1", ""])
    assert found.kept.tolist() == [False, True, False, False]
    assert found.dropped == {"near": 2, "long": 1}
    assert list(found.dropped) == ["near", "long"]
    assert found.examples("near", 1) == [{"id": "0", "score": pytest.approx(0.9), "nearest": "1"}]
    assert [example["id"] for example in found.examples("near")] == ["0", "2"]
    assert found.examples("short") == []


@pytest.mark.parametrize("size", [4, 0])
def test_a_selection_is_read_as_it_was_written(tmp_path: Path, size: int) -> None:
    view = rows().take(np.arange(4) < size)
    found = Selection.of(
        view, ["", "x", "", "y"][:size], [1.5, math.nan, math.inf, -1][:size], ["", "0", "", ""][:size]
    )
    found.save(tmp_path)
    again = Selection.load(tmp_path)
    assert (again.ids, again.reason, again.nearest) == (found.ids, found.reason, found.nearest)
    np.testing.assert_array_equal(again.score, found.score)
    assert again.score.dtype == found.score.dtype == np.float32
    assert again.dropped == found.dropped


def test_score_and_nearest_may_be_left_out() -> None:
    found = Selection.of(rows(), [""] * 4)
    assert np.isnan(found.score).all()
    assert found.nearest == [""] * 4
    assert found.dropped == {}


def test_a_stage_of_others_may_import_selection_as_it_was_documented_first() -> None:
    from sft_lab.core import rows

    assert rows.Selection is Selection
    with pytest.raises(ImportError):
        from sft_lab.core.rows import Election  # noqa: F401
