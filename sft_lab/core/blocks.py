"""Work on many rows, block by block: on every core or every machine, in order, and where it was left off after a kill.

A block's result is an Arrow file of its own, written whole or not at all and named by what it was made of, so a
killed run computes again only what it had not written. Nothing depends on how many workers there are.
"""

from __future__ import annotations

import abc
import ctypes
import importlib.util
import itertools
import json
import logging
import os
import pickle
import signal
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sft_lab.core.bounds import Bounded, bounded
from sft_lab.core.errors import JobError
from sft_lab.core.log import log

if TYPE_CHECKING:
    import pyarrow as pa

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


Submit = Callable[[Any, Path], "Pending"]  # hands a payload to a worker, and says which file is to be written


class Pending(Protocol):
    """A block in the making."""

    def result(self) -> object:
        """Wait until it is written."""


@dataclass
class Engine(Bounded, abc.ABC):
    """Where blocks of rows are worked on. No result depends on it.

    Attributes:
        block: rows handed to a worker at a time.
    """

    block: int = bounded(1024, at_least=1)

    def check(self) -> list[str]:
        """Return what this machine lacks for it; empty when nothing."""
        return []

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """How many blocks are worked on at a time."""

    @abc.abstractmethod
    def executor(self, work: Work) -> AbstractContextManager[Submit]:
        """Open the workers, who all do ``work``."""

    def ranges(self, rows: int) -> Iterator[tuple[int, range]]:
        """Yield the rows of each block: how many there are, and their numbers."""
        for start in range(0, rows, self.block):
            numbers = range(start, min(start + self.block, rows))
            yield len(numbers), numbers


@dataclass
class LocalEngine(Engine):
    """Processes of this machine.

    Attributes:
        workers: how many; None: one for each core that this process may use.
    """

    workers: int | None = bounded(None, at_least=1)

    @property
    def size(self) -> int:
        """How many processes there are; 1 where they cannot be forked safely."""
        return (self.workers or len(os.sched_getaffinity(0))) if sys.platform == "linux" else 1

    @contextmanager
    def executor(self, work: Work) -> Iterator[Submit]:
        """Fork the workers: tokenizer and template are there already, and nothing is imported again."""
        import multiprocessing

        context = multiprocessing.get_context("fork")
        pool = ProcessPoolExecutor(self.size, context, initializer=_begin_worker, initargs=(work, os.getpid()))
        try:
            yield lambda payload, path: pool.submit(_work_in_worker, payload, path)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass
class RayEngine(Engine):
    """Tasks of a Ray cluster, whose machines share the store. A task whose worker dies is done again.

    Attributes:
        address: of a running cluster, ``auto`` or ``host:port``; None: one on this machine, started for the work.
        workers: how many blocks at a time; None: one for each core of the cluster.
    """

    address: str | None = None
    workers: int | None = bounded(None, at_least=1)

    def check(self) -> list[str]:
        """Ray is installed."""
        return [] if importlib.util.find_spec("ray") else ["engine=ray: needs Ray; pip install 'sft-lab[ray]'"]

    @property
    def size(self) -> int:
        """How many blocks are worked on at a time."""
        return self.workers or 2 * (os.cpu_count() or 1)

    @contextmanager
    def executor(self, work: Work) -> Iterator[Submit]:
        """Join the cluster, unless this process has joined one."""
        import ray

        joined = not ray.is_initialized()
        if joined:
            started: dict[str, Any] = (
                {} if self.address else {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
            )
            quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
            ray.init(address=self.address or "local", **started, **quiet)
        task = ray.remote(num_cpus=1, max_retries=5)(_write_on_cluster)
        shared = ray.put(work)
        try:
            yield lambda payload, path: _RayBlock(task.remote(shared, payload, path))
        finally:
            if joined:
                ray.shutdown()


def _write_on_cluster(work: Work, payload: Any, path: Path) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Ray gives a task one core
    write_block(work, payload, path)


@dataclass(frozen=True)
class _RayBlock:
    reference: Any

    def result(self) -> object:
        import ray

        try:
            return ray.get(self.reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # the task's own error
        except ray.exceptions.RayError as error:
            raise JobError(f"engine=ray: {str(error).splitlines()[0]}") from error


_work: Work | None = None  # of a forked worker


def _begin_worker(work: Work, parent: int) -> None:
    global _work  # noqa: PLW0603 - once per process, in its first moment
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
    temporary = path.with_suffix(f".{uuid.uuid4().hex[:8]}")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    temporary.replace(path)


def blocks_folder(folder: Path) -> Path:
    """Return where the blocks of a result lie that is being written into ``folder`` of the store."""
    kept = folder.with_name(f"{folder.name.rpartition('.')[0]}.blocks")
    kept.mkdir(exist_ok=True)
    return kept


def run_blocks(
    work: Work, payloads: Iterator[tuple[int, Any]], folder: Path, label: str, engine: Engine
) -> Iterator[Block]:
    """Compute every block and yield them in order.

    Args:
        work: makes a block's table from its payload; the same payload always gives the same table.
        payloads: of each block how many rows it has, and what it is made of; pickled to name the block.
        folder: of the blocks; those that lie there are not computed again.
        label: for the log: ``load``, ``encode``.
        engine: where the work is done.

    Raises:
        JobError: if a worker was killed.
    """
    first = list(itertools.islice(payloads, 2))
    is_shared = engine.size > 1 and len(first) > 1
    workers = engine.executor(work) if is_shared else nullcontext(_submit_inline(work))
    ahead = 2 * engine.size if is_shared else 0
    progress = _Progress(label)
    waiting: deque[tuple[int, Path, Pending | None]] = deque()
    try:
        with workers as submit:
            for number, (rows, payload) in enumerate(itertools.chain(first, payloads)):
                name = _name(payload)
                path = folder / f"{number:07d}-{name or os.getpid()}.arrow"
                # Data nested too deeply to be named or sent stays in this process.
                hand_over = submit if name else _submit_inline(work)
                waiting.append((rows, path, None if name and path.exists() else hand_over(payload, path)))
                if len(waiting) > ahead:
                    yield _finished(*waiting.popleft(), progress)
            while waiting:
                yield _finished(*waiting.popleft(), progress)
    except BrokenProcessPool as error:
        raise JobError(
            f"{label}: a worker process was killed, by the system if memory ran out; the same command goes on with the "
            "blocks that are left (engine.workers=1 needs the least memory)"
        ) from error


def _submit_inline(work: Work) -> Submit:
    def submit(payload: Any, path: Path) -> Pending:
        done: Future[None] = Future()
        write_block(work, payload, path)
        done.set_result(None)
        return done

    return submit


def _finished(rows: int, path: Path, pending: Pending | None, progress: _Progress) -> Block:
    if pending is not None:
        pending.result()
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
        self._began = self._last_logged = time.monotonic()
        self._rows = 0

    def add(self, rows: int) -> None:
        self._rows += rows
        now = time.monotonic()
        if now - self._last_logged >= TELL_EVERY:
            self._last_logged = now
            rate = self._rows / (now - self._began)
            log.info("%s: %s rows, %s rows/s", self._label, f"{self._rows:,}", f"{rate:,.0f}")
