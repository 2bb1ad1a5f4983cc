"""Reading run folders as jobs: state, axes, numbers, curves, samples and the loss of every held-out row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sft_lab.compare.axes import find_axes, sort_key
from sft_lab.core import parquet
from sft_lab.core.errors import FolderError
from sft_lab.core.io import FORMAT, is_number
from sft_lab.core.run_dir import REPLACED, RunDir
from sft_lab.core.run_state import CUT_OFF, NOT_STARTED, current_state
from sft_lab.core.tolerant_readers import read, read_config, read_lines, read_metrics, read_overrides
from sft_lab.core.types import Curve, RunState, Verdict, Work
from sft_lab.core.verdict_warnings import verdict_with_warnings
from sft_lab.report.figures import extract_curve
from sft_lab.run.identity import completed

PREPARED, UNREADABLE = "prepared", "unreadable"


@dataclass(frozen=True)
class RowLosses:
    """Loss of a model on each held-out row's answer, as in ``eval.parquet``; arrays of shape (rows,).

    Attributes:
        ids: of the rows.
        nats: summed negative log-likelihood of the answer.
        tokens: of the answer, end of turn included.
        bytes: UTF-8 bytes of the answer.
    """

    ids: list[str]
    nats: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray

    def select(self, ids: list[str]) -> RowLosses:
        """Return these rows, in this order."""
        positions = {row_id: position for position, row_id in enumerate(self.ids)}
        rows = [positions[row_id] for row_id in ids]
        return RowLosses(ids, self.nats[rows], self.tokens[rows], self.bytes[rows])


@dataclass
class ComparedJob:
    """The content of a run folder, however far its run has come.

    Attributes:
        name: of the folder, preceded by its parent's where two folders have the same name.
        folder: of the run.
        state: as in ``status.json``, or ``cut off``, ``not started``, ``prepared``, ``unreadable``.
        error: what stopped the run, or the first thing in its files that does not fit; empty if nothing did.
        config: as saved; empty when it cannot be read.
        overrides: of the command that it was composed by; None where its folder does not say.
        axes: its values at the keys that differ between the jobs.
        summary: of a finished run; empty otherwise.
        numbers: what is known so far, by the keys of ``summary.json``.
        events: lines of ``metrics.jsonl``.
        samples: lines of ``samples.jsonl``.
        fingerprint: of the held-out rows.
        train_fingerprint: of the training rows.
        tuned: row losses of the tuned model.
        base: row losses of the base model.
        twins: the jobs that this one stands for, itself among them: they trained on the same rows in the same way;
            empty where it stands for itself alone.
    """

    name: str
    folder: RunDir
    state: str
    error: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] | None = None
    axes: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    fingerprint: str | None = None
    train_fingerprint: str | None = None
    tuned: RowLosses | None = None
    base: RowLosses | None = None
    twins: list[ComparedJob] = field(default_factory=list)

    def __repr__(self) -> str:
        verdict = verdict_with_warnings(self.summary)
        return f"ComparedJob({self.name}: {self.state}{f', {verdict}' if verdict else ''})"

    @property
    def is_judged(self) -> bool:
        """Whether the run has finished and has a held-out loss."""
        return self.state == RunState.FINISHED and is_number(self.summary.get("eval/loss"))

    def curve(self, name: str) -> Curve:
        """Return (step, value) of every event that has the metric; NaN where it is not a finite number."""
        return extract_curve(self.events, name)

    def gaps(self) -> Curve:
        """Return (epoch, gap) during training.

        Where the gap was measured at the end alone, it is estimated at each evaluation: held-out loss minus
        the mean training loss logged since the previous evaluation.
        """
        measured = [(_epoch(event), event["gap"]) for event in self.events if is_number(event.get("gap"))]
        if len(measured) > 1:
            return measured

        estimates, train_losses = [], list[float]()
        for event in self.events:
            if is_number(event.get("train/loss")):
                train_losses.append(event["train/loss"])
            if is_number(event.get("eval/loss")) and train_losses:
                estimates.append((_epoch(event), event["eval/loss"] - sum(train_losses) / len(train_losses)))
                train_losses = []
        return estimates


def _epoch(event: dict[str, Any]) -> float:
    return float(event.get("epoch") or 0)


def has_diverged(job: ComparedJob) -> bool:
    """Return whether the job's verdict is that training broke down."""
    return job.summary.get("verdict") == Verdict.DIVERGED


