"""Keep rules compared with a plain implementation, row by row."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_lab.dedup.exact import Keep
from sft_lab.dedup.keep_rules import representatives, selection
from sft_lab.dedup.neighbor_graph import NeighborGraph

Case = tuple[NeighborGraph, np.ndarray, np.ndarray]
KEEPS = st.sampled_from(list(Keep))

thorough = settings(max_examples=150, deadline=None)


def graph_of(nodes: int, edges: dict[tuple[int, int], float]) -> NeighborGraph:
    """Make a graph of edges (left, right)."""
    ordered = sorted(edges, key=lambda edge: (edge[1], edge[0]))
    left, right = (np.array([edge[side] for edge in ordered], np.int32) for side in (0, 1))
    return NeighborGraph(nodes, 0.9, left, right, np.array([edges[edge] for edge in ordered], np.float32))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Rows that share nodes, nodes that share edges, few scores and lengths so that ties abound, nodes without rows."""
    texts = draw(st.lists(st.integers(0, 14), max_size=22))
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    nodes = len(numbers) + draw(st.integers(0, 2))
    ends = st.integers(0, max(0, nodes - 1))
    pairs = draw(st.lists(st.tuples(ends, ends, st.sampled_from([0.9, 0.95, 0.99, 1.0])), max_size=30))
    graph = graph_of(nodes, {(min(a, b), max(a, b)): score for a, b, score in pairs if a != b})
    lengths = draw(st.lists(st.integers(0, 3), min_size=len(texts), max_size=len(texts)))
    return graph, np.array([numbers[text] for text in texts], np.int64), np.array(lengths, np.int64)


def cosines(graph: NeighborGraph, node_of_row: np.ndarray) -> list[list[float]]:
    """Score of each pair of rows, -inf below the threshold."""
    edges = {(a, b): s for a, b, s in zip(graph.left.tolist(), graph.right.tolist(), graph.score.tolist(), strict=True)}
    nodes = node_of_row.tolist()
    return [[1.0 if a == b else edges.get((min(a, b), max(a, b)), -math.inf) for b in nodes] for a in nodes]


def by_the_rules(
    graph: NeighborGraph, node_of_row: np.ndarray, lengths: np.ndarray, keep: Keep
) -> list[tuple[int, float]]:
    """Nearest row and score of each row, (-1, nan) for a kept one, by looking at every pair."""
    cosine = cosines(graph, node_of_row)
    rows = range(len(cosine))
    if keep is Keep.singletons:
        allowed = {row: [other for other in rows if other != row and cosine[row][other] > 0] for row in rows}
    else:
        kept: list[int] = []
        for row in sorted(rows, key=lambda row: (-lengths[row], row) if keep is Keep.longest else row):
            if all(cosine[row][other] < 0 for other in kept):
                kept.append(row)
        allowed = {row: [] if row in kept else [k for k in kept if cosine[row][k] > 0] for row in rows}
    answer = []
    for row in rows:
        best = min(allowed[row], key=lambda other: (-cosine[row][other], other), default=-1)
        answer.append((best, cosine[row][best] if best >= 0 else math.nan))
    return answer


@thorough
@given(cases(), KEEPS)
def test_as_the_rules_say(case: Case, keep: Keep) -> None:
    kept, nearest, score = representatives(*case, keep)
    expected = by_the_rules(*case, keep)
    assert nearest.tolist() == [row for row, _ in expected]
    np.testing.assert_array_equal(score, np.array([value for _, value in expected], np.float32))
    np.testing.assert_array_equal(kept, nearest == -1)
    assert [values.dtype.name for values in (kept, nearest, score)] == ["bool", "int64", "float32"]


@thorough
@given(cases(), KEEPS)
def test_kept_rows_are_far_apart_and_dropped_rows_are_near_one(case: Case, keep: Keep) -> None:
    graph, node_of_row, _ = case
    kept, nearest, score = representatives(*case, keep)
    cosine = np.array(cosines(graph, node_of_row)).reshape(len(kept), len(kept))
    np.fill_diagonal(cosine, -np.inf)
    assert not (cosine[np.ix_(kept, kept)] > 0).any()
    dropped = np.flatnonzero(~kept)
    np.testing.assert_array_equal(cosine[dropped, nearest[dropped]].astype(np.float32), score[dropped])
    if keep is not Keep.singletons:
        assert kept[nearest[dropped]].all()
        assert kept.any() == bool(len(kept))


