"""Memory-mapped tables: what was read of them counts as the process's memory until it is given back."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

RESIDENT = 2**28  # bytes of a table that a pass over it may keep in memory
PAGE_OUT = 21  # MADV_PAGEOUT of Linux 5.4: unlike MADV_DONTNEED it loses nothing, wherever the bytes lie


def stretches(columns: Sequence[pa.ChunkedArray], count: int, size: int) -> Iterator[slice]:
    """Yield slices of ``size`` out of ``count`` rows that are read of some columns; give memory back on the way.

    About ``RESIDENT`` bytes are read between two times. A single slice is not worth the sum over all chunks.
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
    """Give the memory of columns back four times a second while a library passes over them."""
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
    """Give the memory of columns back to the system, which reads them from their file again when they are needed."""
    libc = ctypes.CDLL(None)
    for column in columns:
        for chunk in column.chunks:
            for buffer in filter(None, chunk.buffers()):
                start = -(-buffer.address // mmap.PAGESIZE) * mmap.PAGESIZE
                size = (buffer.address + buffer.size - start) // mmap.PAGESIZE * mmap.PAGESIZE
                if size > 0:  # an older system answers an error, and keeps the memory
                    libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), PAGE_OUT)
