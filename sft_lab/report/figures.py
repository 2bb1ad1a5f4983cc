"""Figures of a run: what became of its rows, how the losses went, how the optimizer worked; and those of its data."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

from sft_lab.core.records import read, read_lines
from sft_lab.report import data_figures
from sft_lab.report.style import COLORS, TICK_STEPS, canvas, legend, save

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sft_lab.core.run_dir import RunDir

PHASES = ("sharp drop", "stabilization", "convergence")
Curve = list[tuple[float, float]]

OWN = (
    "waterfall",
    "tokens",
    "thresholds",
    "similarity",
    "loss",
    "optimizer",
)  # in the page's order

LABEL_WIDTH = 44  # characters of a line of drop reasons
LOG_SCALE_FROM = 20  # a loss range this many times its lowest value cannot be read on a linear axis


def draw(folder: RunDir) -> list[Path]:
    """Draw what the run folder has the data for: waterfall, losses, optimizer, and the figures of the data.

    A figure without data is removed: an earlier run drew it, or a stranger. Safe to call from several threads: there
    is no pyplot, and matplotlib's settings are changed under a lock.

    Returns:
        The files written, below ``figures/``.

    Raises:
        FolderError: if a file of the run folder cannot be read.
    """
    stages = read(folder.waterfall).get("stages")
    events = read_lines(folder.metrics)
    summary = read(folder.summary)
    written = []
    if stages:
        written.append(save(folder.figures / "waterfall.svg", lambda: _waterfall(stages)))
    if any("train/loss" in event or "eval/loss" in event for event in events):
        written.append(save(folder.figures / "loss.svg", lambda: _loss(events, summary)))
    if any("learning_rate" in event or "grad_norm" in event for event in events):
        written.append(save(folder.figures / "optimizer.svg", lambda: _optimizer(events)))
    written += data_figures.draw(folder.figures, read(folder.data))
    for left_over in {folder.figures / f"{name}.svg" for name in OWN} - set(written):
        left_over.unlink(missing_ok=True)
    return written


def _waterfall(stages: list[dict[str, Any]]) -> Figure:
    """Rows kept after each stage, and beside them, lighter, those it dropped, with its reasons."""
    figure = canvas(0.36 * len(stages) + 0.55)
    axes = figure.add_subplot()
    kept = [int(stage["rows_kept"]) for stage in stages]
    lost = [int(stage["rows_in"]) - rows for stage, rows in zip(stages, kept, strict=True)]
    most = max(1, *(rows + gone for rows, gone in zip(kept, lost, strict=True)))
    places = list(range(len(stages)))
    axes.barh(places, kept, height=0.62, color=COLORS["kept"], linewidth=0, label="kept")
    axes.barh(places, lost, left=kept, height=0.62, color=COLORS["dropped"], linewidth=0, label="dropped here")
    for place, stage, rows, gone in zip(places, stages, kept, lost, strict=True):
        axes.text(
            rows + gone + most * 0.012, place, _reasons(stage.get("dropped") or {}), va="center_baseline",
            color=COLORS["muted"], fontsize=9,
        )  # fmt: skip
    names = [f"{stage['stage']}\u2003{number}" for stage, number in zip(stages, _aligned(kept), strict=True)]
    axes.set_yticks(places, names, color=COLORS["ink"])
    axes.set(xlim=(0, most * 1.52), ylim=(len(stages) - 0.5, -0.5), xticks=[])  # the rest is room for the reasons
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    legend(axes)
    return figure


def _aligned(numbers: list[int]) -> list[str]:
    """Numbers of equal width: figure and punctuation spaces stand for the digits and commas a shorter one lacks."""
    texts = [f"{number:,}" for number in numbers]
    widest = max(texts, key=len)
    blank = "".join("\u2008" if mark == "," else "\u2007" for mark in widest)
    return [blank[: len(widest) - len(text)] + text for text in texts]


def _reasons(dropped: dict[str, int]) -> str:
    """Drop reasons, most rows first, on at most two lines; the table has them all."""
    ordered = sorted(dropped.items(), key=lambda item: -item[1])
    # Held together by no-break spaces, so that a line never ends between number and reason.
    parts = [f"-{rows:,}\u00a0{reason}".replace(" ", "\u00a0") for reason, rows in ordered]
    lines = textwrap.wrap(", ".join(parts), LABEL_WIDTH, max_lines=2, placeholder=" …", break_on_hyphens=False)
    return "\n".join(lines).replace("\u00a0", " ")


def _loss(events: list[dict[str, Any]], summary: dict[str, Any]) -> Figure:
    """Training, probe and held-out loss over steps, the base model's level, best step, phases, convergence."""
    figure = canvas(3.7)
    axes = figure.add_subplot()
    train, held_out = _curve(events, "train/loss"), _curve(events, "eval/loss")
    if train:
        size = 4 if len(train) > 1 else 10  # a single point has no line to be seen by
        axes.plot(*zip(*train, strict=True), ".-", color=COLORS["train"], lw=1.3, ms=size, label="training loss")
    if probe := _curve(events, "train/probe_loss"):
        axes.plot(*zip(*probe, strict=True), "o--", color=COLORS["train"], lw=1.3, ms=4, label="probe of training rows")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color=COLORS["held-out"], lw=1.8, ms=5, label="held-out loss")
    _landmarks(axes, summary)
    _phases(axes, held_out, summary.get("converged_at"))
    broken = sorted({step for step, value in [*train, *held_out] if math.isnan(value)})
    if broken:  # a gap in a line is easily overlooked
        axes.plot(
            broken, [0.0] * len(broken), "x", color=COLORS["ink"], ms=6, mew=1.5, label="not a number",
            transform=axes.get_xaxis_transform(), clip_on=False,
        )  # fmt: skip
    values = [value for _, value in [*train, *held_out] if value > 0]  # false for NaN too
    wide = bool(values) and max(values) > LOG_SCALE_FROM * min(values)
    axes.set(xlabel="optimizer step", ylabel="nats per token")
    _whole_steps(axes)
    if wide:
        _logarithmic(axes)
    legend(axes)
    return figure


