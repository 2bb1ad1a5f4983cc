"""Progress bars: on a terminal only, so that a log file stays readable."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def track(steps: Sequence[T], description: str) -> Iterable[T]:
    """Go through ``steps`` with a bar that goes away when it is done."""
    if not sys.stderr.isatty():
        return steps
    from rich.console import Console
    from rich.progress import track as rich_track

    return rich_track(steps, description, console=Console(stderr=True), transient=True)
