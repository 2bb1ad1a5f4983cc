"""``compare.html``: all jobs on one page that needs nothing beside it and runs no script.

Filtering and coloring are CSS: each mark of a job carries a class for each of its axis values, and the page's check
boxes are asked by ``:has()``.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from sft_lab.compare import charts, table, words
from sft_lab.compare.axes import SEED, ordered, short_names, shown
from sft_lab.compare.charts import Bar, Mark
from sft_lab.compare.collect import Job, is_number
from sft_lab.compare.noise import ON_ROWS, WINS
from sft_lab.files import write_text
from sft_lab.report.page import VERDICTS, environment
from sft_lab.report.style import COLORS

if TYPE_CHECKING:
    from markupsafe import Markup

    from sft_lab.compare.comparison import Comparison
    from sft_lab.compare.effects import Effect

# Told apart without red and green; of a light and a dark page. Numbers get the ramp, from low to high, names the rest.
RAMP = (
    ["#5b2a86", "#3f5fa8", "#1f8a8c", "#3fa34d", "#b38f00"],
    ["#b48be0", "#7ea6f0", "#4cc3c0", "#7fd96b", "#f2d14b"],
)  # fmt: skip
NAMED = (
    ["#0173b2", "#d55e00", "#029e73", "#a3539b", "#8a6d3b", "#3b3b98", "#b8860b", "#555d66"],
    ["#5db0e6", "#f08a4b", "#3fc79a", "#dc94d6", "#cbb088", "#9d9df0", "#e8c15a", "#aab2bb"],
)
GRAY = ("#7a7f86", "#9aa0a7")  # of jobs without a value
MOST_HOVERED = 60  # jobs up to which a pointer on a line of the table shows the job's curves


class Value(NamedTuple):
    """A value of an axis on the page: its class, name, and color on a light and on a dark page."""

    key: str
    name: str
    light: str
    dark: str


class Axis(NamedTuple):
    """An axis on the page."""

    key: str
    name: str
    full: str
    values: list[Value]


def write(found: Comparison) -> None:
    """Write the page to ``found.page``."""
    html = environment(Path(__file__).parent).get_template("compare.html.jinja").render(_content(found))
    # A lone surrogate may stand in JSON but not in UTF-8.
    write_text(found.page, html.encode("utf-8", "replace").decode("utf-8"))


def _content(found: Comparison) -> dict[str, Any]:
    axes = _axes(found)
    marks = _Marks(found, axes)
    places = {job.folder.path.parent for job in found.jobs}
    return {
        "title": places.pop().name if len(places) == 1 else "Comparison",
        "found": found,
        "headline": words.headline(found),
        "axes": axes,
        "first_axis": _first_axis(found),
        "columns": list(table.COLUMNS),
        "rows": [
            {"row": row, "classes": marks.classes(row.job) if row.job else "", "report": _report(found, row.job)}
            for row in table.rows(found)
        ],
        "tones": {name.replace("_", " "): tone for name, (tone, _) in VERDICTS.items()},
        "job_keys": [marks.keys[job.name] for job in found.jobs] if len(found.jobs) <= MOST_HOVERED else [],
        "charts": _charts(found, marks),
        "effects": _effects(found, marks),
        "settings": _distances(found, marks),
        "samples": _samples(found, marks),
        "one_row_count": _one([job.numbers.get("train_rows") for job in found.jobs]),
        "colors": COLORS,
        "unit": words.UNITS[found.measure],
    }


def _first_axis(found: Comparison) -> int:
    """The axis to color by: the one that mattered most."""
    top = [effect.axis for effect in found.effects if effect.axis != SEED]
    return found.axes.index(top[0]) if top else 0


def _axes(found: Comparison) -> list[Axis]:
    names = short_names(found.axes)
    made = []
    for number, axis in enumerate(found.axes):
        values = ordered([job.axes.get(axis) for job in found.jobs if job.config])
        numeric = all(is_number(value) for value in values if value is not None)
        known = len(values) - (None in values)
        light, dark = (
            [_color(colors, at, known) if at < known else gray for at in range(len(values))]
            for colors, gray in zip(RAMP if numeric else NAMED, GRAY, strict=True)
        )
        made.append(
            Axis(
                f"a{number}", names[axis], axis,
                [
                    Value(f"v{number}-{at}", "none" if value is None else shown(value), light[at], dark[at])
                    for at, value in enumerate(values)
                ],
            )
        )  # fmt: skip
    return made


def _color(colors: list[str], at: int, count: int) -> str:
    """The color of one of so many values: names in turn, numbers spread over the ramp."""
    if len(colors) != len(RAMP[0]):
        return colors[at % len(colors)]
    place = at / max(1, count - 1) * (len(colors) - 1)
    low, share = min(int(place), len(colors) - 2), place - min(int(place), len(colors) - 2)
    pairs = [(int(colors[low][i : i + 2], 16), int(colors[low + 1][i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(first + (second - first) * share):02x}" for first, second in pairs)


class _Marks:
    """What every mark of a job carries: classes and a title."""

    def __init__(self, found: Comparison, axes: list[Axis]) -> None:
        self.names = short_names(found.axes)
        self.keys = {job.name: f"j{number}" for number, job in enumerate(found.jobs)}
        self._values = {
            axis: {value.name: value.key for value in made.values} for axis, made in zip(found.axes, axes, strict=True)
        }
        self._best = found.best

    def values(self, axes: dict[str, Any]) -> str:
        """Classes of axis values; a value none of the jobs has carries none."""
        return " ".join(
            keys["none" if axes.get(axis) is None else shown(axes[axis])]
            for axis, keys in self._values.items()
            if axis in axes or "none" in keys
        )

    def classes(self, job: Job) -> str:
        best = " best" if job is self._best else ""
        return f"job {self.keys[job.name]} {self.values(job.axes) if job.config else ''}{best}".rstrip()

    def name(self, job: Job) -> str:
        return words.name_of(job.axes, self.names) or job.name

    def of(self, job: Job, points: list[tuple[float, float]], says: str = "") -> Mark:
        return Mark(self.classes(job), f"{self.name(job)}{says}", points)


def _report(found: Comparison, job: Job | None) -> str:
    """The path of a job's report from the page, fit for a link; empty where there is none."""
    if job is None or not job.folder.report.exists():
        return ""
    return quote(os.path.relpath(job.folder.report, found.page.parent))


