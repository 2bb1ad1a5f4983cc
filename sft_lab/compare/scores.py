"""What jobs are ranked by, and their losses on the held-out rows that all of them were scored on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import TYPE_CHECKING

import numpy as np

from sft_lab.compare.uncertainty import PairedBootstrap

if TYPE_CHECKING:
    from sft_lab.compare.collect import ComparedJob, RowLosses

MIN_ROWS = 2
TOKEN_AXES = ("template", "model")  # jobs that differ in one of these split the same text into other tokens


class Measure(StrEnum):
    """What jobs are ranked by: a key of ``summary.json``."""

    LOSS = "eval/loss"
    BITS_PER_BYTE = "eval/bits_per_byte"


class Obstacle(Enum):
    """Why finished jobs cannot be ranked."""

    OTHER_ROWS = auto()  # they were scored on different held-out rows
    NO_COMMON_ROWS = auto()  # no row was scored by all of them
    OTHER_TEXTS = auto()  # rows with the same id hold different texts


@dataclass(frozen=True)
class CommonRows:
    """The held-out rows that all jobs were scored on.

    Attributes:
        bootstrap: resamples of these rows.
        nats: what each row cost a job, by job name, shape (rows,).
        base_nats: the same of the job's base model; jobs whose base model lacks a row are missing.
    """

    bootstrap: PairedBootstrap
    nats: dict[str, np.ndarray]
    base_nats: dict[str, np.ndarray]


def choose_measure(jobs: list[ComparedJob], axes: list[str]) -> tuple[Measure, str]:
    """Return what to rank jobs by, and why it is not the loss per token.

    Losses per token cannot be compared where the same text is not the same tokens.
    """
    token_axes = [axis for axis in axes if axis.partition(".")[0] in TOKEN_AXES]
    if token_axes:
        return Measure.BITS_PER_BYTE, f"jobs differ in {', '.join(token_axes)}, and so in their tokens"

    scores = [losses for job in jobs for losses in (job.tuned, job.base) if losses is not None]
    for losses in scores[1:]:
        if losses.ids == scores[0].ids and not np.array_equal(losses.tokens, scores[0].tokens):
            return Measure.BITS_PER_BYTE, "the same rows have different numbers of tokens"
    return Measure.LOSS, ""


def find_common_rows(jobs: list[ComparedJob], measure: Measure) -> CommonRows | Obstacle:
    """Return the losses of all jobs on the rows they share, or why there are none.

    Args:
        jobs: finished jobs that all have row losses.
        measure: decides the weight of a row.
    """
    tuned = {job.name: job.tuned for job in jobs if job.tuned is not None}
    shared = set.intersection(*(set(losses.ids) for losses in tuned.values()))
    if len(shared) < MIN_ROWS:
        return Obstacle.NO_COMMON_ROWS

    ids = [row_id for row_id in next(iter(tuned.values())).ids if row_id in shared]
    aligned = {name: losses.select(ids) for name, losses in tuned.items()}
    first, *rest = (_row_weights(losses, measure) for losses in aligned.values())
    if not all(np.array_equal(weights, first) for weights in rest) or not first.sum() > 0:
        return Obstacle.OTHER_TEXTS

    bases = {job.name: job.base.select(ids) for job in jobs if job.base and set(job.base.ids) >= shared}
    return CommonRows(
        PairedBootstrap(first),
        {name: losses.nats for name, losses in aligned.items()},
        {name: base.nats for name, base in bases.items() if np.array_equal(_row_weights(base, measure), first)},
    )


def _row_weights(losses: RowLosses, measure: Measure) -> np.ndarray:
    """Return what the nats of rows are divided by, shape (rows,)."""
    return losses.tokens if measure == Measure.LOSS else losses.bytes * math.log(2)
