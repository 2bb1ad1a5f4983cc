"""Launch: start what is not finished, and say at the end what failed."""

from __future__ import annotations

import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from sft_lab import config as configs
from sft_lab.bench import log
from sft_lab.errors import FolderError, SftLabError, UserError
from sft_lab.files import read_json
from sft_lab.folder import FINISHED, PREPARE, RUN, RunFolder
from sft_lab.jobs.folders import Placed, Standing
from sft_lab.run import Run


@dataclass(frozen=True)
class Failure:
    """A job that failed, and whether the user's input was to blame."""

    folder: RunFolder
    message: str
    by_input: bool


def launch(placed: list[Placed], work: str = RUN) -> list[Failure]:
    """Execute, or prepare, each job that is not finished, one after another; a failing one does not stop the others."""
    failures = []
    many = len(placed) > 1
    for number, one in enumerate(placed, start=1):
        title = f"[{number}/{len(placed)}] {one.folder.path.name}" if many else ""
        if one.standing is Standing.finished:
            log.info("%s: finished before; nothing to do", title or one.folder.path)
            continue
        if title:
            log.info("%s", title)
        failure = _attempt(one.folder, one.job.run, work)
        if failure:
            failures.append(failure)
            if one.made and failure.by_input and not many:
                _leave_nothing(one.folder.path)
    return failures


def _leave_nothing(folder: Path) -> None:
    """Remove a folder that wrong input made, and the date's folder above it if it is empty now."""
    shutil.rmtree(folder, ignore_errors=True)
    for parent in (folder.parent, folder.parent.parent):
        if parent == Path.cwd() or not parent.is_dir() or any(parent.iterdir()):
            return
        parent.rmdir()


def execute(folder: RunFolder) -> Failure | None:
    """Run the saved config of a job folder: what every launcher starts.

    Raises:
        FolderError: if it is no job folder.
    """
    if not folder.config.exists():
        raise FolderError(f"{folder.path}: no job folder; it has no config.yaml")
    run = configs.load(folder.config)
    if folder.state() == FINISHED and folder.work() == RUN:
        log.info("%s: finished before; nothing to do", folder.path)
        return None
    if problems := run.check():
        raise UserError("; ".join(problems))
    return _attempt(folder, run, RUN)


def _attempt(folder: RunFolder, run: Run, work: str) -> Failure | None:
    try:
        with _terminable():
            (run.prepare_only if work == PREPARE else run.execute)(folder.path)
    except UserError as error:
        return Failure(folder, str(error), by_input=True)
    except Exception as error:  # noqa: BLE001 - whatever went wrong is this job's failure, not the sweep's
        if not isinstance(error, SftLabError):
            log.debug("%s", traceback.format_exc())
        return Failure(folder, f"{type(error).__name__}: {error}", by_input=False)
    return None


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a job the way Ctrl-C does, so that its folder says so."""

    def stop(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def summary_of(folder: RunFolder) -> dict[str, Any] | None:
    """Give a finished run's summary."""
    return read_json(folder.summary) if folder.summary.exists() else None
