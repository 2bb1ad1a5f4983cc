"""Figures of a run: its rows after each stage, its losses, its optimizer, and its data."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

from sft_lab.core.io import is_number, write_text
from sft_lab.core.tolerant_readers import read, read_metrics
from sft_lab.report.data_figures import draw_histograms, draw_similarity, draw_thresholds, has_texts, row_count
from sft_lab.report.formatting import shown_convergence
from sft_lab.report.style import (
    COLORS,
    DASHED,
    add_legend,
    new_figure,
    render_svg,
    set_ticks,
    use_log_axis,
    use_step_axis,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sft_lab.core.run_dir import RunDir
    from sft_lab.core.types import Curve

FIGURE_NAMES = ("waterfall", "tokens", "thresholds", "similarity", "loss", "optimizer")  # in the page's order
PHASES = ("sharp drop", "stabilization", "convergence")
MIN_PHASE_SHARE = 0.08  # of the steps that a phase must last for its name to fit
LABEL_WIDTH = 44  # characters on a line of drop reasons
LOG_SCALE_FROM = 20  # a loss range this many times its lowest value cannot be read on a linear axis


def draw_figures(folder: RunDir) -> list[Path]:
    """Draw the figures for which the run folder has data.

    A figure without data is removed: it is from an earlier run, or a stranger. Safe to call from several threads.

    Returns:
        The files written, below ``figures/``.

    Raises:
        FolderError: if a file of the run folder cannot be read.
    """
    written = []
    for name, draw in _drawable_figures(folder).items():
        path = folder.figures / f"{name}.svg"
        write_text(path, render_svg(name, draw))
        written.append(path)

    for stale in {folder.figures / f"{name}.svg" for name in FIGURE_NAMES} - set(written):
        stale.unlink(missing_ok=True)
    return written


def _drawable_figures(folder: RunDir) -> dict[str, Callable[[], Figure]]:
    """Return what draws each figure that there is data for, by name."""
    stages = [stage for stage in read(folder.waterfall).get("stages") or [] if not stage.get("turns")]
    events = read_metrics(folder.metrics)
    summary, data = read(folder.summary), read(folder.data)
    tokens, thresholds, similarity = (data.get(name) or {} for name in ("tokens", "thresholds", "similarity"))
    chosen = thresholds.get("chosen")

    drawable: dict[str, Callable[[], Figure]] = {}
    if stages:
        drawable["waterfall"] = lambda: _draw_waterfall(stages)
    if any("train/loss" in event or "eval/loss" in event for event in events):
        drawable["loss"] = lambda: _draw_loss(events, summary)
    if any("train/learning_rate" in event or "train/grad_norm" in event for event in events):
        drawable["optimizer"] = lambda: _draw_optimizer(events)
    if any(row_count(tokens, time) for time in ("before", "after")):
        drawable["tokens"] = lambda: draw_histograms(tokens)
    if thresholds.get("curve"):
        drawable["thresholds"] = lambda: draw_thresholds(thresholds)
    if has_texts(similarity):
        drawable["similarity"] = lambda: draw_similarity(similarity, chosen)
    return drawable


def _draw_waterfall(stages: list[dict[str, Any]]) -> Figure:
    """Draw the rows kept after each stage, and beside them, lighter, those it dropped, with its reasons."""
    figure = new_figure(0.36 * len(stages) + 0.55)
    axes = figure.add_subplot()
    kept = [int(stage["rows_kept"]) for stage in stages]
    totals = [int(stage["rows_in"]) for stage in stages]
    dropped = [total - rows for total, rows in zip(totals, kept, strict=True)]
    longest = max(1, *totals)

    heights = list(range(len(stages)))
    axes.barh(heights, kept, height=0.62, color=COLORS["kept"], linewidth=0, label="kept")
    axes.barh(heights, dropped, left=kept, height=0.62, color=COLORS["dropped"], linewidth=0, label="dropped here")
    for y, stage, total in zip(heights, stages, totals, strict=True):
        reasons = _format_reasons(stage.get("dropped") or {})
        x = total + longest * 0.012
        axes.text(x, y, reasons, va="center_baseline", color=COLORS["muted"], fontsize=9)

    names = [f"{stage['stage']}\u2003{number}" for stage, number in zip(stages, _pad_numbers(kept), strict=True)]
    axes.set_yticks(heights, names, color=COLORS["ink"])
    axes.set(xlim=(0, longest * 1.52), ylim=(len(stages) - 0.5, -0.5), xticks=[])  # leaves room for the reasons
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    add_legend(axes)
    return figure


def _pad_numbers(numbers: list[int]) -> list[str]:
    """Return numbers of equal width, padded with spaces as wide as a digit or a comma."""
    texts = [f"{number:,}" for number in numbers]
    longest = max(texts, key=len)
    padding = "".join("\u2008" if character == "," else "\u2007" for character in longest)
    return [padding[: len(longest) - len(text)] + text for text in texts]


def _format_reasons(dropped: dict[str, int]) -> str:
    """Return the drop reasons, most rows first, on at most two lines; the page's table lists them all."""
    ordered = sorted(dropped.items(), key=lambda item: -item[1])
    # No-break spaces, so that no line ends between a number and its reason.
    parts = [f"-{rows:,}\u00a0{reason}".replace(" ", "\u00a0") for reason, rows in ordered]
    lines = textwrap.wrap(", ".join(parts), LABEL_WIDTH, max_lines=2, placeholder=" …", break_on_hyphens=False)
    return "\n".join(lines).replace("\u00a0", " ")


