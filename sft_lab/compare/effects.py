"""What each axis did: the jobs of each of its values, all else alike."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from sft_lab.compare.axes import SEED, ordered
from sft_lab.compare.collect import Job
from sft_lab.compare.noise import Difference, Rows, Spread


@dataclass(frozen=True)
class Level:
    """One value of an axis.

    Attributes:
        jobs: that have it, with their losses.
    """

    value: Any
    jobs: list[tuple[str, float]]

    @property
    def mean(self) -> float:
        """Mean loss of its jobs."""
        return float(np.mean([loss for _, loss in self.jobs]))

    def plain(self) -> dict[str, Any]:
        """Give it as JSON has it: mean, spread over the other axes, jobs."""
        losses = [loss for _, loss in self.jobs]
        sd = float(np.std(losses, ddof=1)) if len(losses) > 1 else None
        spread = {"lowest": min(losses), "highest": max(losses), "sd": sd}
        return {"value": self.value, "mean": self.mean, **spread, "jobs": [name for name, _ in self.jobs]}


@dataclass(frozen=True)
class Effect:
    """What an axis did.

    Attributes:
        levels: its values in order.
        matched: whether each value was tried with the same values of the other axes; only such jobs are counted then.
        difference: of the worst value from the best; None for the seed, which is no choice, and without row losses.
    """

    axis: str
    levels: list[Level]
    matched: bool
    difference: Difference | None

    @property
    def range(self) -> float:
        """From the best mean to the worst."""
        means = [level.mean for level in self.levels]
        return max(means) - min(means)

    @property
    def best(self) -> Level:
        """The value with the lowest mean."""
        return min(self.levels, key=lambda level: level.mean)

    def plain(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return {
            "axis": self.axis,
            "range": self.range,
            "matched": self.matched,
            "values": [level.plain() for level in self.levels],
            "best_to_worst": self.difference.plain() if self.difference else None,
        }


def effects(
    jobs: list[Job], losses: dict[str, float], nats: dict[str, np.ndarray], rows: Rows | None, spread: Spread
) -> list[Effect]:
    """Give the effect of each axis, the largest first.

    Args:
        jobs: that can be compared.
        losses: of each job, by name.
        nats: of each job's rows, by name, shape (rows,); empty without row losses.
        rows: the held-out rows, None without row losses.
        spread: of seeds.
    """
    found = []
    for axis in dict.fromkeys(key for job in jobs for key in job.axes):
        having = [job for job in jobs if axis in job.axes]
        groups, matched = _matched(axis, having)
        if len(groups) < 2:
            continue
        levels = [Level(value, [(job.name, losses[job.name]) for job in group]) for value, group in groups]
        means = [level.mean for level in levels]
        difference = None
        if rows and axis != SEED:
            best, worst = (
                np.stack([nats[job.name] for job in groups[at][1]]) for at in (np.argmin(means), np.argmax(means))
            )
            difference = rows.difference(best, worst, spread, alike=False)
        found.append(Effect(axis, levels, matched, difference))
    return sorted(found, key=lambda effect: (effect.axis == SEED, -effect.range))


def _matched(axis: str, jobs: list[Job]) -> tuple[list[tuple[Any, list[Job]]], bool]:
    """Give the jobs of each value, those alone whose other axes were tried with every value; all, if there are none."""
    values = ordered([job.axes[axis] for job in jobs])
    tried: dict[str, set[str]] = {}
    for job in jobs:
        tried.setdefault(_others(job, axis), set()).add(json.dumps(job.axes[axis], default=str))
    whole = [job for job in jobs if len(tried[_others(job, axis)]) == len(values)]
    chosen = whole or jobs
    groups = [(value, [job for job in chosen if job.axes[axis] == value]) for value in values]
    return groups, bool(whole)


def _others(job: Job, axis: str) -> str:
    return json.dumps({key: value for key, value in job.axes.items() if key != axis}, default=str)
