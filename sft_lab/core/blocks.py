"""Work on many rows, block by block and in order, on every core or every machine.

Each block's result is an Arrow file, written atomically and named by a hash of the block's input, so a killed run
resumes with the blocks it had not written. No result depends on the number of workers.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core.log import log
from sft_lab.core.store import blocks_folder
from sft_lab.core.workers import Pending, Work, inline

if TYPE_CHECKING:
    import pyarrow as pa

    from sft_lab.core.engine import Engine

LOG_EVERY = 10.0  # seconds between progress lines
NOTES = b"notes"  # the key of a block's notes in its schema's metadata


@dataclass(frozen=True)
class Block:
    """A finished block.

    Attributes:
        path: of its file.
        notes: plain data about its rows.
    """

    path: Path
    notes: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Block:
        """Open the block in a file."""
        return cls(path, notes_of(_open(path).schema))

    def read(self) -> pa.Table:
        """Return its rows, memory-mapped."""
        return _open(self.path).read_all()


def with_notes(table: pa.Table, notes: dict[str, Any]) -> pa.Table:
    """Return a table with notes, plain data, in its metadata."""
    return table.replace_schema_metadata({NOTES: json.dumps(notes).encode("utf-8", "surrogatepass")})


def notes_of(schema: pa.Schema) -> dict[str, Any]:
    """Return the notes in a table's metadata."""
    notes: dict[str, Any] = json.loads((schema.metadata or {}).get(NOTES, b"{}"))
    return notes


def _open(path: Path) -> pa.RecordBatchFileReader:
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(str(path)))


Compute = Callable[[Work, Iterator[tuple[int, Any]], str], Iterator["pa.Table"]]  # work, payloads, label


def in_memory(work: Work, payloads: Iterator[tuple[int, Any]], label: str) -> Iterator[pa.Table]:  # noqa: ARG001
    """Yield each block's table, computed in this process and not stored."""
    for _, payload in payloads:
        yield work(payload)


def in_folder(folder: Path, engine: Engine) -> Compute:
    """Return a function that computes blocks by ``run_blocks`` and yields their tables."""

    def compute(work: Work, payloads: Iterator[tuple[int, Any]], label: str) -> Iterator[pa.Table]:
        for block in run_blocks(work, payloads, folder, label, engine):
            yield block.read()

    return compute


def run_blocks(
    work: Work, payloads: Iterator[tuple[int, Any]], folder: Path, label: str, engine: Engine
) -> Iterator[Block]:
    """Compute every block and yield them in order.

    Args:
        work: makes a block's table from its payload; the same payload always gives the same table.
        payloads: the number of rows and the input of each block; the input is pickled to name the block.
        folder: where the result is being written; blocks that a killed process left beside it are reused.
        label: for the log: ``load``, ``encode``.
        engine: where the work runs.

    Raises:
        JobError: if a worker was killed.
    """
    folder = blocks_folder(folder)
    first = list(itertools.islice(payloads, 2))
    is_shared = engine.size > 1 and len(first) > 1
    workers = engine.workers_of(work) if is_shared else nullcontext(inline(work))
    ahead = 2 * engine.size if is_shared else 0
    progress = _Progress(label)
    waiting: deque[tuple[int, Path, Pending | None]] = deque()
    with workers as submit:
        for number, (rows, payload) in enumerate(itertools.chain(first, payloads)):
            name = _name(payload)
            path = folder / f"{number:07d}-{name or os.getpid()}.arrow"
            # Data nested too deeply to be pickled is computed in this process.
            hand_over = submit if name else inline(work)
            waiting.append((rows, path, None if name and path.exists() else hand_over(payload, path)))
            if len(waiting) > ahead:
                yield _finished(*waiting.popleft(), progress)
        while waiting:
            yield _finished(*waiting.popleft(), progress)


def _finished(rows: int, path: Path, pending: Pending | None, progress: _Progress) -> Block:
    if pending is not None:
        pending.result()
    progress.add(rows)
    return Block.open(path)


def _name(payload: Any) -> str:
    """Return a hash of a block's input; empty for data nested too deeply to be pickled."""
    import xxhash

    try:
        return xxhash.xxh3_128_hexdigest(pickle.dumps(payload, protocol=5))
    except RecursionError:
        return ""


class _Progress:
    """Logs the rows done and the rows per second, every ``LOG_EVERY`` seconds."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._began = self._last_logged = time.monotonic()
        self._rows = 0

    def add(self, rows: int) -> None:
        self._rows += rows
        now = time.monotonic()
        if now - self._last_logged >= LOG_EVERY:
            self._last_logged = now
            rate = self._rows / (now - self._began)
            log.info("%s: %s rows, %s rows/s", self._label, f"{self._rows:,}", f"{rate:,.0f}")
