"""``compare.html``: all jobs on one page that needs no other file and runs no script.

Filtering and coloring are CSS: each mark of a job carries a class for each of its axis values, and rules
with ``:has()`` ask the page's check boxes.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from sft_lab.compare import charts, claims, job_table
from sft_lab.compare.axes import SEED, format_value, short_names, sort_values
from sft_lab.compare.charts import JobMark
from sft_lab.compare.collect import ComparedJob
from sft_lab.compare.notes import notes_on
from sft_lab.compare.palette import GRAY, Color, choose_colors
from sft_lab.compare.scores import Measure
from sft_lab.compare.trials import describe_search
from sft_lab.core.io import is_number
from sft_lab.report.formatting import with_minus
from sft_lab.report.html_report import VERDICTS
from sft_lab.report.pages import template_environment
from sft_lab.report.style import COLORS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from markupsafe import Markup

    from sft_lab.compare.analyze import Comparison
    from sft_lab.compare.effects import AxisEffect
    from sft_lab.core.types import Curve

MAX_LEVELS = 8  # values of an axis up to which each is a group; more numbers, as a search tries them, are a line
WIDE = 20.0  # between the lowest and the highest of them: drawn by factors
MAX_HOVERED = 60  # jobs up to which the pointer on a row of the table highlights the job's curves
SAME_BASES = 0.02  # base models whose losses differ by less, as between seeds, share one line in a chart
NO_VALUE = "not set"  # name of the value of jobs whose config lacks the key
BASE_LABELS = {"base": "base model", "prompted_base": "base model, prompted"}


class AxisValue(NamedTuple):
    """A value of an axis on the page: its class, its name and its color."""

    key: str
    name: str
    color: Color


class PageAxis(NamedTuple):
    """An axis on the page: its class, its short name, its key in the config and its values."""

    key: str
    name: str
    path: str
    values: list[AxisValue]


class SampleCard(NamedTuple):
    """A model's answer to a prompt: the model, the axes of a base model's jobs, the text and the job's classes."""

    kind: str
    label: str
    axes: str
    text: Any
    classes: str = ""


def render_page(comparison: Comparison, folder: Path) -> str:
    """Return the page's HTML.

    Args:
        comparison: what it shows.
        folder: where the page will be, for links to the jobs' reports.
    """
    template = template_environment(Path(__file__).parent).get_template("compare.html.jinja")
    return template.render(_content(comparison, folder))


def _content(comparison: Comparison, folder: Path) -> dict[str, Any]:
    axes = _page_axes(comparison)
    marks = _JobMarks(comparison, axes)
    jobs = comparison.jobs
    parents = {job.folder.path.parent for job in jobs}
    row_counts = [job.numbers.get("train_rows") for job in jobs]
    return {
        "title": parents.pop().name if len(parents) == 1 else "Comparison",
        "comparison": comparison,
        "unit": claims.UNITS[comparison.measure],
        "headline": claims.headline(comparison),
        "notes": notes_on(comparison),
        "axes": axes,
        "first_axis": _axis_to_color_by(comparison),
        "columns": list(job_table.columns_of(comparison)),
        "rows": [
            {
                "row": row,
                "classes": marks.classes(row.job) if row.job else "",
                "report": _report_link(row.job, folder) if row.job else "",
            }
            for row in job_table.build_rows(comparison)
        ],
        "tones": {name.replace("_", " "): tone for name, (tone, _) in VERDICTS.items()},
        "hovered_jobs": list(marks.keys.values()) if len(jobs) <= MAX_HOVERED else [],
        "curves": _curves(comparison, marks),
        "scatters": _scatters(comparison, marks),
        "search": _search(comparison, marks),
        "effects": _effects(comparison, marks),
        "distances": _distances(comparison, marks),
        "samples": _samples(comparison, marks),
        "same_row_count": _only_value(row_counts),
        "colors": COLORS,
    }


def _axis_to_color_by(comparison: Comparison) -> int:
    """Return the index of the axis that mattered most."""
    choices = [effect.axis for effect in comparison.effects if effect.axis != SEED]
    return comparison.axes.index(choices[0]) if choices else 0


def _page_axes(comparison: Comparison) -> list[PageAxis]:
    names = short_names(comparison.axes)
    axes = []
    for number, path in enumerate(comparison.axes):
        values = sort_values([job.axes.get(path) for job in comparison.jobs if job.config])
        known = [value for value in values if value is not None]
        colors = [*choose_colors(len(known), is_numeric=all(map(is_number, known))), GRAY]
        page_values = [
            AxisValue(f"v{number}-{index}", _value_name(value), color)
            for index, (value, color) in enumerate(zip(values, colors, strict=False))
        ]
        axes.append(PageAxis(f"a{number}", names[path], path, page_values))
    return axes


def _value_name(value: Any) -> str:
    return NO_VALUE if value is None else format_value(value)


