"""One attempt at a job folder, the last step of every launcher: ``sft-lab exec``, and the failure it returns."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any

from sft_lab import config as configs
from sft_lab.core import console
from sft_lab.core.errors import Pruned, SftLabError, UserError
from sft_lab.core.hardware import rank
from sft_lab.core.log import log
from sft_lab.core.run_dir import RunDir
from sft_lab.core.run_discovery import open_run_dir
from sft_lab.core.types import Work
from sft_lab.jobs import accelerate_launch
from sft_lab.jobs.skip_finished import skip_if_finished
from sft_lab.jobs.supervise import Failure, sigterm_exits
from sft_lab.run.config import Run
from sft_lab.training.checkpoints import last_checkpoint


def execute(folder: RunDir, work: str = Work.RUN) -> Failure | None:
    """Run the saved config of a job folder.

    Args:
        folder: of the job.
        work: run it, or prepare its data alone.

    Returns:
        The job's failure; None where it is finished.

    Raises:
        UserError: if it is not a job folder, or something that the job needs is missing here.
    """
    run = configs.load(open_run_dir(folder.path).config)
    if skip_if_finished(folder, work):
        return None
    if problems := run.check():
        raise UserError("; ".join(problems))

    try:
        return attempt(folder, run, work)
    except (KeyboardInterrupt, SystemExit):
        log.warning("%s", interruption_message(folder, folder.exec_command(work), work))
        raise


def attempt(folder: RunDir, run: Run, work: str) -> Failure | None:
    """Do the work of a job; an error fails this job and no other.

    If another process works on the job (of another command, or of one that was killed), wait for it, and take the
    job over if it is left unfinished.

    Returns:
        The job's failure; None where it is finished or pruned.
    """
    try:
        with sigterm_exits():
            if accelerate_launch.is_assistant(run):
                _do_work(folder, run, work)
                return None
            with folder.claimed(wait=folder.sweep is not None):
                if not skip_if_finished(folder, work, folder.path.name):  # by another process, meanwhile
                    _do_work(folder, run, work)
    except Pruned as end:
        log.info("%s: pruned: %s", folder.path.name, end)
    except SftLabError as error:
        return Failure(folder, str(error), by_input=isinstance(error, UserError))
    except Exception as error:  # noqa: BLE001 - whatever went wrong is this job's failure, not the sweep's
        log.debug("%s", traceback.format_exc())
        return Failure(folder, f"{type(error).__name__}: {error}", by_input=False)
    return None


def _do_work(folder: RunDir, run: Run, work: str) -> None:
    if work == Work.PREPARE:
        run.prepare_only(folder)
    elif work == Work.DATA:
        accelerate_launch.prepare_data(run, folder)
    elif run.launch.distributed and rank() is None:
        accelerate_launch.execute(run, folder)
    else:
        run.execute(folder)


def execute_on_cluster(path: str, work: str, environment: dict[str, str]) -> dict[str, Any] | None:
    """Run the saved config of a job folder in a process started by a cluster.

    Args:
        path: of the folder.
        work: run it, or prepare its data alone.
        environment: variables to set before anything heavy is imported.

    Returns:
        ``message`` and ``by_input`` of a failure; plain data, since the command that waits may be elsewhere.
    """
    console.prepare()
    os.environ.update(environment)
    try:
        failure = execute(RunDir(Path(path)), work)
    except SftLabError as error:
        return {"message": str(error), "by_input": isinstance(error, UserError)}
    return {"message": failure.message, "by_input": failure.by_input} if failure else None


def interruption_message(folder: RunDir, resume_command: str, work: str) -> str:
    """Return how far an interrupted job came, and the command that resumes it."""
    if work == Work.PREPARE:
        return f"interrupted; {resume_command} resumes it: finished data stages are kept"
    checkpoint = last_checkpoint(folder.checkpoints)
    if checkpoint is None:
        return (
            f"interrupted before the first training step; {resume_command} keeps the finished data stages and starts "
            "training again"
        )
    step = checkpoint.name.rpartition("-")[2]
    return f"interrupted; {resume_command} resumes from the checkpoint of step {step}"
