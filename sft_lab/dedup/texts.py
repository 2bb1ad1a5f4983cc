"""Texts of rows, read a batch at a time: those of a large data set do not fit into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sft_lab.core.columns import release, value_batches
from sft_lab.core.text import On, normalize

if TYPE_CHECKING:
    import pyarrow as pa

    from sft_lab.core.rows import Rows

BATCH = 2048  # texts in memory at once


class Texts:
    """A view of texts in Arrow columns, in order.

    Args:
        columns: the column of the texts, or several columns whose values are joined by a newline.
        positions: in the columns: int64, shape (texts,).
    """

    def __init__(self, columns: Sequence[pa.ChunkedArray], positions: np.ndarray) -> None:
        self._columns = tuple(columns)
        self._positions = positions

    @classmethod
    def of(cls, rows: Rows, on: On) -> Texts:
        """Return the text by which each row is compared."""
        names = ("prompt", "answer") if on is On.both else (on.name,)
        return cls([rows.table.data.column(name) for name in names], rows.positions)

    @classmethod
    def of_list(cls, texts: Sequence[str]) -> Texts:
        """Return texts that are in memory already."""
        import pyarrow as pa

        return cls([pa.chunked_array([pa.array(texts, pa.string())])], np.arange(len(texts)))

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[str]:
        for batch in self.batches():
            yield from batch

    def __add__(self, other: Texts) -> Texts:
        """Return these texts followed by the others."""
        import pyarrow as pa

        pairs = zip(self._columns, other._columns, strict=True)
        columns = [pa.chunked_array([*column.chunks, *added.chunks], column.type) for column, added in pairs]
        return Texts(columns, np.concatenate([self._positions, len(self._columns[0]) + other._positions]))

    def take(self, indices: np.ndarray) -> Texts:
        """Return some of the texts; indices: integers or bool."""
        texts = Texts(self._columns, self._positions[indices])
        if "hashes" in self.__dict__:
            texts.__dict__["hashes"] = self.hashes[indices]
        return texts

    def batches(self, size: int | None = None) -> Iterator[list[str]]:
        """Yield the texts, ``size`` at a time; None: ``BATCH``."""
        size = size or BATCH
        for values in value_batches(self._columns, self._positions, size):
            yield values[0] if len(values) == 1 else ["\n".join(parts) for parts in zip(*values, strict=True)]

    def release(self) -> None:
        """Release the memory of texts that were read from a mapped file."""
        release(self._columns)

    @cached_property
    def hashes(self) -> np.ndarray:
        """The SHA-256 of each text: 32 bytes (``S32``), shape (texts,)."""
        return _hashed(self, lambda text: hashlib.sha256(text.encode()).digest(), 32)

    @property
    def key(self) -> str:
        """A key of the texts and their order: the digest of the list of their hashes in hexadecimal."""
        content = hashlib.sha256(b"[")
        for start in range(0, len(self), BATCH):
            separator = "," if start else ""
            content.update(
                (separator + ",".join(f'"{name}"' for name in hex_names(self.hashes[start : start + BATCH]))).encode()
            )
        content.update(b"]")
        return content.hexdigest()


def hex_names(hashes: np.ndarray) -> list[str]:
    """Return hashes in hexadecimal."""
    text, width = hashes.tobytes().hex(), 2 * hashes.dtype.itemsize
    return [text[start : start + width] for start in range(0, len(text), width)]


def normal_hash(text: str) -> bytes:
    """Return a 128-bit hash of the normalized text; a billion texts collide with a probability of 1e-21."""
    return hashlib.blake2b(normalize(text).encode(errors="surrogatepass"), digest_size=16).digest()


def nodes_of(texts: Texts) -> tuple[Texts, np.ndarray]:
    """Group texts that are equal when normalized into nodes.

    Returns:
        The first text of each node, and the node of each text: int64, shape (texts,), numbered by first occurrence.
    """
    hashes = _hashed(texts, normal_hash, 16)
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    number = np.empty(len(first), np.int64)
    number[order] = np.arange(len(first))
    return texts.take(first[order]), number[inverse]


def _hashed(texts: Iterable[str], hash_of: Callable[[str], bytes], size: int) -> np.ndarray:
    return np.frombuffer(b"".join(map(hash_of, texts)), f"S{size}")
