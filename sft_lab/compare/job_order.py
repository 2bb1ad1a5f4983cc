"""The order of the jobs in a comparison, where a number of theirs was chosen for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sft_lab.core.errors import ConfigError
from sft_lab.core.io import is_number

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

    def sort(self, jobs: list[ComparedJob]) -> list[ComparedJob]:
        """Return the jobs in this order.

        Raises:
            ConfigError: if none of them has the number.
        """
        if not any(is_number(job.numbers.get(self.key)) for job in jobs):
            keys = dict.fromkeys(key for job in jobs for key, value in job.numbers.items() if is_number(value))
            known = f"they have {', '.join(keys)}" if keys else "none has finished"
            raise ConfigError(f"compare --rank-by {self.key}: no job has this number; {known}")

        def position(job: ComparedJob) -> float:
            value = job.numbers.get(self.key)
            if not is_number(value):
                return math.inf
            return value if self.lowest_first else -value

        return sorted(jobs, key=position)
