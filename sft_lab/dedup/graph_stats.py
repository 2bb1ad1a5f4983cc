"""Statistics of a neighbor graph for the data report, such as the rows that other thresholds would have kept."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from sft_lab.core.errors import require
from sft_lab.core.text import scripts
from sft_lab.dedup.exact import Keep
from sft_lab.dedup.keep_rules import representatives

if TYPE_CHECKING:
    from sft_lab.core.selection import Selection
    from sft_lab.dedup.neighbor_graph import NeighborGraph


def threshold_curve(
    graph: NeighborGraph, node_of_row: np.ndarray, length_of_row: np.ndarray, keep: Keep, chosen: float
) -> list[tuple[float, int]]:
    """Return the number of rows kept at each threshold: the floor, every hundredth above it to 1.00, and ``chosen``.

    Args:
        graph: before the cut; its fixed edges apply at every threshold.
        node_of_row: integers, shape (rows,).
        length_of_row: integers, shape (rows,), in characters of the answer.
        keep: the keep rule.
        chosen: the threshold in use.

    Raises:
        ConfigError: if ``chosen`` lies below the floor.
    """
    require(graph.floor <= chosen <= 1, "chosen", chosen, f"from the graph's floor, {graph.floor}, to 1")
    hundredths = (step / 100 for step in range(math.ceil(graph.floor * 100 - 1e-9), 101))
    curve = []
    for threshold in sorted({graph.floor, chosen, *hundredths}):
        graph = graph.at(threshold)  # ascending, so that each cut is of a smaller graph
        kept, _, _ = representatives(graph, node_of_row, length_of_row, keep)
        curve.append((threshold, int(kept.sum())))
    return curve


def nearest_scores(graph: NeighborGraph) -> np.ndarray:
    """Return each node's highest score to another, NaN if all are below the floor: float32, shape (nodes,).

    Fixed edges are of another measure and are ignored.
    """
    graph = graph.cuttable
    best = np.full(graph.nodes, -np.inf, np.float32)
    np.maximum.at(best, graph.left, graph.score)
    np.maximum.at(best, graph.right, graph.score)
    best[np.isneginf(best)] = np.nan
    return best


def pairs_below(
    graph: NeighborGraph, node_of_row: np.ndarray, kept: np.ndarray, threshold: float, n: int
) -> list[tuple[int, int, float]]:
    """Return the ``n`` pairs of kept rows closest to being duplicates: row, later row, score; highest score first.

    A row is in at most one pair, so that no single row fills the list; equal scores are sorted by row. Fixed edges
    are of another measure and are ignored.

    Args:
        graph: before the cut.
        node_of_row: integers, shape (rows,).
        kept: bool, shape (rows,).
        threshold: in use; only scores below it count.
        n: the most pairs.
    """
    row_of_node = np.full(graph.nodes, -1, np.int64)
    rows = np.flatnonzero(kept)[::-1]
    row_of_node[node_of_row[rows]] = rows  # the first of a node's kept rows
    graph = graph.cuttable
    left, right = row_of_node[graph.left], row_of_node[graph.right]
    kept_pairs = np.flatnonzero((graph.score < np.float32(threshold)) & (left >= 0) & (right >= 0))
    first, second = np.minimum(left, right)[kept_pairs], np.maximum(left, right)[kept_pairs]
    score = graph.score[kept_pairs]
    pairs: list[tuple[int, int, float]] = []
    used: set[int] = set()
    for index in np.lexsort((second, first, -score)).tolist():
        if len(pairs) >= n:
            break
        pair = {int(first[index]), int(second[index])}
        if not pair & used:
            used |= pair
            pairs.append((min(pair), max(pair), float(score[index])))
    return pairs


def pairs_above(selection: Selection, n: int) -> list[int]:
    """Return the indices of the ``n`` near-duplicates with the lowest scores, which are closest to being kept.

    Lowest first, equal scores by row. With ``fallback=minhash`` a score may be a Jaccard similarity.
    """
    near = [index for index, reason in enumerate(selection.reason) if reason == "near_duplicate"]
    return sorted(near, key=lambda index: (float(selection.score[index]), index))[:n]


def scripts_of(texts: Iterable[str]) -> list[str]:
    """Return the main script of each text's letters, such as ``LATIN``; ``""`` without letters."""
    return [next(iter(scripts(text)), "") for text in texts]
