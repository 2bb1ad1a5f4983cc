"""Keep rules: from a cut of the neighbor graph to the rows that stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sft_lab.dedup.exact import Keep

if TYPE_CHECKING:
    from sft_lab.core.rows import Rows
    from sft_lab.core.selection import Selection
    from sft_lab.dedup.neighbor_graph import NeighborGraph


Decisions = tuple[np.ndarray, np.ndarray, np.ndarray]
NO_ROW = np.iinfo(np.int64).max  # greater than every row index


def selection(rows: Rows, graph: NeighborGraph, node_of_row: np.ndarray, keep: Keep) -> Selection:
    """Return the selection of a cut; answer lengths are in characters.

    Reasons: ``duplicate`` where the nearest row has the same text, ``near_duplicate`` where it has another.
    """
    from sft_lab.core.selection import Selection

    answers = (answer for (batch,) in rows.batches("answer") for answer in batch)
    lengths = np.fromiter(map(len, answers), np.int64, len(rows))
    kept, nearest, score = representatives(graph, node_of_row, lengths, keep)
    same = node_of_row == node_of_row[nearest]  # -1 indexes the last row, and is not used
    code = np.where(kept, 0, np.where(same, 1, 2))
    reason = np.array(["", "duplicate", "near_duplicate"], object)[code].tolist()
    nearest_ids = np.full(len(rows), "", object)
    nearest_ids[~kept] = list(rows.ids.select(nearest[~kept]))
    return Selection.of(rows, reason, score, nearest_ids.tolist())


def representatives(
    graph_cut: NeighborGraph, node_of_row: np.ndarray, length_of_row: np.ndarray, keep: Keep
) -> Decisions:
    """Return the decisions of a keep rule; two rows are duplicates if they share a node or an edge of the cut.

    Args:
        graph_cut: the neighbor graph at the threshold; nodes without a row are ignored.
        node_of_row: integers, shape (rows,).
        length_of_row: integers, shape (rows,); only ``Keep.longest`` uses them.
        keep: ``first`` and ``longest`` take the rows in their order and drop a row if it duplicates a row kept before;
            ``singletons`` drops every row that has a duplicate.

    Returns:
        kept: bool, shape (rows,).
        nearest: for a dropped row, its duplicate with the highest score among the kept rows (``singletons``: among all
            rows), the first one if scores are equal; -1 for a kept row: int64, shape (rows,).
        score: to that row, 1 within a node; NaN for a kept row: float32, shape (rows,).
    """
    node_of_row = np.asarray(node_of_row, np.int64)
    order = np.arange(len(node_of_row))
    if keep is Keep.longest:
        order = np.argsort(-np.asarray(length_of_row, np.int64), kind="stable")
    # The first row of each node in that order represents the node: a later row of the node duplicates it if it is kept,
    # or else the row because of which it was dropped.
    head = np.full(graph_cut.nodes, -1, np.int64)
    head[node_of_row[order[::-1]]] = order[::-1]
    real = (head[graph_cut.left] >= 0) & (head[graph_cut.right] >= 0)
    edges = (graph_cut.left[real], graph_cut.right[real], graph_cut.score[real])
    if keep is Keep.singletons:
        return _singletons(head, node_of_row, *edges)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return _first(head, rank, node_of_row, *edges)


def _first(
    head: np.ndarray, rank: np.ndarray, node_of_row: np.ndarray, left: np.ndarray, right: np.ndarray, score: np.ndarray
) -> Decisions:
    stays = _greedy(len(head), rank[head[left]], rank[head[right]], left, right)
    best, nearest_head = _nearest(len(head), left, right, score, head, stays)
    own = stays[node_of_row]  # the nearest row in a kept node is its head
    nearest = np.where(own, head[node_of_row], nearest_head[node_of_row])
    kept = nearest == np.arange(len(node_of_row))
    return _decisions(kept, nearest, np.where(own, np.float32(1), best[node_of_row]))


def _greedy(
    nodes: int, left_rank: np.ndarray, right_rank: np.ndarray, left: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Return which nodes stay, taken by rank, because no edge leads to one that stays: bool, shape (nodes,)."""
    forward = left_rank < right_rank
    before, after = np.where(forward, left, right), np.where(forward, right, left)
    order = np.argsort(np.where(forward, left_rank, right_rank), kind="stable")
    before, after = before[order], after[order]
    starts = np.flatnonzero(np.diff(before, prepend=-1))
    stays = np.ones(nodes, bool)
    stops = [*starts[1:].tolist(), len(before)][: len(starts)]
    for node, start, stop in zip(before[starts].tolist(), starts.tolist(), stops, strict=True):
        if stays[node]:
            stays[after[start:stop]] = False
    return stays


def _singletons(
    head: np.ndarray, node_of_row: np.ndarray, left: np.ndarray, right: np.ndarray, score: np.ndarray
) -> Decisions:
    best, nearest = _nearest(len(head), left, right, score, head, np.ones(len(head), bool))
    best, nearest = best[node_of_row], nearest[node_of_row]
    # Another row of the same node: the head or, for the head itself, the second row.
    rows = np.arange(len(node_of_row))
    repeats = rows[head[node_of_row] != rows]
    second = np.full(len(head), NO_ROW, np.int64)
    second[node_of_row[repeats[::-1]]] = repeats[::-1]
    twin = np.where(head[node_of_row] == rows, second[node_of_row], head[node_of_row])
    has_twin = twin < NO_ROW
    nearest = np.where(has_twin & (best < 1), twin, np.minimum(nearest, twin))
    return _decisions(nearest == NO_ROW, nearest, np.where(has_twin, np.float32(1), best))


def _nearest(
    nodes: int, left: np.ndarray, right: np.ndarray, score: np.ndarray, head: np.ndarray, allowed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return each node's highest score to an allowed node and the first such head; -inf and NO_ROW without one."""
    source, target = np.concatenate([left, right]), np.concatenate([right, left])
    score = np.concatenate([score, score])
    to_allowed = allowed[target]
    source, row, score = source[to_allowed], head[target[to_allowed]], score[to_allowed]
    best = np.full(nodes, -np.inf, np.float32)
    np.maximum.at(best, source, score)
    top = score == best[source]
    nearest = np.full(nodes, NO_ROW, np.int64)
    np.minimum.at(nearest, source[top], row[top])
    return best, nearest


def _decisions(kept: np.ndarray, nearest: np.ndarray, score: np.ndarray) -> Decisions:
    return kept, np.where(kept, -1, nearest), np.where(kept, np.float32(np.nan), score)
