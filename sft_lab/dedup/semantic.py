"""Semantic dedup: rows whose texts mean nearly the same are duplicates.

Texts are embedded once, and the neighbor graph of all pairs above a floor is searched once. Threshold and keep rule
only cut that graph. Equal texts are one node, so exact duplicates are dropped too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sft_lab.core.bounds import bounded
from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError
from sft_lab.core.log import log
from sft_lab.dedup.embed import Embedder, embed
from sft_lab.dedup.graph_options import GraphDedup, Index, stored_graph
from sft_lab.dedup.known import known_texts
from sft_lab.dedup.minhash import JACCARD_LIMIT, LOWEST_JACCARD, jaccard_graph

if TYPE_CHECKING:
    import numpy as np

    from sft_lab.core.rows import Rows
    from sft_lab.dedup.neighbor_graph import NeighborGraph
    from sft_lab.dedup.texts import Texts


IVF_VERSION = 1  # of the edges that index=ivf finds
MANY_UNKNOWN = 0.01  # share of unknown texts above which there is a notice


class Fallback(Enum):
    """How texts are compared that the embedder does not know."""

    exact = "exact"
    minhash = "minhash"
    error = "error"


@dataclass
class Semantic(GraphDedup):
    """Dedup of rows whose vectors have a cosine at or above the threshold."""

    version: ClassVar[int] = 2
    measure: ClassVar[str] = "cosine"

    embedder: Embedder = field(default_factory=Embedder)
    index: Index = field(default=Index.exact, metadata={"changes_result": False})
    fallback: Fallback = Fallback.exact
    fallback_threshold: float = bounded(0.8, at_least=LOWEST_JACCARD, at_most=1, limit=JACCARD_LIMIT)

    def depends_on(self, context: StageContext) -> dict[str, Any]:  # noqa: ARG002
        """Return the key of the embedder's weights, which its name does not identify, and an approximate index."""
        return {"embedder": self.embedder.key(), **({"index": "ivf"} if self.index is Index.ivf else {})}

    def graph(self, rows: Rows, context: StageContext) -> tuple[NeighborGraph, np.ndarray, Texts]:
        """Return the graph of cosines, with fixed edges if ``fallback=minhash``; see ``GraphDedup.graph``.

        Fixed edges are the pairs of texts unknown to the embedder whose Jaccard similarity reaches
        ``fallback_threshold``; a cut of the cosines keeps them. A known and an unknown text never share an edge.
        """
        import numpy as np

        from sft_lab.dedup.texts import Texts, nodes_of

        texts, node_of_row = nodes_of(Texts.of(rows, self.on))
        known = known_nodes(texts, self.embedder, self.fallback, "dedup", context)
        graph = self._cosines(texts.take(known), context).renumbered(known, len(texts))
        if self.fallback is Fallback.minhash:
            rest = np.setdiff1d(np.arange(len(texts)), known)
            threshold, unknown = self.fallback_threshold, texts.take(rest)
            near = jaccard_graph(unknown, threshold, self.max_edges, context, knob="fallback_threshold").at(threshold)
            graph = graph.with_fixed(near.renumbered(rest, len(texts)))
        return graph, node_of_row, texts

    def _cosines(self, texts: Texts, context: StageContext) -> NeighborGraph:
        def search(floor: float, folder: Path) -> NeighborGraph:
            from sft_lab.core.blocks import in_folder
            from sft_lab.dedup.vector_search import build

            vectors = embed(texts, self.embedder, context)
            compute = in_folder(folder, context.engine.of_torch)
            return build(vectors, floor, self.max_edges, self.index, compute=compute)

        recipe: dict[str, Any] = {"embedder": self.embedder.key(), "input": texts.key}
        if self.index is Index.ivf:
            recipe["params"] = {"index": "ivf", "version": IVF_VERSION}
        graph = stored_graph(recipe, self.threshold, self.max_edges, search, context)
        if graph.sample:
            pairs, hits = graph.sample.at(self.threshold)
            present = f"{hits} in the graph" + (f" ({hits / pairs:.2%})" if pairs else "")
            context.notice(
                f"dedup.index=ivf: pairs at or above {self.threshold} of {graph.sample.texts} sampled texts: {pairs} "
                f"by an exact search, {present}"
            )
        return graph


def known_nodes(texts: Texts, embedder: Embedder, fallback: Fallback, stage: str, context: StageContext) -> np.ndarray:
    """Return the nodes whose text the embedder knows: int64, ascending. The others are left to the fallback.

    Raises:
        ConfigError: if a text is unknown and the fallback is ``error``.
    """
    import numpy as np

    knows = known_texts(texts, embedder, context)
    unknown = len(texts) - int(knows.sum())
    if unknown and fallback is Fallback.error:
        raise ConfigError(
            f"{stage}.fallback=error: {unknown} of {len(texts)} texts are in scripts or symbols the embedder does not "
            f"know (its scripts: {', '.join(embedder.scripts) or 'all'}); use {stage}.fallback=exact or minhash, "
            "or a multilingual embedder"
        )
    if unknown:
        exact = f"exact text; {stage}.fallback=minhash also finds near-duplicates among them"
        method = exact if fallback is Fallback.exact else "MinHash"
        part = unknown / len(texts)
        text = (
            f"{stage}: {unknown} of {len(texts)} texts ({part:.1%}) are in scripts or symbols the embedder does not "
            f"know; compared by {method}"
        )
        report = context.notice if part >= MANY_UNKNOWN else log.info
        report(text)
    return np.flatnonzero(knows)
