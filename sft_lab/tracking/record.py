"""The local record: ``metrics.jsonl``, a line per logging event, written as it happens."""

from __future__ import annotations

import json
import math
from pathlib import Path

from sft_lab.files import finite, write_text
from sft_lab.tracking.options import Mirror


class Record:
    """Takes each logging event, keeps it, writes it, and hands it to the mirror.

    Args:
        path: of the file.
        mirror: gets a copy of each event.
        from_step: a run that goes on from a checkpoint keeps the events up to it, so that no step is told twice.
    """

    def __init__(self, path: Path, mirror: Mirror, from_step: int = 0) -> None:
        self._path = path
        self._mirror = mirror
        old = path.read_text(encoding="utf-8").splitlines(keepends=True) if from_step and path.exists() else []
        # A line cut off by a kill has no line end and tells of a step after the checkpoint.
        kept = [line for line in old if line.endswith("\n") and json.loads(line)["step"] <= from_step]
        self.events: list[dict[str, float]] = [
            {name: math.nan if value is None else value for name, value in json.loads(line).items()} for line in kept
        ]
        write_text(path, "".join(kept))

    def __call__(self, event: dict[str, float]) -> None:
        """Take one event."""
        self.events.append(event)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(event)) + "\n")
        self._mirror.log(event)

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Give (step, value) of every event that has the metric."""
        return [(int(event["step"]), event[name]) for event in self.events if name in event]
