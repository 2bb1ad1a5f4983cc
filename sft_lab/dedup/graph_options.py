"""The base of the dedup options that cut a neighbor graph, and the stored graph."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sft_lab.core.bounds import bounded
from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError
from sft_lab.core.log import log
from sft_lab.core.text import On
from sft_lab.dedup.exact import Dedup, Keep

if TYPE_CHECKING:
    import numpy as np

    from sft_lab.core.rows import Rows
    from sft_lab.core.selection import Selection
    from sft_lab.dedup.neighbor_graph import NeighborGraph
    from sft_lab.dedup.texts import Texts

VERSION = 1  # of the edges that vector_search.py finds; part of each stored graph's key
FLOOR = 0.7  # one graph serves every threshold at or above it
LOWEST = 0.1  # cosine, below which nearly every pair would be an edge


class Index(Enum):
    """How pairs of near vectors are searched.

    ``exact`` (a blocked matrix product) and ``flat`` (FAISS IndexFlatIP) find every pair. ``ivf`` (an inverted file) is
    faster on large sets and finds nearly all pairs.
    """

    exact = "exact"
    flat = "flat"
    ivf = "ivf"


@dataclass
class GraphDedup(Dedup):
    """Dedup of rows whose texts share an edge of a neighbor graph at or above the threshold.

    Attributes:
        measure: of the graph's scores, ``cosine`` or ``jaccard``.
    """

    measure: ClassVar[str]

    threshold: float = bounded(0.95, at_least=LOWEST, at_most=1, limit=f"a cosine similarity from {LOWEST} to 1")
    keep: Keep = Keep.first
    on: On = On.answer
    max_edges: int = bounded(50_000_000, at_least=1)

    @abc.abstractmethod
    def graph(self, rows: Rows, context: StageContext) -> tuple[NeighborGraph, np.ndarray, Texts]:
        """Return the graph of these rows, stored or searched, before the cut at the threshold.

        Returns:
            The graph, whose floor is at most the threshold and whose nodes are the distinct texts; the node of each
            row (int64, shape (rows,)); the text of each node.
        """

    def select(self, rows: Rows, context: StageContext) -> Selection:
        """Reasons: ``duplicate`` (equal text), ``near_duplicate``; score: that to the nearest kept row."""
        from sft_lab.dedup.keep_rules import selection

        graph, node_of_row, _ = self.graph(rows, context)
        return selection(rows, graph.at(self.threshold), node_of_row, self.keep)


def stored_graph(
    recipe: dict[str, Any],
    threshold: float,
    max_edges: int,
    search: Callable[[float, Path], NeighborGraph],
    context: StageContext,
    knob: str = "threshold",
) -> NeighborGraph:
    """Return a graph that serves a threshold, stored or searched.

    Args:
        recipe: what the graph depends on besides floor and max_edges; its version defaults to VERSION.
        threshold: of the cut.
        max_edges: the most edges to keep; if more pairs reach the floor, it is raised.
        search: returns the graph with a floor; it may write blocks into the folder of the result.
        context: of the run.
        knob: the config key of the threshold, for messages.

    Raises:
        ConfigError: if more than max_edges pairs reach the threshold.
    """
    from sft_lab.dedup.neighbor_graph import NeighborGraph

    floor = FLOOR if threshold >= FLOOR else max(round(threshold - 0.01, 2), LOWEST)
    if floor < FLOOR:
        log.info("dedup: %s %s is below the usual floor %s; searching down to %s", knob, threshold, FLOOR, floor)
    params = {**recipe.get("params", {}), "floor": floor, "max_edges": max_edges}
    entry = context.stage(
        "neighbors",
        {"version": VERSION, **recipe, "params": params},
        lambda folder: search(floor, folder).save(folder),
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
