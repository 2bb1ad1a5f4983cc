"""Colors of axis values on ``compare.html``, for a light and a dark page."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sft_lab.report.style import import_matplotlib


class Color(NamedTuple):
    """A color on a light and on a dark page, as ``#rrggbb``."""

    light: str
    dark: str


# They can be distinguished without red and green (after Okabe and Ito).
NAMED_LIGHT = ("#0173b2", "#d55e00", "#029e73", "#a3539b", "#8a6d3b", "#3b3b98", "#b8860b", "#555d66")
NAMED_DARK = ("#5db0e6", "#f08a4b", "#3fc79a", "#dc94d6", "#cbb088", "#9d9df0", "#e8c15a", "#aab2bb")
RAMP = "viridis"  # of numbers; a light page takes its darker part, a dark page its lighter one
LIGHT_PART, DARK_PART = (0.0, 0.8), (0.35, 1.0)
GRAY = Color("#7a7f86", "#9aa0a7")  # of jobs without a value


def choose_colors(count: int, *, is_numeric: bool) -> list[Color]:
    """Return this many colors: a ramp from low to high for numbers, distinct colors in turn for names."""
    if is_numeric:
        return [Color(*pair) for pair in zip(*(_ramp(count, *part) for part in (LIGHT_PART, DARK_PART)), strict=True)]
    named = [Color(*pair) for pair in zip(NAMED_LIGHT, NAMED_DARK, strict=True)]
    return [named[index % len(named)] for index in range(count)]


def _ramp(count: int, low: float, high: float) -> list[str]:
    colors = import_matplotlib().colormaps[RAMP](np.linspace(low, high, count), bytes=True)
    return [f"#{bytes(color[:3]).hex()}" for color in colors]
