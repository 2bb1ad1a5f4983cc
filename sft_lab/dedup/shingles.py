"""Shingles: texts as sets of character n-grams, and every pair of sets that have enough in common.

MinHash signatures, cut into bands, give candidates without looking at all pairs; the Jaccard similarity of a candidate
is then counted from the two sets themselves, so a pair may be missed, with the chance that ``minhash.missed`` gives,
but none is there that should not be.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from sft_lab.core.text import normalize
from sft_lab.dedup.graph import Edges, NeighborGraph
from sft_lab.dedup.minhash import band_rows

BLOCK = 2048  # texts whose shingles are in memory at once
SEED = 42
ODD = np.uint64(0x9E3779B97F4A7C15)
DEVIATIONS = 5  # how far below the floor a signature's estimate may lie: a pair is lost to it once in a million times

Pairs = Iterator[tuple[np.ndarray, np.ndarray]]


def build(texts: list[str], ngram: int, num_perm: int, floor: float, max_edges: int) -> NeighborGraph:
    """Find the pairs of texts with a Jaccard similarity of at least ``floor``; texts: distinct when normalized.

    When more than ``max_edges`` pairs reach the floor, it rises as that of a graph of cosines does.
    """
    candidates = _Candidates(texts, ngram, num_perm, floor)
    edges = Edges(len(texts), candidates.jaccard, floor, max_edges)
    for left, right in candidates.pairs():
        edges.add(left, right)
    return edges.graph()


def nearest_across(
    texts: list[str], others: list[str], ngram: int, num_perm: int, floor: float
) -> tuple[np.ndarray, np.ndarray]:
    """Each text's highest Jaccard similarity to one of ``others`` and which that is; 0 and 0 below the floor.

    Returns:
        float32 and int64, shape (texts,).
    """
    best, where = np.zeros(len(texts), np.float32), np.zeros(len(texts), np.int64)
    candidates = _Candidates([*others, *texts], ngram, num_perm, floor, first=len(others))
    for other, text in candidates.pairs():
        score = candidates.jaccard(other, text)
        for row, column, value in zip((text - len(others)).tolist(), other.tolist(), score, strict=True):
            if value >= np.float32(floor) and (value, -column) > (best[row], -where[row]):
                best[row], where[row] = value, column
    return best, where


class _Candidates:
    """Pairs whose signatures agree, each once, and their Jaccard similarity.

    Args:
        texts: what is compared.
        ngram: characters of a shingle.
        num_perm: numbers of a signature.
        floor: the Jaccard similarity that matters.
        first: only pairs of one of the first ``first`` texts with one of the rest; None: all pairs.
    """

    def __init__(self, texts: list[str], ngram: int, num_perm: int, floor: float, first: int | None = None) -> None:
        self._first = first
        self._signatures = _signatures(texts, ngram, num_perm)
        self._keys = _band_keys(self._signatures, band_rows(num_perm, floor))
        # Numbers that agree are binomial; asking for most of them leaves few of the candidates found by chance.
        self._agreeing = math.ceil(floor * num_perm - DEVIATIONS * math.sqrt(floor * (1 - floor) * num_perm))
        # Near-duplicates are few: only their shingles are kept, made a second time.
        near = np.zeros(len(texts), bool)
        for left, right in self.pairs():
            near[left] = near[right] = True
        self._sets = {node: shingles(texts[node], ngram) for node in np.flatnonzero(near).tolist()}

    def pairs(self) -> Pairs:
        """Left and right nodes, left the lower one."""
        for left, right in _pairs_of(self._keys):
            wanted = (self._signatures[left] == self._signatures[right]).sum(axis=1) >= self._agreeing
            if self._first is not None:
                wanted &= (left < self._first) & (self._first <= right)
            if wanted.any():
                yield left[wanted], right[wanted]

    def jaccard(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Shared shingles over all shingles of each pair: float32, shape (pairs,)."""
        sets = self._sets
        pairs = zip(left.tolist(), right.tolist(), strict=True)
        return np.fromiter((jaccard(sets[one], sets[other]) for one, other in pairs), np.float32, len(left))


def shingles(text: str, ngram: int) -> np.ndarray:
    """Hashes of the distinct shingles of the normalized text: uint64, rising; at least one.

    A text of fewer than ``ngram`` characters is one shingle as a whole. Two different shingles have the same hash with
    a chance of 2^-64.
    """
    points = np.frombuffer(normalize(text).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    size = min(ngram, len(points))
    hashes = np.zeros(len(points) - size + 1, np.uint64)
    for place in range(size):
        hashes = _mixed(hashes, points[place : place + len(hashes)])
    hashes.sort()  # np.unique takes three times as long
    first = np.ones(len(hashes), bool)
    np.not_equal(hashes[1:], hashes[:-1], out=first[1:])
    return hashes[first]


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Jaccard similarity of two sets of hashes."""
    both = np.sort(np.concatenate([one, other]))
    shared = int((both[1:] == both[:-1]).sum())
    return shared / (len(both) - shared)


def _mixed(hashes: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Carry ``more`` into each hash; products of uint64 arrays wrap."""
    hashes = (hashes + more + np.uint64(1)) * ODD
    mixed: np.ndarray = hashes ^ (hashes >> np.uint64(29))
    return mixed


def _signatures(texts: list[str], ngram: int, num_perm: int) -> np.ndarray:
    """MinHash signatures: uint32, shape (texts, num_perm); two numbers are equal with a chance of the Jaccard."""
    from rensa import RMinHash

    signatures = np.empty((len(texts), num_perm), np.uint32)
    for start in range(0, len(texts), BLOCK):
        sets = [shingles(text, ngram) for text in texts[start : start + BLOCK]]
        bounds = np.cumsum([0, *map(len, sets)]).astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(sets), bounds, num_perm, SEED)
        signatures[start : start + BLOCK] = matrix.to_rows()
    return signatures


def _band_keys(signatures: np.ndarray, rows: int) -> np.ndarray:
    """One number for each band of ``rows`` numbers of a signature: uint64, shape (texts, bands)."""
    bands = signatures.shape[1] // rows
    keys = np.zeros((len(signatures), bands), np.uint64)
    for row in range(rows):
        keys = _mixed(keys, signatures[:, row : bands * rows : rows])
    return keys


def _pairs_of(keys: np.ndarray) -> Pairs:
    """Pairs with an equal key in some band, each in the first such band only; left is the lower node."""
    for band in range(keys.shape[1]):
        order = np.argsort(keys[:, band], kind="stable")
        ordered = keys[order, band]
        place = np.arange(len(order))
        for step in itertools.count(1):  # a group of equal keys: neighbors, then those two apart, and so on
            place = place[: np.searchsorted(place, len(order) - step)]
            place = place[ordered[place] == ordered[place + step]]
            if not len(place):
                break
            left, right = order[place], order[place + step]
            new = ~(keys[left, :band] == keys[right, :band]).any(axis=1)
            yield left[new], right[new]
