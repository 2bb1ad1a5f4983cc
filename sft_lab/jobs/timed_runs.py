"""Finished runs, by which the time of a job like them is estimated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from sft_lab import config as configs
from sft_lab.core import tolerant_readers
from sft_lab.core.io import flat, is_number
from sft_lab.core.run_discovery import find_run_dirs
from sft_lab.core.timed_share import timed_share
from sft_lab.core.types import RunState
from sft_lab.run.config import Run

# Trainer's keys that change neither the time nor the memory of a step.
SAME_COST = (
    "learning_rate", "num_train_epochs", "max_steps", "warmup_steps", "lr_scheduler_type", "weight_decay",
    "max_grad_norm", "budget",
)  # fmt: skip
MAX_FINISHED_RUNS = 200  # the newest, to estimate times from


class TimedRun(NamedTuple):
    """A finished run: its folder, what decides the cost of its steps, and its ``summary.json``."""

    path: Path
    shape: dict[str, Any]
    summary: dict[str, Any]


def finished_runs(parent: Path) -> Iterator[TimedRun]:
    """Yield finished runs, the newest first: in ``outputs``, in ``multirun`` and beside the jobs.

    Args:
        parent: folder that contains the job folders.
    """
    roots = {parent, Path("outputs").absolute(), Path("multirun").absolute()}
    folders = {
        folder.path: folder for root in roots for folder in find_run_dirs(root, max_depth=2) if folder.summary.exists()
    }
    newest = sorted(folders.values(), key=lambda folder: folder.summary.stat().st_mtime, reverse=True)
    for folder in newest[:MAX_FINISHED_RUNS]:
        summary = tolerant_readers.read(folder.summary, [])
        is_timed = all(is_number(summary.get(name)) for name in ("seconds", "train_seconds", "steps"))
        with suppress(OSError, ValueError, LookupError):
            if is_timed and folder.state() == RunState.FINISHED:
                yield TimedRun(folder.path, cost_shape(configs.load(folder.config)), summary)


def cost_shape(run: Run) -> dict[str, Any]:
    """Return what decides the cost of an optimizer step."""
    saved = run.saved()
    trainer = {name: value for name, value in flat(saved["trainer"]).items() if name not in SAME_COST}
    return {
        "model": saved["model"],
        "trainer": trainer,
        "template": saved["template"],
        "threads": saved["threads"],
        "launch": [run.launch.num_processes, run.launch.num_machines, run.launch.distributed_type()],
    }


def estimate_time(run: Run, steps: int | None, timed_runs: list[TimedRun]) -> tuple[float | None, Path | None]:
    """Return the seconds of a job and the run they are taken from: the newest one whose steps cost the same.

    Both are None without such a run.
    """
    shape = cost_shape(run)
    for finished in timed_runs:
        summary = finished.summary
        timed_steps = summary["steps"] * timed_share(summary)
        if steps and timed_steps and finished.shape == shape:
            step_seconds = summary["train_seconds"] / timed_steps
            return summary["seconds"] - summary["train_seconds"] + step_seconds * steps, finished.path
    return None, None
