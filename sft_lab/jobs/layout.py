"""Job folders: the same command finds its own folder again.

A sweep's folder is named by the experiment and a hash of the base config without the swept keys; a job's by what
differs and the job's own hash, and found again by the hash alone. One rule for every folder: new, run; same config and
data but not finished, go on; finished, leave it; another config, refuse.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from sft_lab import config as configs
from sft_lab.config import Job, Plan
from sft_lab.core.errors import FolderError, SftLabError, all_problems
from sft_lab.core.io import TEMPORARY, clear_temporary, digest, flat, read_json, read_text, write_json, write_text
from sft_lab.core.locks import distrust
from sft_lab.core.run_dir import FINISHED, LOCK, PREPARE, RUN, SWEEP, FolderInUse, RunDir, make_folders
from sft_lab.jobs.worker import exec_command
from sft_lab.run import inputs
from sft_lab.run.config import NOT_IDENTITY, Run


class Standing(Enum):
    """What a job's folder asks for."""

    new = "new"
    unfinished = "unfinished"
    finished = "finished"


@dataclass(frozen=True)
class Placed:
    """A job and its folder.

    Attributes:
        standing: whether there is something to do.
        made: the folders that this command made, the job's own first.
        resume: what goes on with the job when it is cut off.
    """

    job: Job
    folder: RunDir
    standing: Standing
    made: tuple[Path, ...] = ()
    resume: str = "the same command"


def place(plan: Plan, work: str = RUN) -> list[Placed]:
    """Find or make the folder of every job, and write its config.

    A single run's folder that is to be worked in is claimed, and stays so until ``RunDir.release``; the jobs of a
    sweep may be shared with another command, and each is claimed when it is worked on.

    Args:
        plan: the jobs.
        work: what they shall do there; data that was only prepared is no finished run.

    Raises:
        ConfigError: if this machine lacks what starts the jobs.
        FolderError: if a folder holds another config or other data, or keeps no locks.
    """
    placed = find(plan, work)
    _refuse_without_locks(placed[0].folder.path, plan)
    if plan.swept:
        sweep = placed[0].folder.path.parent
        _claim(sweep, _marker(sweep, plan))  # last, since a refused sweep leaves nothing behind
        return [_write_job(one, work) for one in placed]
    (one,) = placed
    return [one if one.standing is Standing.finished else _take(one, work, named=plan.run_dir is not None)]


def find(plan: Plan, work: str = RUN) -> list[Placed]:
    """Find the folder of every job, and what it asks for; nothing is written.

    Raises:
        ConfigError: if this machine lacks what starts the jobs.
        FolderError: if a folder holds another config or other data.
    """
    if not plan.swept:
        folders = [RunDir((Path(plan.run_dir) if plan.run_dir else _new_run_dir()).absolute())]
    else:
        sweep = Path(plan.sweep_dir or Path("multirun") / sweep_name(plan, work)).absolute()
        _marker(sweep, plan)
        folders = [RunDir(_job_path(sweep, job)) for job in plan.jobs]
    if problems := plan.jobs[0].run.launch.ready():
        raise all_problems(problems)
    try:
        return [
            Placed(job, folder, _standing(job.run, folder, work))
            for job, folder in zip(plan.jobs, folders, strict=True)
        ]
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise FolderError(
            f"{error.filename}: cannot be used ({error.strerror}); choose another with hydra.run.dir"
        ) from error


def _refuse_without_locks(folder: Path, plan: Plan) -> None:
    if why := distrust(folder, several_machines=plan.jobs[0].run.launch.several_machines):
        key = "hydra.sweep.dir" if plan.swept else "hydra.run.dir"
        raise FolderError(f"{folder}: {why}; choose a folder elsewhere with {key}")


def _new_run_dir() -> Path:
    """``outputs/<date>/<time>``, with a counter when two runs start in one second."""
    return _free(Path("outputs") / datetime.datetime.now().strftime("%Y-%m-%d/%H-%M-%S"))  # noqa: DTZ005 - local time


