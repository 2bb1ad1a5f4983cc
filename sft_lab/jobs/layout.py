"""Job folders: the same command finds its own folder again.

A sweep's folder is named after the experiment and a hash of the base config without the swept keys. A job's folder is
named after its swept values and the hash of its config; only the hash identifies it. The same rule holds for every
folder: a new one is run, an unfinished one with the same config and data is resumed, a finished one is left alone, and
one with another config is refused.
"""

from __future__ import annotations

import datetime
import shlex
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import yaml

from sft_lab import config as configs
from sft_lab.config import Job, Plan
from sft_lab.core.errors import FolderError, SftLabError, all_problems
from sft_lab.core.io import TEMPORARY, flat, read_text, write_text
from sft_lab.core.locks import lock_problem
from sft_lab.core.run_dir import LOCK, FolderInUse, RunDir, free_path, make_folders
from sft_lab.core.types import Work
from sft_lab.jobs.sweep_folder import job_paths, sweep_marker, sweep_name, write_marker
from sft_lab.run import inputs
from sft_lab.run.config import Run
from sft_lab.run.identity import describe_differences


class JobProgress(StrEnum):
    """How far the work in a job's folder has come."""

    NEW = "new"
    UNFINISHED = "unfinished"
    FINISHED = "finished"


@dataclass(frozen=True)
class JobFolder:
    """A job and its folder.

    Attributes:
        progress: how far its work has come.
        created: folders that this command created, the job's own first.
        resume_command: the command that resumes the job after an interruption.
    """

    job: Job
    folder: RunDir
    progress: JobProgress
    created: tuple[Path, ...] = ()
    resume_command: str = "the same command"

    @property
    def is_finished(self) -> bool:
        """Whether the work is finished."""
        return self.progress is JobProgress.FINISHED


# --- the folders of a command --------------------------------------------------------------------------------------


def create_job_folders(plan: Plan, work: str = Work.RUN) -> list[JobFolder]:
    """Find or create the folder of every job, and write its config.

    The folder of a single run is claimed until ``RunDir.release``. Another command may work on the same sweep, so
    each of its jobs is claimed only when work on it starts.

    Args:
        plan: the jobs.
        work: run them, or only prepare their data; a run with prepared data is not finished.

    Raises:
        ConfigError: if the launcher's requirements are missing on this machine.
        FolderError: if a folder holds another config or other data, or its file system has no locks.
    """
    job_folders = find_job_folders(plan, work)
    _refuse_without_locks(job_folders[0].folder.path, plan)
    if plan.swept:
        sweep = job_folders[0].folder.path.parent
        write_marker(sweep, sweep_marker(sweep, plan))  # last, since a refused sweep leaves nothing behind
        if plan.dated:
            command = f"the same command with hydra.sweep.dir={shlex.quote(str(sweep))}"
            job_folders = [replace(job_folder, resume_command=command) for job_folder in job_folders]
        return [_create_sweep_job(job_folder, work) for job_folder in job_folders]

    (job_folder,) = job_folders
    if job_folder.is_finished:
        return job_folders
    created = _create_single(job_folder, work, is_named=plan.run_dir is not None)
    return [replace(created, resume_command=created.folder.exec_command(work)) if plan.dated else created]


def find_job_folders(plan: Plan, work: str = Work.RUN, *, to_start: bool = True) -> list[JobFolder]:
    """Find the folder of every job and its progress; write nothing.

    Args:
        plan: the jobs.
        work: run them, or only prepare their data.
        to_start: false where the jobs are only shown, which needs no cluster.

    Raises:
        ConfigError: if the launcher's requirements are missing on this machine.
        FolderError: if a folder holds another config or other data.
    """
    if plan.swept:
        sweep = Path(plan.sweep_dir or Path("multirun") / sweep_name(plan, work)).absolute()
        axes = sweep_marker(sweep, plan)["axes"]
        folders = [RunDir(path) for path in job_paths(sweep, plan.jobs, axes)]
    else:
        folders = [RunDir(Path(plan.run_dir or free_path(RunDir.timestamped())).absolute())]
    run = plan.jobs[0].run
    missing = run.launch.missing_requirements() if to_start else run.launch.missing_packages()
    if problems := [*missing, *run.tracking.missing_requirements()]:
        raise all_problems(problems)
    try:
        return [
            JobFolder(job, folder, _progress(job.run, folder, work))
            for job, folder in zip(plan.jobs, folders, strict=True)
        ]
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise FolderError(
            f"{error.filename}: cannot be used ({error.strerror}); choose another with hydra.run.dir"
        ) from error


def _refuse_without_locks(folder: Path, plan: Plan) -> None:
    if problem := lock_problem(folder, several_machines=plan.jobs[0].run.launch.several_machines):
        key = "hydra.sweep.dir" if plan.swept else "hydra.run.dir"
        raise FolderError(f"{folder}: {problem}; choose another folder with {key}")


# --- the rule for one folder ---------------------------------------------------------------------------------------


