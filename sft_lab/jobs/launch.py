"""Launch: start what is not finished, and say at the end what failed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sft_lab.bench import log
from sft_lab.config import Plan
from sft_lab.errors import JobError, UserError
from sft_lab.files import read_json
from sft_lab.folder import RUN, RunFolder
from sft_lab.jobs import processes, ray_cluster, slurm
from sft_lab.jobs.attempt import Failure, attempt
from sft_lab.jobs.folders import Placed, Standing, place
from sft_lab.launchers import Processes, Ray, Slurm


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
    jobs = [(title, one.folder) for title, one in todo]
    if isinstance(launcher, Processes) and len(placed) > 1:
        return processes.launch(jobs, launcher, work)
    try:
        if isinstance(launcher, Slurm):
            failures = slurm.launch(jobs, launcher, work)
        elif isinstance(launcher, Ray):
            failures = ray_cluster.launch(jobs, launcher, work)
        else:
            failures = _in_turn(todo, work)
    except UserError:  # the cluster takes no such jobs, so none has begun
        for one in placed:
            if one.made:
                _leave_nothing(one.folder.path)
        raise
    if len(placed) == 1 and placed[0].made and failures and failures[0].by_input:
        _leave_nothing(placed[0].folder.path)
    return failures


def _in_turn(todo: list[tuple[str, Placed]], work: str) -> list[Failure]:
    """Execute one after another, in this process."""
    failures = []
    for title, one in todo:
        if title:
            log.info("%s", title)
        if failure := attempt(one.folder, one.job.run, work):
            failures.append(failure)
    return failures


def _leave_nothing(folder: Path) -> None:
    """Remove a folder that wrong input made, and the date's folder above it if it is empty now."""
    shutil.rmtree(folder, ignore_errors=True)
    for parent in (folder.parent, folder.parent.parent):
        if parent == Path.cwd() or not parent.is_dir() or any(parent.iterdir()):
            return
        parent.rmdir()


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


def summary_of(folder: RunFolder) -> dict[str, Any] | None:
    """Give a finished run's summary."""
    return read_json(folder.summary) if folder.summary.exists() else None
