"""The local record: ``metrics.jsonl``, one line for each logging event, written at once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from sft_lab.core.io import LONG, finite, read_text, write_text
from sft_lab.core.tolerant_readers import current_metrics
from sft_lab.core.types import Curve
from sft_lab.tracking.config import Mirror


class Lines:
    """A file of JSON lines, each with its ``step``, written at once.

    Args:
        path: of the file.
        from_step: of the checkpoint that a run resumes from; later lines are removed, so that no step is logged twice.
    """

    def __init__(self, path: Path, from_step: int = 0) -> None:
        self._path = path
        old = read_text(path, LONG).splitlines(keepends=True) if from_step and path.exists() else []
        # A line that a kill cut off has no line end, and belongs to a step after the checkpoint.
        kept = [line for line in old if line.endswith("\n") and json.loads(line)["step"] <= from_step]
        self.kept: list[dict[str, Any]] = [json.loads(line) for line in kept]
        write_text(path, "".join(kept))

    def write(self, line: dict[str, Any]) -> None:
        """Write one line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(line)) + "\n")


class Unwritten:
    """Stands in for a record in a process that must not write."""

    events: tuple[dict[str, float], ...] = ()

    def __call__(self, event: dict[str, float]) -> None:
        """Ignore an event."""

    def write(self, line: dict[str, Any]) -> None:
        """Ignore a line."""

    def curve(self, _: str) -> Curve:
        """Return no points."""
        return []


class Record(Lines):
    """Keeps each logged event, writes it, and passes it to the mirror."""

    def __init__(self, path: Path, mirror: Mirror, from_step: int = 0) -> None:
        super().__init__(path, from_step)
        self._mirror = mirror
        self.events: list[dict[str, float]] = [
            {name: math.nan if value is None else value for name, value in current_metrics(line).items()}
            for line in self.kept
        ]
        mirror.restore(self.events)

    def __call__(self, event: dict[str, float]) -> None:
        """Keep an event."""
        self.events.append(event)
        self.write(event)
        self._mirror.log(event)

    def curve(self, name: str) -> Curve:
        """Return (step, value) of every event that has the metric."""
        return [(int(event["step"]), event[name]) for event in self.events if name in event]
