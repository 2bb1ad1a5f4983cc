"""Figures of the data: lengths in tokens, rows kept at each threshold, how near the nearest neighbor is.

All are drawn from the content of ``data.json``, any part of which may be missing.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from sft_lab.report.style import COLORS, TICK_STEPS, canvas, legend, save

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {"prompt": "tokens of the prompt", "answer": "tokens of the answer", "both": "tokens of both"}
SHOWN_SHARE = 0.9  # of the rows have a bar of their own; those of the long tail share the last one
MAX_BARS = 32  # of a panel
MAX_TICKS = 5  # of a panel
SCRIPTS = 4  # with a panel of their own; the others share one
LOG_COUNTS_FROM = 20  # a highest bar this many times the usual one leaves nothing of the others on a linear axis


def draw(folder: Path, data: dict[str, Any]) -> list[Path]:
    """Draw ``tokens.svg``, ``thresholds.svg`` and ``similarity.svg``, as far as there is something to draw.

    Returns:
        The files written, in ``folder``.
    """
    tokens, thresholds, similarity = (data.get(name) or {} for name in ("tokens", "thresholds", "similarity"))
    written = []
    if any(_rows(tokens, when) for when in ("before", "after")):
        written.append(save(folder / "tokens.svg", lambda: _tokens(tokens)))
    if thresholds.get("curve"):
        written.append(save(folder / "thresholds.svg", lambda: _thresholds(thresholds)))
    if any(map(_texts, similarity.get("scripts") or [])):
        written.append(save(folder / "similarity.svg", lambda: _similarity(similarity, thresholds.get("chosen"))))
    return written


def _rows(tokens: dict[str, Any], when: str) -> int:
    """How many rows the histograms before or after count."""
    return max((sum(panel["counts"]) for panel in (tokens.get(when) or {}).values() if panel), default=0)


def _tokens(tokens: dict[str, Any]) -> Figure:
    """Histograms of the lengths of prompt, answer and both, those before in light and those after in strong color."""
    figure = canvas(2.5)
    held = {when: tokens.get(when) or {} for when in ("before", "after")}
    names = [name for name in PANELS if any(held[when].get(name) for when in held)]
    for place, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), place + 1)
        counts = {when: held[when][name]["counts"] for when in held if held[when].get(name)}
        limit = tokens.get("limit") if name == "both" else None
        _histogram(axes, tokens["edges"], counts, limit)
        axes.set(xlabel=PANELS[name], ylabel="" if place else "rows")
    handles = [_patch(f"{when}, {_some(_rows(tokens, when), 'row')}", when) for when in held if _rows(tokens, when)]
    figure.legend(
        handles=handles, loc="outside upper left", ncols=2, frameon=False, handlelength=1.5, borderaxespad=0,
        labelcolor=COLORS["muted"],
    )  # fmt: skip
    return figure


def _patch(label: str, when: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=_color(when), label=label, linewidth=0)


def _color(when: str) -> str:
    """As in the waterfall: what is still to be seen in light color was dropped."""
    return COLORS["kept" if when == "after" else "dropped"]


def _histogram(axes: Axes, edges: list[float], counts: dict[str, list[int]], limit: float | None) -> None:
    """Draw bars of equal width, one a bin or one for several, and one beside them for the tail.

    Args:
        axes: where to draw.
        edges: of the bins, one more than bins, in tokens.
        counts: "before" and "after", as far as they are there, to the rows of each bin.
        limit: the longest length allowed, in tokens, if there is one.
    """
    per_bar, bars = _bars(edges, next(iter(counts.values())), limit)
    marks = edges[: bars * per_bar + 1 : per_bar]
    tail = max(sum(found[bars * per_bar :]) for found in counts.values())
    gap, wide = bars / 40, max(1, bars / 18)
    for when, found in counts.items():
        heights = [sum(found[start : start + per_bar]) for start in range(0, bars * per_bar, per_bar)]
        axes.stairs(heights, range(bars + 1), fill=True, color=_color(when), lw=0)
        if tail:
            axes.stairs(
                [sum(found[bars * per_bar :])], [bars + gap, bars + gap + wide], fill=True, color=_color(when), lw=0
            )
    end = bars + gap + wide if tail else bars
    every = 1
    while bars / every > MAX_TICKS:
        every *= 2
    # The tail's label is wider than the others, which keep away from it.
    ticks = [place for place in range(0, bars + 1, every) if not tail or place < bars * 0.84]
    labels = [f"{marks[place]:,.0f}" for place in ticks]
    axes.set_xticks([*ticks, end - wide / 2] if tail else ticks, [*labels, f"≥ {marks[bars]:,.0f}"] if tail else labels)
    axes.set(xlim=(-end * 0.01, end * 1.01))
    _counts(axes, 4)
    if limit:
        _limit(axes, limit, marks, end)


def _bars(edges: list[float], counts: list[int], limit: float | None) -> tuple[int, int]:
    """How many bins make one bar, and how many bars are drawn besides the tail's."""
    most = sum(counts) * SHOWN_SHARE
    shown = bisect_left(list(accumulate(counts)), most) + 1
    if limit and limit <= edges[-1]:
        past = bisect_left(edges, limit) + 1
        shown = max(shown, past) if past < 1.5 * shown else shown
    if shown > 0.8 * len(counts):  # hardly any tail
        shown = len(counts)
    per_bar = 1
    while shown / per_bar > MAX_BARS:
        per_bar *= 2
    return per_bar, max(1, min(-(-shown // per_bar), len(counts) // per_bar))


def _limit(axes: Axes, limit: float, marks: list[float], end: float) -> None:
    """Mark the longest length allowed; its number stands above the bars, on the side where there is room."""
    place, label = end, f"limit {limit:,.0f} →"  # beyond what has bars of its own
    if limit <= marks[-1]:
        right = max(1, bisect_left(marks, limit))
        left = right - 1
        place, label = left + (limit - marks[left]) / (marks[right] - marks[left]), f"limit {limit:,.0f}"
        axes.axvline(place, ls=(0, (5, 3)), lw=1.2, color=COLORS["ink"])
    axes.text(
        place, 1.02, label, ha="right" if place > end / 2 else "left", va="bottom", fontsize=9,
        color=COLORS["ink"], transform=axes.get_xaxis_transform(),
    )  # fmt: skip


def _thresholds(thresholds: dict[str, Any]) -> Figure:
    """Rows kept at each threshold; the chosen one's number stands in the legend."""
    figure = canvas(2.7)
    axes = figure.add_subplot()
    curve, chosen, rows = thresholds["curve"], thresholds.get("chosen"), thresholds.get("kept")
    keep = f" with keep={thresholds['keep']}" if thresholds.get("keep") else ""
    size = 5 if len(curve) > 1 else 9  # a single point has no line to be seen by
    axes.plot(*zip(*curve, strict=True), ".-", color=COLORS["kept"], lw=1.5, ms=size, label=f"rows kept{keep}")
    if chosen is not None:
        axes.axvline(chosen, ls=(0, (5, 3)), lw=1.2, color=COLORS["ink"])
    if chosen is not None and rows is not None:
        axes.plot(
            [chosen], [rows], "o", ms=11, mfc="none", mec=COLORS["ink"], mew=1.5, ls="none",
            label=f"chosen: {chosen:g} keeps {rows:,}",
        )  # fmt: skip
    axes.set(xlabel=f"threshold{_unit(thresholds)}", ylabel="rows kept")
    axes.margins(x=0.02, y=0.12)
    _counts(axes, 5)
    _similarity_axis(axes)
    legend(axes)
    return figure


def _similarity(similarity: dict[str, Any], chosen: float | None) -> Figure:
    """Of each script how many texts have their nearest neighbor at which similarity, one panel below the other."""
    panels = _panels(similarity["scripts"])
    edges = similarity["edges"]
    figure = canvas(0.75 + 1.15 * len(panels))
    every = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    logarithmic = any(_uneven(panel["counts"]) for panel in panels)
    for axes, panel in zip(every, panels, strict=True):
        counts = panel["counts"]
        texts = _texts(panel)
        axes.stairs(counts, edges, fill=True, color=COLORS["kept"], lw=0, baseline=0.5 if logarithmic else 0)
        if chosen is not None:
            axes.axvline(chosen, ls=(0, (5, 3)), lw=1.2, color=COLORS["ink"])
        axes.set_title(
            f"{panel['script']}: {_some(texts, 'text')}, "
            f"{panel['below'] / texts if texts else 0:.0%} with no neighbor at {edges[0]:.2f} or above",
            loc="left", fontsize=9.5, color=COLORS["ink"],
        )  # fmt: skip
        axes.set_ylabel("texts, log" if logarithmic else "texts")
        _counts(axes, 3)
        axes.set_ylim(0, max(1.0, 1.08 * max(counts)))
        if logarithmic:
            _logarithmic(axes, max(counts))
        _similarity_axis(axes)
    line = "" if chosen is None else f"; dashed: the threshold, {chosen:g}"
    every[-1].set_xlabel(f"similarity to the nearest neighbor{_unit(similarity)}{line}")
    return figure


def _panels(scripts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The scripts with most texts, and one panel for all others."""
    ordered = sorted((script for script in scripts if _texts(script)), key=_texts, reverse=True)
    shown = [{**script, "script": _name(script["script"])} for script in ordered[:SCRIPTS]]
    if rest := ordered[SCRIPTS:]:
        counts = [sum(column) for column in zip(*(script["counts"] for script in rest), strict=True)]
        shown.append(
            {"script": _some(len(rest), "other"), "counts": counts, "below": sum(script["below"] for script in rest)}
        )
    return shown


def _name(script: str) -> str:
    return (script if len(script) <= 3 else script.capitalize()) or "No letters"  # CJK stays CJK


def _texts(script: dict[str, Any]) -> int:
    return int(sum(script["counts"]) + script["below"])


def _uneven(counts: list[int]) -> bool:
    filled = [count for count in counts if count]
    return bool(filled) and max(filled) > LOG_COUNTS_FROM * statistics.median(filled)


def _some(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _unit(part: dict[str, Any]) -> str:
    """The measure in parentheses, where it is known."""
    return f" ({part['measure']})" if part.get("measure") else ""


def _counts(axes: Axes, ticks: int) -> None:
    """A vertical axis of whole numbers and nothing else but its grid."""
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(ticks, steps=TICK_STEPS, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(visible=False, axis="x")
    axes.spines[["top", "right", "left"]].set_visible(False)


def _logarithmic(axes: Axes, most: int) -> None:
    """A logarithmic axis on which a single text still has a bar."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.set_ylim(0.5, 2 * max(most, 5))
    axes.yaxis.set_major_locator(LogLocator(subs=(1,), numticks=4))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _similarity_axis(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(8, steps=TICK_STEPS))
    axes.xaxis.set_major_formatter("{x:.2f}")
