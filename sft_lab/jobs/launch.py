"""Start the unfinished jobs with the launcher in their config, and return those that failed."""

from __future__ import annotations

import math
from contextlib import suppress

from sft_lab.config import Plan
from sft_lab.core import tolerant_readers
from sft_lab.core.errors import FolderError, JobError, SftLabError, UserError
from sft_lab.core.gpus import release_memory
from sft_lab.core.log import log
from sft_lab.core.run_dir import RunDir
from sft_lab.core.text import count_of
from sft_lab.core.types import RunState, Work
from sft_lab.jobs import processes, ray, slurm
from sft_lab.jobs.layout import JobFolder, JobProgress, create_job_folders
from sft_lab.jobs.skip_finished import skip_if_finished
from sft_lab.jobs.supervise import Failure, read_status, result_line
from sft_lab.jobs.worker import attempt, interruption_message
from sft_lab.run.launch_config import Launcher, Processes, Ray, Slurm
from sft_lab.training.checkpoints import last_checkpoint


def launch(job_folders: list[JobFolder], work: str = Work.RUN, *, keeps_failed: bool = False) -> list[Failure]:
    """Execute, or prepare, each unfinished job; a failure does not stop the others.

    Args:
        job_folders: the jobs.
        work: run them, or only prepare their data.
        keeps_failed: whether a single job's new folder is kept when its input turns out to be wrong.

    Raises:
        UserError: if the cluster rejects the jobs; nothing is left behind.
    """
    launcher = job_folders[0].job.run.launch
    try:
        unfinished = _skip_finished(job_folders, work)
        failures = _dispatch(unfinished, launcher, work)
        only = job_folders[0] if len(job_folders) == 1 else None
        if only and failures and failures[0].by_input and only.progress is JobProgress.NEW and not keeps_failed:
            _discard(only)
    except UserError:  # the cluster rejects the jobs, so none has begun
        for job_folder in job_folders:
            folder = job_folder.folder
            is_new = job_folder.progress is JobProgress.NEW
            if is_new and not folder.status.exists() and not folder.queued.exists():
                _discard(job_folder)
        raise
    except (KeyboardInterrupt, SystemExit):
        if not isinstance(launcher, Slurm):  # which logs that itself
            log.warning("%s", _interruption_message(job_folders, work))
        raise
    finally:
        for job_folder in job_folders:
            job_folder.folder.release(wholly=True)
    return failures


def _skip_finished(job_folders: list[JobFolder], work: str) -> list[tuple[str, JobFolder]]:
    """Return the unfinished jobs, each with its title."""
    unfinished = []
    for number, job_folder in enumerate(job_folders, start=1):
        name = job_folder.folder.path.name
        title = f"[{number}/{len(job_folders)}] {name}" if len(job_folders) > 1 else ""
        if not skip_if_finished(job_folder.folder, work, title):
            unfinished.append((title, job_folder))
    return unfinished


def _dispatch(jobs: list[tuple[str, JobFolder]], launcher: Launcher, work: str) -> list[Failure]:
    """Execute the jobs, in the processes of their launcher or in this one."""
    folders = [(title, job_folder.folder) for title, job_folder in jobs]
    if isinstance(launcher, Processes) and len(jobs) > 1:
        return processes.launch(folders, launcher, work)
    if not isinstance(launcher, Slurm | Ray):
        return _execute_in_turn(jobs, work)

    for _, folder in folders:
        folder.release(wholly=True)  # from here on another process works there
    if isinstance(launcher, Slurm):
        return slurm.launch(folders, launcher, work)
    return ray.launch(folders, launcher, work)


def _execute_in_turn(jobs: list[tuple[str, JobFolder]], work: str) -> list[Failure]:
    """Execute the jobs one after another in this process."""
    failures = []
    for title, job_folder in jobs:
        if title:
            log.info("%s", title)
        if failure := attempt(job_folder.folder, job_folder.job.run, work):
            failures.append(failure)
            if title:
                log.error("%s: failed: %s", title, failure.message)
        elif title and read_status(job_folder.folder).get("state") != RunState.PRUNED:  # which is logged already
            log.info("%s: %s", title, result_line(job_folder.folder))
        if title:  # of a sweep: the next job needs the memory
            release_memory()
    return failures


def _discard(job_folder: JobFolder) -> None:
    """Remove the folder of a job with wrong input, unless another process has started to work there."""
    with suppress(FolderError):
        job_folder.folder.discard(job_folder.created)


def _interruption_message(job_folders: list[JobFolder], work: str) -> str:
    """Return how far the work came, and the command that resumes it."""
    first = job_folders[0]
    if len(job_folders) == 1 and not first.folder.sweep:
        return interruption_message(first.folder, first.resume_command, work)
    resuming = 0 if work == Work.PREPARE else sum(_resumes_training(job_folder.folder) for job_folder in job_folders)
    if resuming:
        resume = "resumes from its checkpoint" if resuming == 1 else "resume from their checkpoints"
        kept = f"finished jobs are kept, and {count_of(resuming, 'unfinished job')} {resume}"
    else:
        kept = "finished jobs and data stages are kept"
    return f"interrupted; {first.resume_command} resumes: {kept}"


def _resumes_training(folder: RunDir) -> bool:
    ended = read_status(folder).get("state") in (RunState.FINISHED, RunState.PRUNED)
    return not ended and last_checkpoint(folder.checkpoints) is not None


def objectives_of(plan: Plan) -> list[float | SftLabError]:
    """Execute the jobs that a Hydra sweeper proposes together; return the objective of each, or why it has none.

    Raises:
        UserError: for folders that cannot be used, and jobs that a cluster rejects.
    """
    job_folders = create_job_folders(plan)
    failures = {failure.folder.path: failure for failure in launch(job_folders)}
    release_memory()  # for the jobs of the next call
    return [_objective(job_folder.folder, failures.get(job_folder.folder.path)) for job_folder in job_folders]


def _objective(folder: RunDir, failure: Failure | None) -> float | SftLabError:
    name = folder.path.name
    if failure:
        return (UserError if failure.by_input else JobError)(f"{name}: {failure.message}")
    objective = tolerant_readers.read(folder.summary).get("objective")
    if objective is None:
        return JobError(f"{name}: has no objective, since it has no held-out rows")
    if not math.isfinite(objective):
        return JobError(f"{name}: its objective is {objective}")
    return float(objective)
