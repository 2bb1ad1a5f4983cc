"""Supervision of jobs in other processes: children of this one, or processes of a cluster.

``supervise`` follows, concludes and stops all of them in the same way. Each launcher starts jobs in its own way, and
reports through a ``Backend`` which of them have ended.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from sft_lab.core import tolerant_readers
from sft_lab.core.errors import FolderError
from sft_lab.core.log import log
from sft_lab.core.run_dir import RunDir
from sft_lab.core.types import RunState, Work
from sft_lab.core.verdict_warnings import verdict_with_warnings

POLL_SECONDS = 0.2  # between two checks of a child process


@dataclass(frozen=True)
class Failure:
    """A job that failed, and whether the user's input was to blame."""

    folder: RunDir
    message: str
    by_input: bool


@dataclass(frozen=True)
class Ending:
    """How the process of a job ended.

    Attributes:
        reason: why it ended, for a job whose folder does not record it.
        message: the failure that the job itself reported, if any.
        by_input: whether the user's input was to blame.
        was_killed: whether a signal ended the process, which could then write no status.
    """

    reason: str
    message: str | None = None
    by_input: bool = False
    was_killed: bool = False


@dataclass(eq=False)
class SupervisedJob:
    """A job that was handed to another process.

    Attributes:
        title: name of the job in the log; empty for its folder's name.
        folder: folder of the job.
        status_before: content of ``status.json`` before this attempt; None for its present content.
        last_status: its content when it was last read.
        started: when this command began to follow the job, in seconds of the monotonic clock.
    """

    title: str
    folder: RunDir
    status_before: dict[str, Any] | None = None
    last_status: dict[str, Any] = field(init=False)
    started: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        self.title = self.title or self.folder.path.name
        if self.status_before is None:
            self.status_before = read_status(self.folder)
        self.last_status = self.status_before

    @property
    def seconds(self) -> float:
        """Seconds for which this command has followed the job."""
        return time.monotonic() - self.started

    def log_progress(self) -> None:
        """Log when the job has begun, or was interrupted and will begin again."""
        status = read_status(self.folder)
        if status == self.last_status:
            return
        self.last_status = status
        if status.get("state") == RunState.RUNNING:
            # Several processes begin with the data stages in one, and then train.
            event = "preparing its data" if status.get("work") == Work.PREPARE else "started"
            log.info("%s: %s on %s", self.title, event, status.get("host"))
        elif status.get("state") not in (RunState.FINISHED, RunState.FAILED, RunState.PRUNED):
            log.info("%s: %s", self.title, status.get("state"))

    def conclude(self, work: str, ending: Ending) -> Failure | None:
        """Log how the job has ended, and return its failure if it failed.

        Args:
            work: the work that was to be done in its folder.
            ending: how its process ended.
        """
        status = read_status(self.folder)
        if ending.message is None and status.get("state") == RunState.PRUNED and status != self.status_before:
            log.info("%s: pruned after %.0f s: %s", self.title, self.seconds, status.get("reason"))
            return None
        if ending.message is None and self._is_finished(work):
            log.info("%s: %s", self.title, result_line(self.folder, self.seconds))
            return None
        message = ending.message or self._failure_message(ending)
        log.info("%s: failed: %s", self.title, message)
        return Failure(self.folder, message, ending.by_input)

    def _is_finished(self, work: str) -> bool:
        try:
            return self.folder.has_finished(work)
        except FolderError:
            return False

    def _failure_message(self, ending: Ending) -> str:
        """Return the error in this attempt's status, else why the process ended, which is then written there."""
        status = read_status(self.folder)
        state = status.get("state") if status != self.status_before else None
        if state == RunState.FAILED:
            return str(status.get("error"))
        # Another process may be at work in the folder, for which this one has waited.
        if (ending.was_killed or state == RunState.RUNNING) and not self.folder.is_held():
            self.folder.mark_failed(ending.reason)
        return ending.reason


def result_line(folder: RunDir, seconds: float | None = None) -> str:
    """Return the result of a finished job in one line.

    Args:
        folder: of the job.
        seconds: that it took; None: as in its summary.
    """
    summary = tolerant_readers.read(folder.summary, [])
    took = summary.get("seconds") if seconds is None else seconds
    line = "finished" if took is None else f"finished in {took:.0f} s"
    if summary.get("same_as"):
        return f"{line if seconds else 'finished'}  result taken from {summary['same_as']}"
    loss = summary.get("eval/loss")
    parts = [line, f"held-out loss {loss:.4f}" if loss is not None else "", verdict_with_warnings(summary)]
    return "  ".join(filter(None, parts))


class Backend(ABC):
    """The processes that execute a launcher's jobs.

    Attributes:
        jobs: jobs that have not ended.
    """

    jobs: Sequence[SupervisedJob]

    @abstractmethod
    def poll(self) -> list[tuple[SupervisedJob, Ending]]:
        """Wait a moment, and return the jobs that have ended since the last call."""

    @abstractmethod
    def stop(self) -> None:
        """End the jobs gracefully, or log who will: this command is about to exit."""


def supervise(backend: Backend, work: str) -> list[Failure]:
    """Follow jobs until all have ended, and return those that failed.

    Args:
        backend: executes the jobs.
        work: the work that is done in their folders.
    """
    failures: list[Failure] = []
    with sigterm_exits():
        try:
            while backend.jobs:
                endings = backend.poll()
                for job in backend.jobs:
                    job.log_progress()

                for job, ending in endings:
                    backend.jobs = [other for other in backend.jobs if other is not job]
                    if failure := job.conclude(work, ending):
                        failures.append(failure)
        except BaseException:
            backend.stop()
            raise
    return failures


def stop_processes(processes: Sequence[subprocess.Popen[bytes]], patience: float) -> None:
    """Send SIGTERM to child processes and wait for them to exit; their jobs can be resumed.

    Args:
        processes: children of this process.
        patience: seconds in which all must exit, perhaps after a checkpoint; then they are killed.
    """
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + patience
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def signal_name(number: int) -> str:
    """Return the name of a signal; most real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def read_status(folder: RunDir) -> dict[str, Any]:
    """Return the content of ``status.json``; empty if it cannot be read now, as may happen over a network."""
    return tolerant_readers.read(folder.status, [])


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """Let SIGTERM interrupt the work as Ctrl-C does, so that folders record it."""

    def stop(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
