"""What all figures share: colors, size, lettering, and how they are written."""

from __future__ import annotations

import io
import math
import tempfile
import threading
from contextlib import chdir
from typing import TYPE_CHECKING

from sft_lab.core.io import write_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart without red and green (after Okabe and Ito). Each means one thing, so that the page can give it a twin for
# dark mode.
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
WIDTH = 9.58  # inches: 920 CSS pixels, the page's column, so that a figure is shown at its own size
LEGEND_WIDTH = 135  # characters of a legend's line, 7 for each sample of a line or marker
TICK_STEPS = (1, 2, 5, 10)
_STYLE = threading.Lock()  # matplotlib's settings belong to the whole process


def save(path: Path, make: Callable[[], Figure]) -> Path:
    """Write the figure that ``make`` draws as SVG; it is called with our settings, which hold for it alone.

    Returns:
        ``path``.
    """
    # When imported, matplotlib reads a matplotlibrc of the working folder, which may be a stranger's.
    with tempfile.TemporaryDirectory(prefix="sft_lab-") as empty, chdir(empty):
        import matplotlib

    look = {
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
        "svg.fonttype": "none",  # text stays text: it can be selected, and Arabic is shaped by the browser
        "text.parse_math": False,  # what is shown is data: no dollar sign in it starts a formula
        "svg.hashsalt": path.stem,  # the same data make the same file
        "axes.edgecolor": COLORS["line"],
        "axes.labelcolor": COLORS["muted"],
        "grid.color": COLORS["line"],
        "text.color": COLORS["ink"],
        "xtick.color": COLORS["muted"],
        "ytick.color": COLORS["muted"],
    }
    text = io.StringIO()
    with _STYLE, matplotlib.rc_context():
        matplotlib.rcdefaults()  # nor does a user's own matplotlibrc change a report
        matplotlib.rcParams.update(look)
        make().savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    write_text(path, text.getvalue())
    return path


def canvas(height: float) -> Figure:
    """An empty figure of the page's width; height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), facecolor=COLORS["paper"], layout="constrained")


def legend(axes: Axes) -> None:
    """Above the plot, at the left, without a frame; on two lines where one would be wider than the figure."""
    labels = axes.get_legend_handles_labels()[1]
    if labels:
        fits = sum(len(label) + 7 for label in labels) <= LEGEND_WIDTH
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.4, frameon=False, handlelength=1.5,
            ncols=len(labels) if fits else math.ceil(len(labels) / 2), columnspacing=1.4, labelcolor=COLORS["muted"],
        )  # fmt: skip
