"""Columns of an Arrow table: reading some of their values, columns of messages, and memory-mapped ones.

What was read of a memory-mapped column counts towards the process's memory until it is released.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_lab.core.types import MESSAGE

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 1024  # rows whose texts are in memory at once
RESIDENT = 2**28  # bytes read from a mapped table before its memory is released
PAGE_OUT = 21  # MADV_PAGEOUT, Linux 5.4 and later; unlike MADV_DONTNEED it loses nothing that is in no file


def message_type() -> pa.DataType:
    """Return the Arrow type of the messages of one row."""
    import pyarrow as pa

    return pa.list_(pa.struct([(name, pa.type_for_alias(kind)) for name, kind in MESSAGE.items()]))


def message_fields(column: pa.ChunkedArray) -> set[str]:
    """Return the fields that at least one message of a column has."""
    return {
        field.name
        for chunk in column.chunks
        if len(chunk.flatten())
        for index, field in enumerate(chunk.flatten().type)
        if chunk.flatten().field(index).null_count < len(chunk.flatten())
    }


def message_array(conversations: Sequence[Sequence[dict[str, Any]]]) -> pa.Array:
    """Return conversations as an Arrow column of ``message_type``."""
    import pyarrow as pa

    flat = [message for messages in conversations for message in messages]
    is_plain = all(len(message) == 2 for message in flat)  # the usual case, in which a column of nulls costs nothing
    fields = []
    for name, kind in MESSAGE.items():
        arrow_type = pa.type_for_alias(kind)
        if is_plain and name not in ("role", "content"):
            fields.append(pa.nulls(len(flat), arrow_type))
        else:
            fields.append(pa.array([message.get(name) for message in flat], arrow_type))
    offsets = [0, *itertools.accumulate(map(len, conversations))]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(fields, list(MESSAGE)))


def values_of(column: pa.ChunkedArray) -> list[Any]:
    """Return a column's values; messages come without their null fields."""
    import pyarrow as pa

    if not (pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type)):
        values: list[Any] = column.to_pylist()
        return values
    return [row for chunk in column.chunks for row in _conversations(chunk)]


def _conversations(chunk: pa.ListArray) -> Iterator[list[dict[str, Any]] | None]:
    flat = chunk.flatten()
    columns = [
        (field.name, flat.field(index).to_pylist())
        for index, field in enumerate(flat.type)
        if flat.field(index).null_count < len(flat)
    ]
    names = [name for name, _ in columns]
    messages = (
        {name: value for name, value in zip(names, values, strict=True) if value is not None}
        for values in zip(*(values for _, values in columns), strict=True)
    )
    lengths = chunk.value_lengths().to_pylist()
    return (None if length is None else list(itertools.islice(messages, length)) for length in lengths)


def value_batches(
    columns: Sequence[pa.ChunkedArray], positions: np.ndarray, size: int
) -> Iterator[tuple[list[Any], ...]]:
    """Yield the values of some columns, ``size`` positions at a time, releasing the memory of a mapped table."""
    for part in stretches(columns, len(positions), size):
        yield tuple(values_of(gather(column, positions[part])) for column in columns)


def gather(column: pa.ChunkedArray, positions: np.ndarray) -> pa.ChunkedArray:
    """Return a column's values at ``positions`` (int64, shape (values,)).

    Taken chunk by chunk, since ``ChunkedArray.take`` first copies all chunks into one (pyarrow 26).
    """
    import pyarrow as pa

    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    if not len(positions) or not len(ends):
        return pa.chunked_array([], column.type)
    chunk_of = np.searchsorted(ends, positions, side="right")
    borders = [0, *(np.flatnonzero(np.diff(chunk_of)) + 1).tolist(), len(positions)]
    chunks = []
    for begin, end in itertools.pairwise(borders):
        number = int(chunk_of[begin])
        chunk = column.chunk(number)
        local = positions[begin:end] - (ends[number] - len(chunk))
        is_stretch = local[-1] - local[0] == len(local) - 1 and bool((np.diff(local) == 1).all())
        chunks.append(chunk.slice(int(local[0]), len(local)) if is_stretch else chunk.take(pa.array(local)))
    return pa.chunked_array(chunks, column.type)


def stretches(columns: Sequence[pa.ChunkedArray], count: int, size: int) -> Iterator[slice]:
    """Yield slices of ``size`` rows out of ``count``, releasing the columns' memory after every ``RESIDENT`` bytes.

    For a single slice, sizes are not even summed: there is nothing to release on the way.
    """
    bytes_read = sum(column.nbytes for column in columns) if count > size else 0
    pause = max(1, RESIDENT * len(columns[0]) // bytes_read) if bytes_read else count + size
    read = 0
    for start in range(0, count, size):
        yield slice(start, start + size)
        read += size
        if read >= pause:
            release(columns)
            read = 0


@contextmanager
def kept_small(columns: Sequence[pa.ChunkedArray]) -> Iterator[None]:
    """Release the memory of columns four times a second while a library reads them."""
    done = threading.Event()

    def release_regularly() -> None:
        while not done.wait(0.25):
            release(columns)

    thread = threading.Thread(target=release_regularly, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        release(columns)


def release(columns: Sequence[pa.ChunkedArray]) -> None:
    """Release the memory of mapped columns; the system reads them from their file again when they are needed."""
    libc = ctypes.CDLL(None)
    for column in columns:
        for chunk in column.chunks:
            for buffer in filter(None, chunk.buffers()):
                start = -(-buffer.address // mmap.PAGESIZE) * mmap.PAGESIZE
                size = (buffer.address + buffer.size - start) // mmap.PAGESIZE * mmap.PAGESIZE
                if size > 0:  # an older kernel returns an error and keeps the memory
                    libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), PAGE_OUT)
