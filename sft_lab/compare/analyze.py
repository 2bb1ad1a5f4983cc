"""The analysis: which setting is best, on which rows and over which seeds, and how certain that is."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_lab.compare.axes import SEED
from sft_lab.compare.collect import ComparedJob, has_diverged, without_prepared
from sft_lab.compare.effects import AxisEffect, measure_effects
from sft_lab.compare.job_order import Order
from sft_lab.compare.merged_twins import merge_twins, training_of, unmerged
from sft_lab.compare.scores import CommonRows, Measure, Obstacle, choose_measure, find_common_rows
from sft_lab.compare.trials import SearchHistory, read_search
from sft_lab.compare.uncertainty import (
    PRIOR_SHARE,
    RANDOM_START_SHARE,
    WINNING_CLAIMS,
    LossDifference,
    SeedSpread,
    estimate_seed_spread,
)
from sft_lab.core.io import is_number
from sft_lab.core.text import count_of
from sft_lab.core.tolerant_readers import extra_keys
from sft_lab.core.types import RunState

if TYPE_CHECKING:
    from collections.abc import Iterable

UNKNOWN = "unknown"  # fingerprint of jobs that recorded none


@dataclass(frozen=True)
class Setting:
    """Finished jobs that differ in nothing but the seed, one for each seed.

    Attributes:
        axes: values that the jobs share; the seed is not among them.
        jobs: in the order of their seeds.
        losses: of the jobs, by the measure.
        nats: what each held-out row cost each job, shape (seeds, rows); None without row losses.
        from_best: how much worse it is than the best setting; None for that one, and without row losses.
    """

    axes: dict[str, Any]
    jobs: list[ComparedJob]
    losses: list[float]
    nats: np.ndarray | None
    from_best: LossDifference | None = None

    @property
    def loss(self) -> float:
        """The mean of the losses."""
        return float(np.mean(self.losses))


@dataclass(frozen=True)
class BaseModelScore:
    """Held-out loss of a base model that jobs started from.

    Attributes:
        losses: by measure; None where it was not measured.
        prompted: the same with a system prompt and examples; empty where that was not measured.
        axes: values that its jobs share; empty where all jobs started from one base model.
        jobs: names of the jobs that started from it.
        extras: numbers of custom metrics and benchmark tasks.
    """

    losses: dict[Measure, float | None]
    prompted: dict[Measure, float]
    axes: dict[str, Any]
    jobs: list[str]
    extras: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Jobs side by side.

    Attributes:
        jobs: in the order of their axes, finished or not; twins as one job.
        axes: keys of the config that differ between jobs, the seed last.
        measure: what jobs are ranked by.
        measure_reason: why it is not the loss per token; empty where it is.
        base_models: that jobs started from.
        fingerprints: of held-out rows, each with the names of the jobs scored on them.
        obstacle: why jobs cannot be ranked; None where they can, or where none has finished.
        settings: best first; empty where jobs cannot be ranked.
        best: job with the lowest value of the measure; None where jobs cannot be ranked.
        over_base: best setting's distance from its base model; negative where it is better.
        effects: of the axes, the largest first.
        row_count: held-out rows that all jobs were scored on; 0 without row losses.
        unscored: finished jobs without row losses, by name.
        spread: over seeds.
        search: that the jobs are trials of; None where they are of none.
        extras: keys of the numbers of custom metrics and benchmark tasks that jobs have.
        order: key of the number by which the jobs are sorted; None: by their axes.
        prepared: number of folders left out, since only their data was prepared.
    """

    jobs: list[ComparedJob]
    axes: list[str]
    measure: Measure
    measure_reason: str
    base_models: list[BaseModelScore]
    fingerprints: dict[str, list[str]]
    obstacle: Obstacle | None = None
    settings: list[Setting] = field(default_factory=list)
    best: ComparedJob | None = None
    over_base: LossDifference | None = None
    effects: list[AxisEffect] = field(default_factory=list)
    row_count: int = 0
    unscored: list[str] = field(default_factory=list)
    spread: SeedSpread = field(default_factory=lambda: estimate_seed_spread([]))
    search: SearchHistory | None = None
    extras: list[str] = field(default_factory=list)
    order: Order | None = None
    prepared: int = 0

    def __repr__(self) -> str:
        from sft_lab.compare.claims import headline

        result = headline(self)
        unfinished = Counter(job.state for job in self.jobs if job.state != RunState.FINISHED)
        jobs = ", ".join(
            [count_of(len(self.jobs), "job"), *(f"{count} {state}" for state, count in unfinished.items())]
        )
        return f"Comparison({jobs}; {result.badge}: {result.sentences[0]})"

    def _repr_html_(self) -> str:
        from sft_lab.compare.job_table import build_html

        return build_html(self)

    @property
    def winner(self) -> Setting | None:
        """The setting that may be called better than every other; None where chance may explain its lead."""
        claims = [setting.from_best and setting.from_best.claim for setting in self.settings[1:]]
        return self.settings[0] if claims and all(claim in WINNING_CLAIMS for claim in claims) else None

    @property
    def rivals(self) -> list[Setting]:
        """The settings whose distance from the best chance may explain, the nearest first."""
        return [
            setting
            for setting in self.settings[1:]
            if setting.from_best and setting.from_best.claim not in WINNING_CLAIMS
        ]


