"""Work on many rows, block by block: on every core or every machine, in order, and where it was left off after a kill.

A block's result is an Arrow file of its own, written whole or not at all and named by what it was made of, so a
killed run computes again only what it had not written. Nothing depends on how many workers there are.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import pickle
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core.errors import JobError
from sft_lab.core.log import log

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 1024  # rows handed to a worker at a time
TELL_EVERY = 10.0  # seconds between two lines about how far the work is
NOTES = b"notes"  # the key, in a block's schema, of what was noted beside its rows

Work = Callable[[Any], "pa.Table"]


@dataclass(frozen=True)
class Block:
    """A finished block.

    Attributes:
        path: of its file.
        notes: what was noted beside its rows.
    """

    path: Path
    notes: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Block:
        """Open the block in a file."""
        metadata = _open(path).schema.metadata or {}
        return cls(path, json.loads(metadata.get(NOTES, b"{}")))

    def read(self) -> pa.Table:
        """Read its rows, memory-mapped."""
        return _open(self.path).read_all()

    @staticmethod
    def with_notes(table: pa.Table, notes: dict[str, Any]) -> pa.Table:
        """Put notes, plain data, beside a table's rows."""
        return table.replace_schema_metadata({NOTES: json.dumps(notes).encode("utf-8", "surrogatepass")})


def _open(path: Path) -> pa.RecordBatchFileReader:
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(str(path)))


@dataclass(frozen=True)
class LocalEngine:
    """Processes of this machine, one for each core it may use.

    Attributes:
        workers: how many; None: as many as there are cores.
    """

    workers: int | None = None

    @property
    def size(self) -> int:
        """How many blocks are worked on at a time; 1 where processes cannot be forked safely."""
        return (self.workers or len(os.sched_getaffinity(0))) if sys.platform == "linux" else 1

    @contextmanager
    def executor(self, work: Work) -> Iterator[Callable[[Any, Path], Future[None]]]:
        """Open the workers, each of which has ``work`` from the start, and return what hands them a block."""
        import multiprocessing

        # Forked, so that tokenizer and template are there already; a worker encodes with one thread, and touches
        # neither torch nor the network.
        context = multiprocessing.get_context("fork")
        pool = ProcessPoolExecutor(self.size, context, initializer=_begin_worker, initargs=(work, os.getpid()))
        try:
            yield lambda payload, path: pool.submit(_work_in_worker, payload, path)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_work: Work | None = None


def _begin_worker(work: Work, parent: int) -> None:
    global _work  # noqa: PLW0603 - one per process, from its first moment
    _work = work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no worker outlives a killed parent
    if os.getppid() != parent:
        os._exit(1)


def _work_in_worker(payload: Any, path: Path) -> None:
    assert _work is not None
    write_block(_work, payload, path)


def write_block(work: Work, payload: Any, path: Path) -> None:
    """Compute a block and write it whole or not at all."""
    import pyarrow as pa

    table = work(payload)
    temporary = path.with_suffix(f".{os.getpid()}")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    temporary.replace(path)


def blocks_folder(folder: Path) -> Path:
    """Return where the blocks of a result lie that is being written into ``folder`` of the store."""
    kept = folder.with_name(f"{folder.name.rpartition('.')[0]}.blocks")
    kept.mkdir(exist_ok=True)
    return kept


def run_blocks(
    work: Work, payloads: Iterator[tuple[int, Any]], folder: Path, label: str, engine: LocalEngine | None = None
) -> Iterator[Block]:
    """Compute every block and yield them in order.

    Args:
        work: makes a block's table from its payload; the same payload always gives the same table.
        payloads: of each block how many rows it has, and what it is made of; pickled to name the block.
        folder: of the blocks; those that lie there are not computed again.
        label: for the log: ``load``, ``encode``.
        engine: None: this process alone.

    Raises:
        JobError: if a worker was killed.
    """
    payloads = iter(payloads)
    first = list(itertools.islice(payloads, 2))
    payloads = itertools.chain(first, payloads)
    alone = engine is None or engine.size == 1 or len(first) < 2  # nothing to share
    opened: AbstractContextManager[Any] = nullcontext(_here(work)) if alone else engine.executor(work)  # type: ignore[union-attr]
    ahead = 0 if alone else 2 * engine.size  # type: ignore[union-attr]
    progress = _Progress(label)
    waiting: deque[tuple[int, Path, Future[None] | None]] = deque()
    try:
        with opened as submit:
            for number, (rows, payload) in enumerate(payloads):
                name = _name(payload)
                path = folder / f"{number:07d}-{name or os.getpid()}.arrow"
                # Data nested too deeply to be named or sent stays in this process.
                given = submit if name else _here(work)
                waiting.append((rows, path, None if name and path.exists() else given(payload, path)))
                if len(waiting) > ahead:
                    yield _finished(*waiting.popleft(), progress)
            while waiting:
                yield _finished(*waiting.popleft(), progress)
    except BrokenProcessPool as error:
        raise JobError(
            f"{label}: a worker process was killed, by the system if memory ran out; the same command goes on with the "
            "blocks that are left (engine.workers=1 needs the least memory)"
        ) from error


def _here(work: Work) -> Callable[[Any, Path], Future[None]]:
    def submit(payload: Any, path: Path) -> Future[None]:
        done: Future[None] = Future()
        write_block(work, payload, path)
        done.set_result(None)
        return done

    return submit


def _finished(rows: int, path: Path, future: Future[None] | None, progress: _Progress) -> Block:
    if future is not None:
        future.result()
    progress.add(rows)
    return Block.open(path)


def _name(payload: Any) -> str:
    """Return a name of what a block is made of; empty where it has none."""
    import xxhash

    try:
        return xxhash.xxh3_128_hexdigest(pickle.dumps(payload, protocol=5))
    except RecursionError:
        return ""


class _Progress:
    """Says in the log how many rows are done, and how many a second, where the work takes longer than moments."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._began = self._said = time.monotonic()
        self._rows = 0

    def add(self, rows: int) -> None:
        self._rows += rows
        now = time.monotonic()
        if now - self._said >= TELL_EVERY:
            self._said = now
            rate = self._rows / (now - self._began)
            log.info("%s: %s rows, %s rows/s", self._label, f"{self._rows:,}", f"{rate:,.0f}")
