"""One attempt at a job folder, and what is told when it fails."""

from __future__ import annotations

import shlex
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from sft_lab import config as configs
from sft_lab.core.errors import FolderError, SftLabError, UserError
from sft_lab.core.hardware import rank
from sft_lab.core.log import log
from sft_lab.core.run_dir import FINISHED, PREPARE, RUN, RunDir
from sft_lab.jobs import accelerate_launch
from sft_lab.run.config import Run
from sft_lab.training.checkpoints import last_checkpoint


@dataclass(frozen=True)
class Failure:
    """A job that failed, and whether the user's input was to blame."""

    folder: RunDir
    message: str
    by_input: bool


def execute(folder: RunDir, work: str = RUN) -> Failure | None:
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
    if _is_finished(folder, work):
        log.info("%s: finished before; nothing to do", folder.path)
        folder.tidy()
        return None
    if problems := run.check():
        raise UserError("; ".join(problems))
    try:
        return attempt(folder, run, work)
    except (KeyboardInterrupt, SystemExit):
        log.warning("%s", interrupted(folder, exec_command(folder, work)))
        raise


def attempt(folder: RunDir, run: Run, work: str) -> Failure | None:
    """Do the work; an error is this job's failure, and no other's.

    A sweep's job that another process works on (of another command, or of one that was killed) is waited for, and
    taken over if that leaves it unfinished.
    """
    try:
        with terminable():
            if accelerate_launch.assists(run):
                _work(folder, run, work)
                return None
            with folder.claimed(wait=folder.sweep is not None):
                if _is_finished(folder, work):
                    log.info("%s: finished by another process", folder.path.name)
                else:
                    _work(folder, run, work)
    except UserError as error:
        return Failure(folder, str(error), by_input=True)
    except SftLabError as error:
        return Failure(folder, str(error), by_input=False)
    except Exception as error:  # noqa: BLE001 - whatever went wrong is this job's failure, not the sweep's
        log.debug("%s", traceback.format_exc())
        return Failure(folder, f"{type(error).__name__}: {error}", by_input=False)
    return None


def _work(folder: RunDir, run: Run, work: str) -> None:
    if work == PREPARE:
        run.prepare_only(folder)
    elif run.launch.distributed and rank() is None:
        accelerate_launch.execute(run, folder)
    else:
        run.execute(folder)


def _is_finished(folder: RunDir, work: str) -> bool:
    return folder.state() == FINISHED and folder.work() in (RUN, work)


def exec_command(folder: RunDir, work: str) -> str:
    """Return the command that does what ``execute`` does."""
    return f"sft-lab exec {shlex.quote(str(folder.path))}" + ("" if work == RUN else f" --work {work}")


def interrupted(folder: RunDir, resume: str) -> str:
    """Say how far an interrupted job came, and what goes on with it.

    Args:
        folder: of the job.
        resume: the command.
    """
    checkpoint = last_checkpoint(folder.checkpoints)
    if checkpoint is None:
        return f"interrupted before a checkpoint of training was there; {resume} goes on: finished data stages stay"
    step = checkpoint.name.rpartition("-")[2]
    return f"interrupted; {resume} goes on from step {step}, whose checkpoint is saved"


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
