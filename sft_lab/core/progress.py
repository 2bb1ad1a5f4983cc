"""Progress and time: bars on a terminal only, so that a log file stays readable; a stopwatch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


def track(steps: Sequence[T], description: str) -> Iterable[T]:
    """Go through ``steps`` with a bar that goes away when it is done."""
    with progress(description, len(steps), "steps") as done:
        for step in steps:
            yield step
            done(1)


@contextmanager
def progress(description: str, total: int, unit: str = "rows") -> Iterator[Callable[[int], object]]:
    """Give a function that is told how many more are done: a bar with how many are done, how many a second, time left.

    The bar goes away at the end. Without a terminal nothing is shown.
    """
    if not sys.stderr.isatty():
        yield lambda more: None  # noqa: ARG005
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
        """How many a second, over the last half minute."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f} {unit}/s" if speed else "")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda more: bar.advance(task, more)


class Stopwatch:
    """Adds up the time of what runs under it, in ``seconds``."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time inside."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - began
