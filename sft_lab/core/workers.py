"""Workers, which compute and write blocks: in this process, in forked ones or on a Ray cluster."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sft_lab.core import interrupt
from sft_lab.core.errors import JobError

if TYPE_CHECKING:
    import pyarrow as pa

Work = Callable[[Any], "pa.Table"]  # makes a block's table from its payload
Submit = Callable[[Any, Path], "Pending"]  # submits a payload, and the file to which its block is written


class Pending(Protocol):
    """A block being computed."""

    def result(self) -> object:
        """Wait until it is written."""


def inline(work: Work) -> Submit:
    """Return a function that computes a block in this process at once."""

    def submit(payload: Any, path: Path) -> Pending:
        done: Future[None] = Future()
        _write(work, payload, path)
        done.set_result(None)
        return done

    return submit


@contextmanager
def forked(work: Work, size: int) -> Iterator[Submit]:
    """Fork worker processes, which have tokenizer and template in memory and import nothing again.

    A worker encodes with one thread, and uses neither torch nor the network.

    Raises:
        JobError: if one is killed.
    """
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(size, context, initializer=_begin_worker, initargs=(work, os.getpid()))

    def submit(payload: Any, path: Path) -> Pending:
        with interrupt.blocked():  # the first call forks
            return pool.submit(_write_in_worker, payload, path)

    try:
        yield submit
    except BrokenProcessPool as error:
        raise JobError(
            "a worker process was killed, probably because memory ran out; run the same command again to resume with "
            "the remaining blocks (engine.workers=1 needs the least memory)"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def ray_tasks(work: Work, address: str | None) -> Iterator[Submit]:
    """Join a Ray cluster, unless this process is connected to one, and yield a function that submits a block to it.

    Raises:
        UserError: if there is no such cluster.
    """
    from sft_lab.core import ray_cluster

    ray = ray_cluster.imported()
    with nullcontext() if ray.is_initialized() else ray_cluster.connected(address, "engine.address"):
        task = ray.remote(num_cpus=1, max_retries=5)(_write_on_cluster)
        shared = ray.put(work)
        yield lambda payload, path: _RayBlock(task.remote(shared, payload, path))


@dataclass(frozen=True)
class _RayBlock:
    reference: Any

    def result(self) -> object:
        import ray

        try:
            return ray.get(self.reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # the error that the task raised
        except ray.exceptions.RayError as error:
            raise JobError(f"engine=ray: {str(error).splitlines()[0]}") from error


def _write_on_cluster(work: Work, payload: Any, path: Path) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Ray gives a task one core
    _write(work, payload, path)


_work: Work | None = None  # set in a forked worker


def _begin_worker(work: Work, parent: int) -> None:
    global _work  # noqa: PLW0603 - once per process, as it starts
    _work = work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    interrupt.unblock()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no worker outlives a killed parent
    if os.getppid() != parent:
        os._exit(1)


def _write_in_worker(payload: Any, path: Path) -> None:
    assert _work is not None
    _write(_work, payload, path)


def _write(work: Work, payload: Any, path: Path) -> None:
    """Compute a block and write it atomically."""
    import pyarrow as pa

    table = work(payload)
    temporary = path.with_suffix(f".{uuid.uuid4().hex[:8]}")
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
