"""An inverted file (IVF): near vectors are searched only in the lists of their nearest centroids.

Each row is a member of the list of its nearest centroid. It is compared, in matrix products, with the members of its
nearest lists: at most ``PROBES`` lists, whose centroids are at most ``MARGIN`` farther than the nearest. On 6,520 real
answers this came to about 3 lists, and all pairs at a cosine of 0.9 and 99.9% of those at 0.7 were found; each
search measures its recall on a sample. Which pairs are missed may differ between machines, by rounding, but not a
score. The work grows with n^1.5, that of all pairs with n^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from sft_lab.dedup.neighbor_graph import NeighborGraph, Sample

LISTS = 2.0  # times the square root of the rows
PROBES = 16  # the most lists with which a row is compared
MARGIN = 0.15  # cosine: how much farther than the nearest centroid that of such a list may be
TRAINING = 32  # rows for k-means for each centroid
ROUNDS = 3  # of k-means
BLOCK = 4096  # rows compared with all centroids at once
SAMPLE = 1000  # rows whose neighbors are searched exactly to measure recall
SEED = 42


def probes(table: torch.Tensor) -> np.ndarray:
    """Return the lists of each row, nearest centroid first, then -1: int64, shape (rows, ``PROBES`` or fewer).

    Args:
        table: unit rows, float32 or bfloat16, on any device.
    """
    centroids = _centroids(table)
    width = min(PROBES, len(centroids))
    parts = []
    for rows in table.split(BLOCK):
        cosine, nearest = (rows @ centroids.T).topk(width, dim=1)
        nearest[cosine < cosine[:, :1] - MARGIN] = -1
        parts.append(nearest.cpu())
    lists: np.ndarray = torch.cat(parts).numpy()
    return lists


def _centroids(table: torch.Tensor) -> torch.Tensor:
    """Return unit centroids, from spherical k-means on a sample, in the table's type: shape (lists, dim)."""
    generator = np.random.default_rng(SEED)
    count = max(1, min(len(table), round(LISTS * math.sqrt(len(table)))))
    rows = torch.from_numpy(generator.permutation(len(table))[: TRAINING * count]).to(table.device)
    training = table[rows]
    centroids = training[:count].clone()
    for _ in range(ROUNDS):
        nearest = torch.cat([(part @ centroids.T).argmax(1) for part in training.split(BLOCK)])
        sums = torch.zeros(centroids.shape, device=table.device).index_add_(0, nearest, training.float())
        length = sums.norm(dim=1, keepdim=True)
        centroids = torch.where(length > 0, sums / length, centroids.float()).to(table.dtype)
    return centroids


def blocks(nearest: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows that probe each list, and its members; ``nearest``: the result of ``probes``."""
    size, width = nearest.shape
    order = np.argsort(nearest, axis=None, kind="stable")
    lists = nearest.ravel()[order]
    for block in np.split(order, np.flatnonzero(np.diff(lists)) + 1) if size else []:
        members = block[block % width == 0] // width  # rows for which this list is the nearest
        if len(members):  # "no list", -1, has none
            yield block // width, members


def keep_once(row: np.ndarray, member: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Return which pairs to keep, so that a pair found from both sides is kept once: bool, shape (pairs,)."""
    from_both = (nearest[member] == nearest[row, :1]).any(axis=1)
    kept: np.ndarray = (member < row) | ((row < member) & ~from_both)
    return kept


def measure_recall(
    vectors: np.ndarray, graph: NeighborGraph, score: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Sample:
    """Return how many pairs of an exact search for the neighbors of some rows are edges of the graph.

    Args:
        vectors: float32, shape (nodes, dim).
        graph: the result of the approximate search.
        score: returns the scores of pairs of rows, as for the graph's edges.
    """
    rows = np.sort(np.random.default_rng(SEED).permutation(len(vectors))[:SAMPLE])
    pairs = []
    for start in range(0, len(vectors), BLOCK):
        near = np.argwhere(vectors[start : start + BLOCK] @ vectors[rows].T >= graph.floor - 1e-4)
        pairs.append(np.stack([near[:, 0] + start, rows[near[:, 1]]]))
    left, right = np.sort(np.concatenate([np.empty((2, 0), np.int64), *pairs], axis=1), axis=0)
    keys = np.unique((right * len(vectors) + left)[left < right])
    scores = score(keys % len(vectors), keys // len(vectors))
    keys, scores = keys[scores >= np.float32(graph.floor)], scores[scores >= np.float32(graph.floor)]
    present = np.isin(keys, graph.right * np.int64(len(vectors)) + graph.left)
    return Sample.of(len(rows), scores, present)