def analyze(jobs: list[ComparedJob], order: Order | None = None) -> Comparison:
    """Return the comparison of jobs, as ``collect_jobs`` reads them."""
    compared = without_prepared(jobs)
    prepared = len(jobs) - len(compared)
    jobs = merge_twins(compared)
    extras = list(dict.fromkeys(key for job in jobs for key in extra_keys(job.numbers)))
    if order:
        jobs = order.sort(jobs)
    axes = list(dict.fromkeys(key for job in jobs for key in job.axes))
    axes.sort(key=lambda axis: axis == SEED)
    judged = [job for job in jobs if job.is_judged]
    measure, reason = choose_measure(judged, axes)

    fingerprints: dict[str, list[str]] = {}
    for job in judged:
        fingerprints.setdefault(job.fingerprint or UNKNOWN, []).append(job.name)

    bases, search = _score_base_models(judged or jobs), read_search(jobs)
    comparison = Comparison(
        jobs, axes, measure, reason, bases, fingerprints, search=search, extras=extras, order=order, prepared=prepared
    )
    if len(set(fingerprints) - {UNKNOWN}) > 1:
        return replace(comparison, obstacle=Obstacle.OTHER_ROWS)
    return _rank(comparison, judged) if judged else comparison


def _score_base_models(jobs: list[ComparedJob]) -> list[BaseModelScore]:
    """Return the base models of jobs; losses that agree to six digits count as one model."""
    groups: dict[tuple[float | None, ...], list[ComparedJob]] = {}
    for job in jobs:
        values = [job.numbers.get(key) for key in ("base/eval_loss", "base/eval_bits_per_byte")]
        losses = tuple(round(value, 6) if is_number(value) else None for value in values)
        if any(loss is not None for loss in losses):
            groups.setdefault(losses, []).append(job)

    return [
        BaseModelScore(
            losses=dict(zip(Measure, losses, strict=True)),
            prompted=_prompted_losses(group[0]),
            axes=_shared_axes(group) if len(groups) > 1 else {},
            jobs=[job.name for job in group],
            extras=_base_extras(group[0]),
        )
        for losses, group in groups.items()
    ]


def _prompted_losses(job: ComparedJob) -> dict[Measure, float]:
    values = {measure: job.summary.get(f"prompted/{measure.replace('/', '_')}") for measure in Measure}
    return {measure: value for measure, value in values.items() if is_number(value)}


def _base_extras(job: ComparedJob) -> dict[str, float]:
    values = {key: job.numbers.get(f"base/{key}") for key in extra_keys(job.numbers)}
    return {key: value for key, value in values.items() if is_number(value)}


def _shared_axes(jobs: list[ComparedJob]) -> dict[str, Any]:
    first, *rest = (job.axes for job in jobs)
    return {key: value for key, value in first.items() if all(axes.get(key) == value for axes in rest)}


