"""When jobs were at work, by their logs: a manifest's times are whole seconds, as long as a small job takes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_TIME = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}", re.MULTILINE)


def were_at_work_together(folders: Iterable[Path]) -> bool:
    """Return whether there was a moment at which all of the jobs were at work."""
    times = [_TIME.findall((folder / "run.log").read_text(encoding="utf-8")) for folder in folders]
    return max(lines[0] for lines in times) < min(lines[-1] for lines in times)
