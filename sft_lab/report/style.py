"""The style of all figures: colors, size, fonts, axes and output."""

from __future__ import annotations

import io
import math
import re
import tempfile
import threading
from contextlib import chdir
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


# They can be distinguished without red and green (after Okabe and Ito). Each has one meaning, so that a page
# can replace it in dark mode.
COLORS = {
    "ink": "#2a2e33",
    "muted": "#70757c",
    "line": "#e4e2dd",
    "paper": "#ffffff",
    "kept": "#1f6fa8",
    "dropped": "#c3dbec",
    "train": "#0173b2",
    "held-out": "#d55e00",
    "base": "#7a7f86",
    "converged": "#029e73",
}
DASHED = (0, (5, 3))  # line style of thresholds and levels
WIDTH = 9.58  # inches: 920 CSS pixels, the page's column, so that a figure is shown at its own size
LEGEND_WIDTH = 135  # characters on a line of the legend, 7 for each sample of a line or marker

STYLE = {
    "font.size": 10.4,
    "font.sans-serif": ["Arial", "DejaVu Sans", "sans-serif"],
    "axes.labelsize": 10.4,
    "axes.titlesize": 10.4,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "legend.title_fontsize": 10.4,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.8,
    "lines.solid_capstyle": "round",
    "patch.edgecolor": "white",
    "patch.force_edgecolor": True,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.linewidth": 1,
    "xtick.bottom": False,  # the grid shows where a tick is
    "ytick.left": False,
    "svg.fonttype": "none",  # text stays text: it can be selected, and the browser shapes Arabic
    "text.parse_math": False,  # labels are data: no dollar sign in them starts a formula
    "axes.edgecolor": COLORS["line"],
    "axes.labelcolor": COLORS["muted"],
    "grid.color": COLORS["line"],
    "text.color": COLORS["ink"],
    "xtick.color": COLORS["muted"],
    "ytick.color": COLORS["muted"],
}
_MATPLOTLIB = threading.Lock()  # its settings belong to the whole process


def import_matplotlib() -> ModuleType:
    """Return matplotlib, imported outside the working folder, whose matplotlibrc is not to be trusted."""
    with tempfile.TemporaryDirectory(prefix="sft_lab-") as empty, chdir(empty):
        import matplotlib
    return matplotlib


def render_svg(name: str, draw: Callable[[], Figure]) -> str:
    """Return the SVG of the figure that ``draw`` returns; it is called with ``STYLE`` in force.

    Args:
        name: of the figure. The same name and data give the same text.
        draw: draws without pyplot, so that threads can draw at the same time.
    """
    matplotlib = import_matplotlib()
    text = io.StringIO()
    with _MATPLOTLIB, matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own matplotlibrc does not change a report either
        matplotlib.rcParams.update({**STYLE, "svg.hashsalt": name})
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        draw().savefig(text, format="svg", metadata=metadata)
    return text.getvalue()


def inline_svg(svg: str, name: str) -> Markup:
    """Return one of our own figures as an element of a page, in the colors of the page's light or dark mode.

    Args:
        svg: from ``render_svg``, which escapes the data in it.
        name: of the figure, unique in the page.
    """
    from markupsafe import Markup

    svg = svg[svg.index("<svg") :]  # HTML has no XML declaration
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # page.css.jinja has its rule
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", svg)  # ids are unique in a page
    for color, value in COLORS.items():
        svg = re.sub(rf"(fill|stroke): {value}\b", rf"\g<1>: var(--{color})", svg)
    return Markup(svg)  # noqa: S704 - matplotlib escaped the labels


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure; width and height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor=COLORS["paper"], layout="constrained")


def add_legend(axes: Axes) -> None:
    """Put the legend above the plot, on two lines where one would be wider than the figure."""
    labels = axes.get_legend_handles_labels()[1]
    if not labels:
        return
    fits = sum(len(label) + 7 for label in labels) <= LEGEND_WIDTH
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        borderaxespad=0.4,
        frameon=False,
        handlelength=1.5,
        ncols=len(labels) if fits else math.ceil(len(labels) / 2),
        columnspacing=1.4,
        labelcolor=COLORS["muted"],
    )


def hide_frame(axes: Axes) -> None:
    """Hide the frame, except the line below the plot and the horizontal grid."""
    axes.grid(visible=False, axis="x")
    axes.spines[["top", "right", "left"]].set_visible(False)


def set_ticks(axis: Axis, count: int, tick_format: str, *, integer: bool = False) -> None:
    """Give an axis at most this many ticks, at round numbers."""
    from matplotlib.ticker import MaxNLocator

    fewest = 1 if integer else 2
    axis.set_major_locator(MaxNLocator(count, steps=(1, 2, 5, 10), integer=integer, min_n_ticks=fewest))
    axis.set_major_formatter(tick_format)


def use_step_axis(axes: Axes) -> None:
    """Make the horizontal axis one of optimizer steps: whole numbers."""
    set_ticks(axes.xaxis, 8, "{x:,.0f}", integer=True)
    hide_frame(axes)


def use_log_axis(axes: Axes, tick_format: str, multiples: tuple[int, ...], max_ticks: int | None = None) -> None:
    """Make the vertical axis logarithmic, with plain numbers at these multiples of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=multiples, numticks=max_ticks))
    axes.yaxis.set_major_formatter(tick_format)
    axes.yaxis.set_minor_formatter(NullFormatter())
