"""Figures of the data: lengths in tokens, rows kept at each threshold, distance of the nearest neighbor.

All are drawn from the content of ``data.json``, any part of which may be missing.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from sft_lab.core.text import count_of
from sft_lab.report.style import COLORS, DASHED, add_legend, hide_frame, new_figure, set_ticks, use_log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {"prompt": "tokens of the prompt", "answer": "tokens of the answer", "both": "tokens of both"}
PANEL_COLORS = {"before": COLORS["dropped"], "after": COLORS["kept"]}  # what is seen of "before" was dropped
BINNED_SHARE = 0.9  # of the rows have a bar of their own; those of the long tail share the last one
MAX_BARS = 32  # of a panel
MAX_TICKS = 5  # of a panel
MAX_SCRIPTS = 4  # with a panel of their own; the rest share one
LOG_COUNTS_FROM = 20  # a highest bar this many times the median one hides the rest on a linear axis


def row_count(tokens: dict[str, Any], time: str) -> int:
    """Return how many rows the histograms ``before`` or ``after`` count."""
    return max((sum(panel["counts"]) for panel in (tokens.get(time) or {}).values() if panel), default=0)


def draw_histograms(tokens: dict[str, Any]) -> Figure:
    """Draw the lengths of prompt, answer and both, those before in light and those after in strong color."""
    from matplotlib.patches import Patch

    figure = new_figure(2.5)
    panels = {time: tokens.get(time) or {} for time in PANEL_COLORS}
    names = [name for name in PANELS if any(panels[time].get(name) for time in panels)]
    for index, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), index + 1)
        counts = {time: panels[time][name]["counts"] for time in panels if panels[time].get(name)}
        _draw_histogram(axes, tokens["edges"], counts, tokens.get("limit") if name == "both" else None)
        axes.set(xlabel=PANELS[name], ylabel="" if index else "rows")

    figure.legend(
        handles=[
            Patch(color=color, label=f"{time}, {count_of(rows, 'row')}", linewidth=0)
            for time, color in PANEL_COLORS.items()
            if (rows := row_count(tokens, time))
        ],
        loc="outside upper left",
        ncols=2,
        frameon=False,
        handlelength=1.5,
        borderaxespad=0,
        labelcolor=COLORS["muted"],
    )
    return figure


def _draw_histogram(axes: Axes, edges: list[float], counts: dict[str, list[int]], limit: float | None) -> None:
    """Draw bars of equal width, each for one or more bins, and a separate last one for the tail.

    Args:
        axes: to draw on.
        edges: of the bins, one more than bins, in tokens.
        counts: rows of each bin, under ``before`` and ``after``.
        limit: longest length allowed, in tokens, if there is one.
    """
    bins_per_bar, bars = choose_bars(edges, next(iter(counts.values())), limit)
    binned = bars * bins_per_bar
    bar_edges = edges[: binned + 1 : bins_per_bar]
    has_tail = any(sum(rows[binned:]) for rows in counts.values())
    gap, tail_width = bars / 40, max(1, bars / 18)
    end = bars + gap + tail_width if has_tail else bars

    for time, rows in counts.items():
        style: dict[str, Any] = {"fill": True, "color": PANEL_COLORS[time], "lw": 0}
        heights = [sum(rows[start : start + bins_per_bar]) for start in range(0, binned, bins_per_bar)]
        axes.stairs(heights, range(bars + 1), **style)
        if has_tail:
            axes.stairs([sum(rows[binned:])], [bars + gap, end], **style)

    step = 1
    while bars / step > MAX_TICKS:
        step *= 2
    # The tail's label is wider than the others, which keep away from it.
    ticks: list[float] = [tick for tick in range(0, bars + 1, step) if not has_tail or tick < bars * 0.84]
    labels = [f"{bar_edges[int(tick)]:,.0f}" for tick in ticks]
    if has_tail:
        ticks.append(end - tail_width / 2)
        labels.append(f"≥ {bar_edges[bars]:,.0f}")
    axes.set_xticks(ticks, labels)
    axes.set(xlim=(-end * 0.01, end * 1.01))
    _use_count_axis(axes, 4)
    if limit:
        _mark_limit(axes, limit, bar_edges, end)


def choose_bars(edges: list[float], counts: list[int], limit: float | None) -> tuple[int, int]:
    """Return how many bins make one bar, and how many bars are drawn besides the tail's."""
    shown_bins = bisect_left(list(accumulate(counts)), sum(counts) * BINNED_SHARE) + 1
    if limit and limit <= edges[-1]:
        to_limit = bisect_left(edges, limit) + 1
        shown_bins = max(shown_bins, to_limit) if to_limit < 1.5 * shown_bins else shown_bins
    if shown_bins > 0.8 * len(counts):  # almost no tail
        shown_bins = len(counts)

    bins_per_bar = 1
    while shown_bins / bins_per_bar > MAX_BARS:
        bins_per_bar *= 2
    return bins_per_bar, max(1, min(-(-shown_bins // bins_per_bar), len(counts) // bins_per_bar))


def _mark_limit(axes: Axes, limit: float, bar_edges: list[float], end: float) -> None:
    """Mark the longest length allowed; its number is above the bars, on the side where there is room."""
    x, label = end, f"limit {limit:,.0f} →"  # beyond the bars
    if limit <= bar_edges[-1]:
        right = max(1, bisect_left(bar_edges, limit))
        left = right - 1
        x = left + (limit - bar_edges[left]) / (bar_edges[right] - bar_edges[left])
        label = f"limit {limit:,.0f}"
        axes.axvline(x, ls=DASHED, lw=1.2, color=COLORS["ink"])
    side = "right" if x > end / 2 else "left"
    style: dict[str, Any] = {"ha": side, "va": "bottom", "fontsize": 9, "color": COLORS["ink"]}
    axes.text(x, 1.02, label, transform=axes.get_xaxis_transform(), **style)


def draw_thresholds(thresholds: dict[str, Any]) -> Figure:
    """Draw the rows kept at each threshold; the chosen one's number is in the legend."""
    figure = new_figure(2.7)
    axes = figure.add_subplot()
    curve, chosen, rows = thresholds["curve"], thresholds.get("chosen"), thresholds.get("kept")
    keep = f" with keep={thresholds['keep']}" if thresholds.get("keep") else ""
    size = 5 if len(curve) > 1 else 9  # a single point has no line to be seen by
    axes.plot(*zip(*curve, strict=True), ".-", color=COLORS["kept"], lw=1.5, ms=size, label=f"rows kept{keep}")

    if chosen is not None:
        axes.axvline(chosen, ls=DASHED, lw=1.2, color=COLORS["ink"])
    if chosen is not None and rows is not None:
        ring: dict[str, Any] = {"ms": 11, "mfc": "none", "mec": COLORS["ink"], "mew": 1.5}
        axes.plot([chosen], [rows], "o", ls="none", label=f"chosen: {chosen:g} keeps {rows:,}", **ring)

    axes.set(xlabel=f"threshold{_measure_suffix(thresholds)}", ylabel="rows kept")
    axes.margins(x=0.02, y=0.12)
    _use_count_axis(axes, 5)
    set_ticks(axes.xaxis, 8, "{x:.2f}")
    add_legend(axes)
    return figure


def draw_similarity(similarity: dict[str, Any], chosen: float | None) -> Figure:
    """Draw how similar the nearest neighbors of texts are, a panel for each script."""
    panels, edges = _script_panels(similarity["scripts"]), similarity["edges"]
    figure = new_figure(0.75 + 1.15 * len(panels))
    rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    is_log = any(_is_uneven(panel["counts"]) for panel in panels)
    for axes, panel in zip(rows, panels, strict=True):
        counts, texts = panel["counts"], _text_count(panel)
        axes.stairs(counts, edges, fill=True, color=COLORS["kept"], lw=0, baseline=0.5 if is_log else 0)
        if chosen is not None:
            axes.axvline(chosen, ls=DASHED, lw=1.2, color=COLORS["ink"])

        below = panel["below"] / texts if texts else 0
        title = f"{panel['script']}: {count_of(texts, 'text')}, {below:.0%} with no neighbor at {edges[0]:.2f} or above"
        axes.set_title(title, loc="left", fontsize=9.5, color=COLORS["ink"])
        axes.set_ylabel("texts, log" if is_log else "texts")
        _use_count_axis(axes, 3)
        axes.set_ylim(0, max(1.0, 1.08 * max(counts)))
        if is_log:
            use_log_axis(axes, "{x:,.0f}", multiples=(1,), max_ticks=4)
            axes.set_ylim(0.5, 2 * max(*counts, 5))  # a single text still has a bar
        set_ticks(axes.xaxis, 8, "{x:.2f}")

    threshold = "" if chosen is None else f"; dashed: the threshold, {chosen:g}"
    rows[-1].set_xlabel(f"similarity to the nearest neighbor{_measure_suffix(similarity)}{threshold}")
    return figure


def has_texts(similarity: dict[str, Any]) -> bool:
    """Return whether any text was compared with its nearest neighbor."""
    return any(map(_text_count, similarity.get("scripts") or []))


def _script_panels(scripts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the scripts with most texts, and one panel for the rest."""
    ordered = sorted((script for script in scripts if _text_count(script)), key=_text_count, reverse=True)
    panels = [{**script, "script": _script_name(script["script"])} for script in ordered[:MAX_SCRIPTS]]
    if rest := ordered[MAX_SCRIPTS:]:
        counts = [sum(column) for column in zip(*(script["counts"] for script in rest), strict=True)]
        below = sum(script["below"] for script in rest)
        panels.append({"script": count_of(len(rest), "other"), "counts": counts, "below": below})
    return panels


def _script_name(script: str) -> str:
    return (script if len(script) <= 3 else script.capitalize()) or "No letters"  # CJK stays CJK


def _text_count(script: dict[str, Any]) -> int:
    return int(sum(script["counts"]) + script["below"])


def _is_uneven(counts: list[int]) -> bool:
    filled = [count for count in counts if count]
    return bool(filled) and max(filled) > LOG_COUNTS_FROM * statistics.median(filled)


def _measure_suffix(part: dict[str, Any]) -> str:
    """Return the measure of similarity in parentheses, where it is known."""
    return f" ({part['measure']})" if part.get("measure") else ""


def _use_count_axis(axes: Axes, ticks: int) -> None:
    """Let the vertical axis show whole numbers."""
    set_ticks(axes.yaxis, ticks, "{x:,.0f}", integer=True)
    hide_frame(axes)
