"""One attempt at a job folder, and what is told when it fails."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from sft_lab import config as configs
from sft_lab.bench import log
from sft_lab.errors import FolderError, SftLabError, UserError
from sft_lab.folder import FINISHED, PREPARE, RUN, RunFolder
from sft_lab.hardware import rank
from sft_lab.jobs import accelerated
from sft_lab.run import Run


@dataclass(frozen=True)
class Failure:
    """A job that failed, and whether the user's input was to blame."""

    folder: RunFolder
    message: str
    by_input: bool


def execute(folder: RunFolder, work: str = RUN) -> Failure | None:
    """Run the saved config of a job folder: what every launcher starts.

    Args:
        folder: of the job.
        work: run it, or prepare its data alone.

    Raises:
        FolderError: if it is no job folder.
    """
    if not folder.config.exists():
        raise FolderError(f"{folder.path}: no job folder; it has no config.yaml; `sft-lab runs` lists what there is")
    run = configs.load(folder.config)
    if folder.state() == FINISHED and folder.work() in (RUN, work):
        log.info("%s: finished before; nothing to do", folder.path)
        folder.tidy()
        return None
    if problems := run.check():
        raise UserError("; ".join(problems))
    return attempt(folder, run, work)


def attempt(folder: RunFolder, run: Run, work: str) -> Failure | None:
    """Do the work; an error is this job's failure, and no other's."""
    try:
        with terminable():
            if work == PREPARE:
                run.prepare_only(folder.path)
            elif run.launch.distributed and rank() is None:
                accelerated.execute(run, folder)
            else:
                run.execute(folder.path)
    except UserError as error:
        return Failure(folder, str(error), by_input=True)
    except SftLabError as error:
        return Failure(folder, str(error), by_input=False)
    except Exception as error:  # noqa: BLE001 - whatever went wrong is this job's failure, not the sweep's
        log.debug("%s", traceback.format_exc())
        return Failure(folder, f"{type(error).__name__}: {error}", by_input=False)
    return None


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the work the way Ctrl-C does, so that folders say so."""

    def stop(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
