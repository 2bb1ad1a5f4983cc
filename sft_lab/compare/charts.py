"""Charts of many jobs as inline SVG: each mark carries its job's classes, by which the page's CSS filters and colors.

Matplotlib draws the figures of a run; here hundreds of marks must each be told apart by the page, without a script.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from markupsafe import Markup

from sft_lab.compare.collect import Curve

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 40
MOST_POINTS = 240  # of a curve; more cannot be seen
LOG_FROM = 20  # a range this many times its lowest value is drawn on a logarithmic axis
CEILING = 1.1  # of the base model's loss: a diverged job leaves the chart rather than flatten all others


class Mark(NamedTuple):
    """A job's place in a chart: its classes, what a pointer on it is told, and its points."""

    classes: str
    title: str
    points: Curve


@dataclass
class Frame:
    """A chart's place and scales.

    Attributes:
        x: lowest and highest value shown.
        y: likewise.
        ticks: (value, label) below the chart; None: round numbers.
        log: of the y axis.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    y_label: str
    ticks: Sequence[tuple[float, str]] | None = None
    log: bool = False
    width: int = WIDTH
    height: int = HEIGHT
    inside: list[Markup] = field(default_factory=list)

    def at_x(self, value: float) -> float:
        """Where a value lies, in pixels from the left."""
        low, high = self.x
        return LEFT + (value - low) / (high - low) * (self.width - LEFT - RIGHT)

    def at_y(self, value: float) -> float:
        """Where a value lies, in pixels from the top."""
        scale: Callable[[float], float] = math.log if self.log else float
        low, high = map(scale, self.y)
        return TOP + (1 - (scale(value) - low) / (high - low)) * (self.height - TOP - BOTTOM)

    def add(self, form: str, *values: object) -> None:
        """Draw; what is put into the form is escaped."""
        self.inside.append(Markup(form).format(*values))  # noqa: S704 - the forms are ours

    def line(self, mark: Mark, kind: str = "curve") -> None:
        """Draw a job's curve; a value that is no number breaks it, one above the chart ends at its edge."""
        parts, pen = [], "M"
        for x, y in mark.points:
            if math.isfinite(y):
                parts.append(f"{pen}{self.at_x(x):.1f} {self.at_y(self.clamp(y)):.1f}")
                pen = "L"
            else:
                pen = "M"
        if parts:
            form = '<g class="{}"><title>{}</title><path class="wide" d="{}"/><path d="{}"/></g>'
            self.add(form, f"{kind} {mark.classes}", mark.title, " ".join(parts), " ".join(parts))

    def dot(self, mark: Mark, radius: float = 5) -> None:
        """Draw a job's points; one above the chart is an arrow at its edge."""
        for x, y in mark.points:
            left, top = self.at_x(x), self.at_y(self.clamp(y))
            if y > self.y[1]:
                form = '<path class="dot {}" d="M{} {}l5 9h-10z"><title>{}</title></path>'
                self.add(form, mark.classes, f"{left:.1f}", f"{top:.1f}", mark.title)
            else:
                form = '<circle class="dot {}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>'
                self.add(form, mark.classes, f"{left:.1f}", f"{top:.1f}", radius, mark.title)

    def level(self, y: float, label: str) -> None:
        """Draw a dashed line across, as for a base model."""
        if self.y[0] <= y <= self.y[1]:
            top = f"{self.at_y(y):.1f}"
            self.add('<line class="base" x1="{}" x2="{}" y1="{}" y2="{}"/>', LEFT, self.width - RIGHT, top, top)
            self.add('<text class="end" x="{}" y="{}" dy="-4">{}</text>', self.width - RIGHT, top, label)

    def clamp(self, y: float) -> float:
        """Keep a value inside the chart."""
        return min(max(y, self.y[0]), self.y[1])

    def svg(self, label: str) -> Markup:
        """Give the chart, with grid and axes behind what was drawn."""
        body, self.inside = self.inside, []
        for value in _ticks(*self.y, log=self.log):
            top = f"{self.at_y(value):.1f}"
            self.add('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>', LEFT, self.width - RIGHT, top, top)
            self.add('<text class="end" x="{}" y="{}" dy="4">{}</text>', LEFT - 8, top, plain(value))
        ticks = [(value, plain(value)) for value in _ticks(*self.x)] if self.ticks is None else self.ticks
        for value, text in ticks:
            form = '<text class="middle" x="{}" y="{}">{}</text>'
            self.add(form, f"{self.at_x(value):.1f}", self.height - BOTTOM + 17, text)
        middle = (LEFT + self.width - RIGHT) / 2
        self.add('<text class="middle name" x="{}" y="{}">{}</text>', middle, self.height - 5, self.x_label)
        turned = '<text class="middle name" transform="translate(12 {}) rotate(-90)">{}</text>'
        self.add(turned, (TOP + self.height - BOTTOM) / 2, self.y_label)
        grid = self.inside
        head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(self.width, self.height, label)
        return head + Markup("\n").join([*grid, *body]) + Markup("</svg>")


