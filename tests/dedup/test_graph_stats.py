"""Statistics for the data report, compared with the rules applied pair by pair."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_lab.core.errors import ConfigError
from sft_lab.core.selection import Selection
from sft_lab.dedup.exact import Keep
from sft_lab.dedup.graph_stats import nearest_scores, pairs_above, pairs_below, scripts_of, threshold_curve
from sft_lab.dedup.keep_rules import representatives
from sft_lab.dedup.neighbor_graph import NeighborGraph

quick = settings(max_examples=80, deadline=None)


def graph_of(nodes: int, edges: dict[tuple[int, int], float], floor: float = 0.7) -> NeighborGraph:
    ordered = sorted(edges, key=lambda edge: (edge[1], edge[0]))
    left, right = (np.array([edge[side] for edge in ordered], np.int32) for side in (0, 1))
    return NeighborGraph(nodes, floor, left, right, np.array([edges[edge] for edge in ordered], np.float32))


@st.composite
def graphs(draw: st.DrawFn) -> tuple[NeighborGraph, np.ndarray]:
    nodes = draw(st.integers(1, 12))
    ends = st.integers(0, nodes - 1)
    pairs = draw(st.lists(st.tuples(ends, ends, st.sampled_from([0.7, 0.75, 0.8, 0.9, 0.95, 1.0])), max_size=30))
    graph = graph_of(nodes, {(min(a, b), max(a, b)): score for a, b, score in pairs if a != b})
    return graph, np.array(draw(st.lists(ends, min_size=1, max_size=20)), np.int64)


# Rows 0 to 4; rows 1 and 3 have the same text. 0 - 1 at 0.96, 1 - 2 at 0.80, 2 - 3 at 0.72 (nodes 0 to 3).
CHAIN = graph_of(4, {(0, 1): 0.96, (1, 2): 0.8, (2, 3): 0.72})
NODE_OF_ROW = np.array([0, 1, 2, 1, 3])


def test_curve_of_a_small_graph() -> None:
    curve = dict(threshold_curve(CHAIN, NODE_OF_ROW, np.ones(5, int), Keep.first, 0.955))
    assert len(curve) == 32  # 0.70, 0.71, ..., 1.00 and 0.955
    assert [curve[t] for t in (0.7, 0.72, 0.73, 0.8, 0.81, 0.955, 0.96, 0.97, 1.0)] == [2, 2, 3, 3, 3, 3, 3, 4, 4]
    assert list(curve) == sorted(curve)
    with pytest.raises(ConfigError, match=r"from the graph's floor, 0\.7, to 1"):
        threshold_curve(CHAIN, NODE_OF_ROW, np.ones(5, int), Keep.first, 0.6)


@quick
@given(graphs(), st.sampled_from(list(Keep)), st.sampled_from([0.7, 0.755, 0.95, 1.0]))
def test_curve_is_what_each_threshold_keeps(case: tuple[NeighborGraph, np.ndarray], keep: Keep, chosen: float) -> None:
    graph, node_of_row = case
    lengths = np.arange(len(node_of_row)) % 3
    curve = threshold_curve(graph, node_of_row, lengths, keep, chosen)
    assert chosen in dict(curve)
    assert {step / 100 for step in range(70, 101)} <= set(dict(curve))
    for threshold, count in curve:
        assert count == representatives(graph.at(threshold), node_of_row, lengths, keep)[0].sum()


def test_fixed_edges_hold_at_every_threshold_and_have_no_say_elsewhere() -> None:
    graph = CHAIN.with_fixed(graph_of(4, {(0, 3): 0.81}))
    assert dict(threshold_curve(graph, NODE_OF_ROW, np.ones(5, int), Keep.first, 0.95))[1.0] == 3
    np.testing.assert_array_equal(nearest_scores(graph), nearest_scores(CHAIN))
    kept = np.array([True, False, True, False, True])
    assert pairs_below(graph, NODE_OF_ROW, kept, 0.95, 9) == pairs_below(CHAIN, NODE_OF_ROW, kept, 0.95, 9)


def test_nearest_scores() -> None:
    expected = np.array([0.96, 0.96, 0.8, 0.72, math.nan], np.float32)
    graph = NeighborGraph(5, 0.7, CHAIN.left, CHAIN.right, CHAIN.score)
    np.testing.assert_array_equal(nearest_scores(graph), expected)
    assert nearest_scores(graph).dtype == np.float32
    assert nearest_scores(NeighborGraph.empty(0)).shape == (0,)


def test_pairs_below_of_a_small_graph() -> None:
    """At 0.95 rows 0, 2 and 4 stay; 2 - 4 (0.72) is the only pair. At 0.97 it is 0 - 1 and then 2 - 4: 1 is taken."""
    kept = np.array([True, False, True, False, True])
    assert pairs_below(CHAIN, NODE_OF_ROW, kept, 0.95, 5) == [(2, 4, pytest.approx(0.72))]
    kept = np.array([True, True, True, False, True])
    pairs = pairs_below(CHAIN, NODE_OF_ROW, kept, 0.97, 5)
    assert pairs == [(0, 1, pytest.approx(0.96)), (2, 4, pytest.approx(0.72))]
    assert pairs_below(CHAIN, NODE_OF_ROW, kept, 0.97, 1) == pairs[:1]
    assert pairs_below(CHAIN, NODE_OF_ROW, kept, 0.7, 5) == []


@quick
@given(graphs(), st.sampled_from([0.75, 0.9, 1.0]), st.integers(0, 6))
def test_pairs_below_are_the_highest_each_row_once(
    case: tuple[NeighborGraph, np.ndarray], threshold: float, n: int
) -> None:
    graph, node_of_row = case
    kept, _, _ = representatives(graph.at(threshold), node_of_row, np.zeros(len(node_of_row), int), Keep.first)
    edges = {(a, b): s for a, b, s in zip(graph.left.tolist(), graph.right.tolist(), graph.score.tolist(), strict=True)}
    rows = np.flatnonzero(kept).tolist()
    all_pairs = [
        (one, other, edges[key])
        for one in rows
        for other in rows
        if one < other and (key := tuple(sorted((int(node_of_row[one]), int(node_of_row[other]))))) in edges
    ]
    expected: list[tuple[int, int, float]] = []
    for one, other, score in sorted(all_pairs, key=lambda pair: (-pair[2], pair[0], pair[1])):
        if not {one, other} & {row for pair in expected for row in pair[:2]}:
            expected.append((one, other, score))
    assert pairs_below(graph, node_of_row, kept, threshold, n) == expected[:n]


def test_pairs_above() -> None:
    reason = ["", "near_duplicate", "duplicate", "near_duplicate", "near_duplicate", "near_duplicate"]
    score = np.array([math.nan, 0.99, 1, 0.951, 0.97, 0.951], np.float32)
    selection = Selection(list("abcdef"), reason, score, [""] * 6)
    assert pairs_above(selection, 3) == [3, 5, 4]
    assert pairs_above(selection, 9) == [3, 5, 4, 1]
    assert pairs_above(selection, 0) == []


def test_scripts_of() -> None:
    assert scripts_of(["Hello!", "مرحبا OK", "你好", "42 + 1", ""]) == ["LATIN", "ARABIC", "CJK", "", ""]


def test_fifty_thousand_rows_take_moments() -> None:
    """0.6 s for the curve, 0.6 s for the scripts, 0.02 s for the others; a pass per row would take minutes."""
    nodes = 50_000
    rng = np.random.default_rng(0)
    ends = np.unique(np.sort(rng.integers(nodes, size=(nodes, 2)), axis=1), axis=0)
    left, right = ends[ends[:, 0] < ends[:, 1]].astype(np.int32).T
    order = np.lexsort((left, right))
    score = (0.7 + 0.3 * rng.random(len(order)) ** 4).astype(np.float32)
    graph = NeighborGraph(nodes, 0.7, left[order], right[order], score)
    rows, kept = np.arange(nodes), np.ones(nodes, bool)
    began = time.process_time()  # however busy the machine is
    assert len(threshold_curve(graph, rows, rows % 100, Keep.longest, 0.95)) == 31
    assert len(pairs_below(graph, rows, kept, 0.95, 20)) == 20
    assert np.isfinite(nearest_scores(graph)).sum() > nodes / 2
    assert scripts_of(["The quick brown fox. " * 10] * nodes) == ["LATIN"] * nodes
    assert time.process_time() - began < 30
