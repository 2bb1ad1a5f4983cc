"""Charts of many jobs as inline SVG.

Each mark carries its job's classes, by which the page's CSS filters, colors and highlights it without a
script. Matplotlib, which draws the figures of a run, writes colors into its marks and cannot give them
classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sft_lab.core.types import Curve

# Pixels of a chart, and of the margins around its plot.
WIDTH, HEIGHT, LOW_HEIGHT = 520, 300, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 40
LABEL_CHARACTERS = 60  # that fit below the plot

MAX_POINTS = 240  # of a curve; more cannot be seen
SPARSE_POINTS = 10  # curves with fewer points show where they were measured
CEILING = 1.1  # of the loss before training: what is above it is not shown


class JobMark(NamedTuple):
    """A job in a chart: its classes, the text of its tooltip, and its points."""

    classes: str
    title: str
    points: Curve


@dataclass
class Chart:
    """A plot with its axes.

    Attributes:
        x_range: lowest and highest value shown.
        y_range: likewise.
        x_label: below the plot.
        y_label: beside the plot.
        x_ticks: (value, label) below the plot; None: round numbers.
        height: in pixels, labels included.
        elements: SVG of what was drawn, the last one in front.
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_label: str = ""
    y_label: str = ""
    x_ticks: Sequence[tuple[float, str]] | None = None
    height: int = HEIGHT
    elements: list[Markup] = field(default_factory=list)

    def x_pixel(self, value: float) -> str:
        """Return a value's distance from the left, in pixels."""
        low, high = self.x_range
        return f"{LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT):.1f}"

    def y_pixel(self, value: float) -> str:
        """Return a value's distance from the top, in pixels; values outside the range are at its edge."""
        low, high = self.y_range
        share = (min(max(value, low), high) - low) / (high - low)
        return f"{TOP + (1 - share) * (self.height - TOP - BOTTOM):.1f}"

    def add(self, svg: str, *values: object) -> None:
        """Draw an element; the values put into it are escaped."""
        self.elements.append(Markup(svg).format(*values))  # noqa: S704 - the SVG is ours

    def add_curve(self, mark: JobMark, kind: str = "curve") -> None:
        """Draw a job's curve, broken where a value is not finite, with a wide invisible twin for the pointer."""
        commands, command = [], "M"
        for x, y in mark.points:
            if math.isfinite(y):
                commands.append(f"{command}{self.x_pixel(x)} {self.y_pixel(y)}")
            command = "L" if math.isfinite(y) else "M"
        if commands:
            path = " ".join(commands)
            svg = '<g class="{}"><title>{}</title><path class="wide" d="{}"/><path d="{}"/></g>'
            self.add(svg, f"{kind} {mark.classes}", mark.title, path, path)

    def add_points(self, mark: JobMark, radius: float = 5) -> None:
        """Draw a job's points; one above the range is an arrow at its edge."""
        for x, y in mark.points:
            left, top = self.x_pixel(x), self.y_pixel(y)
            if y > self.y_range[1]:
                svg = '<path class="dot {}" d="M{} {}l5 9h-10z"><title>{}</title></path>'
                self.add(svg, mark.classes, left, top, mark.title)
            else:
                svg = '<circle class="dot {}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>'
                self.add(svg, mark.classes, left, top, radius, mark.title)

    def add_level(self, y: float, label: str = "") -> None:
        """Draw a dashed line across the plot, as for a base model."""
        if self.y_range[0] <= y <= self.y_range[1]:
            right, top = WIDTH - RIGHT, self.y_pixel(y)
            self.add('<line class="base" x1="{}" x2="{}" y1="{}" y2="{}"/>', LEFT, right, top, top)
            self.add('<text class="end" x="{}" y="{}" dy="-4">{}</text>', right, top, label)

    def render(self, label: str) -> Markup:
        """Return the chart as SVG, grid and axes behind what was drawn.

        Args:
            label: what a screen reader says.
        """
        drawn, self.elements = self.elements, []
        self._add_axes()
        head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, self.height, label)
        return head + Markup("\n").join([*self.elements, *drawn]) + Markup("</svg>")

    def _add_axes(self) -> None:
        right, bottom = WIDTH - RIGHT, self.height - BOTTOM
        for value in _round_ticks(*self.y_range):
            top = self.y_pixel(value)
            self.add('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>', LEFT, right, top, top)
            self.add('<text class="end" x="{}" y="{}" dy="4">{}</text>', LEFT - 8, top, _format_tick(value))

        x_ticks = self.x_ticks
        if x_ticks is None:
            x_ticks = [(value, _format_tick(value)) for value in _round_ticks(*self.x_range)]
        for value, text in x_ticks:
            self.add('<text class="middle" x="{}" y="{}">{}</text>', self.x_pixel(value), bottom + 17, text)

        x_name = '<text class="middle name" x="{}" y="{}">{}</text>'
        y_name = '<text class="middle name" transform="translate(12 {}) rotate(-90)">{}</text>'
        self.add(x_name, (LEFT + right) / 2, self.height - 5, self.x_label)
        self.add(y_name, (TOP + bottom) / 2, self.y_label)


