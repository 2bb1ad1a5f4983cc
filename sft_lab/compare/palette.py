"""Colors of axis values on ``compare.html``, for a light and a dark page."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Color(NamedTuple):
    """A color on a light and on a dark page, as ``#rrggbb``."""

    light: str
    dark: str


# They can be told apart without red and green. Numbers take the ramp from low to high, names the list in turn.
RAMP_LIGHT = ("#5b2a86", "#3f5fa8", "#1f8a8c", "#3fa34d", "#b38f00")
RAMP_DARK = ("#b48be0", "#7ea6f0", "#4cc3c0", "#7fd96b", "#f2d14b")
NAMED_LIGHT = ("#0173b2", "#d55e00", "#029e73", "#a3539b", "#8a6d3b", "#3b3b98", "#b8860b", "#555d66")
NAMED_DARK = ("#5db0e6", "#f08a4b", "#3fc79a", "#dc94d6", "#cbb088", "#9d9df0", "#e8c15a", "#aab2bb")
GRAY = Color("#7a7f86", "#9aa0a7")  # of jobs without a value


def choose_colors(count: int, *, is_numeric: bool) -> list[Color]:
    """Return a color for each of so many values, in order."""
    if is_numeric:
        shares = np.linspace(0, 1, count)
        return [Color(_interpolate(RAMP_LIGHT, share), _interpolate(RAMP_DARK, share)) for share in shares]
    named = [Color(*pair) for pair in zip(NAMED_LIGHT, NAMED_DARK, strict=True)]
    return [named[index % len(named)] for index in range(count)]


def _interpolate(ramp: tuple[str, ...], share: float) -> str:
    """Return the color at a share of the ramp, from 0 to 1."""
    stops = np.linspace(0, 1, len(ramp))
    channels = zip(*(bytes.fromhex(color[1:]) for color in ramp), strict=True)
    return "#" + "".join(f"{round(np.interp(share, stops, channel)):02x}" for channel in channels)
