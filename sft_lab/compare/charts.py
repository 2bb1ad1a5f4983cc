"""Charts of many jobs as inline SVG.

Each mark carries its job's classes, by which the page's CSS filters, colors and highlights it without a
script.
"""

from __future__ import annotations

import math
import re
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup

from sft_lab.report.style import COLORS, DASHED, hide_frame, inline_svg, new_figure, render_svg, set_ticks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sft_lab.core.types import Curve

# Inches; the page shows two charts side by side, or three levels of axes.
WIDTH, HEIGHT = 5.5, 3.2
LEVELS_WIDTH, LEVELS_HEIGHT = 3.6, 1.9
LABEL_CHARACTERS = 44  # that fit below the levels of an axis

MAX_POINTS = 240  # of a curve; more cannot be seen
SPARSE_POINTS = 10  # curves with fewer points show where they were measured
CEILING = 1.1  # of the loss before training: what is above it is not shown


class JobMark(NamedTuple):
    """A job in a chart: its classes, the text of its tooltip, and its points."""

    classes: str
    title: str
    points: Curve


class Chart:
    """A plot of jobs.

    Args:
        size: width and height in inches.
        y_range: lowest and highest value shown.
        x_label: below the plot.
        y_label: beside the plot.
    """

    def __init__(self, size: tuple[float, float], y_range: tuple[float, float], x_label: str, y_label: str) -> None:
        width, height = size
        self.figure = new_figure(height, width)
        self.axes: Axes = self.figure.add_subplot()
        self.axes.set(ylim=y_range, xlabel=x_label, ylabel=y_label)
        for axis in (self.axes.xaxis, self.axes.yaxis):
            set_ticks(axis, 5, "{x:,.6g}")
        hide_frame(self.axes)

        self.groups: list[tuple[str, str]] = []  # classes and tooltip of each mark

    def add_mark(self, kind: str, mark: JobMark, **style: Any) -> None:
        """Draw a job's line or dots, which the page's CSS colors.

        Args:
            kind: class of the mark: ``curve``, ``path`` or ``dot``.
            mark: the job.
            style: of matplotlib's ``plot``.
        """
        gid = f"mark-{len(self.groups)}"
        self.groups.append((f"{kind} {mark.classes}", mark.title))
        self.axes.plot(*zip(*mark.points, strict=True), gid=gid, color=COLORS["train"], **style)

    def add_dots(self, mark: JobMark) -> None:
        """Draw a job's points; one above the range is an arrow at its edge."""
        _, top = self.axes.get_ylim()
        for x, y in mark.points:
            marker = "o" if y <= top else "^"
            self.add_mark("dot", mark._replace(points=[(x, min(y, top))]), marker=marker, ms=7.5, clip_on=False)

    def add_level(self, y: float, label: str = "") -> None:
        """Draw a dashed line across the plot, as for a base model."""
        low, high = self.axes.get_ylim()
        if low <= y <= high:
            self.axes.axhline(y, ls=DASHED, lw=1, color=COLORS["base"])
            style: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": 9, "color": COLORS["muted"]}
            self.axes.text(1, y, label, transform=self.axes.get_yaxis_transform(), **style)


def _render(name: str, label: str, draw: Callable[[], Chart]) -> Markup:
    """Return a chart as SVG whose marks have classes and tooltips.

    Args:
        name: of the chart, unique in the page.
        label: what a screen reader says.
        draw: draws the chart, under the style of all figures.
    """
    groups: list[tuple[str, str]] = []

    def draw_figure() -> Figure:
        chart = draw()
        groups.extend(chart.groups)
        return chart.figure

    def label_mark(match: re.Match[str]) -> str:
        classes, title = groups[int(match["number"])]
        # Without a style of its own, a mark takes that of its classes.
        body = re.sub(r' style="[^"]*"', "", match["body"])
        body = re.sub(r"(\d\.\d)\d+", r"\1", body)
        if classes.startswith("curve"):
            path = f"{name}-curve-{match['number']}"  # drawn a second time, wide and invisible, to catch the pointer
            body = f'<use class="wide" href="#{path}"/>\n' + body.replace("<path ", f'<path id="{path}" ', 1)
        return Markup('<g class="{}"><title>{}</title>\n').format(classes, title) + Markup(body) + Markup("</g>")  # noqa: S704

    svg: str = inline_svg(render_svg(name, draw_figure), name)
    pattern = rf'^(?P<indent> *)<g id="{name}-mark-(?P<number>\d+)">\n(?P<body>.*?)^(?P=indent)</g>'
    svg = re.sub(pattern, label_mark, svg, flags=re.MULTILINE | re.DOTALL)
    return Markup('<svg role="img" aria-label="{}"').format(label) + Markup(svg.removeprefix("<svg"))  # noqa: S704


