"""Progress bars, shown only on a terminal or in a notebook so that log files stay readable, and a stopwatch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from sft_lab.core.notebook import shows_widgets

T = TypeVar("T")


def is_shown() -> bool:
    """Return whether progress bars can be shown."""
    return sys.stderr.isatty() or shows_widgets()


def track(steps: Sequence[T], description: str) -> Iterable[T]:
    """Yield the steps while a progress bar is shown."""
    with progress(description, len(steps), "steps") as done:
        for step in steps:
            yield step
            done(1)


@contextmanager
def progress(description: str, total: int, unit: str = "rows") -> Iterator[Callable[[int], object]]:
    """Show a progress bar with rate and time left until the block ends; yield the function that advances it."""
    if not is_shown():
        yield lambda count: None  # noqa: ARG005
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Steps a second over the last half minute."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f} {unit}/s" if speed else "")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)


class Stopwatch:
    """Sums the time spent in ``running`` blocks, in ``seconds``."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Add the time that the block takes."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - began