def curves(marks: list[Mark], bases: list[float], y_label: str, label: str) -> Markup | None:
    """Losses of all jobs over steps; None where there are none."""
    marks = [mark._replace(points=thin(mark.points)) for mark in marks if any(map(_drawn, mark.points))]
    points = [point for mark in marks for point in mark.points if _drawn(point)]
    if not points:
        return None
    low, high, log = y_range([y for _, y in points], bases)
    most = max(x for x, _ in points)
    frame = Frame((0, max(1, most)), (low, high), "optimizer step", y_label, log=log)
    for base in bases:
        frame.level(base, "base model" if base == bases[0] else "")
    for mark in marks:
        frame.line(mark)
        if sum(map(_drawn, mark.points)) < 10:  # few points: say where the curve was measured
            frame.dot(mark._replace(points=[point for point in mark.points if _drawn(point)]), radius=2.6)
    return frame.svg(label)


def scatter(
    marks: list[Mark],
    x_label: str,
    y_label: str,
    label: str,
    *,
    lines: Sequence[Mark] = (),
    zero: bool = False,
    bases: Iterable[float] = (),
) -> Markup | None:
    """A dot for each job, and lines of how they got there; None where there are no dots.

    With ``zero``, y = 0 belongs to the chart; the losses of base models bound what is shown.
    """
    marks = [mark for mark in marks if any(map(_drawn, mark.points))]
    points = [point for mark in [*marks, *lines] for point in mark.points if _drawn(point)]
    if not marks:
        return None
    if zero:
        low, high = _widened(min(0.0, *(y for _, y in points)), max(0.0, *(y for _, y in points)))
    else:
        low, high, _ = y_range([y for _, y in points], list(bases), base_shown=False)
    sides = _widened(min(x for x, _ in points), max(x for x, _ in points), by=0.08)
    frame = Frame(sides, (low, high), x_label, y_label)
    if zero:
        frame.level(0, "")
    for mark in lines:
        frame.line(mark, "way")
    for mark in marks:
        frame.dot(mark)
    return frame.svg(label)


def levels(names: list[str], marks: list[list[Mark]], means: list[float], y: tuple[float, float], label: str) -> Markup:
    """An axis' values side by side: a dot for each job of a value, a bar for their mean.

    Of the marks' points only y counts; y, lowest and highest value shown, is the same for all axes.
    """
    room = (WIDTH - LEFT - RIGHT) / len(names) / 7.5  # characters that fit
    ticks = [(at, name if len(name) <= room else f"{name[: max(1, int(room) - 1)]}…") for at, name in enumerate(names)]
    frame = Frame((-0.5, len(names) - 0.5), y, "", "", ticks, height=240)
    for at, (jobs, mean) in enumerate(zip(marks, means, strict=True)):
        top = frame.at_y(frame.clamp(mean))
        frame.add(
            '<line class="mean" x1="{}" x2="{}" y1="{}" y2="{}"/>', frame.at_x(at - 0.3), frame.at_x(at + 0.3), top, top
        )
        for number, mark in enumerate(jobs):
            aside = (number - (len(jobs) - 1) / 2) * min(0.08, 0.5 / len(jobs))
            frame.dot(mark._replace(points=[(at + aside, value) for _, value in mark.points]))
    return frame.svg(label)