def _free(path: Path) -> Path:
    attempt, counter = path, 1
    while attempt.exists():
        counter += 1
        attempt = path.with_name(f"{path.name}-{counter}")
    return attempt


def sweep_name(plan: Plan, work: str = RUN) -> str:
    """The experiment's name or ``sweep``, and a hash of what no axis changes."""
    kind = "-data" if work == PREPARE else ""
    return f"{_safe(plan.name or 'sweep')}{kind}-{digest(_base_identity(plan))[:8]}"


def _axes(plan: Plan) -> list[str]:
    return sorted({key for job in plan.jobs for key in job.axes})


def _base_identity(plan: Plan) -> dict[str, Any]:
    """Give the identity that all jobs share: everything but the swept keys, in whatever order the grid has them."""
    first, *others = (
        flat({name: value for name, value in job.run.saved().items() if name not in NOT_IDENTITY}) for job in plan.jobs
    )
    axes = _axes(plan)
    if "dataset" in axes:
        axes.append("split")  # a dataset option may choose its own split
    shared = {
        key: value for key, value in first.items() if all(key in other and other[key] == value for other in others)
    }
    return _without(shared, axes)


def _without(identity: dict[str, Any], axes: Iterable[str]) -> dict[str, Any]:
    return {
        key: value
        for key, value in identity.items()
        if not any(key == axis or key.startswith(f"{axis}.") for axis in axes)
    }


def _marker(sweep: Path, plan: Plan) -> dict[str, Any]:
    """Give what the sweep's marker shall hold; two sweeps may share a folder when their base configs agree.

    Raises:
        FolderError: if the folder holds a sweep with another base config.
    """
    if sweep.exists() and not sweep.is_dir():
        raise FolderError(f"hydra.sweep.dir={sweep}: a file, not a folder; choose another")
    base, axes = _base_identity(plan), _axes(plan)
    if not (sweep / SWEEP).exists():
        return {"base": base, "axes": axes}
    try:
        old = read_json(sweep / SWEEP)
        axes = sorted({*old["axes"], *axes})
        before, now = _without(old["base"], axes), _without(base, axes)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise FolderError(f"{sweep / SWEEP}: cannot be read; choose another folder with hydra.sweep.dir") from error
    if "dataset" in axes:
        before, now = _without(before, ["split"]), _without(now, ["split"])
    if differs := _differences(before, now):
        raise FolderError(
            f"{sweep}: this folder holds a sweep with another base config: {differs}; "
            "choose another folder with hydra.sweep.dir"
        )
    return {"base": old["base"], "axes": axes}


def _claim(sweep: Path, marker: dict[str, Any]) -> None:
    try:
        write_json(sweep / SWEEP, marker)
        clear_temporary(sweep, older_than=60)
    except OSError as error:
        raise FolderError(f"hydra.sweep.dir={sweep}: cannot be written ({error.strerror}); choose another") from error


def _job_path(sweep: Path, job: Job) -> Path:
    """The folder with the job's hash, else a new one with a readable name."""
    found = sorted(sweep.glob(f"*-{job.run.hash}")) + sorted(sweep.glob(job.run.hash))
    if found:
        return found[0]
    readable = "-".join(f"{key.rpartition('.')[2]}={value}" for key, value in job.axes.items())
    return sweep / f"{_safe(readable)[:80]}-{job.run.hash}".lstrip("-")


