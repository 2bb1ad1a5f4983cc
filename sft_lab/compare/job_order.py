"""The order of jobs in a comparison that is sorted by one of their numbers."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sft_lab.core.errors import ConfigError
from sft_lab.core.io import is_number
from sft_lab.core.tolerant_readers import METRICS, TASKS

if TYPE_CHECKING:
    from sft_lab.compare.collect import ComparedJob


@dataclass(frozen=True)
class Order:
    """Jobs by a number of their summaries; those without it come last.

    Attributes:
        key: of ``summary.json``.
        lowest_first: whether the job with the lowest number is first, as suits a loss.
    """

    key: str
    lowest_first: bool = False

    def __str__(self) -> str:
        return f"{self.key}, {'lowest' if self.lowest_first else 'highest'} first"

    @classmethod
    def of(cls, jobs: list[ComparedJob], name: str, *, lowest_first: bool) -> Order:
        """Return the order by a number that jobs have: its key, or the heading of its column.

        Raises:
            ConfigError: if none of them has it.
        """
        keys = list(dict.fromkeys(key for job in jobs for key, value in job.numbers.items() if is_number(value)))
        for key in (name, f"{METRICS}{name}", f"{TASKS}{name}"):
            if key in keys:
                return cls(key, lowest_first)
        close = difflib.get_close_matches(name, keys, 1)
        hint = f"did you mean {close[0]}?" if close else "the summary.json of a finished job has all"
        raise ConfigError(f"compare --rank-by {name}: no job has this number; {hint}")

    def sort(self, jobs: list[ComparedJob]) -> list[ComparedJob]:
        """Return the jobs in this order."""

        def position(job: ComparedJob) -> float:
            value = job.numbers.get(self.key)
            if not is_number(value):
                return math.inf
            return value if self.lowest_first else -value

        return sorted(jobs, key=position)
