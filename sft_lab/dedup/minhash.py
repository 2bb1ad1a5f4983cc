"""MinHash dedup: rows whose texts have nearly the same characters are duplicates.

Texts are compared as sets of shingles (runs of ``ngram`` characters) by Jaccard similarity: shared shingles over all
shingles of the two. Shingles are of characters rather than words, since Chinese, Japanese and Thai put no space between
words and Arabic joins small words to the next; in every script a changed character changes ``ngram`` shingles. How
often a shingle occurs in a text does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sft_lab.core.bounds import bounded
from sft_lab.core.context import StageContext
from sft_lab.dedup.graph_options import GraphDedup, stored_graph

if TYPE_CHECKING:
    import numpy as np

    from sft_lab.core.rows import Rows
    from sft_lab.dedup.neighbor_graph import NeighborGraph
    from sft_lab.dedup.texts import Texts

VERSION = 1  # of the edges found by shingles.py; part of each stored graph's key
NGRAM = 5  # characters
NUM_PERM = 128
LOWEST_JACCARD = 0.4  # below it bands are one number wide, and nearly every pair is a candidate
JACCARD_LIMIT = f"a Jaccard similarity from {LOWEST_JACCARD} to 1"
MISS = 1e-3  # the highest probability of missing a pair right at the floor of a search


@dataclass
class MinHash(GraphDedup):
    """Dedup of rows whose shingles have a Jaccard similarity at or above the threshold.

    A pair at the default threshold of 0.8 is missed with a probability of 5e-8, and a pair at the search's floor of 0.7
    with one of 1.5e-4. A pair below the threshold never counts.
    """

    measure: ClassVar[str] = "jaccard"

    threshold: float = bounded(0.8, at_least=LOWEST_JACCARD, at_most=1, limit=JACCARD_LIMIT)
    ngram: int = bounded(NGRAM, at_least=1, at_most=100, limit="from 1 to 100 characters")
    num_perm: int = bounded(NUM_PERM, at_least=16, at_most=4096, limit="from 16 to 4096")

    def graph(self, rows: Rows, context: StageContext) -> tuple[NeighborGraph, np.ndarray, Texts]:
        """Return the graph of Jaccard similarities; see ``GraphDedup.graph``."""
        from sft_lab.dedup.texts import Texts, nodes_of

        texts, node_of_row = nodes_of(Texts.of(rows, self.on))
        graph = jaccard_graph(texts, self.threshold, self.max_edges, context, ngram=self.ngram, num_perm=self.num_perm)
        return graph, node_of_row, texts


def jaccard_graph(
    texts: Texts,
    threshold: float,
    max_edges: int,
    context: StageContext,
    *,
    ngram: int = NGRAM,
    num_perm: int = NUM_PERM,
    knob: str = "threshold",
) -> NeighborGraph:
    """Return a graph of these distinct texts that serves a threshold, stored or searched."""

    def search(floor: float, folder: Path) -> NeighborGraph:
        from sft_lab.core.blocks import in_folder
        from sft_lab.dedup.shingles import build

        return build(texts, ngram, num_perm, floor, max_edges, in_folder(folder, context.engine))

    recipe = {
        "version": VERSION,
        "params": {"measure": MinHash.measure, "ngram": ngram, "num_perm": num_perm},
        "input": texts.key,
    }
    return stored_graph(recipe, threshold, max_edges, search, context, knob)


def band_rows(num_perm: int, floor: float) -> int:
    """Return the size of a signature's bands: the largest that misses a pair at the floor with at most ``MISS``.

    Larger bands give fewer candidates. It is 1 if even that misses more.
    """
    sizes = range(1, num_perm + 1)
    return max((rows for rows in sizes if missed(num_perm, rows, floor) <= MISS), default=1)


def missed(num_perm: int, rows: int, jaccard: float) -> float:
    """Return the probability that no band of a pair with this Jaccard similarity agrees: (1 - jaccard^rows)^bands."""
    return float((1 - jaccard**rows) ** (num_perm // rows))