def _progress(run: Run, folder: RunDir, work: str) -> JobProgress:
    """Return the progress of the work in a folder.

    Raises:
        FolderError: if the folder is not this job's.
    """
    if not _holds_config(folder) or run.rerun:
        return JobProgress.NEW
    _refuse_other_config(run, folder)
    try:
        is_done, holds_run = folder.has_finished(work), folder.has_finished(Work.RUN)
    except (FolderError, OSError, ValueError, LookupError) as error:
        raise FolderError(
            f"{folder.path}: its status.json cannot be read ({error}); set rerun=true to run it again"
        ) from error
    folder.refuse_other_data(lambda manifest: inputs.changes(run, manifest))
    if holds_run and work == Work.PREPARE:
        key = "hydra.sweep.dir" if folder.sweep else "hydra.run.dir"
        raise FolderError(f"{folder.path}: has a finished run; prepare the data in another folder with {key}=...")
    return JobProgress.FINISHED if is_done else JobProgress.UNFINISHED


def _holds_config(folder: RunDir) -> bool:
    """Return whether a folder holds a config; one that holds anything else is refused."""
    if not folder.path.exists():
        return False
    if not folder.path.is_dir():
        raise FolderError(f"{folder.path}: a file, not a folder; choose another with hydra.run.dir")
    # Listed once: between two checks, another command that begins the same job may write its config.
    names = [path.name for path in folder.path.iterdir()]
    if folder.config.name in names:
        return True
    # A command killed before its first rename leaves its half-written config.
    if foreign := sorted(name for name in names if not name.endswith(TEMPORARY) and name != LOCK):
        raise FolderError(
            f"{folder.path}: not empty and not a run folder (it contains {', '.join(foreign[:3])}); "
            "choose another with hydra.run.dir"
        )
    return False


def _refuse_other_config(run: Run, folder: RunDir) -> None:
    # Equal text is an equal config, and faster to compare; a sweep checks each of its jobs.
    if _has_text(folder.config, run.to_yaml()):
        return
    try:
        old = configs.load(folder.config)
    except (SftLabError, OSError, UnicodeDecodeError) as error:
        raise FolderError(
            f"{folder.path}: its config.yaml cannot be read ({error}); set rerun=true to run it again"
        ) from error
    if old.hash != run.hash:
        differences = describe_differences(flat(old.saved()), flat(run.saved()))
        raise FolderError(
            f"{folder.path}: has a run with another config: {differences}; choose another folder, "
            "or set rerun=true to run again here and keep the old folder beside it"
        )


# --- making a folder -----------------------------------------------------------------------------------------------


def _create_single(job_folder: JobFolder, work: str, *, is_named: bool) -> JobFolder:
    """Create a single run's folder, and lock other commands out before its config is written.

    Args:
        job_folder: the folder as found; another command may have been faster.
        work: as for ``create_job_folders``.
        is_named: whether the user gave the folder.
    """
    if is_named:
        folder, created = job_folder.folder, make_folders(job_folder.folder.path)
        resume_command = job_folder.resume_command
    else:
        folder, created = RunDir.new()
        resume_command = folder.exec_command(work)
    folder.claim()
    try:
        progress = _begin(job_folder.job, folder, work, created)
    except BaseException:
        folder.release()
        with suppress(OSError):
            for path in created:
                path.rmdir()
        raise
    return JobFolder(job_folder.job, folder, progress, tuple(created), resume_command)


def _create_sweep_job(job_folder: JobFolder, work: str) -> JobFolder:
    """Create the folder of a sweep's job and write its config, unless another command works on the same job."""
    run, folder = job_folder.job.run, job_folder.folder
    is_written = not run.rerun and _has_text(folder.config, run.to_yaml())
    if job_folder.is_finished or is_written:
        return job_folder
    created = make_folders(folder.path)
    try:
        with folder.claimed():
            progress = _begin(job_folder.job, folder, work, created)
    except FolderInUse:
        if run.rerun:
            raise
        return job_folder
    return replace(job_folder, progress=progress, created=tuple(created))


def _begin(job: Job, folder: RunDir, work: str, created: list[Path]) -> JobProgress:
    """Write the config into a claimed folder; for a rerun, move the old run beside it first.

    Args:
        job: to begin.
        folder: its own.
        work: as for ``create_job_folders``.
        created: collects the folders created for a rerun.
    """
    run = job.run
    progress = _progress(run, folder, work)
    if run.rerun and folder.config.exists():
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")  # noqa: DTZ005 - a name, in local time
        folder.move_aside(free_path(folder.path.with_name(f"{folder.path.name}.old-{stamp}")))
        created += make_folders(folder.path)
        folder.claim()

    text = run.to_yaml()
    if progress is not JobProgress.FINISHED and not _has_text(folder.config, text):
        try:
            write_text(folder.config, text)
            _write_as_hydra(job, folder, text)
        except OSError as error:
            raise FolderError(f"{folder.path}: cannot be written ({error.strerror}); choose another folder") from error
    return progress


def _write_as_hydra(job: Job, folder: RunDir, text: str) -> None:
    """Write the config and the overrides where tools that read Hydra's folders look for them."""
    write_text(folder.hydra / "config.yaml", text)
    if job.overrides is not None:
        own = [override for override in job.overrides if not override.lstrip("+").startswith(("hydra.", "hydra/"))]
        write_text(folder.hydra / "overrides.yaml", yaml.safe_dump(own, allow_unicode=True, default_flow_style=False))


def _has_text(file: Path, text: str) -> bool:
    return file.exists() and read_text(file) == text
