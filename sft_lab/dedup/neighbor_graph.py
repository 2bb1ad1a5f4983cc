"""The neighbor graph: every pair of texts at or above a score, searched once. A threshold is a cut of it.

vector_search.py finds the pairs by cosine, shingles.py by Jaccard similarity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sft_lab.core.errors import ConfigError, require
from sft_lab.core.io import read_json, write_array, write_json

ARRAYS = ("left", "right", "score")
HIGHEST_RAISE = 0.99  # the highest floor set for max_edges; at 1.00 rounding would decide


@dataclass(frozen=True)
class Sample:
    """How many pairs of a sample of the texts an approximate search has found.

    Attributes:
        texts: the number of texts whose neighbors were searched exactly.
        pairs: the number of their pairs by hundredth of the score, from 0.00 to 1.00: 101 counts.
        hits: the number of those pairs in the graph: 101 counts.
    """

    texts: int
    pairs: list[int]
    hits: list[int]

    @classmethod
    def of(cls, texts: int, scores: np.ndarray, present: np.ndarray) -> Sample:
        """Return the counts of pairs by score; ``present``: bool, whether each is in the graph."""
        hundredths = np.floor(scores.astype(np.float64) * 100 + 1e-9).astype(np.int64)
        pairs, hits = (np.bincount(part, minlength=101).tolist() for part in (hundredths, hundredths[present]))
        return cls(texts, pairs, hits)

    def at(self, threshold: float) -> tuple[int, int]:
        """Return the number of pairs at or above a threshold, rounded up to a hundredth, and of those in the graph."""
        first = math.ceil(threshold * 100 - 1e-9)
        return sum(self.pairs[first:]), sum(self.hits[first:])


@dataclass(frozen=True, eq=False)
class NeighborGraph:
    """Every pair of nodes whose score is at least ``floor``, and the fixed edges.

    Attributes:
        nodes: the number of nodes, with or without an edge.
        floor: the lowest score of an edge, compared as float32.
        left: a pair's lower node: int32, shape (edges,).
        right: its higher node: int32, shape (edges,); edges are sorted by (right, left).
        score: cosine or Jaccard, at most 1: float32, shape (edges,).
        fixed: which edges are of another measure, were cut at its threshold and are not cut again: bool, shape
            (edges,); None: no edge. They are never stored.
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
        """Return the graph cut at ``threshold``, equal to one built with that floor, with the fixed edges.

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
        """Return the graph with another graph's edges as fixed edges; it has the same nodes and other pairs."""
        parts = [np.concatenate([getattr(self, name), getattr(other, name)]) for name in ARRAYS]
        fixed = np.repeat([False, True], [len(self.left), len(other.left)])
        order = np.lexsort(parts[:2])
        left, right, score = (part[order] for part in parts)
        return NeighborGraph(self.nodes, self.floor, left, right, score, fixed[order], self.sample)

    def save(self, folder: Path) -> None:
        """Write ``left.npy``, ``right.npy``, ``score.npy`` and ``graph.json``."""
        for name in ARRAYS:
            write_array(folder / f"{name}.npy", getattr(self, name))
        sample = {"sample": asdict(self.sample)} if self.sample else {}
        write_json(folder / "graph.json", {"nodes": self.nodes, "floor": self.floor, **sample})

    @classmethod
    def load(cls, folder: Path) -> NeighborGraph:
        """Return the graph that ``save`` wrote, with memory-mapped arrays."""
        about = read_json(folder / "graph.json")
        left, right, score = (np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS)
        sample = Sample(**about["sample"]) if "sample" in about else None
        return cls(about["nodes"], about["floor"], left, right, score, sample=sample)

    @classmethod
    def empty(cls, nodes: int) -> NeighborGraph:
        """Return a graph without edges and with a floor of 1."""
        return cls(nodes, 1.0, np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))

    def renumbered(self, numbers: np.ndarray, nodes: int) -> NeighborGraph:
        """Return the graph within ``nodes`` nodes, with node i as ``numbers[i]``; ``numbers``: ascending integers."""
        numbers = numbers.astype(np.int32)
        left, right = numbers[self.left], numbers[self.right]
        return NeighborGraph(nodes, self.floor, left, right, self.score, self.fixed, self.sample)


class Edges:
    """Collects edges, at a floor that rises until they fit.

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
        """Add the candidates that reach the floor, and raise it until the edges fit; a pair is passed only once."""
        if len(left):
            self._append(right * self.nodes + left, self.score(left, right))
        self._fit()

    def add_scored(self, pair: np.ndarray, score: np.ndarray, floor: float) -> None:
        """Add pairs that were collected elsewhere, with their scores and the floor, which may have risen there.

        Args:
            pair: as ``collected`` returns them: int64, shape (pairs,).
            score: float32, shape (pairs,).
            floor: the lowest that was possible for these pairs, and so also for all pairs.
        """
        while self.floor < floor:
            self._raise()
        self._append(pair, score)
        self._fit()

    def _fit(self) -> None:
        # The floor rises only if the pairs seen so far, and so also all pairs, are too many for it. The last floor is
        # therefore the lowest that fits, whatever the order of the pairs.
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
                f"floor is not raised above {HIGHEST_RAISE}; raise max_edges, or remove equal texts first"
            )
        self.floor = higher
        parts, self.parts, self.edges = self.parts, [], 0
        for part in parts:
            self._append(*part)

    def collected(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the collected pairs, each as right * nodes + left, and their scores; they are removed from here."""
        pair = np.concatenate([np.empty(0, np.int64), *(part[0] for part in self.parts)])
        score = np.concatenate([np.empty(0, np.float32), *(part[1] for part in self.parts)])
        self.parts.clear()
        return pair, score

    def graph(self) -> NeighborGraph:
        """Return the collected edges as a graph; they are removed from here."""
        pair, score = self.collected()
        order = np.argsort(pair)
        pair, score = pair[order], score[order]
        right = (pair // max(1, self.nodes)).astype(np.int32)
        left = (pair % max(1, self.nodes)).astype(np.int32)
        return NeighborGraph(self.nodes, self.floor, left, right, score)
