"""Job folders: the same command finds its own folder again.

A sweep's folder is named after the experiment and a hash of the base config without the swept keys. A job's folder is
named after its swept values and the hash of its config; only the hash identifies it. The same rule holds for every
folder: a new one is run, an unfinished one with the same config and data is resumed, a finished one is left alone, and
one with another config is refused.
"""

from __future__ import annotations

import datetime
import re
import shlex
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from sft_lab import config as configs
from sft_lab.config import Job, Plan
from sft_lab.config.overrides import key_of, value_of
from sft_lab.core import tolerant_readers
from sft_lab.core.errors import FolderError, SftLabError, all_problems
from sft_lab.core.io import TEMPORARY, clear_temporary, digest, flat, read_json, read_text, write_json, write_text
from sft_lab.core.locks import lock_problem
from sft_lab.core.run_dir import LOCK, REPLACED, SWEEP, FolderInUse, RunDir, free_path, make_folders
from sft_lab.core.types import Work
from sft_lab.run import inputs
from sft_lab.run.config import Run
from sft_lab.run.identity import NOT_IDENTITY

MAX_NAME = 80  # characters of a job folder's name before its hash
_HASHED = re.compile(r"(?:^|-)([0-9a-f]{12})$")  # how the name of a job's folder ends
MAX_DIFFERENCES = 3  # listed in a message


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
        _write_marker(sweep, _sweep_marker(sweep, plan))  # last, since a refused sweep leaves nothing behind
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
        axes = _sweep_marker(sweep, plan)["axes"]
        folders = [RunDir(path) for path in _job_paths(sweep, plan.jobs, axes)]
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


# --- sweeps --------------------------------------------------------------------------------------------------------


def sweep_name(plan: Plan, work: str = Work.RUN) -> str:
    """Return the name of a sweep's folder: the experiment, or ``sweep``, and a hash of what no axis changes."""
    kind = "-data" if work == Work.PREPARE else ""
    return f"{_safe(plan.name or 'sweep')}{kind}-{digest(_base_identity(plan))[:8]}"


def _job_paths(sweep: Path, jobs: list[Job], axes: list[str]) -> list[Path]:
    """Return the folder of each job: the one that has its hash, whatever its name is, or a new path."""
    paths = _paths_by_hash(sweep)
    return [paths.get(job.run.hash) or sweep / _job_name(job, axes) for job in jobs]


def _paths_by_hash(sweep: Path) -> dict[str, Path]:
    """Return the job folders of a sweep by hash: as their names end, or as the manifest of a renamed one has it."""
    folders = [path for path in sorted(sweep.glob("*/")) if not REPLACED.search(path.name)]
    named = {path: match[1] for path in folders if (match := _HASHED.search(path.name))}
    renamed = {
        path: tolerant_readers.read(RunDir(path).manifest, []).get("job") for path in folders if path not in named
    }
    return {str(key): path for path, key in [*named.items(), *renamed.items()][::-1] if key}


def _job_name(job: Job, axes: list[str]) -> str:
    """Return the name of a job's new folder: its swept values, or what the user's ``hydra.sweep.subdir`` says.

    Args:
        job: of a sweep.
        axes: of all that was swept in the folder before; this command may give one value for some of them.
    """
    readable = job.subdir
    if readable is None:
        single = {key_of(text): value_of(text) for text in job.overrides or () if key_of(text) in axes}
        readable = "-".join(f"{key.rpartition('.')[2]}={value}" for key, value in (single | job.axes).items())
    return f"{_safe(readable)[:MAX_NAME]}-{job.run.hash}".lstrip("-")


def _safe(name: str) -> str:
    """Return a name without signs that Hydra's grammar, a shell or a file system would read as more than a name."""
    return re.sub(r"[^\w.+-]+", "_", re.sub(r"[\[\]{}()'\"]", "", name).replace(",", "-")).strip("_")


def _axes(plan: Plan) -> list[str]:
    return sorted({key for job in plan.jobs for key in job.axes})


def _base_identity(plan: Plan) -> dict[str, Any]:
    """Return the identity that all jobs share: everything but the swept keys, whatever their order in the grid."""
    first, *rest = (
        flat({name: value for name, value in job.run.saved().items() if name not in NOT_IDENTITY}) for job in plan.jobs
    )
    shared = {
        key: value
        for key, value in first.items()
        if all(key in identity and identity[key] == value for identity in rest)
    }
    return _without(shared, _axes(plan))


def _without(identity: dict[str, Any], axes: Iterable[str]) -> dict[str, Any]:
    """Return the keys of a flat identity that no axis changes; a dataset option may bring its split and prompts."""
    keys = {*axes, "split", "evaluation.prompts"} if "dataset" in axes else {*axes}
    return {
        key: value
        for key, value in identity.items()
        if not any(key == axis or key.startswith(f"{axis}.") for axis in keys)
    }


def _sweep_marker(sweep: Path, plan: Plan) -> dict[str, Any]:
    """Return the content for ``sweep.json``; two sweeps with the same base config may share a folder.

    Raises:
        FolderError: if the folder holds a sweep with another base config.
    """
    if sweep.exists() and not sweep.is_dir():
        raise FolderError(f"hydra.sweep.dir={sweep}: a file, not a folder; choose another")
    base, axes = _base_identity(plan), _axes(plan)
    if not (sweep / SWEEP).exists():
        return {"base": base, "axes": axes}
    try:
        marker = read_json(sweep / SWEEP)
        axes = sorted({*marker["axes"], *axes})
        old_base = _without(marker["base"], axes)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise FolderError(f"{sweep / SWEEP}: cannot be read; choose another folder with hydra.sweep.dir") from error
    if differences := _differences(old_base, _without(base, axes)):
        raise FolderError(
            f"{sweep}: this folder has a sweep with another base config: {differences}; "
            "choose another folder with hydra.sweep.dir"
        )
    return {"base": marker["base"], "axes": axes}


def _write_marker(sweep: Path, marker: dict[str, Any]) -> None:
    try:
        write_json(sweep / SWEEP, marker)
        clear_temporary(sweep, older_than=60)
    except OSError as error:
        raise FolderError(f"hydra.sweep.dir={sweep}: cannot be written ({error.strerror}); choose another") from error


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
        differences = _differences(flat(old.saved()), flat(run.saved()))
        raise FolderError(
            f"{folder.path}: has a run with another config: {differences}; choose another folder, "
            "or set rerun=true to run again here and keep the old folder beside it"
        )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return the first differences of two flat configs, for a message."""
    ignored = tuple(f"{name}." for name in NOT_IDENTITY)
    keys = [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(ignored) and key not in NOT_IDENTITY
    ]
    listed = [f"{key} was {old.get(key, 'absent')}, is {new.get(key, 'absent')}" for key in keys[:MAX_DIFFERENCES]]
    if len(keys) > MAX_DIFFERENCES:
        listed.append(f"and {len(keys) - MAX_DIFFERENCES} more")
    return "; ".join(listed)


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
