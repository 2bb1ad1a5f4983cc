"""Twins: jobs whose choices of rows kept the same rows, so that one training is the result of all."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from sft_lab.compare.axes import format_value
from sft_lab.compare.collect import ComparedJob
from sft_lab.run.identity import SELECTING_STAGES


class AnyOf(tuple[Any, ...]):
    """The values of an axis in several jobs that are shown as one."""

    __slots__ = ()

    def __str__(self) -> str:
        return " or ".join(dict.fromkeys(map(format_value, self)))


def merge_twins(jobs: list[ComparedJob]) -> list[ComparedJob]:
    """Return the jobs, twins replaced by the one that trained, with the axis values of all; a repeated job stays."""
    groups: dict[str, list[ComparedJob]] = {}
    for job in jobs:
        groups.setdefault(training_of(job), []).append(job)
    parts = [part for group in groups.values() for part in _distinct(group)]
    return [_merge(part) if len(part) > 1 else part[0] for part in parts]


def _distinct(group: list[ComparedJob]) -> list[list[ComparedJob]]:
    """Divide jobs with one training into parts in which each choice of rows comes once."""
    shared = {job.summary.get("same_as") for job in group} - {None}  # results that one of them took from another

    def stands_alone(job: ComparedJob) -> bool:
        return shared.isdisjoint({job.folder.path.name, job.summary.get("same_as")})

    parts: list[dict[str, ComparedJob]] = []
    for job in sorted(group, key=stands_alone):
        choice = json.dumps([job.axes[axis] for axis in _row_axes(job)], default=str)
        part = next((part for part in parts if choice not in part), None)
        if part is None:
            parts.append(part := {})
        part[choice] = job
    return [sorted(part.values(), key=group.index) for part in parts]


def _row_axes(job: ComparedJob) -> list[str]:
    return [axis for axis in job.axes if axis.partition(".")[0] in SELECTING_STAGES]


def training_of(job: ComparedJob) -> str:
    """Return a key of a finished job's training; of any other job its own name."""
    row_axes = _row_axes(job)
    if not (job.is_judged and job.train_fingerprint and row_axes):
        return f"job {job.folder.path}"
    rest = {axis: value for axis, value in job.axes.items() if axis not in row_axes}
    return json.dumps([job.train_fingerprint, job.fingerprint, rest], default=str)


def _merge(group: list[ComparedJob]) -> ComparedJob:
    trained = min(group, key=lambda job: job.summary.get("same_as") is not None)
    axes = {}
    for axis in dict.fromkeys(key for job in group for key in job.axes):
        values = {json.dumps(job.axes.get(axis), default=str): job.axes.get(axis) for job in group}
        axes[axis] = trained.axes[axis] if len(values) == 1 else AnyOf(values.values())
    return replace(trained, axes=axes, twins=group)


def unmerged(jobs: list[ComparedJob]) -> list[ComparedJob]:
    """Return a copy of each job for each of its twins: one training, at the axis values of each."""
    return [replace(job, axes=twin.axes, twins=[]) for job in jobs for twin in job.twins or [job]]