def _rank(comparison: Comparison, judged: list[ComparedJob]) -> Comparison:
    """Return the comparison with settings, best job, differences and effects filled in."""
    unscored = [job.name for job in judged if job.tuned is None]
    common = None if unscored else find_common_rows(judged, comparison.measure)
    if isinstance(common, Obstacle):
        return replace(comparison, obstacle=common)

    losses = _losses(judged, comparison.measure, common)
    jobs = [job for job in judged if job.name in losses]
    if not jobs:
        return replace(comparison, unscored=unscored)

    settings = _group_settings(jobs, losses, common)
    spread = estimate_seed_spread(
        [np.array([losses[job.name] for job in setting.jobs]) for setting in settings],
        _prior_share(settings[0].jobs[0]),
    )
    steady = [job for job in jobs if not has_diverged(job)]  # a broken run would dominate the mean of its value
    return replace(
        comparison,
        settings=_measure_from_best(settings, common, spread),
        best=min(jobs, key=lambda job: losses[job.name]),
        over_base=_measure_over_base(settings[0], common, spread),
        effects=measure_effects(unmerged(steady), losses, common, spread),
        row_count=common.bootstrap.row_count if common else 0,
        unscored=unscored,
        spread=spread,
    )


def _losses(jobs: Iterable[ComparedJob], measure: Measure, common: CommonRows | None) -> dict[str, float]:
    """Return the finite losses by job name: on the common rows, else as the summaries have them."""
    if common:
        losses = {name: float(common.bootstrap.losses(nats)) for name, nats in common.nats.items()}
    else:
        losses = {job.name: float(value) for job in jobs if is_number(value := job.summary.get(measure))}
    return {name: loss for name, loss in losses.items() if math.isfinite(loss)}


def _group_settings(jobs: list[ComparedJob], losses: dict[str, float], common: CommonRows | None) -> list[Setting]:
    """Return the settings, best first; of several jobs with one seed the first counts."""
    firsts = {job.name: job.twins[0] if job.twins else job for job in jobs}  # of a seed with more twins or with fewer
    keys: dict[str, str] = {}  # by training: a job that repeats one of several twins has the setting of all
    for first in (firsts[job.name] for job in sorted(jobs, key=lambda job: -len(job.twins))):
        keys.setdefault(training_of(first), json.dumps(_axes_without_seed(first), default=str))

    groups: dict[str, dict[Any, ComparedJob]] = {}
    for job in jobs:
        by_seed = groups.setdefault(keys[training_of(firsts[job.name])], {})
        by_seed.setdefault(job.axes.get(SEED), job)  # the same run twice is no replicate

    settings = []
    for group in (list(each.values()) for each in groups.values()):
        nats = np.stack([common.nats[job.name] for job in group]) if common else None
        axes = _axes_without_seed(max(group, key=lambda job: len(job.twins)))
        settings.append(Setting(axes, group, [losses[job.name] for job in group], nats))
    return sorted(settings, key=lambda setting: setting.loss)


def _axes_without_seed(job: ComparedJob) -> dict[str, Any]:
    return {key: value for key, value in job.axes.items() if key != SEED}


def _prior_share(job: ComparedJob) -> float:
    """Return the expected spread over seeds: larger where weights started at random and went far."""
    base, loss = job.summary.get("base/eval_loss"), job.summary.get("eval/loss")
    if (job.config.get("model") or {}).get("kind") != "tiny_random" or not base or not loss:
        return PRIOR_SHARE
    return max(PRIOR_SHARE, RANDOM_START_SHARE * abs(math.log(loss / base)))


def _measure_from_best(settings: list[Setting], common: CommonRows | None, spread: SeedSpread) -> list[Setting]:
    """Return the settings, each but the best with its distance from the best."""
    best, *rest = settings
    if common is None or best.nats is None:
        return settings

    measured = [
        replace(setting, from_best=common.bootstrap.compare(best.nats, setting.nats, spread))
        for setting in rest
        if setting.nats is not None
    ]
    return [best, *measured]


def _measure_over_base(best: Setting, common: CommonRows | None, spread: SeedSpread) -> LossDifference | None:
    """Return the best setting's distance from its base model, where that was scored on the same rows."""
    if common is None or best.nats is None or any(job.name not in common.base_nats for job in best.jobs):
        return None
    base = np.stack([common.base_nats[job.name] for job in best.jobs]).mean(axis=0)
    return common.bootstrap.compare(base[None], best.nats, spread, first_is_trained=False)
