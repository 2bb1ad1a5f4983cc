"""Shingles: texts as sets of character n-grams, and the search for pairs of similar sets.

MinHash signatures, cut into bands (locality-sensitive hashing: Broder 1997; Leskovec, Rajaraman, Ullman, "Mining of
Massive Datasets", chapter 3), give candidates without comparing all pairs. The Jaccard similarity of a candidate is
then computed from the two sets: a pair may be missed, with the probability of ``minhash.missed``, but no pair below
the floor is ever returned.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from sft_lab.core.blocks import Compute, in_memory
from sft_lab.core.text import normalize
from sft_lab.dedup.minhash import band_rows
from sft_lab.dedup.neighbor_graph import Edges, NeighborGraph
from sft_lab.dedup.texts import Texts

BLOCK = 1024  # texts whose shingles are in memory at once
LARGE_BLOCK = 2**15  # signatures, or pairs of them, processed at once
PAIRS = 256  # pairs compared between two checks of the memory for shingles
KEPT_BYTES = 2**28  # of shingles kept for later pairs
SEED = 42
ODD = np.uint64(0x9E3779B97F4A7C15)
DEVIATIONS = 5  # standard deviations that a signature's estimate may be below the floor: loses one pair in a million

if TYPE_CHECKING:
    import pyarrow as pa

Pairs = Iterator[tuple[np.ndarray, np.ndarray]]


def build(
    texts: Texts, ngram: int, num_perm: int, floor: float, max_edges: int, compute: Compute = in_memory
) -> NeighborGraph:
    """Return the graph of pairs with a Jaccard similarity of at least ``floor``; ``texts``: distinct when normalized.

    If more than ``max_edges`` pairs reach the floor, it is raised, as in a graph of cosines. ``compute`` computes the
    signatures block by block.
    """
    candidates = _Candidates(texts, ngram, floor, signatures_of(texts, ngram, num_perm, compute))
    edges = Edges(len(texts), candidates.jaccard, floor, max_edges)
    for left, right in candidates.pairs():
        edges.add(left, right)
    return edges.graph()


def nearest_across(
    texts: Texts, references: Texts, ngram: int, num_perm: int, floor: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return each text's highest Jaccard similarity to a reference and that one's index; 0 and 0 below the floor.

    Returns:
        float32 and int64, shape (texts,).
    """
    best, match = np.zeros(len(texts), np.float32), np.zeros(len(texts), np.int64)
    both = references + texts
    candidates = _Candidates(both, ngram, floor, signatures_of(both, ngram, num_perm), first=len(references))
    for reference, text in candidates.pairs():
        score = candidates.jaccard(reference, text)
        for row, column, value in zip((text - len(references)).tolist(), reference.tolist(), score, strict=True):
            if value >= np.float32(floor) and (value, -column) > (best[row], -match[row]):
                best[row], match[row] = value, column
    return best, match