@thorough
@given(cases(), KEEPS, st.data())
def test_a_row_that_touches_nothing_changes_nothing(case: Case, keep: Keep, data: st.DataObject) -> None:
    graph, node_of_row, lengths = case
    place = data.draw(st.integers(0, len(node_of_row)))
    wider = NeighborGraph(graph.nodes + 1, graph.floor, graph.left, graph.right, graph.score)
    more = (np.insert(node_of_row, place, graph.nodes), np.insert(lengths, place, data.draw(st.integers(0, 3))))
    kept, nearest, score = (np.delete(values, place) for values in representatives(wider, *more, keep))
    before = representatives(*case, keep)
    np.testing.assert_array_equal(kept, before[0])
    np.testing.assert_array_equal(np.where(nearest > place, nearest - 1, nearest), before[1])
    np.testing.assert_array_equal(score, before[2])


def test_a_chain_keeps_every_other_row() -> None:
    """0 - 1 - 2 - 3: row 1 goes because of row 0, so it does not take row 2 with it."""
    chain = graph_of(4, {(0, 1): 0.91, (1, 2): 0.95, (2, 3): 0.93})
    rows, lengths = np.arange(4), np.array([1, 9, 1, 5])
    kept, nearest, _ = representatives(chain, rows, lengths, Keep.first)
    assert (kept.tolist(), nearest.tolist()) == ([True, False, True, False], [-1, 2, -1, 2])
    kept, nearest, _ = representatives(chain, rows, lengths, Keep.longest)
    assert (kept.tolist(), nearest.tolist()) == ([False, True, False, True], [1, -1, 1, -1])
    kept, nearest, _ = representatives(chain, rows, lengths, Keep.singletons)
    assert (kept.tolist(), nearest.tolist()) == ([False] * 4, [1, 2, 1, 2])


@pytest.mark.parametrize("keep", Keep)
def test_many_rows_with_few_edges_take_a_moment(keep: Keep) -> None:
    """200 thousand rows in pairs of equal text, every tenth text near the next: a pass per row would take minutes."""
    nodes = 100_000
    left = np.arange(0, nodes - 1, 10, dtype=np.int32)
    graph = NeighborGraph(nodes, 0.9, left, left + 1, np.full(len(left), 0.95, np.float32))
    kept, nearest, _ = representatives(graph, np.repeat(np.arange(nodes), 2), np.zeros(2 * nodes, np.int64), keep)
    assert kept.sum() == (0 if keep is Keep.singletons else nodes - len(left))
    assert (nearest[2:4].tolist(), nearest[6:8].tolist()) == {
        Keep.singletons: ([3, 2], [7, 6]),
    }.get(keep, ([0, 0], [-1, 6]))


def test_selection_names_reasons_and_rows() -> None:
    from datasets import Dataset

    from sft_lab.core.rows import Rows

    answers = ["short", "long answer", "short", "a longer answer", "else"]
    rows = Rows.of(Dataset.from_dict({"id": list("abcde"), "prompt": [""] * 5, "answer": answers}))
    node_of_row = np.array([0, 1, 0, 2, 3])
    graph = graph_of(4, {(0, 1): 0.97, (1, 2): 0.92})
    first = selection(rows, graph, node_of_row, Keep.first)
    assert first.reason == ["", "near_duplicate", "duplicate", "", ""]
    assert first.nearest == ["", "a", "a", "", ""]
    longest = selection(rows, graph, node_of_row, Keep.longest)
    assert longest.reason == ["", "near_duplicate", "duplicate", "", ""]
    assert longest.nearest == ["", "a", "a", "", ""]
    np.testing.assert_array_equal(longest.score, np.array([math.nan, 0.97, 1, math.nan, math.nan], np.float32))
    assert selection(rows, graph, node_of_row, Keep.singletons).nearest == ["c", "a", "a", "b", ""]