def collect_jobs(paths: Sequence[Path | str] | Path | str) -> list[ComparedJob]:
    """Return the jobs of sweep and run folders, sorted by the values of their axes.

    A job that has not finished, or that cannot be read, is returned with what its folder has. One that only prepared
    its data has no axes beside jobs that trained: most keys of theirs would be axes.

    Args:
        paths: of the folders, or of a single one.

    Raises:
        FolderError: if a path is not a folder or contains no run folder.
    """
    paths = [paths] if isinstance(paths, Path | str) else paths
    folders = list(dict.fromkeys(folder for path in paths for folder in _run_folders(Path(path).absolute())))
    names = [folder.name for folder in folders]
    jobs = [
        _read(RunDir(folder), folder.name if names.count(folder.name) == 1 else f"{folder.parent.name}/{folder.name}")
        for folder in folders
    ]
    readable = [job for job in without_prepared(jobs) if job.config]
    for job, axes in zip(readable, find_axes([job.config for job in readable]), strict=True):
        job.axes = axes
    keys = list(dict.fromkeys(key for job in readable for key in job.axes))
    return sorted(jobs, key=lambda job: ([sort_key(job.axes.get(key)) for key in keys], job.name))


def without_prepared(jobs: list[ComparedJob]) -> list[ComparedJob]:
    """Return the jobs without those that only prepared their data; all of them where none has trained."""
    has_trained = any(job.events for job in jobs)
    return [job for job in jobs if not (has_trained and job.state == PREPARED)]


def _run_folders(path: Path) -> list[Path]:
    """Return the run folders at a path: of a run, a sweep, or a folder of either."""
    if not path.is_dir():
        raise FolderError(f"{path}: no such folder; compare takes sweep folders and run folders")
    if (path / "config.yaml").exists():
        return [path]
    # Not find_run_dirs, which follows no links: jobs may be collected for a comparison by links to their folders.
    for pattern in ("*/config.yaml", "*/*/config.yaml"):
        folders = sorted(file.parent for file in path.glob(pattern))
        if folders := [folder for folder in folders if not REPLACED.search(folder.name)]:
            return folders
    raise FolderError(
        f"{path}: has no run folders in it (none with a config.yaml); compare takes sweep and run folders"
    )


def _read(folder: RunDir, name: str) -> ComparedJob:
    job = ComparedJob(name, folder, UNREADABLE)
    try:
        job.config = _config(folder.config)
        job.overrides = read_overrides(folder.hydra / "overrides.yaml")
        status = read(folder.status)
        job.error = str(status.get("error") or status.get("reason") or "")
        manifest = read(folder.manifest)
        job.fingerprint, job.train_fingerprint = manifest.get("held_out_fingerprint"), manifest.get("train_fingerprint")
        job.events = read_metrics(folder.metrics)
        job.samples = read_lines(folder.samples)
        state = CUT_OFF if current_state(status) == CUT_OFF else str(status.get("state", NOT_STARTED))
        if state == RunState.FINISHED:  # an unfinished run may still have the summary of an earlier one
            job.summary = read(folder.summary)
        job.numbers = {**_so_far(folder, job), **job.summary}
        if state == RunState.FINISHED and not job.summary and status.get("work") == Work.PREPARE:
            state = PREPARED
        if job.summary:
            job.tuned, job.base = (_row_losses(folder.eval, model) for model in ("tuned", "base"))
        job.state = state
    except (FolderError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return ComparedJob(name, folder, UNREADABLE, error=str(error), config=job.config)
    return job


def _config(path: Path) -> dict[str, Any]:
    config = read_config(path)
    if config.get("format") != FORMAT:
        raise FolderError(f"{path}: is not a saved config of format {FORMAT}")
    return completed(config)  # a folder of an older version beside one of this


def _so_far(folder: RunDir, job: ComparedJob) -> dict[str, Any]:
    """Return what is known of a run that has no summary yet, by the keys of the summary."""
    numbers: dict[str, Any] = {}
    losses = [(step, loss) for step, loss in job.curve("eval/loss") if math.isfinite(loss)]
    if losses:
        bits = [value for _, value in job.curve("eval/bits_per_byte") if math.isfinite(value)]
        numbers |= {"eval/loss": losses[-1][1], "eval/bits_per_byte": bits[-1] if bits else None}
        trained = [loss for step, loss in losses if step > 0]
        numbers["best_eval_loss"] = min(trained, default=None)
    for name, metric in (("train_tokens", "train/num_tokens"), ("epochs", "epoch")):
        if values := [event[metric] for event in job.events if is_number(event.get(metric))]:
            numbers[name] = values[-1]
    if stages := read(folder.waterfall).get("stages"):
        numbers["train_rows"] = stages[-1]["rows_kept"]
    return numbers


def _row_losses(path: Path, model: str) -> RowLosses | None:
    """Read one model's columns, without rows that lack a value; None if there is no file or no row."""
    if not path.exists():
        return None
    import pyarrow as pa

    columns = ["id", *(f"{model}/{part}" for part in ("nll", "tokens", "bytes"))]
    try:
        table = parquet.read(path, {name: parquet.EVAL[name] for name in columns}).drop_null()
    except (pa.ArrowException, OSError) as error:
        raise FolderError(f"{path}: cannot be read ({error})") from error
    ids, *parts = (table.column(name) for name in columns)
    arrays = [part.to_numpy().astype(np.float64) for part in parts]
    return RowLosses(ids.to_pylist(), *arrays) if len(ids) else None