def draw_curves(marks: list[JobMark], bases: list[float], y_label: str, label: str) -> Markup | None:
    """Return the curves of all jobs over optimizer steps; None where there are none.

    Args:
        marks: (step, loss) of each job.
        bases: losses of base models, drawn as dashed lines.
        y_label: beside the plot.
        label: what a screen reader says.
    """
    curves = [(mark, list(filter(_is_finite, mark.points))) for mark in marks]
    curves = [(mark._replace(points=thin_curve(mark.points)), measured) for mark, measured in curves if measured]
    if not curves:
        return None

    values = [y for mark, _ in curves for _, y in filter(_is_finite, mark.points)]
    starts = [measured[0][1] for _, measured in curves]
    last_step = max(1, *(measured[-1][0] for _, measured in curves))
    y_range = find_y_range([*values, *bases], [*starts, *bases])
    chart = Chart((0, last_step), y_range, "optimizer step", y_label)
    for number, base in enumerate(bases):
        chart.add_level(base, "" if number else "base model")
    for mark, measured in curves:
        chart.add_curve(mark)
        if len(measured) < SPARSE_POINTS:
            chart.add_points(mark._replace(points=measured), radius=2.6)
    return chart.render(label)


def draw_scatter(
    marks: list[JobMark],
    x_label: str,
    y_label: str,
    label: str,
    *,
    paths: Sequence[JobMark] = (),
    included: Sequence[float] = (),
    starts: Sequence[float] = (),
) -> Markup | None:
    """Return a dot for each job; None where there are no jobs.

    Args:
        marks: a point of each job.
        x_label: below the plot.
        y_label: beside the plot.
        label: what a screen reader says.
        paths: how jobs came to their points.
        included: values of y that belong to the plot.
        starts: losses before training, which bound the plot.
    """
    if not marks:
        return None
    points = [point for mark in [*marks, *paths] for point in filter(_is_finite, mark.points)]
    x_values, y_values = zip(*points, strict=True)

    y_range = find_y_range([*y_values, *included], starts)
    chart = Chart(_widen(min(x_values), max(x_values), by=0.08), y_range, x_label, y_label)
    chart.add_level(0)
    for mark in paths:
        chart.add_curve(mark, "path")
    for mark in marks:
        chart.add_points(mark)
    return chart.render(label)


def draw_levels(levels: list[tuple[str, float, list[JobMark]]], y_range: tuple[float, float], label: str) -> Markup:
    """Return an axis' values side by side: a dot for each job of a value, a bar for their mean.

    Args:
        levels: name, mean loss and marks of each value; of a mark's points only y counts.
        y_range: lowest and highest value shown.
        label: what a screen reader says.
    """
    characters = LABEL_CHARACTERS // len(levels)
    ticks = [(index, _shorten(name, characters)) for index, (name, _, _) in enumerate(levels)]
    chart = Chart((-0.5, len(levels) - 0.5), y_range, x_ticks=ticks, height=LOW_HEIGHT)
    for index, (_, mean, marks) in enumerate(levels):
        left, right, top = chart.x_pixel(index - 0.3), chart.x_pixel(index + 0.3), chart.y_pixel(mean)
        chart.add('<line class="mean" x1="{}" x2="{}" y1="{}" y2="{}"/>', left, right, top, top)
        for number, mark in enumerate(marks):
            shift = (number - (len(marks) - 1) / 2) * min(0.08, 0.5 / len(marks))
            chart.add_points(mark._replace(points=[(index + shift, y) for _, y in mark.points]))
    return chart.render(label)


def find_y_range(values: Sequence[float], starts: Sequence[float] = ()) -> tuple[float, float]:
    """Return the lowest and highest value shown.

    Args:
        values: to show, finite.
        starts: losses before training. What lies far above them has diverged and is left out, rather than
            flatten everything else.
    """
    low, high = min(values), max(values)
    ceiling = CEILING * max(starts, default=math.inf)
    return _widen(low, ceiling if high > ceiling > low else high)


def _widen(low: float, high: float, by: float = 0.05) -> tuple[float, float]:
    margin = (high - low) * by or abs(high) * 0.01 or 1.0
    return low - margin, high + margin


def thin_curve(points: Curve) -> Curve:
    """Return at most about MAX_POINTS points: the mean of each stretch, and the last point as it is."""
    if len(points) <= MAX_POINTS:
        return points
    size = math.ceil(len(points) / MAX_POINTS)
    stretches = [points[start : start + size] for start in range(0, len(points) - 1, size)]
    means = [(fmean(x for x, _ in stretch), fmean(y for _, y in stretch)) for stretch in stretches]
    return [*means, points[-1]]


def _is_finite(point: tuple[float, float]) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _round_ticks(low: float, high: float) -> list[float]:
    """Return round numbers from low to high, about five."""
    step = (high - low) / 5
    power = 10 ** math.floor(math.log10(step))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= step)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _format_tick(value: float) -> str:
    """Return a number no longer than it must be."""
    return f"{value:,.6g}".replace("-", "−")


def _shorten(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: max(1, characters - 1)]}…"