class _Candidates:
    """Pairs with similar signatures, and their Jaccard similarity.

    Args:
        texts: to compare.
        ngram: characters in a shingle.
        floor: the lowest Jaccard similarity of interest.
        signatures: of the texts: uint32, shape (texts, num_perm).
        first: only pairs of one of the first ``first`` texts with one of the others; None: all pairs.
    """

    def __init__(
        self, texts: Texts, ngram: int, floor: float, signatures: np.ndarray, first: int | None = None
    ) -> None:
        self._texts, self._ngram, self._first = texts, ngram, first
        self._signatures, num_perm = signatures, signatures.shape[1]
        self._keys = band_keys(self._signatures, band_rows(num_perm, floor))
        # The number of equal entries is binomial; a minimum removes most candidates that collide by chance.
        self._agreeing = math.ceil(floor * num_perm - DEVIATIONS * math.sqrt(floor * (1 - floor) * num_perm))
        self._sets: dict[int, np.ndarray] = {}
        self._kept_bytes = 0

    def pairs(self) -> Pairs:
        """Yield each pair once, as left and right nodes; left is the lower one."""
        for all_left, all_right in pairs_of(self._keys):
            for start in range(0, len(all_left), LARGE_BLOCK):
                left, right = all_left[start : start + LARGE_BLOCK], all_right[start : start + LARGE_BLOCK]
                wanted = (self._signatures[left] == self._signatures[right]).sum(axis=1) >= self._agreeing
                if self._first is not None:
                    wanted &= (left < self._first) & (self._first <= right)
                if wanted.any():
                    yield left[wanted], right[wanted]

    def jaccard(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return the Jaccard similarity of each pair: float32, shape (pairs,)."""
        score = np.empty(len(left), np.float32)
        for start in range(0, len(left), PAIRS):
            part = slice(start, start + PAIRS)
            sets = self._sets_of(np.union1d(left[part], right[part]))
            pairs = zip(left[part].tolist(), right[part].tolist(), strict=True)
            score[part] = [jaccard(sets[a], sets[b]) for a, b in pairs]
        return score

    def _sets_of(self, nodes: np.ndarray) -> dict[int, np.ndarray]:
        """Return the shingles of these nodes, and of those from earlier calls while they fit in memory."""
        if self._kept_bytes > KEPT_BYTES:
            self._sets.clear()
            self._kept_bytes = 0
            self._texts.release()
        missing = np.array([node for node in nodes.tolist() if node not in self._sets], np.int64)
        for node, text in zip(missing.tolist(), self._texts.take(missing), strict=True):
            self._sets[node] = shingles(text, self._ngram)
            self._kept_bytes += self._sets[node].nbytes
        return self._sets


def shingles(text: str, ngram: int) -> np.ndarray:
    """Return the hashes of a normalized text's distinct shingles, at least one: uint64, ascending.

    A text of fewer than ``ngram`` characters is a single shingle. Two different shingles have the same hash with a
    probability of 2^-64.
    """
    points = np.frombuffer(normalize(text).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    size = min(ngram, len(points))
    hashes = np.zeros(len(points) - size + 1, np.uint64)
    for start in range(size):
        hashes = _mixed(hashes, points[start : start + len(hashes)])
    hashes.sort()  # np.unique takes three times as long
    first = np.ones(len(hashes), bool)
    np.not_equal(hashes[1:], hashes[:-1], out=first[1:])
    return hashes[first]


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Jaccard similarity of two sets of hashes, each without repeats."""
    both = np.sort(np.concatenate([a, b]))
    shared = int((both[1:] == both[:-1]).sum())
    return shared / (len(both) - shared)


def _mixed(hashes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return hashes with a value mixed into each; uint64 products wrap around."""
    hashes = (hashes + values + np.uint64(1)) * ODD
    mixed: np.ndarray = hashes ^ (hashes >> np.uint64(29))
    return mixed


def signatures_of(texts: Texts, ngram: int, num_perm: int, compute: Compute = in_memory) -> np.ndarray:
    """Return MinHash signatures: uint32, shape (texts, num_perm); P(two entries agree) is the Jaccard similarity."""
    signatures = np.empty((len(texts), num_perm), np.uint32)
    start = 0
    blocks = ((len(batch), batch) for batch in texts.batches(BLOCK))
    for table in compute(partial(_signatures, ngram, num_perm), blocks, "minhash"):
        values = table["signature"].combine_chunks().flatten().to_numpy()
        signatures[start : start + len(table)] = values.reshape(-1, num_perm)
        start += len(table)
    return signatures


def _signatures(ngram: int, num_perm: int, texts: list[str]) -> pa.Table:
    """Return the signatures of a block of texts."""
    import pyarrow as pa
    from rensa import RMinHash

    sets = [shingles(text, ngram) for text in texts]
    bounds = np.cumsum([0, *map(len, sets)]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(sets), bounds, num_perm, SEED)
    flat = np.array(matrix.to_rows(), np.uint32).ravel()
    return pa.table({"signature": pa.FixedSizeListArray.from_arrays(flat, num_perm)})


def band_keys(signatures: np.ndarray, rows: int) -> np.ndarray:
    """Return a key for each band of ``rows`` numbers in a signature: uint64, shape (texts, bands)."""
    bands = signatures.shape[1] // rows
    keys = np.zeros((len(signatures), bands), np.uint64)
    for start in range(0, len(signatures), LARGE_BLOCK):
        part = slice(start, start + LARGE_BLOCK)
        for row in range(rows):
            keys[part] = _mixed(keys[part], signatures[part, row : bands * rows : rows])
    return keys


def pairs_of(keys: np.ndarray) -> Pairs:
    """Yield the pairs with an equal key in any band, each pair once; left is the lower node."""
    for band in range(keys.shape[1]):
        order = np.argsort(keys[:, band], kind="stable")
        ordered = keys[order, band]
        start = np.arange(len(order))
        for step in itertools.count(1):  # within a group of equal keys, nodes one apart, two apart, and so on
            start = start[: np.searchsorted(start, len(order) - step)]
            start = start[ordered[start] == ordered[start + step]]
            if not len(start):
                break
            left, right = order[start], order[start + step]
            new = ~(keys[left, :band] == keys[right, :band]).any(axis=1)
            yield left[new], right[new]