class _JobMarks:
    """CSS classes and names of jobs, for each mark that shows one."""

    def __init__(self, comparison: Comparison, axes: list[PageAxis]) -> None:
        self.names = short_names(comparison.axes)
        self.keys = {job.name: f"j{number}" for number, job in enumerate(comparison.jobs)}
        self._values = {axis.path: {value.name: value.key for value in axis.values} for axis in axes}
        self._best = comparison.best

    def value_classes(self, axes: dict[str, Any]) -> str:
        """Return the classes of axis values; a missing value has one only where a job lacks it too."""
        classes = [keys.get(_value_name(axes.get(path))) for path, keys in self._values.items()]
        return " ".join(filter(None, classes))

    def classes(self, job: ComparedJob) -> str:
        values = self.value_classes(job.axes) if job.config else ""
        best = "best" if job is self._best else ""
        return " ".join(filter(None, ["job", self.keys[job.name], values, best]))

    def describe(self, axes: dict[str, Any]) -> str:
        return claims.describe_axes(axes, self.names)

    def name(self, job: ComparedJob) -> str:
        return self.describe(job.axes) or job.name

    def mark(self, job: ComparedJob, points: Curve) -> JobMark:
        return JobMark(self.classes(job), self.name(job), points)

    def dot(self, job: ComparedJob, x: float, y: float) -> JobMark:
        """Return a point with its value in the tooltip."""
        return JobMark(self.classes(job), f"{self.name(job)}: {y:.4f}", [(x, y)])


def _report_link(job: ComparedJob, folder: Path) -> str:
    """Return the path from the page to a job's report, quoted for a link; empty where there is no report."""
    return quote(os.path.relpath(job.folder.report, folder)) if job.folder.report.exists() else ""


def _only_value(values: Iterable[Any]) -> Any:
    """Return the value that all known ones share; None if they differ."""
    known = {value for value in values if value is not None}
    return known.pop() if len(known) == 1 else None


def _base_losses(comparison: Comparison) -> list[float]:
    losses = [base.losses[comparison.measure] for base in comparison.base_models]
    return [loss for loss in losses if loss is not None]


def _best_last(comparison: Comparison) -> list[ComparedJob]:
    """Return the jobs in the order they are drawn: the best in front of the others."""
    return sorted(comparison.jobs, key=lambda job: job is comparison.best)


def _curves(comparison: Comparison, marks: _JobMarks) -> dict[str, Markup | None]:
    measure = comparison.measure
    jobs, bases = _best_last(comparison), _base_losses(comparison)
    if bases and max(bases) - min(bases) <= SAME_BASES * max(bases):
        bases = bases[:1]
    return {
        "held_out": charts.draw_curves(
            "held-out-curves",
            "Held-out loss of each job by optimizer step",
            [marks.mark(job, job.curve(measure)) for job in jobs],
            bases,
            claims.UNITS[measure],
        ),
        "train": charts.draw_curves(
            "training-curves",
            "Training loss of each job by optimizer step",
            [marks.mark(job, job.curve("train/loss")) for job in jobs],
            [],
            claims.UNITS[Measure.LOSS],
        ),
    }


def _scatters(comparison: Comparison, marks: _JobMarks) -> dict[str, Markup | None]:
    measure, jobs = comparison.measure, _best_last(comparison)

    def dots(x_key: str, y_key: str) -> list[JobMark]:
        pairs = [(job, job.numbers.get(x_key), job.numbers.get(y_key)) for job in jobs]
        return [marks.dot(job, x, y) for job, x, y in pairs if is_number(x) and is_number(y)]

    rows = dots("train_rows", measure)
    has_one_row_count = _only_value(mark.points[0][0] for mark in rows) is not None
    return {
        "gap": charts.draw_scatter(
            "gaps",
            "Gap of each job by epochs trained",
            dots("epochs", "gap"),
            ("epochs trained", "gap, nats per token"),
            paths=[marks.mark(job, job.gaps()) for job in jobs],
            included=[0.0],
        ),
        "rows": None
        if has_one_row_count
        else charts.draw_scatter(
            "training-rows",
            "Held-out loss of each job by training rows",
            rows,
            ("training rows kept", claims.UNITS[measure]),
            starts=_base_losses(comparison),
        ),
    }


def _search(comparison: Comparison, marks: _JobMarks) -> dict[str, Any] | None:
    """Return the history of the search whose trials the jobs are; None without one."""
    search = comparison.search
    if search is None:
        return None
    jobs = {twin.name: job for job in comparison.jobs for twin in job.twins or [job]}
    dots = [
        marks.dot(jobs[trial.job], trial.number, trial.loss)
        for trial in search.trials
        if trial.loss is not None and trial.job in jobs
    ]
    unit = claims.UNITS.get(search.measure, search.measure)
    starts = _base_losses(comparison) if search.measure == comparison.measure else []
    section = describe_search(search, dots, unit, starts)
    return section | {"importance": [(marks.names.get(axis, axis), share) for axis, share in search.importance.items()]}


