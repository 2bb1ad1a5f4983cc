"""Views, selections, filters, split and waterfall: every row is somewhere, once, and by itself."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from example_counts import tried
from hypothesis import given
from hypothesis import strategies as st
from row_strategies import TEXTS
from small_parts import PAIR, context, rows_of

from sft_lab.core.rows import Rows
from sft_lab.core.selection import Selection
from sft_lab.data.filters import Filter
from sft_lab.data.filters.answered import Answered
from sft_lab.data.filters.language import Language
from sft_lab.data.filters.length import Length
from sft_lab.data.filters.pattern import Pattern
from sft_lab.data.split import Hash
from sft_lab.data.waterfall import Sources, Waterfall

PAIRS = st.lists(st.tuples(TEXTS, TEXTS), max_size=8)
FILTERS = st.one_of(
    st.builds(Answered, st.integers(1, 6), st.integers(1, 6)),
    st.builds(Length, st.integers(4, 12), st.integers(0, 4), st.integers(0, 4)),
    st.builds(Pattern, st.just(["a", r"\d"]), st.sampled_from([[], ["the", "\u202e"]]), ignore_case=st.booleans()),
    st.builds(Language, st.sampled_from([["en"], ["ar", "en"], ["zh"]]), min_confidence=st.floats(0, 1)),
)


def judged(keep: Filter, pairs: list[PAIR]) -> list[tuple[str, float]]:
    found = keep.select(rows_of(pairs), context())
    return list(zip(found.reason, np.nan_to_num(found.score, nan=-1).tolist(), strict=True))


@tried(8, 2000)
@given(FILTERS, PAIRS)
def test_a_filter_judges_each_row_by_itself(keep: Filter, pairs: list[PAIR]) -> None:
    together = judged(keep, pairs)
    assert together == [judged(keep, [pair])[0] for pair in pairs]
    assert judged(keep, pairs[::-1]) == together[::-1]


@tried(8, 2000)
@given(FILTERS, PAIRS)
def test_a_filter_parts_its_input_and_has_nothing_to_add(keep: Filter, pairs: list[PAIR]) -> None:
    rows = rows_of(pairs)
    found = keep(rows, context())
    assert found.ids == rows.column("id")
    assert sum(found.dropped.values()) + int(found.kept.sum()) == len(rows)
    again = keep(rows.take(found.kept), context())
    assert again.ids == [row_id for row_id, reason in zip(found.ids, found.reason, strict=True) if not reason]
    assert again.kept.all()


@tried(8, 2000)
@given(PAIRS, st.data())
def test_who_asks_more_never_keeps_more(pairs: list[PAIR], data: st.DataObject) -> None:
    def two(low: Any, high: Any, numbers: Any = st.integers) -> tuple[Any, Any]:
        first, second = sorted([data.draw(numbers(low, high)), data.draw(numbers(low, high))])
        return first, second

    lax, strict = two(1, 9)
    ways = [(Answered(lax, 1), Answered(strict, 1)), (Answered(1, lax), Answered(1, strict)),
            (Length(strict), Length(lax)), (Length(9, lax), Length(9, strict)),
            (Length(9, 0, lax), Length(9, 0, strict)),
            (Pattern(["a", "b"]), Pattern(["a"])), (Pattern([], ["a"]), Pattern([], ["a", "b"]))]  # fmt: skip
    less, more = two(0, 1, st.floats)
    ways.append((Language(["en", "ar"], min_confidence=less), Language(["en"], min_confidence=more)))
    rows = rows_of(pairs)
    for weak, hard in ways:
        one, other = weak.select(rows, context()).kept, hard.select(rows, context()).kept
        assert not (other & ~one).any(), (weak, hard)


@tried(8, 2000)
@given(PAIRS, st.lists(FILTERS, max_size=3), st.data())
def test_the_waterfall_loses_nobody(pairs: list[PAIR], filters: list[Filter], data: st.DataObject) -> None:
    rows = start = rows_of(pairs)
    tokens = np.array([data.draw(st.integers(0, 10**12)) for _ in pairs], np.int64)
    names = data.draw(st.sampled_from([[], ["a", "b"]]))
    sources = Sources(names, np.array([data.draw(st.integers(0, 1)) for _ in pairs], np.int16))
    flow = Waterfall(context(), tokens, sources)
    for number, keep in enumerate(filters):
        rows = flow.step(f"filter.{number}", rows, keep.select(rows, context()))
    rows_in, tokens_in = len(start), sum(tokens.tolist())
    for stage in flow.stages:
        assert (stage["rows_in"], stage["tokens_in"]) == (rows_in, tokens_in)
        assert stage["rows_kept"] + sum(stage["dropped"].values()) == rows_in
        for name in ("rows_in", "rows_kept"):
            assert sum(one[name] for one in stage.get("sources", {}).values()) == (stage[name] if names else 0)
        rows_in, tokens_in = stage["rows_kept"], stage["tokens_kept"]
    gone = flow.dropped().to_pydict()
    assert sorted([*gone["id"], *rows.column("id")]) == sorted(start.column("id"))
    assert tokens_in == sum(tokens[rows.positions].tolist()) or not flow.stages
    assert len({len(column) for column in gone.values()}) == 1


@tried(12, 2000)
@given(PAIRS, st.data())
def test_views_of_views_are_views(pairs: list[PAIR], data: st.DataObject) -> None:
    rows = rows_of(pairs)

    def some(of: Rows) -> Any:
        return np.array(data.draw(st.lists(st.booleans(), min_size=len(of), max_size=len(of))), bool)

    first = some(rows)
    narrow = rows.take(first)
    second = some(narrow)
    both = first.copy()
    both[first] = second
    twice, once = narrow.take(second), rows.take(both)
    assert (twice.key, twice.positions.tolist()) == (once.key, once.positions.tolist())
    assert twice.column("answer") == [pair[1] for pair, one in zip(pairs, both, strict=True) if one]
    assert (twice.key == rows.key) == bool(both.all())


REASON = st.sampled_from(["", "", "dropped", "held_out", "\u202e"])


@st.composite
def selections(draw: st.DrawFn) -> Selection:
    size = draw(st.integers(0, 8))
    column = lambda values: draw(st.lists(values, min_size=size, max_size=size))  # noqa: E731
    scores = np.array(column(st.floats(width=32)), np.float32)
    return Selection([f"{place}-a" for place in range(size)], column(REASON), scores, column(TEXTS))


@tried(10, 2000)
@given(selections(), st.data())
def test_selections_are_kept_whole(found: Selection, data: st.DataObject) -> None:
    def lists(one: Selection) -> tuple[Any, ...]:
        return one.ids, one.reason, one.nearest, one.score.tobytes()

    with tempfile.TemporaryDirectory() as folder:
        found.save(Path(folder))
        assert lists(Selection.load(Path(folder))) == lists(found)
    size = len(found.ids)
    assert lists(found.take(np.arange(size))) == lists(found)
    assert int(found.kept.sum()) + sum(found.dropped.values()) == size
    for reason, count in found.dropped.items():
        assert len(found.examples(reason, size)) == count
    ids = set(data.draw(st.lists(st.sampled_from([*found.ids, "other"]))))
    back = found.bring_back(ids)
    assert [bool(kept) for kept in back.kept] == [
        bool(kept) or row_id in ids for kept, row_id in zip(found.kept, found.ids, strict=True)
    ]
    assert lists(back.bring_back(ids)) == lists(back)


GROUPS = st.lists(st.integers(0, 30).map("g{}".format), max_size=40)
SHARES = st.floats(0.01, 0.5)


@tried(8, 2000)
@given(GROUPS, SHARES, st.floats(0, 0.45), st.integers(1, 10), st.integers(1, 12), st.data())
def test_a_split_parts_its_rows_by_group(
    groups: list[str], share: float, test_share: float, max_rows: int, max_tokens: int, data: st.DataObject
) -> None:
    pairs = [(data.draw(TEXTS), data.draw(TEXTS)) for _ in groups]
    rows = rows_of(pairs, groups)
    split = Hash(eval_share=share, test_share=test_share, min_eval_rows=1, max_eval_rows=max_rows,
                 max_eval_tokens=max_tokens)  # fmt: skip
    held, test = split.is_held_out(rows), split.is_test(rows)
    assert not (held & test).any()
    if not split._usable(rows.take(held), context()).kept.any():
        return  # too few to judge by, which a split refuses
    sides = split(rows, context())
    parts = [sides.train, sides.held_out_rows, sides.test_rows]
    assert sorted(np.concatenate([part.positions for part in parts]).tolist()) == list(range(len(rows)))
    held_of = [set(part.column("group")) for part in parts]
    assert sum(map(len, held_of)) == len(set[str]().union(*held_of))
    assert len(sides.held_out) <= max_rows
    assert context().token_counts(sides.held_out).sum(axis=1).max(initial=0) <= max_tokens
    assert sides.side.dropped == {name: len(part) for name, part in (("held_out", parts[1]), ("test", parts[2]))
                                  if len(part)}  # fmt: skip
    some = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), bool)
    assert split.is_held_out(rows.take(some)).tolist() == held[some].tolist()
    assert split.is_test(rows.take(some)).tolist() == test[some].tolist()


@tried(3, 100)
@given(st.floats(0.05, 0.5), st.floats(0, 0.4), st.integers(0, 10**6))
def test_sides_are_about_as_large_as_asked_for(share: float, test_share: float, first: int) -> None:
    rows = rows_of([("a", "b")] * 2000, [f"{first + number}" for number in range(2000)])
    split = Hash(eval_share=share, test_share=test_share)
    for found, wanted in ((split.is_held_out(rows), share), (split.is_test(rows), test_share)):
        assert abs(found.mean() - wanted) < 5 * (0.25 / 2000) ** 0.5 + 1e-9  # five standard deviations at most