class Bar(NamedTuple):
    """A setting beside the best: how far it is from it, over rows and over seeds too, and what is claimed."""

    classes: str
    name: str
    value: float
    on_rows: tuple[float, float]
    with_seeds: tuple[float, float]
    claim: str
    sure: bool


def distances(bars: list[Bar], label: str) -> Markup:
    """How far each setting is from the best: a thick line over rows, a thin one over seeds too, zero the best."""
    left, right, width, step = 330, 250, 1100, 27
    ends = sorted(max(bar.with_seeds) for bar in bars)
    most = min(ends[-1], 2.5 * ends[len(ends) // 2]) or 1.0  # one diverged setting must not flatten the others
    least = min(0.0, *(max(-most, min(bar.with_seeds)) for bar in bars))
    height = step * len(bars) + 36

    def at(value: float) -> str:
        inside = min(max(value, least), most)
        return f"{left + (inside - least) / (most - least) * (width - left - right):.1f}"

    drawn = [Markup('<line class="zero" x1="{0}" x2="{0}" y1="4" y2="{1}"/>').format(at(0), height - 26)]
    for number, bar in enumerate(bars):
        top = number * step + 18
        name = bar.name if len(bar.name) <= 46 else f"{bar.name[:45]}…"
        form = (
            '<g class="{}"><title>{}</title><text class="end ink" x="{}" y="{}">{}</text>'
            '<line class="thin" x1="{}" x2="{}" y1="{}" y2="{}"/><line class="thick" x1="{}" x2="{}" y1="{}" y2="{}"/>'
            '<circle class="dot" cx="{}" cy="{}" r="5"/><text class="{}" x="{}" y="{}">{}</text></g>'
        )
        places = (
            at(bar.with_seeds[0]),
            at(bar.with_seeds[1]),
            top,
            top,
            at(bar.on_rows[0]),
            at(bar.on_rows[1]),
            top,
            top,
        )
        said = ("ink" if bar.sure else "", width - right + 16, top + 4, bar.claim)
        named = (f"bar {bar.classes}", bar.name, left - 16, top + 4, name)
        drawn.append(Markup(form).format(*named, *places, at(bar.value), top, *said))  # noqa: S704 - the form is ours
    tick = Markup('<text class="middle" x="{}" y="{}">{}</text>')
    drawn += [tick.format(at(value), height - 6, signed(value)) for value in _ticks(least, most)]
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(width, height, label)
    return head + Markup("\n").join(drawn) + Markup("</svg>")


def y_range(values: list[float], bases: list[float], *, base_shown: bool = True) -> tuple[float, float, bool]:
    """Give lowest and highest value shown, and whether on a logarithmic axis."""
    known = [base for base in bases if math.isfinite(base)]
    shown = [*values, *known] if base_shown else values
    low, high = min(shown), max(shown)
    if known and high > CEILING * max(known) > low:
        high = CEILING * max(known)
    log = low > 0 and high / low > LOG_FROM
    if log:
        return low / 1.1, high * 1.1, True
    return (*_widened(low, high), False)


def _widened(low: float, high: float, by: float = 0.05) -> tuple[float, float]:
    room = (high - low) * by or abs(high) * 0.01 or 1.0
    return low - room, high + room


def thin(points: Curve) -> Curve:
    """Give at most MOST_POINTS points: the mean of each stretch, the last one as it is."""
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(len(points) / MOST_POINTS)
    parts = [points[start : start + size] for start in range(0, len(points) - 1, size)]
    middle = [tuple(sum(one) / len(part) for one in zip(*part, strict=True)) for part in parts]
    return [*((x, y) for x, y in middle), points[-1]]


def _drawn(point: tuple[float, float]) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _ticks(low: float, high: float, *, log: bool = False) -> list[float]:
    """Round numbers from low to high, about five."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        return [
            value for power in decades for value in (10**power, 2 * 10**power, 5 * 10**power) if low <= value <= high
        ]
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough)
    first = math.ceil(low / step)
    return [round(number * step, 12) for number in range(first, math.floor(high / step) + 1)]


def plain(value: float) -> str:
    """A tick's number, no longer than it must be."""
    return f"{value:,.6g}".replace("-", "−")


def signed(value: float) -> str:
    """A tick of a difference."""
    return "0" if value == 0 else f"{value:+.6g}".replace("-", "−")
