"""Launch: start what is not finished, and say at the end what failed."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from sft_lab.config import Plan
from sft_lab.core.errors import FolderError, JobError, UserError
from sft_lab.core.io import read_json
from sft_lab.core.log import log
from sft_lab.core.run_dir import RUN, RunDir
from sft_lab.jobs import processes, ray, slurm
from sft_lab.jobs.layout import Placed, Standing, place
from sft_lab.jobs.worker import Failure, attempt, interrupted
from sft_lab.run.launch_config import Launcher, Processes, Ray, Slurm


def launch(placed: list[Placed], work: str = RUN) -> list[Failure]:
    """Execute, or prepare, each job that is not finished; a failing one does not stop the others."""
    launcher = placed[0].job.run.launch
    todo = []
    for number, one in enumerate(placed, start=1):
        title = f"[{number}/{len(placed)}] {one.folder.path.name}" if len(placed) > 1 else ""
        if one.standing is Standing.finished:
            log.info("%s: finished before; nothing to do", title or one.folder.path)
            one.folder.tidy()
        else:
            todo.append((title, one))
    single = placed[0] if len(placed) == 1 else None
    try:
        failures = _dispatch(todo, launcher, work)
        if single and failures and failures[0].by_input and single.standing is Standing.new:
            _leave_nothing(single)
    except UserError:  # the cluster takes no such jobs, so none has begun
        for one in placed:
            if one.standing is Standing.new and not one.folder.status.exists() and not one.folder.queued.exists():
                _leave_nothing(one)
        raise
    except (KeyboardInterrupt, SystemExit):
        if not isinstance(launcher, Slurm):  # which says itself what becomes of its jobs
            log.warning("%s", _interrupted(placed))
        raise
    finally:
        for one in placed:
            one.folder.release(wholly=True)
    return failures


def _dispatch(todo: list[tuple[str, Placed]], launcher: Launcher, work: str) -> list[Failure]:
    """Have every job executed, by processes of a launcher's or by this one."""
    jobs = [(title, one.folder) for title, one in todo]
    if isinstance(launcher, Processes) and len(jobs) > 1:
        return processes.launch(jobs, launcher, work)
    if not isinstance(launcher, Slurm | Ray):
        return _in_turn(todo, work)
    for _, folder in jobs:
        folder.release(wholly=True)  # from here on it is another process that works there
    if isinstance(launcher, Slurm):
        return slurm.launch(jobs, launcher, work)
    return ray.launch(jobs, launcher, work)


def _in_turn(todo: list[tuple[str, Placed]], work: str) -> list[Failure]:
    """Execute one after another, in this process."""
    failures = []
    for title, one in todo:
        if title:
            log.info("%s", title)
        if failure := attempt(one.folder, one.job.run, work):
            failures.append(failure)
    return failures


def _leave_nothing(placed: Placed) -> None:
    """Remove what wrong input has begun; a folder where another process is at work by now is its own."""
    with suppress(FolderError):
        placed.folder.discard(placed.made)


def _interrupted(placed: list[Placed]) -> str:
    """Say how far the work came, and which command goes on with it."""
    if len(placed) > 1 or placed[0].folder.sweep:
        return f"interrupted; {placed[0].resume} goes on: finished jobs stay, a cut-off training has its checkpoint"
    return interrupted(placed[0].folder, placed[0].resume)


def objective_of(plan: Plan) -> float:
    """Place and execute the one job of a plan, and answer its objective: what a sweeper of Hydra's wants to know.

    Raises:
        JobError, UserError: when it fails.
    """
    (placed,) = place(plan)
    if failures := launch([placed]):
        raise (UserError if failures[0].by_input else JobError)(f"{placed.folder.path.name}: {failures[0].message}")
    summary = summary_of(placed.folder)
    if not summary or summary.get("objective") is None:
        raise JobError(f"{placed.folder.path.name}: has no objective; without held-out rows there is none")
    return float(summary["objective"])


def summary_of(folder: RunDir) -> dict[str, Any] | None:
    """Give a finished run's summary."""
    return read_json(folder.summary) if folder.summary.exists() else None
