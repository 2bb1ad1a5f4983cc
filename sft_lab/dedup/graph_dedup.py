"""What the dedups that cut a neighbor graph share: their knobs, and how the graph is stored."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError, require
from sft_lab.core.log import log
from sft_lab.core.text import On
from sft_lab.dedup.exact import Dedup, Keep

if TYPE_CHECKING:
    import numpy as np

    from sft_lab.core.rows import Rows, Selection
    from sft_lab.dedup.graph import NeighborGraph

VERSION = 1  # of the edges that search.py finds: a part of every stored graph's key
FLOOR = 0.7  # one graph serves every threshold at or above it
LOWEST = 0.1  # cosine; below it nearly every pair is an edge


class Index(Enum):
    """What looks for pairs of near vectors: a blocked matrix product, or FAISS IndexFlatIP. The edges are the same."""

    exact = "exact"
    flat = "flat"


@dataclass
class GraphDedup(Dedup):
    """Rows whose texts share an edge of a neighbor graph at or above the threshold are duplicates.

    Attributes:
        measure: what the graph's scores are, ``cosine`` or ``jaccard``.
        lowest: the lowest threshold that can be searched.
    """

    measure: ClassVar[str]
    lowest: ClassVar[float] = LOWEST

    threshold: float = 0.95
    keep: Keep = Keep.first
    on: On = On.answer
    max_edges: int = 50_000_000

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        limit = f"a {self.measure} from {self.lowest} to 1"
        require(self.lowest <= self.threshold <= 1, "threshold", self.threshold, limit)
        require(self.max_edges >= 1, "max_edges", self.max_edges, "at least 1")

    @abc.abstractmethod
    def graph(self, rows: Rows, context: StageContext) -> tuple[NeighborGraph, np.ndarray, list[str]]:
        """Find or search the graph of these rows, before any cut at the threshold.

        Returns:
            The graph, whose floor is at most the threshold and whose nodes are the distinct texts; the node of each
            row: int64, shape (rows,); the distinct texts, node by node.
        """

    def select(self, rows: Rows, context: StageContext) -> Selection:
        """Reasons: ``duplicate`` (equal text) and ``near_duplicate``; score: the measure, to the nearest kept row."""
        from sft_lab.dedup.select import selection

        graph, node_of_row, _ = self.graph(rows, context)
        return selection(rows, graph.at(self.threshold), node_of_row, self.keep)


def stored_graph(
    recipe: dict[str, Any],
    threshold: float,
    max_edges: int,
    search: Callable[[float], NeighborGraph],
    context: StageContext,
    knob: str = "threshold",
) -> NeighborGraph:
    """Find the stored graph that serves a threshold, or search it.

    Args:
        recipe: what the graph depends on, beside floor and max_edges; its version is VERSION unless given.
        threshold: what it will be cut at.
        max_edges: the most edges to keep; a higher floor keeps fewer.
        search: finds the graph from a floor.
        context: the run's tools.
        knob: what the user calls the threshold.

    Raises:
        ConfigError: if more than max_edges pairs reach the threshold.
    """
    from sft_lab.dedup.graph import NeighborGraph

    floor = FLOOR if threshold >= FLOOR else max(round(threshold - 0.01, 2), LOWEST)
    if floor < FLOOR:
        log.info("dedup: %s %s lies below the usual floor %s; searching down to %s", knob, threshold, FLOOR, floor)
    params = {**recipe.get("params", {}), "floor": floor, "max_edges": max_edges}
    entry = context.stage(
        "neighbors",
        {"version": VERSION, **recipe, "params": params},
        lambda folder: _search(search, floor, folder),
    )
    graph = NeighborGraph.load(entry.path)
    if graph.floor > floor:
        context.notice(
            f"dedup: the floor was raised from {floor} to {graph.floor}, since more than max_edges={max_edges} pairs "
            "lie above it"
        )
    if graph.floor > threshold:
        raise ConfigError(
            f"dedup.{knob}={threshold}: more than dedup.max_edges={max_edges} pairs lie above it; "
            f"raise dedup.max_edges, or the {knob} to {graph.floor} or more"
        )
    return graph


def _search(search: Callable[[float], NeighborGraph], floor: float, folder: Path) -> None:
    search(floor).save(folder)