def _one(values: list[Any]) -> int | None:
    known = {value for value in values if value is not None}
    return known.pop() if len(known) == 1 else None


def _charts(found: Comparison, marks: _Marks) -> dict[str, Markup | None]:
    tokens = found.measure == "eval/loss"
    metric = "eval/loss" if tokens else "eval/bits_per_byte"
    unit = words.UNITS[metric]
    bases = [value for base in found.bases if (value := base.loss if tokens else base.bits_per_byte) is not None]
    spread = max(bases) - min(bases) if bases else 0.0
    shown_bases = bases if spread > 0.02 * max(bases, default=1) else bases[:1]  # seeds of one base are one line
    order = sorted(found.jobs, key=lambda job: job is found.best)  # the best is drawn last, above the others

    def dots(x: str, y: str) -> list[Mark]:
        pairs = [(job, job.numbers.get(x), job.numbers.get(y)) for job in order]
        return [
            marks.of(job, [(first, second)], f": {second:.4f}")
            for job, first, second in pairs
            if is_number(first) and is_number(second)
        ]

    held_out = [marks.of(job, job.curve(metric)) for job in order]
    train = [marks.of(job, job.curve("train/loss")) for job in order]
    rows = dots("train_rows", metric)
    same_rows = _one([mark.points[0][0] for mark in rows]) is not None
    return {
        "held_out": charts.curves(held_out, shown_bases, unit, "Held-out loss of each job over its steps"),
        "train": charts.curves(train, [], "nats per token", "Training loss of each job over its steps"),
        "gap": charts.scatter(
            dots("epochs", "gap"), "epochs trained", "gap, nats per token", "Gap of each job against its epochs",
            lines=[marks.of(job, job.gaps()) for job in order], zero=True,
        ),
        "rows": None if same_rows else charts.scatter(
            rows, "training rows kept", unit, "Held-out loss of each job against its training rows", bases=bases
        ),
    }  # fmt: skip


