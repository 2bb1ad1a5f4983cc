"""What a reader of a comparison should know before relying on its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sft_lab.compare.analyze import UNKNOWN
from sft_lab.compare.axes import short_names
from sft_lab.compare.claims import describe_axes, join_names, spread_source
from sft_lab.compare.collect import has_diverged
from sft_lab.compare.merged_twins import AnyOf
from sft_lab.compare.uncertainty import SEEDS_NEEDED
from sft_lab.core.io import is_number
from sft_lab.core.text import count_of
from sft_lab.core.types import RunState

if TYPE_CHECKING:
    from sft_lab.compare.analyze import Comparison

FEW_ROWS = 30  # held-out rows below which intervals deserve a warning


def notes_on(comparison: Comparison) -> list[str]:
    """Return what a reader should know before relying on the numbers."""
    return [
        *_notes_on_rows(comparison),
        *_notes_on_jobs(comparison),
        *_note_on_order(comparison),
        *_same_training_rows(comparison),
        *_kept_equal(comparison),
    ]


def _notes_on_rows(comparison: Comparison) -> list[str]:
    """Return the notes on the measure, the number of settings, and the held-out rows."""
    sentences = []
    if comparison.unscored:
        jobs = join_names(comparison.unscored, ", ")
        sentences.append(f"No eval.parquet in {jobs}: losses are compared without intervals.")
    if comparison.measure_reason:
        sentences.append(f"Compared in bits per byte, the default objective: {comparison.measure_reason}.")
    if len(comparison.settings) > 1:
        settings = count_of(len(comparison.settings), "setting")
        sentences.append(
            f"The lowest loss of {settings} is slightly optimistic, since the rows that measure it also chose it; "
            "split.test_share sets other rows apart, and compare --test scores the best job on them."
        )
        sentences.append(_note_on_seeds(comparison))
    if 0 < comparison.row_count < FEW_ROWS:
        rows = count_of(comparison.row_count, "held-out row")
        sentences.append(f"With only {rows}, intervals are wide and rough.")

    row_counts = [len(job.tuned.ids) for job in comparison.jobs if job.is_judged and job.tuned]
    if comparison.row_count and max(row_counts) > comparison.row_count:
        sentences.append(
            f"Compared on the {count_of(comparison.row_count, 'held-out row')} that all jobs have; "
            "the table shows each job's own loss."
        )
    return sentences


def _note_on_seeds(comparison: Comparison) -> str:
    fewest = min(len(setting.jobs) for setting in comparison.settings)
    if fewest >= SEEDS_NEEDED:
        return f"Every setting has {fewest} seeds or more: differences are claimed over seeds and rows."
    have = "only one seed" if fewest == 1 else f"only {fewest} seeds"
    return (
        f"Some settings have {have}, too few to show the effect of the seed. A difference is noise unless it is larger "
        f"than the spread over seeds, {spread_source(comparison)}."
    )


def _notes_on_jobs(comparison: Comparison) -> list[str]:
    """Return the notes on jobs that are left out, and on what they started from."""
    sentences = []
    states = [
        job.state if job.state != RunState.FINISHED else "no held-out loss"
        for job in comparison.jobs
        if not job.is_judged and job.state != RunState.PRUNED
    ]
    if pruned := sum(job.state == RunState.PRUNED for job in comparison.jobs):
        sentences.append(
            f"{count_of(pruned, 'job')} pruned: the search stopped them early, as others were better at that point."
        )
    if states and comparison.settings:
        listed = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        sentences.append(f"{count_of(len(states), 'job')} not judged: {listed}. The results may still change.")
    if comparison.prepared:
        sentences.append(f"{count_of(comparison.prepared, 'folder')} left out: only the data was prepared there.")
    if UNKNOWN in comparison.fingerprints:
        jobs = join_names(comparison.fingerprints[UNKNOWN], ", ")
        sentences.append(f"No held-out fingerprint in {jobs}; rows are matched by their ids.")

    diverged = sum(has_diverged(job) for job in comparison.jobs)
    if diverged and comparison.effects:
        verb = "is" if diverged == 1 else "are"
        sentences.append(f"{count_of(diverged, 'job')} diverged and {verb} left out of the effects of the axes.")
    if len(comparison.base_models) > 1 and not comparison.obstacle:
        sentences.append("Jobs started from different base models; each is measured against its own.")
    return sentences


def _note_on_order(comparison: Comparison) -> list[str]:
    if not comparison.order:
        return []
    return [f"The table is sorted by {comparison.order}; claims rest only on the held-out loss."]


def _same_training_rows(comparison: Comparison) -> list[str]:
    """Return the choices of rows that kept the same rows: they are one setting, and one row of the table."""
    names = short_names(comparison.axes)
    sentences = []
    for job in comparison.jobs:
        merged = {axis: value for axis, value in job.axes.items() if isinstance(value, AnyOf)}
        if merged:
            count = sum(twin.summary.get("same_as") is None for twin in job.twins)
            times = "trained once" if count == 1 else f"one training, done {count} times"
            sentences.append(f"{describe_axes(merged, names)} kept the same training rows: {times}.")
    return list(dict.fromkeys(sentences))


def _kept_equal(comparison: Comparison) -> list[str]:
    """Return what differs by at most 1%, and what by more, between jobs with different numbers of training rows."""
    summaries = [job.summary for job in comparison.jobs if job.is_judged]
    if len({summary.get("train_rows") for summary in summaries}) < 2:
        return []

    equal: list[str] = []
    other: list[str] = []
    for key, name in (("steps", "optimizer steps"), ("epochs", "epochs"), ("train_tokens", "tokens read")):
        values = [float(value) for summary in summaries if is_number(value := summary.get(key))]
        if len(values) == len(summaries):
            is_equal = max(values) - min(values) <= 0.01 * abs(max(values))
            (equal if is_equal else other).append(name)
    result = "so do their steps, epochs and tokens"
    if equal:
        result = f"their {' and '.join(equal)} differ by at most 1%"
        result += f", their {' and '.join(other)} by more" if other else ""
    remedy = " trainer.budget=steps gives all jobs the same steps." if "optimizer steps" in other else ""
    return [f"The jobs have different numbers of training rows; {result}.{remedy}"]