def draw_curves(name: str, label: str, marks: list[JobMark], bases: list[float], y_label: str) -> Markup | None:
    """Return the curves of all jobs over optimizer steps; None if there are none.

    Args:
        name: of the chart, unique in the page.
        label: what a screen reader says.
        marks: (step, loss) of each job.
        bases: losses of base models, drawn as dashed lines.
        y_label: beside the plot.
    """
    curves = [(mark, list(filter(_is_finite, mark.points))) for mark in marks]
    curves = [(mark._replace(points=thin_curve(mark.points)), measured) for mark, measured in curves if measured]
    if not curves:
        return None

    values = [y for mark, _ in curves for _, y in filter(_is_finite, mark.points)]
    starts = [measured[0][1] for _, measured in curves]
    last_step = max(1, *(measured[-1][0] for _, measured in curves))

    def draw() -> Chart:
        y_range = find_y_range([*values, *bases], [*starts, *bases])
        chart = Chart((WIDTH, HEIGHT), y_range, "optimizer step", y_label)
        chart.axes.set_xlim(-0.02 * last_step, 1.02 * last_step)
        for index, base in enumerate(bases):
            chart.add_level(base, "" if index else "base model")
        for mark, measured in curves:
            chart.add_mark("curve", mark, marker="o" if len(measured) < SPARSE_POINTS else "", ms=4)
        return chart

    return _render(name, label, draw)


def draw_scatter(
    name: str,
    label: str,
    marks: list[JobMark],
    axis_labels: tuple[str, str],
    *,
    paths: Sequence[JobMark] = (),
    included: Sequence[float] = (),
    starts: Sequence[float] = (),
    is_log: bool = False,
    size: tuple[float, float] = (WIDTH, HEIGHT),
) -> Markup | None:
    """Return a dot for each job; None where there are no jobs.

    Args:
        name: of the chart, unique in the page.
        label: what a screen reader says.
        marks: a point of each job.
        axis_labels: below and beside the plot.
        paths: how jobs came to their points.
        included: values of y that belong to the plot.
        starts: losses before training, which bound the plot.
        is_log: whether equal factors of x are equally far apart.
        size: width and height in inches.
    """
    if not marks:
        return None
    points = [point for mark in [*marks, *paths] for point in filter(_is_finite, mark.points)]
    x_values, y_values = zip(*points, strict=True)

    def draw() -> Chart:
        chart = Chart(size, find_y_range([*y_values, *included], starts), *axis_labels)
        if is_log:
            chart.axes.set_xscale("log")
            chart.axes.xaxis.set_major_formatter("{x:g}")
            chart.axes.xaxis.set_minor_formatter("")
        else:
            chart.axes.set_xlim(_widen(min(x_values), max(x_values), by=0.08))
        chart.add_level(0)
        for mark in paths:
            if mark.points:
                chart.add_mark("path", mark)
        for mark in marks:
            chart.add_dots(mark)
        return chart

    return _render(name, label, draw)


def draw_levels(
    name: str, label: str, levels: list[tuple[str, float, list[JobMark]]], y_range: tuple[float, float]
) -> Markup:
    """Return an axis' values side by side: a dot for each job of a value, a bar for their mean.

    Args:
        name: of the chart, unique in the page.
        label: what a screen reader says.
        levels: name, mean loss and marks of each value; of a mark's points only y counts.
        y_range: lowest and highest value shown.
    """
    characters = LABEL_CHARACTERS // len(levels)

    def draw() -> Chart:
        chart = Chart((LEVELS_WIDTH, LEVELS_HEIGHT), y_range, "", "")
        chart.axes.set_xlim(-0.5, len(levels) - 0.5)
        chart.axes.set_xticks(range(len(levels)), [_shorten(value, characters) for value, _, _ in levels])
        for index, (_, mean, marks) in enumerate(levels):
            chart.axes.hlines(mean, index - 0.3, index + 0.3, color=COLORS["muted"], lw=2)
            for number, mark in enumerate(marks):
                shift = (number - (len(marks) - 1) / 2) * min(0.08, 0.5 / len(marks))
                chart.add_dots(mark._replace(points=[(index + shift, y) for _, y in mark.points]))
        return chart

    return _render(name, label, draw)


def find_y_range(values: Sequence[float], starts: Sequence[float]) -> tuple[float, float]:
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


def _shorten(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: max(1, characters - 1)]}…"