def _draw_loss(events: list[dict[str, Any]], summary: dict[str, Any]) -> Figure:
    """Draw training, probe and held-out loss over steps, with the base model's level, best step and phases."""
    figure = new_figure(3.7)
    axes = figure.add_subplot()
    train = extract_curve(events, "train/loss")
    probe = extract_curve(events, "train/probe_loss")
    held_out = extract_curve(events, "eval/loss")

    blue, orange = COLORS["train"], COLORS["held-out"]
    size = 4 if len(train) > 1 else 10  # a single point has no line to be seen by
    _plot(axes, train, ".-", color=blue, lw=1.3, ms=size, label="training loss")
    _plot(axes, probe, "o--", color=blue, lw=1.3, ms=4, label="probe of training rows")
    _plot(axes, held_out, "o-", color=orange, lw=1.8, ms=5, label="held-out loss")
    _mark_landmarks(axes, summary)
    _mark_phases(axes, held_out, shown_convergence(summary))
    _mark_nan_steps(axes, [*train, *held_out])

    axes.set(xlabel="optimizer step", ylabel="nats per token")
    use_step_axis(axes)
    values = [value for _, value in [*train, *held_out] if value > 0]  # false for NaN too
    if values and max(values) > LOG_SCALE_FROM * min(values):
        use_log_axis(axes, "{x:,g}", multiples=(1, 2, 5))
    add_legend(axes)
    return figure


def _plot(axes: Axes, curve: Curve, form: str, **style: Any) -> None:
    if curve:
        axes.plot(*zip(*curve, strict=True), form, **style)


def _mark_nan_steps(axes: Axes, curve: Curve) -> None:
    """Mark the steps whose loss was not a number: a gap in a line is easily overlooked."""
    steps = sorted({step for step, value in curve if math.isnan(value)})
    if not steps:
        return
    axes.plot(
        steps,
        [0.0] * len(steps),
        "x",
        color=COLORS["ink"],
        ms=6,
        mew=1.5,
        label="not a number",
        transform=axes.get_xaxis_transform(),
        clip_on=False,
    )


def _mark_landmarks(axes: Axes, summary: dict[str, Any]) -> None:
    """Mark base model, best step and convergence; their numbers are in the legend, where they cover no curve."""
    base, best, step = (summary.get(name) for name in ("base/eval_loss", "best_eval_loss", "best_step"))
    if base is not None:
        axes.axhline(base, ls=DASHED, lw=1.2, color=COLORS["base"], label=f"base model, {base:.3f}")
    if best is not None and step is not None:
        label = f"best, {best:.3f} at step {step:,}"
        ring: dict[str, Any] = {"ms": 12, "mfc": "none", "mec": COLORS["held-out"], "mew": 1.6}
        axes.plot([step], [best], "o", ls="none", label=label, **ring)
    converged = shown_convergence(summary)
    if converged is not None:
        label = f"converged at step {converged:,}"
        axes.axvline(converged, ls=(0, (1, 2)), lw=1.5, color=COLORS["converged"], label=label)


def _mark_phases(axes: Axes, held_out: Curve, converged: int | None) -> None:
    """Name the phases of a training that converged: sharp drop, stabilization, convergence.

    The drop ends where two thirds of the whole gain are reached.
    """
    measured = [(step, loss) for step, loss in held_out if not math.isnan(loss)]
    if converged is None or len(measured) < 3:
        return
    (start, first), (end, _) = measured[0], measured[-1]
    lowest = min(loss for _, loss in measured)
    if first <= lowest:
        return

    dropped = next(step for step, loss in measured if loss <= first - (first - lowest) * 2 / 3)
    edges = [start, min(dropped, converged), converged, end]
    for name, begin, stop in zip(PHASES, edges[:-1], edges[1:], strict=True):
        if stop - begin >= MIN_PHASE_SHARE * (end - start):
            style: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 8, "color": COLORS["muted"]}
            axes.text((begin + stop) / 2, 0.02, name, transform=axes.get_xaxis_transform(), **style)
    for edge in {edges[1], edges[2]} - {start, end}:
        axes.axvline(edge, ymax=0.06, lw=1, color=COLORS["muted"])


def _draw_optimizer(events: list[dict[str, Any]]) -> Figure:
    """Draw learning rate and gradient norm over steps, side by side."""
    labels = {"train/learning_rate": "learning rate", "train/grad_norm": "gradient norm"}
    figure = new_figure(1.9)
    for index, (name, label) in enumerate(labels.items()):
        axes = figure.add_subplot(1, len(labels), index + 1)
        curve = extract_curve(events, name)
        size = 3.5 if len(curve) > 1 else 8
        _plot(axes, curve, ".-", color=COLORS["train"], lw=1.2, ms=size, clip_on=False)

        axes.set(xlabel="optimizer step", ylabel=label)
        # A stranger's file may hold negative values, and an axis cannot end below its start.
        axes.set_ylim(bottom=min([0.0, *(value for _, value in curve if value < 0)]))
        set_ticks(axes.yaxis, 4, "{x:.3g}")
        use_step_axis(axes)
    return figure


def extract_curve(events: list[dict[str, Any]], name: str) -> Curve:
    """Return (step, value) of every event that has the metric; NaN where it is not a finite number."""
    points = [(event.get("step", 0), event[name]) for event in events if name in event]
    return [(step, float(value) if is_number(value) else math.nan) for step, value in points]