def _effects(found: Comparison, marks: _Marks) -> list[dict[str, Any]]:
    losses = [loss for effect in found.effects for level in effect.levels for _, loss in level.jobs]
    if not losses:
        return []
    bases = [
        value for base in found.bases if (value := base.loss if found.measure == "eval/loss" else base.bits_per_byte)
    ]
    low, high, _ = charts.y_range(losses, bases, base_shown=False)
    by_name = {job.name: job for job in found.jobs}
    return [_effect(effect, marks, by_name, (low, high)) for effect in found.effects]


def _effect(effect: Effect, marks: _Marks, jobs: dict[str, Job], y: tuple[float, float]) -> dict[str, Any]:
    dots = [
        [marks.of(jobs[name], [(0, loss)], f": {loss:.4f}") for name, loss in level.jobs] for level in effect.levels
    ]
    names = [shown(level.value) for level in effect.levels]
    means = [level.mean for level in effect.levels]
    name = marks.names[effect.axis]
    difference = effect.difference
    return {
        "name": name,
        "range": effect.range,
        "matched": effect.matched,
        "claim": words.CLAIMS[difference.claim] if difference else "",
        "interval": words.interval(difference.over_seeds) if difference else "",
        "chart": charts.levels(
            names, dots, means, y, f"Held-out loss by {name}: a dot for each job, a bar for the mean"
        ),
        "rows": [(shown(level.value), level.plain()) for level in effect.levels],
    }


def _distances(found: Comparison, marks: _Marks) -> Markup | None:
    bars = [
        Bar(
            marks.values(setting.axes), " · ".join(map(shown, setting.axes.values())), one.value,
            one.on_rows, one.over_seeds, words.CLAIMS[one.claim], sure=one.claim in WINS or one.claim == ON_ROWS,
        )
        for setting in found.settings[1:]
        if (one := setting.from_best) is not None
    ]  # fmt: skip
    return charts.distances(bars, "How far each setting is from the best") if bars else None


def _loss(job: Job, measure: str) -> float:
    value = job.numbers.get(measure)
    return float(value) if is_number(value) else math.inf


def _samples(found: Comparison, marks: _Marks) -> list[dict[str, Any]]:
    """Give each prompt with its answers: base models first, then jobs, the best first."""
    jobs = sorted((job for job in found.jobs if job.samples), key=lambda job: _loss(job, found.measure))
    of_base = {name: base for base in found.bases for name in base.jobs}
    prompts: dict[str, list[dict[str, Any]]] = {}
    kinds = ("base", "prompted_base", "tuned")
    for job in jobs:
        base = of_base.get(job.name)
        for sample in job.samples:
            cards = prompts.setdefault(str(sample.get("prompt", "")), [])
            for kind, label in (("base", "base model"), ("prompted_base", "base model, prompted")):
                same = any(card["kind"] == kind and card["text"] == sample[kind] for card in cards if kind in sample)
                if kind in sample and not same:
                    where = words.name_of(base.axes, marks.names) if base else ""
                    cards.append({"kind": kind, "label": label, "axes": where, "text": sample[kind], "classes": ""})
            classes, label = marks.classes(job), marks.name(job)
            cards.append({"kind": "tuned", "label": label, "axes": "", "text": sample.get("tuned"), "classes": classes})
    return [
        {"prompt": prompt, "cards": sorted(cards, key=lambda card: kinds.index(card["kind"]))}
        for prompt, cards in prompts.items()
    ]