def _standing(run: Run, folder: RunDir, work: str) -> Standing:
    if folder.path.exists() and not folder.path.is_dir():
        raise FolderError(f"{folder.path}: a file, not a folder; choose another with hydra.run.dir")
    # One look: between two, another command that begins the same job may have written its config.
    names = [found.name for found in folder.path.iterdir()] if folder.path.exists() else []
    if folder.config.name not in names:
        # A command killed before its first rename leaves its half-written config.
        strangers = [name for name in names if not name.endswith(TEMPORARY) and name != LOCK]
        if strangers:
            raise FolderError(
                f"{folder.path}: not empty and no run folder (it holds {', '.join(sorted(strangers)[:3])}); "
                "choose another with hydra.run.dir"
            )
        return Standing.new
    if run.rerun:
        return Standing.new
    try:
        # The same text is the same config, and read in no time; a sweep asks this of each of its jobs.
        old = run if _holds(folder.config, run.to_yaml()) else configs.load(folder.config)
    except (SftLabError, OSError, UnicodeDecodeError) as error:
        raise FolderError(
            f"{folder.path}: its config.yaml cannot be read ({error}); rerun=true runs it again"
        ) from error
    if old.hash != run.hash:
        differs = _differences(flat(old.saved()), flat(run.saved()))
        raise FolderError(
            f"{folder.path}: holds a run with another config: {differs}; choose another folder, "
            "or rerun=true to run again here and keep the old one beside it"
        )
    try:
        state, done = folder.state(), folder.work()
    except (FolderError, OSError, ValueError, LookupError) as error:
        raise FolderError(
            f"{folder.path}: its status.json cannot be read ({error}); rerun=true runs it again"
        ) from error
    folder.refuse_other_data(lambda noted: inputs.changes(run, noted))
    if state == FINISHED and done == RUN and work == PREPARE:
        raise FolderError(f"{folder.path}: holds a finished run; prepare its data in another folder, hydra.run.dir=...")
    return Standing.finished if state == FINISHED and done == work else Standing.unfinished


def _take(placed: Placed, work: str, *, named: bool) -> Placed:
    """Make a single run's folder, and keep other commands out from before its config is written.

    Args:
        placed: as it was found; another command may have come first.
        work: as for ``place``.
        named: whether the user gave the folder.
    """
    run, folder, resume = placed.job.run, placed.folder, placed.resume
    if named:
        made = make_folders(folder.path)
    else:
        folder, made = RunDir.new()
        resume = exec_command(folder, work)
    folder.claim()
    try:
        standing = _standing(run, folder, work)
        if run.rerun and folder.config.exists():
            made += _renew(folder)
        _write(run, folder, standing)
    except BaseException:
        folder.release()
        with suppress(OSError):
            for path in made:
                path.rmdir()
        raise
    return replace(placed, folder=folder, standing=standing, made=tuple(made), resume=resume)


def _write_job(placed: Placed, work: str) -> Placed:
    """Make the folder of a sweep's job and write its config, unless another command is at work on the same job."""
    run, folder = placed.job.run, placed.folder
    if placed.standing is Standing.finished or (not run.rerun and _holds(folder.config, run.to_yaml())):
        return placed
    made = make_folders(folder.path)
    try:
        with folder.claimed():
            standing = _standing(run, folder, work)
            if run.rerun and folder.config.exists():
                made += _renew(folder)
            _write(run, folder, standing)
    except FolderInUse:
        if run.rerun:
            raise
        return placed
    return replace(placed, standing=standing, made=tuple(made))


def _renew(folder: RunDir) -> list[Path]:
    """Keep the old folder beside a new one, which is claimed in its place."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")  # noqa: DTZ005 - a name
    folder.move_aside(_free(folder.path.with_name(f"{folder.path.name}.old-{stamp}")))
    made = make_folders(folder.path)
    folder.claim()
    return made


def _write(run: Run, folder: RunDir, standing: Standing) -> None:
    text = run.to_yaml()
    if standing is not Standing.finished and not _holds(folder.config, text):
        try:
            write_text(folder.config, text)
        except OSError as error:
            raise FolderError(f"{folder.path}: cannot be written ({error.strerror}); choose another folder") from error


def _holds(file: Path, text: str) -> bool:
    return file.exists() and read_text(file) == text


def _differences(old: dict[str, Any], new: dict[str, Any], most: int = 3) -> str:
    ignored = tuple(f"{name}." for name in NOT_IDENTITY)
    names = [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(ignored) and key not in NOT_IDENTITY
    ]
    shown = [f"{key} was {old.get(key, 'absent')}, is {new.get(key, 'absent')}" for key in names[:most]]
    return "; ".join(shown) + (f"; and {len(names) - most} more" if len(names) > most else "")


def _safe(name: str) -> str:
    return re.sub(r"[^\w.=+,-]+", "_", name).strip("_")
