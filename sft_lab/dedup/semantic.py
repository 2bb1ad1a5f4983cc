"""Semantic dedup: rows whose texts mean nearly the same are duplicates.

Texts are embedded once and the neighbour graph of all pairs above a floor is searched once; a threshold and a keep
rule are a cut of that graph. Equal texts are one node, so exact dedup comes first by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.bench import Bench, log, share
from sft_lab.dedup.embedding import Embedder, embed, text_hashes
from sft_lab.dedup.exact import Dedup, Keep, On, compared_texts, nodes_of
from sft_lab.errors import ConfigError, require
from sft_lab.files import digest

if TYPE_CHECKING:
    import numpy as np

    from sft_lab.dedup.graph import NeighborGraph
    from sft_lab.rows import Rows, Selection

FLOOR = 0.7  # cosine; one graph serves every threshold at or above it
LOWEST = 0.1  # below it nearly every pair is an edge


class Index(Enum):
    """How neighbours are searched: our blocked matrix product, or FAISS IndexFlatIP. Both are exact."""

    exact = "exact"
    flat = "flat"


class Fallback(Enum):
    """How rows of scripts that the embedder does not know are compared."""

    exact = "exact"
    error = "error"


@dataclass
class Semantic(Dedup):
    """Rows whose vectors have a cosine at or above the threshold are duplicates."""

    threshold: float = 0.95
    keep: Keep = Keep.first
    on: On = On.answer
    embedder: Embedder = field(default_factory=Embedder)
    index: Index = field(default=Index.exact, metadata={"changes_result": False})
    fallback: Fallback = Fallback.exact
    max_edges: int = 50_000_000

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require(LOWEST <= self.threshold <= 1, "threshold", self.threshold, f"a cosine from {LOWEST} to 1")
        require(self.max_edges >= 1, "max_edges", self.max_edges, "at least 1")

    def depends_on(self, bench: Bench) -> dict[str, Any]:  # noqa: ARG002
        """The embedder's weights, which its name does not pin."""
        return {"embedder": self.embedder.key()}

    def select(self, rows: Rows, bench: Bench) -> Selection:
        """Reasons: ``duplicate`` (equal text) and ``near_duplicate``; score: cosine to the nearest kept row."""
        from sft_lab.dedup.keep import selection

        texts, node_of_row = nodes_of(compared_texts(rows, self.on))
        known = known_nodes(texts, self.embedder, self.fallback, "dedup")
        graph = self._graph([texts[node] for node in known], bench).at(self.threshold)
        return selection(rows, graph.renumbered(known, len(texts)), node_of_row, self.keep)

    def _graph(self, texts: list[str], bench: Bench) -> NeighborGraph:
        """Find the stored graph of these texts, or search it."""
        from sft_lab.dedup import graph as graphs

        floor = FLOOR if self.threshold >= FLOOR else max(round(self.threshold - 0.01, 2), LOWEST)
        if floor < FLOOR:
            log.info(
                "dedup: threshold %s lies below the usual floor %s; searching down to %s", self.threshold, FLOOR, floor
            )

        def compute(folder: Path) -> None:
            vectors = embed(texts, self.embedder, bench)
            graphs.build(vectors, floor, self.max_edges, graphs.Index[self.index.name]).save(folder)

        recipe = {
            "version": graphs.VERSION,
            "params": {"floor": floor, "max_edges": self.max_edges, "index": self.index.name},
            "embedder": self.embedder.key(),
            "input": digest(text_hashes(texts)),
        }
        graph = graphs.NeighborGraph.load(bench.stage("neighbors", recipe, compute).path)
        if graph.floor > floor:
            log.warning(
                "dedup: the floor was raised from %s to %s: more than max_edges=%d pairs lie above it",
                floor,
                graph.floor,
                self.max_edges,
            )
        if graph.floor > self.threshold:
            raise ConfigError(
                f"dedup.threshold={self.threshold}: more than dedup.max_edges={self.max_edges} pairs lie above it; "
                f"raise dedup.max_edges, or the threshold to {graph.floor} or more"
            )
        return graph


def known_nodes(texts: list[str], embedder: Embedder, fallback: Fallback, stage: str) -> np.ndarray:
    """Give the nodes whose text the embedder knows the script of: int64, in order; the rest is left to the fallback.

    Raises:
        ConfigError: if there is a rest and the fallback is ``error``.
    """
    import numpy as np

    knows = np.fromiter((embedder.knows(text) for text in texts), bool, len(texts))
    unknown = len(texts) - int(knows.sum())
    if unknown and fallback is Fallback.error:
        raise ConfigError(
            f"{stage}.fallback=error: {unknown} of {len(texts)} texts are in scripts the embedder does not know "
            f"({', '.join(embedder.scripts)}); use {stage}.fallback=exact or a multilingual embedder"
        )
    if unknown:
        log.info(
            "%s: %d of %d texts (%.0f%%) are in scripts the embedder does not know; compared by %s text",
            stage,
            unknown,
            len(texts),
            100 * share(unknown, len(texts)),
            fallback.name,
        )
    return np.flatnonzero(knows)