def _effects(comparison: Comparison, marks: _JobMarks) -> list[dict[str, Any]]:
    losses = [loss for effect in comparison.effects for level in effect.levels for loss in level.losses.values()]
    if not losses:
        return []
    y_range = charts.find_y_range(losses, _base_losses(comparison))
    jobs = {job.name: job for job in comparison.jobs}
    return [_effect(f"axis-{number}", effect, marks, jobs, y_range) for number, effect in enumerate(comparison.effects)]


def _effect(
    chart_name: str,
    effect: AxisEffect,
    marks: _JobMarks,
    jobs: dict[str, ComparedJob],
    y_range: tuple[float, float],
) -> dict[str, Any]:
    name = marks.names[effect.axis]
    levels = [(format_value(level.value), level) for level in effect.levels]
    chart: Markup | None
    if len(levels) > MAX_LEVELS and all(is_number(level.value) for level in effect.levels):
        chart, levels = _values_as_line(chart_name, effect, marks, jobs, y_range), []
    else:
        dots = [[marks.dot(jobs[job], 0, loss) for job, loss in level.losses.items()] for _, level in levels]
        chart = charts.draw_levels(
            chart_name,
            f"Held-out loss by {name}: a dot for each job, a bar for the mean",
            [(value, level.mean, level_dots) for (value, level), level_dots in zip(levels, dots, strict=True)],
            y_range,
        )
    difference = effect.difference
    return {
        "name": name,
        "range": effect.range,
        "is_matched": effect.is_matched,
        "claim": claims.CLAIM_TEXTS[difference.claim] if difference else "",
        "interval": claims.format_interval(difference.over_seeds) if difference else "",
        "chart": chart,
        "levels": levels,
    }


def _values_as_line(
    chart_name: str, effect: AxisEffect, marks: _JobMarks, jobs: dict[str, ComparedJob], y_range: tuple[float, float]
) -> Markup | None:
    """Return the losses by the values of an axis that has many numbers."""
    values = [float(level.value) for level in effect.levels]
    name = marks.names[effect.axis]
    return charts.draw_scatter(
        chart_name,
        f"Held-out loss by {name}",
        [
            marks.dot(jobs[job], float(level.value), loss)
            for level in effect.levels
            for job, loss in level.losses.items()
        ],
        (name, ""),
        included=y_range,
        size=(charts.LEVELS_WIDTH, charts.LEVELS_HEIGHT),
        is_log=min(values) > 0 and max(values) / min(values) >= WIDE,
    )


def _distances(comparison: Comparison, marks: _JobMarks) -> list[dict[str, Any]]:
    """Return each setting's distance from the best, with the positions of its marks as CSS lengths."""
    settings = [(setting, setting.from_best) for setting in comparison.settings if setting.from_best]
    if not settings:
        return []

    # One diverged setting must not flatten the others: the scale ends at a few times the median.
    ends = sorted(difference.over_seeds.high for _, difference in settings)
    high = min(ends[-1], 2.5 * ends[len(ends) // 2]) or 1.0
    low = min(0.0, *(max(-high, difference.over_seeds.low) for _, difference in settings))

    def position(value: float) -> str:
        return f"{100 * (min(max(value, low), high) - low) / (high - low):.1f}%"

    return [
        {
            "name": marks.describe(setting.axes),
            "classes": marks.value_classes(setting.axes),
            "value": with_minus(f"{difference.value:+.4f}"),
            "interval": claims.format_interval(difference.over_seeds),
            "claim": claims.CLAIM_TEXTS[difference.claim],
            "zero": position(0),
            "dot": position(difference.value),
            "on_rows": tuple(map(position, difference.on_rows)),
            "over_seeds": tuple(map(position, difference.over_seeds)),
        }
        for setting, difference in settings
    ]


def _samples(comparison: Comparison, marks: _JobMarks) -> list[dict[str, Any]]:
    """Return each prompt with its answers: base models first, then jobs, the best first."""
    base_axes = {name: marks.describe(base.axes) for base in comparison.base_models for name in base.jobs}
    prompts: dict[str, list[SampleCard]] = {}
    for job in sorted(comparison.jobs, key=lambda job: _loss(job, comparison.measure)):
        for sample in job.samples:
            cards = prompts.setdefault(str(sample.get("prompt", "")), [])
            cards += _base_cards(sample, cards, base_axes.get(job.name, ""))
            answer = sample.get("tuned")
            cards.append(SampleCard("tuned", marks.name(job), "", answer, marks.classes(job)))

    kinds = [*BASE_LABELS, "tuned"]
    return [
        {"prompt": prompt, "cards": sorted(cards, key=lambda card: kinds.index(card.kind))}
        for prompt, cards in prompts.items()
    ]


def _base_cards(sample: dict[str, Any], cards: list[SampleCard], axes: str) -> list[SampleCard]:
    """Return the answers of a sample's base model that no card has yet."""
    known = [(card.kind, card.text) for card in cards]
    return [
        SampleCard(kind, label, axes, sample[kind])
        for kind, label in BASE_LABELS.items()
        if kind in sample and (kind, sample[kind]) not in known
    ]


def _loss(job: ComparedJob, measure: Measure) -> float:
    value = job.numbers.get(measure)
    return float(value) if is_number(value) else math.inf
