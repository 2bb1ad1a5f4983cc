"""The comparison: which setting was best, over which rows and seeds, and what may be claimed. And ``compare.json``."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sft_lab.compare import page, words
from sft_lab.compare.axes import SEED
from sft_lab.compare.collect import Job, RowLosses, collect, is_diverged, is_number
from sft_lab.compare.effects import Effect, effects
from sft_lab.compare.noise import PRIOR_SPREAD, RANDOM_START, WINS, Difference, Rows, Spread, seed_spread
from sft_lab.errors import FolderError
from sft_lab.files import write_json

LOSS, BITS = "eval/loss", "eval/bits_per_byte"
NEED_BITS = ("template", "model")  # axes over which tokens are not the same
MIN_ROWS = 2


@dataclass(frozen=True)
class Setting:
    """Finished jobs that differ by nothing but the seed, one for each.

    Attributes:
        axes: without the seed.
        loss: mean over the jobs, by the measure.
        nats: of their held-out rows, shape (seeds, rows); None without row losses.
        from_best: how much worse it is than the best setting; None for that one, and where it cannot be told.
    """

    axes: dict[str, Any]
    jobs: list[Job]
    loss: float
    nats: np.ndarray | None
    from_best: Difference | None = None


@dataclass(frozen=True)
class Base:
    """A base model that jobs began from.

    Attributes:
        axes: of those jobs, where it is not the same for all.
        prompted: its losses with a system prompt and examples, where that was measured.
    """

    loss: float | None
    bits_per_byte: float | None
    axes: dict[str, Any]
    jobs: list[str]
    prompted: dict[str, float] = field(default_factory=dict)


@dataclass
class Comparison:
    """Jobs side by side.

    Attributes:
        axes: keys that differ, in order.
        measure: what jobs are ranked by, ``eval/loss`` or ``eval/bits_per_byte``.
        why: the measure was chosen.
        fingerprints: of held-out rows, with the jobs that have them.
        settings: best first; empty where jobs cannot be compared.
        best: job with the lowest value of the measure; None where jobs cannot be compared.
        over_base: of the best setting from its base model; below zero, it is better.
        rows: held-out rows that all were scored on; 0 without row losses.
        spread: of seeds.
        alarms: what forbids to compare.
        json: path of compare.json.
        page: path of compare.html.
    """

    jobs: list[Job]
    axes: list[str]
    measure: str = LOSS
    why: str = ""
    bases: list[Base] = field(default_factory=list)
    fingerprints: dict[str, list[str]] = field(default_factory=dict)
    settings: list[Setting] = field(default_factory=list)
    best: Job | None = None
    over_base: Difference | None = None
    effects: list[Effect] = field(default_factory=list)
    rows: int = 0
    spread: Spread = field(default_factory=lambda: seed_spread([]))
    alarms: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    json: Path = Path()
    page: Path = Path()

    @property
    def winner(self) -> Setting | None:
        """The setting that may be called better than every other one."""
        others = [setting.from_best for setting in self.settings[1:]]
        wins = bool(others) and all(one is not None and one.claim in WINS for one in others)
        return self.settings[0] if wins else None

    def plain(self) -> dict[str, Any]:
        """Give what compare.json holds."""
        first = self.settings[0] if self.settings else None
        return {
            "measure": self.measure,
            "jobs": [
                {
                    "job": job.name, "state": job.state, "axes": job.axes, "summary": job.summary or None,
                    "folder": str(job.folder.path), "error": job.error or None, "so_far": job.numbers,
                    "held_out_fingerprint": job.fingerprint,
                }
                for job in self.jobs
            ],
            "base": [
                {"eval/loss": base.loss, "eval/bits_per_byte": base.bits_per_byte, "prompted": base.prompted,
                 "axes": base.axes, "jobs": base.jobs}
                for base in self.bases
            ],
            "effects": [effect.plain() for effect in self.effects],
            "best": {
                "job": self.best.name,
                "axes": first.axes,
                "jobs": _names(first),
                "over_base": self.over_base.plain() if self.over_base else None,
            } if self.best and first else None,
            "winner": {
                "axes": self.winner.axes,
                "jobs": _names(self.winner),
                "claim": max((one.from_best.claim for one in self.settings[1:] if one.from_best), key=WINS.index),
            } if self.winner else None,
            "settings": [
                {
                    "axes": setting.axes, "jobs": _names(setting), "mean": setting.loss,
                    "from_best": setting.from_best.plain() if setting.from_best else None,
                }
                for setting in self.settings
            ],
            "seed_spread": {"share_of_loss": self.spread.share, "replicates": self.spread.replicates},
            "held_out_rows": self.rows,
            "held_out_fingerprints": self.fingerprints,
            "alarms": self.alarms,
            "notes": self.notes,
        }  # fmt: skip


def _names(setting: Setting) -> list[str]:
    return [job.name for job in setting.jobs]


def compare(paths: list[Path], out: Path | None = None) -> Comparison:
    """Compare the jobs of sweep and run folders, and write compare.json and compare.html.

    Args:
        paths: sweep folders, run folders, or folders of either.
        out: where to write; None: into the one folder given, the current one when there are several.

    Raises:
        FolderError: for a path without run folders, and when the result cannot be written.
    """
    found = weigh(collect(paths))
    place = (out or (paths[0] if len(paths) == 1 else Path())).absolute()
    found.json, found.page = place / "compare.json", place / "compare.html"
    try:
        write_json(found.json, json.loads(json.dumps(found.plain(), default=str)))
        page.write(found)
    except OSError as error:
        raise FolderError(f"{place}: cannot be written ({error.strerror}); choose another folder with --out") from error
    return found


def weigh(jobs: list[Job]) -> Comparison:
    """Compare jobs that were read."""
    found = Comparison(jobs, list(dict.fromkeys(key for job in jobs for key in job.axes)))
    found.axes.sort(key=lambda axis: axis == SEED)
    judged = [job for job in jobs if job.judged]
    found.bases = _bases(judged or [job for job in jobs if job.numbers.get("base/eval_loss") is not None])
    for job in judged:
        found.fingerprints.setdefault(job.fingerprint or "unknown", []).append(job.name)
    found.measure, found.why = _measure(judged, found.axes)
    if len(set(found.fingerprints) - {"unknown"}) > 1:
        found.alarms.append(words.other_rows(found.fingerprints))
    elif judged:
        _rank(found, judged)
    found.notes += words.notes(found)
    return found


def _bases(jobs: list[Job]) -> list[Base]:
    groups: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        pair = [job.numbers.get(name) for name in ("base/eval_loss", "base/eval_bits_per_byte")]
        if any(map(is_number, pair)):
            groups.setdefault(tuple(round(value, 6) if is_number(value) else None for value in pair), []).append(job)
    return [
        Base(loss, bits, _common(group) if len(groups) > 1 else {}, [job.name for job in group], _prompted(group[0]))
        for (loss, bits), group in groups.items()
    ]


def _prompted(job: Job) -> dict[str, float]:
    found = {
        name: job.summary.get(f"prompted/{name.replace('/', '_')}") for name in ("eval/loss", "eval/bits_per_byte")
    }
    return {name: value for name, value in found.items() if is_number(value)}


def _common(jobs: list[Job]) -> dict[str, Any]:
    first = jobs[0].axes
    return {key: value for key, value in first.items() if all(job.axes.get(key) == value for job in jobs)}


def _measure(jobs: list[Job], axes: list[str]) -> tuple[str, str]:
    """Give what to rank by, and why: a loss per token says nothing where the tokens are not the same."""
    if found := [axis for axis in axes if axis.partition(".")[0] in NEED_BITS]:
        return BITS, f"jobs differ in {', '.join(found)}, so that their tokens are not the same"
    rows = [losses for job in jobs for losses in (job.tuned, job.base) if losses is not None]
    if any(one.ids == rows[0].ids and not np.array_equal(one.tokens, rows[0].tokens) for one in rows[1:]):
        return BITS, "the same rows are not the same number of tokens to all"
    return LOSS, ""


def _rank(found: Comparison, judged: list[Job]) -> None:
    """Fill in settings, best job, differences and effects."""
    rows, nats, base_nats = _on_common_rows(found, judged)
    if found.alarms:
        return
    losses = {job.name: float(value) for job in judged if is_number(value := job.summary.get(found.measure))}
    if rows:
        losses = {name: float(rows.loss(one)) for name, one in nats.items()}
    jobs = [job for job in judged if math.isfinite(losses.get(job.name, math.nan))]
    if not jobs:
        return
    groups: dict[str, dict[Any, Job]] = {}
    for job in jobs:  # the first of each seed: the same run twice is no replicate
        groups.setdefault(json.dumps(_unseeded(job), default=str), {}).setdefault(job.axes.get(SEED), job)
    settings = [_setting(list(group.values()), losses, nats) for group in groups.values()]
    settings.sort(key=lambda setting: setting.loss)
    found.spread = seed_spread(
        [np.array([losses[job.name] for job in setting.jobs]) for setting in settings], _prior(settings[0])
    )
    first = settings[0]
    found.settings = settings
    if rows and first.nats is not None:
        found.rows = rows.count
        found.settings = [first] + [
            Setting(one.axes, one.jobs, one.loss, one.nats, rows.difference(first.nats, one.nats, found.spread))
            for one in settings[1:]
            if one.nats is not None
        ]
        if all(job.name in base_nats for job in first.jobs):
            base = np.stack([base_nats[job.name] for job in first.jobs]).mean(axis=0)
            found.over_base = rows.difference(base[None], first.nats, found.spread, seeded=False)
    found.best = min(jobs, key=lambda job: losses[job.name])
    steady = [job for job in jobs if not is_diverged(job)]  # one broken run would be the mean of its value
    found.effects = effects(steady, losses, nats, rows, found.spread)


def _prior(best: Setting) -> float:
    """The spread of seeds to expect: more where weights started at random and went far."""
    job = best.jobs[0]
    base, loss = job.summary.get("base/eval_loss"), job.summary.get(LOSS)
    if (job.config.get("model") or {}).get("kind") != "tiny_random" or not base or not loss:
        return PRIOR_SPREAD
    return max(PRIOR_SPREAD, RANDOM_START * abs(math.log(loss / base)))


def _unseeded(job: Job) -> dict[str, Any]:
    return {key: value for key, value in job.axes.items() if key != SEED}


def _setting(jobs: list[Job], losses: dict[str, float], nats: dict[str, np.ndarray]) -> Setting:
    stacked = np.stack([nats[job.name] for job in jobs]) if nats else None
    return Setting(_unseeded(jobs[0]), jobs, float(np.mean([losses[job.name] for job in jobs])), stacked)


def _on_common_rows(
    found: Comparison, judged: list[Job]
) -> tuple[Rows | None, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Give the rows that all jobs were scored on, and by name the nats of each job and of its base model on them."""
    without = [job.name for job in judged if job.tuned is None]
    if without:
        found.notes.append(f"no eval.parquet in {', '.join(without[:3])}: losses are compared without intervals")
        return None, {}, {}
    tuned = {job.name: job.tuned for job in judged if job.tuned is not None}
    shared = set.intersection(*(set(losses.ids) for losses in tuned.values()))
    if len(shared) < MIN_ROWS:
        found.alarms.append("The jobs have no held-out rows in common, so they are not compared.")
        return None, {}, {}
    ids = [row_id for row_id in next(iter(tuned.values())).ids if row_id in shared]
    cut = {name: losses.of(ids) for name, losses in tuned.items()}
    weights = [_weight(losses, found.measure) for losses in cut.values()]
    if not all(np.array_equal(one, weights[0]) for one in weights) or not weights[0].sum() > 0:
        found.alarms.append("The same held-out rows have not the same text in all jobs, so they are not compared.")
        return None, {}, {}
    bases = {job.name: job.base.of(ids) for job in judged if job.base and set(job.base.ids) >= shared}
    alike = {name: base for name, base in bases.items() if np.array_equal(_weight(base, found.measure), weights[0])}
    return (
        Rows(weights[0]),
        {name: losses.nats for name, losses in cut.items()},
        {name: base.nats for name, base in alike.items()},
    )


def _weight(losses: RowLosses, measure: str) -> np.ndarray:
    return losses.tokens if measure == LOSS else losses.bytes * math.log(2)
