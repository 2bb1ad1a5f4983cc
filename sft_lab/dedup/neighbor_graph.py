"""The neighbor graph: every pair of texts at or above a score, searched once; a threshold is a cut of it.

vector_search.py finds the pairs by cosine, shingles.py by Jaccard similarity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sft_lab.core.errors import ConfigError, require
from sft_lab.core.io import read_json, write_json

ARRAYS = ("left", "right", "score")
HIGHEST_RAISE = 0.99  # the highest floor set for max_edges; at 1.00 rounding would decide


@dataclass(frozen=True)
class Sample:
    """How many pairs of a sample of the texts an approximate search has found.

    Attributes:
        texts: the texts whose neighbors were searched exactly.
        pairs: their pairs by score: those from 0.00, 0.01, ... to below the next hundredth; 101 counts.
        hits: those of the pairs that the graph has; 101 counts.
    """

    texts: int
    pairs: list[int]
    hits: list[int]

    @classmethod
    def of(cls, texts: int, scores: np.ndarray, present: np.ndarray) -> Sample:
        """Count pairs by their scores; present: bool, which of them the graph has."""
        hundredths = np.floor(scores.astype(np.float64) * 100 + 1e-9).astype(np.int64)
        pairs, hits = (np.bincount(part, minlength=101).tolist() for part in (hundredths, hundredths[present]))
        return cls(texts, pairs, hits)

    def at(self, threshold: float) -> tuple[int, int]:
        """Return the pairs at or above a threshold, rounded up to a hundredth, and how many of them the graph has."""
        first = math.ceil(threshold * 100 - 1e-9)
        return sum(self.pairs[first:]), sum(self.hits[first:])


@dataclass(frozen=True, eq=False)
class NeighborGraph:
    """Every pair of nodes whose score is at least ``floor``, and no other but the fixed edges.

    Attributes:
        nodes: the number of nodes, with or without an edge.
        floor: the lowest score of an edge, compared as float32.
        left: int32, shape (edges,): a pair's lower node.
        right: int32, shape (edges,): its higher node; edges are sorted by (right, left).
        score: float32, shape (edges,): cosine or Jaccard, at most 1.
        fixed: bool, shape (edges,): edges of another measure, already cut at their own threshold and not cut
            again; None: no such edge. They are never stored.
        sample: how much of the graph an approximate search has found; None: the search was exact.
    """

    nodes: int
    floor: float
    left: np.ndarray
    right: np.ndarray
    score: np.ndarray
    fixed: np.ndarray | None = None
    sample: Sample | None = None

    def at(self, threshold: float) -> NeighborGraph:
        """Return the edges at or above ``threshold``, as a graph built with that floor has them, and the fixed edges.

        Raises:
            ConfigError: if ``threshold`` is below the floor.
        """
        require(threshold >= self.floor, "threshold", threshold, f"at least the neighbor graph's floor, {self.floor}")
        kept = self.score >= np.float32(threshold)
        if self.fixed is None:
            return NeighborGraph(self.nodes, threshold, self.left[kept], self.right[kept], self.score[kept])
        kept |= self.fixed
        edges = (self.left[kept], self.right[kept], self.score[kept], self.fixed[kept])
        return NeighborGraph(self.nodes, threshold, *edges)

    @property
    def cuttable(self) -> NeighborGraph:
        """This graph without its fixed edges."""
        if self.fixed is None:
            return self
        cut = ~self.fixed
        return NeighborGraph(self.nodes, self.floor, self.left[cut], self.right[cut], self.score[cut])

    def with_fixed(self, other: NeighborGraph) -> NeighborGraph:
        """Return the graph with the edges of another graph of the same nodes as fixed edges; no pair is in both."""
        parts = [np.concatenate([getattr(self, name), getattr(other, name)]) for name in ARRAYS]
        fixed = np.repeat([False, True], [len(self.left), len(other.left)])
        order = np.lexsort(parts[:2])
        left, right, score = (part[order] for part in parts)
        return NeighborGraph(self.nodes, self.floor, left, right, score, fixed[order], self.sample)

    def save(self, folder: Path) -> None:
        """Write ``left.npy``, ``right.npy``, ``score.npy`` and ``graph.json``."""
        for name in ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        sample = {"sample": asdict(self.sample)} if self.sample else {}
        write_json(folder / "graph.json", {"nodes": self.nodes, "floor": self.floor, **sample})

    @classmethod
    def load(cls, folder: Path) -> NeighborGraph:
        """Return the graph that ``save`` wrote; the arrays are memory-mapped."""
        about = read_json(folder / "graph.json")
        left, right, score = (np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS)
        sample = Sample(**about["sample"]) if "sample" in about else None
        return cls(about["nodes"], about["floor"], left, right, score, sample=sample)

    @classmethod
    def empty(cls, nodes: int) -> NeighborGraph:
        """Return a graph without edges, whose floor is 1."""
        return cls(nodes, 1.0, np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))

    def renumbered(self, numbers: np.ndarray, nodes: int) -> NeighborGraph:
        """Return the same edges among ``nodes`` nodes, node i as ``numbers[i]``; numbers: int, ascending, (nodes,)."""
        numbers = numbers.astype(np.int32)
        left, right = numbers[self.left], numbers[self.right]
        return NeighborGraph(nodes, self.floor, left, right, self.score, self.fixed, self.sample)


class Edges:
    """The edges collected so far, at a floor that rises until they fit.

    Args:
        nodes: the number of nodes of the graph.
        score: returns the scores of pairs, float32, from their left and right nodes.
        floor: the lowest score of an edge.
        max_edges: the most edges to keep.
    """

    def __init__(
        self, nodes: int, score: Callable[[np.ndarray, np.ndarray], np.ndarray], floor: float, max_edges: int
    ) -> None:
        self.nodes, self.score, self.floor, self.max_edges = nodes, score, float(floor), max_edges
        self.edges = 0
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []  # right * nodes + left, score

    def add(self, left: np.ndarray, right: np.ndarray) -> None:
        """Keep the candidates that reach the floor, each passed once; raise the floor until the edges fit."""
        if len(left):
            self._append(right * self.nodes + left, self.score(left, right))
        self._fit()

    def add_scored(self, pair: np.ndarray, score: np.ndarray, floor: float) -> None:
        """Keep pairs that were collected elsewhere, with their scores, at a floor that may have risen there.

        Args:
            pair: int64, shape (pairs,): as ``collected`` returns them.
            score: float32, shape (pairs,).
            floor: the lowest that was possible for these pairs alone, and so for all of them.
        """
        while self.floor < floor:
            self._raise()
        self._append(pair, score)
        self._fit()

    def _fit(self) -> None:
        # The floor rises only when the pairs seen so far, and so all pairs, are too many for it: the last floor is the
        # lowest that fits, whatever the order in which they were seen.
        while self.edges > self.max_edges:
            self._raise()

    def _append(self, pair: np.ndarray, score: np.ndarray) -> None:
        kept = score >= np.float32(self.floor)
        if kept.any():
            self.parts.append((pair[kept], score[kept]))
            self.edges += len(self.parts[-1][0])

    def _raise(self) -> None:
        higher = (math.floor(self.floor * 100 + 1e-9) + 1) / 100  # the next whole hundredth
        if higher > HIGHEST_RAISE:
            raise ConfigError(
                f"max_edges={self.max_edges}: more pairs than that have a score of {self.floor} or above, and the "
                f"floor is not raised over {HIGHEST_RAISE}; raise max_edges, or remove equal texts before"
            )
        self.floor = higher
        parts, self.parts, self.edges = self.parts, [], 0
        for part in parts:
            self._append(*part)

    def collected(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs collected so far, each as right * nodes + left, and their scores; release them here."""
        pair = np.concatenate([np.empty(0, np.int64), *(part[0] for part in self.parts)])
        score = np.concatenate([np.empty(0, np.float32), *(part[1] for part in self.parts)])
        self.parts.clear()
        return pair, score

    def graph(self) -> NeighborGraph:
        """Return the collected edges as a graph, sorted, and release them here."""
        pair, score = self.collected()
        order = np.argsort(pair)
        pair, score = pair[order], score[order]
        right = (pair // max(1, self.nodes)).astype(np.int32)
        left = (pair % max(1, self.nodes)).astype(np.int32)
        return NeighborGraph(self.nodes, self.floor, left, right, score)
