"""When jobs were handed out, by the log of the command that did it.

The jobs' own times would depend on the load: a small job may end before another process has imported torch.
"""

from __future__ import annotations

import re


def went_out_together(log: str, jobs: int) -> bool:
    """Return whether all jobs were started or submitted before the first of them had ended."""
    begun = [match.start() for match in re.finditer(r": (?:started, |submitted as job )", log)]
    ended = [match.start() for match in re.finditer(r": finished in ", log)]
    return len(begun) == len(ended) == jobs and max(begun) < min(ended)