def _landmarks(axes: Axes, summary: dict[str, Any]) -> None:
    """The numbers stand in the legend, where they cannot cover the curves or one another."""
    base, best, step = (summary.get(name) for name in ("base/eval_loss", "best_eval_loss", "best_step"))
    if base is not None:
        axes.axhline(base, ls=(0, (5, 3)), lw=1.2, color=COLORS["base"], label=f"base model, {base:.3f}")
    if best is not None and step is not None:
        axes.plot(
            [step], [best], "o", ms=12, mfc="none", mec=COLORS["held-out"], mew=1.6, ls="none",
            label=f"best, {best:.3f} at step {step:,}",
        )  # fmt: skip
    converged = summary.get("converged_at")
    if converged is not None:
        axes.axvline(
            converged, ls=(0, (1, 2)), lw=1.5, color=COLORS["converged"], label=f"converged at step {converged:,}"
        )


def _phases(axes: Axes, held_out: Curve, converged: int | None) -> None:
    """Name the three phases of a training that converged: sharp drop, stabilization, convergence.

    The drop ends where two thirds of all that was gained are reached.
    """
    known = [(step, loss) for step, loss in held_out if not math.isnan(loss)]
    if converged is None or len(known) < 3 or known[0][1] <= min(loss for _, loss in known):
        return
    (start, first), (end, _) = known[0], known[-1]
    enough = first - (first - min(loss for _, loss in known)) * 2 / 3
    dropped = next(step for step, loss in known if loss <= enough)
    edges = [start, min(dropped, converged), converged, end]
    for name, begin, stop in zip(PHASES, edges[:-1], edges[1:], strict=True):
        if stop - begin >= 0.08 * (end - start):  # else there is no room for its name
            axes.text(
                (begin + stop) / 2, 0.02, name, transform=axes.get_xaxis_transform(), ha="center", va="bottom",
                fontsize=8, color=COLORS["muted"],
            )  # fmt: skip
    for edge in {edges[1], edges[2]} - {start, end}:
        axes.axvline(edge, ymax=0.06, lw=1, color=COLORS["muted"])


def _optimizer(events: list[dict[str, Any]]) -> Figure:
    """Learning rate and gradient norm over steps, side by side."""
    from matplotlib.ticker import MaxNLocator

    names = {"learning_rate": "learning rate", "grad_norm": "gradient norm"}
    curves = {name: _curve(events, name) for name in names}
    figure = canvas(1.9)
    for place, (name, curve) in enumerate(curves.items()):
        axes = figure.add_subplot(1, len(curves), place + 1)
        if curve:
            size = 3.5 if len(curve) > 1 else 8
            axes.plot(*zip(*curve, strict=True), ".-", color=COLORS["train"], lw=1.2, ms=size, clip_on=False)
        axes.set(xlabel="optimizer step", ylabel=names[name])
        # A file from elsewhere may hold values below zero, and an axis that ends below its start has no layout.
        axes.set_ylim(bottom=min([0.0, *(value for _, value in curve if value < 0)]))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=TICK_STEPS))
        axes.yaxis.set_major_formatter("{x:.3g}")
        _whole_steps(axes)
    return figure


def _curve(events: list[dict[str, Any]], name: str) -> Curve:
    """Give (step, value) of every event that has the metric; null, in the file, was not a number."""
    found = [(event.get("step", 0), event[name]) for event in events if name in event]
    return [(step, float(value) if value is not None and math.isfinite(value) else math.nan) for step, value in found]


def _logarithmic(axes: Axes) -> None:
    """A logarithmic axis whose ticks are plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _whole_steps(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(8, steps=TICK_STEPS, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(visible=False, axis="x")
    axes.spines[["top", "right", "left"]].set_visible(False)
