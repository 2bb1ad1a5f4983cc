"""The effect of each axis: jobs grouped by their value of it, all other axes alike."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_lab.compare.axes import SEED, sort_values

if TYPE_CHECKING:
    from sft_lab.compare.collect import ComparedJob
    from sft_lab.compare.scores import CommonRows
    from sft_lab.compare.uncertainty import LossDifference, SeedSpread


@dataclass(frozen=True)
class AxisLevel:
    """One value of an axis.

    Attributes:
        value: of the axis.
        losses: of the jobs that have this value, by job name.
    """

    value: Any
    losses: dict[str, float]

    @property
    def mean(self) -> float:
        """Mean loss of the jobs."""
        return float(np.mean(list(self.losses.values())))

    @property
    def lowest(self) -> float:
        """Lowest loss of the jobs."""
        return min(self.losses.values())

    @property
    def highest(self) -> float:
        """Highest loss of the jobs."""
        return max(self.losses.values())

    @property
    def sd(self) -> float | None:
        """Standard deviation of the jobs' losses over the other axes; None for one job."""
        return float(np.std(list(self.losses.values()), ddof=1)) if len(self.losses) > 1 else None


@dataclass(frozen=True)
class AxisEffect:
    """What the choice of an axis' value changed.

    Attributes:
        axis: key of the config.
        levels: the axis' values, in order.
        is_matched: whether every value was tried with the same values of the other axes; then only those
            jobs count.
        difference: of the worst value from the best; None for the seed, which nobody chooses, and without
            row losses.
    """

    axis: str
    levels: list[AxisLevel]
    is_matched: bool
    difference: LossDifference | None

    @property
    def range(self) -> float:
        """Distance from the best mean to the worst."""
        means = [level.mean for level in self.levels]
        return max(means) - min(means)

    @property
    def best(self) -> AxisLevel:
        """The value with the lowest mean."""
        return min(self.levels, key=lambda level: level.mean)

    @property
    def worst(self) -> AxisLevel:
        """The value with the highest mean."""
        return max(self.levels, key=lambda level: level.mean)


def measure_effects(
    jobs: list[ComparedJob], losses: dict[str, float], common: CommonRows | None, spread: SeedSpread
) -> list[AxisEffect]:
    """Return the effect of each axis, the largest first and the seed last.

    Args:
        jobs: that can be compared.
        losses: of each job, by name.
        common: their losses on each row; None without row losses.
        spread: over seeds.
    """
    effects = []
    for axis in dict.fromkeys(key for job in jobs for key in job.axes):
        groups, is_matched = _group_by_value(axis, [job for job in jobs if axis in job.axes])
        if len(groups) < 2:
            continue

        levels = [AxisLevel(value, {job.name: losses[job.name] for job in group}) for value, group in groups]
        effect = AxisEffect(axis, levels, is_matched, None)
        if common and axis != SEED:
            best, worst = (_stack_nats(level, common) for level in (effect.best, effect.worst))
            difference = common.bootstrap.compare(best, worst, spread, are_replicates=False)
            effect = AxisEffect(axis, levels, is_matched, difference)
        effects.append(effect)
    return sorted(effects, key=lambda effect: (effect.axis == SEED, -effect.range))


def _stack_nats(level: AxisLevel, common: CommonRows) -> np.ndarray:
    """Return what each row cost the jobs of a value, shape (jobs, rows)."""
    return np.stack([common.nats[name] for name in level.losses])


def _group_by_value(axis: str, jobs: list[ComparedJob]) -> tuple[list[tuple[Any, list[ComparedJob]]], bool]:
    """Return the jobs of each value of an axis, and whether they are matched.

    Jobs are matched if their other axes were tried with every value. Without matched jobs, all jobs count.
    """
    values = sort_values([job.axes[axis] for job in jobs])
    tried: dict[str, set[str]] = {}
    for job in jobs:
        tried.setdefault(_without(job, axis), set()).add(json.dumps(job.axes[axis], default=str))

    matched = [job for job in jobs if len(tried[_without(job, axis)]) == len(values)]
    counted = matched or jobs
    groups = [(value, [job for job in counted if job.axes[axis] == value]) for value in values]
    return groups, bool(matched)


def _without(job: ComparedJob, axis: str) -> str:
    """Return a job's other axes as a key."""
    return json.dumps({key: value for key, value in job.axes.items() if key != axis}, default=str)
