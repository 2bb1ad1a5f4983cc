"""Engines: where blocks of rows are worked on, as the config names it. No result depends on it."""

from __future__ import annotations

import abc
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from sft_lab.core.bounds import Bounded, bounded

if TYPE_CHECKING:
    from sft_lab.core.workers import Submit, Work


@dataclass
class Engine(Bounded, abc.ABC):
    """What every engine has.

    Attributes:
        block: rows handed to a worker at a time.
    """

    block: int = bounded(1024, at_least=1)

    def check(self) -> list[str]:
        """Return what this machine lacks for it; empty when nothing."""
        return []

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """How many blocks are worked on at a time."""

    @property
    @abc.abstractmethod
    def of_torch(self) -> Engine:
        """The engine for work that torch itself spreads over the cores of a machine."""

    @abc.abstractmethod
    def workers_of(self, work: Work) -> AbstractContextManager[Submit]:
        """Open the workers, who all do ``work``."""

    def ranges(self, rows: int) -> Iterator[tuple[int, range]]:
        """Yield the rows of each block: how many there are, and their numbers."""
        for start in range(0, rows, self.block):
            numbers = range(start, min(start + self.block, rows))
            yield len(numbers), numbers


@dataclass
class LocalEngine(Engine):
    """Processes of this machine.

    Attributes:
        workers: how many; None: one for each core that this process may use.
    """

    workers: int | None = bounded(None, at_least=1)

    @property
    def size(self) -> int:
        """How many processes there are; 1 where they cannot be forked safely."""
        return (self.workers or len(os.sched_getaffinity(0))) if sys.platform == "linux" else 1

    @property
    def of_torch(self) -> Engine:
        """This process alone."""
        return replace(self, workers=1)

    def workers_of(self, work: Work) -> AbstractContextManager[Submit]:
        """Fork the workers."""
        from sft_lab.core.workers import forked

        return forked(work, self.size)


@dataclass
class RayEngine(Engine):
    """Tasks of a Ray cluster, whose machines share the store. A task whose worker dies is done again.

    Attributes:
        address: of a running cluster, ``auto`` or ``host:port``; None: one on this machine, started for the work.
        workers: how many blocks at a time; None: two for each core of this machine.
    """

    address: str | None = None
    workers: int | None = bounded(None, at_least=1)

    def check(self) -> list[str]:
        """Ray is installed."""
        if find_spec("ray"):
            return []
        return ["engine=ray: the package ray is not installed; run: pip install 'sft_lab[ray]'"]

    @property
    def size(self) -> int:
        """How many blocks are worked on at a time."""
        return self.workers or 2 * (os.cpu_count() or 1)

    @property
    def of_torch(self) -> Engine:
        """The cluster; where this machine has a GPU, which tasks do not get, this process alone."""
        import torch

        return LocalEngine(self.block, workers=1) if torch.cuda.is_available() else self

    def workers_of(self, work: Work) -> AbstractContextManager[Submit]:
        """Join the cluster, unless this process has joined one."""
        from sft_lab.core.workers import ray_tasks

        return ray_tasks(work, self.address)
