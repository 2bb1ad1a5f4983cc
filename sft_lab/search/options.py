"""The options of a search, and what it needs to be installed."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sft_lab.core.errors import ConfigError, all_problems
from sft_lab.core.text import count_of

if TYPE_CHECKING:
    from sft_lab.config import SearchSpace

DEFAULT_TRIALS = 20
MOST_TRIALS = 10_000


@dataclass(frozen=True)
class SearchOptions:
    """How a search goes about it.

    Attributes:
        trials: jobs to train, those of earlier commands counted; None: 20, or all values of a grid.
        sampler: what proposes values: ``tpe``, ``random``, ``grid`` or ``cmaes``.
        pruner: what ends hopeless jobs: ``none`` or ``halving``.
        at_once: jobs that are proposed together; None: as many as the launcher has devices for.
        confirm: seeds that the best few get in the end, their own counted; 0: none.
        seed: of the sampler; None: the run's.
    """

    trials: int | None = None
    sampler: str = "tpe"
    pruner: str = "none"
    at_once: int | None = None
    confirm: int = 0
    seed: int | None = None

    def check(self, space: SearchSpace) -> None:
        """Refuse impossible values, and what is not installed.

        Raises:
            ConfigError: naming every problem.
        """
        problems = []
        if self.trials is not None and not 1 <= self.trials <= MOST_TRIALS:
            problems.append(f"--trials {self.trials}: must be from 1 to {MOST_TRIALS:,}")
        if self.at_once is not None and self.at_once < 1:
            problems.append(f"--at-once {self.at_once}: must be at least 1")
        if self.confirm < 0 or self.confirm == 1:
            problems.append(
                f"--confirm {self.confirm}: must be at least 2 seeds, including the trial's own, or 0 for none"
            )
        if self.confirm and any(axis.key == "seed" for axis in space.axes):
            problems.append(
                "--confirm: trains the best trials with other seeds, so seed cannot be an axis; take it out of the axes"
            )
        if self.sampler == "grid":
            problems += [
                f"{axis.key}={axis.text}: --sampler grid needs a list of values; write choice(a,b) or "
                "range(start,stop,step), or choose another sampler"
                for axis in space.axes
                if not axis.points()
            ]
        if not importlib.util.find_spec("optuna"):
            problems.append("search: the package optuna is not installed; run: pip install 'sft_lab[search]'")
        if self.sampler == "cmaes":
            problems += _cmaes_problems(space)
        if problems:
            raise all_problems(problems)

    def planned_trials(self, space: SearchSpace) -> int:
        """Return how many jobs the search trains at most.

        Raises:
            ConfigError: if a grid is too large.
        """
        if self.sampler != "grid":
            return self.trials or DEFAULT_TRIALS
        size = 1
        for axis in space.axes:
            size *= len(axis.points())
        if size > MOST_TRIALS:
            raise ConfigError(
                f"--sampler grid: more than {MOST_TRIALS:,} combinations; give fewer values, or choose another sampler"
            )
        return min(size, self.trials or size)


def _cmaes_problems(space: SearchSpace) -> list[str]:
    problems = []
    if not importlib.util.find_spec("cmaes"):
        problems.append("--sampler cmaes: the package cmaes is not installed; run: pip install cmaes")
    numbers = [axis for axis in space.axes if not axis.choices]
    if len(numbers) < 2:
        amount = count_of(len(numbers), "axis") if len(numbers) == 1 else f"{len(numbers)} axes"
        problems.append(f"--sampler cmaes: needs at least two numeric axes, not {amount}; use --sampler tpe")
    return problems
