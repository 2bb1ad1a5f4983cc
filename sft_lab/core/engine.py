"""Engines: where blocks of rows are computed. No result depends on the choice."""

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
    """The base of all engines.

    Attributes:
        block: rows given to a worker at a time.
    """

    block: int = bounded(1024, at_least=1)

    def check(self) -> list[str]:
        """Return what this machine lacks to run it."""
        return []

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """The number of blocks computed at a time."""

    @property
    @abc.abstractmethod
    def of_torch(self) -> Engine:
        """The engine for work that torch parallelizes over the machine's cores by itself."""

    @abc.abstractmethod
    def workers_of(self, work: Work) -> AbstractContextManager[Submit]:
        """Start the workers, which all run ``work``, and yield the function that submits a block."""

    def ranges(self, rows: int) -> Iterator[tuple[int, range]]:
        """Yield the size and the row numbers of each block."""
        for start in range(0, rows, self.block):
            numbers = range(start, min(start + self.block, rows))
            yield len(numbers), numbers


@dataclass
class LocalEngine(Engine):
    """Processes on this machine.

    Attributes:
        workers: their number; None: one for each core that this process may use.
    """

    workers: int | None = bounded(None, at_least=1)

    @property
    def size(self) -> int:
        """The number of processes; 1 where forking is not safe."""
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
    """Tasks of a Ray cluster whose machines share the store. A task is repeated if its worker dies.

    Attributes:
        address: of a running cluster, ``auto`` or ``host:port``; None: a cluster is started on this machine.
        workers: blocks computed at a time; None: two for each core of this machine.
    """

    address: str | None = None
    workers: int | None = bounded(None, at_least=1)

    def check(self) -> list[str]:
        """Return an error if Ray is not installed."""
        if find_spec("ray"):
            return []
        return ["engine=ray: the package ray is not installed; run: pip install 'sft_lab[ray]'"]

    @property
    def size(self) -> int:
        """The number of blocks computed at a time."""
        return self.workers or 2 * (os.cpu_count() or 1)

    @property
    def of_torch(self) -> Engine:
        """The cluster; on a machine with a GPU this process alone, since tasks get no GPU."""
        import torch

        return LocalEngine(self.block, workers=1) if torch.cuda.is_available() else self

    def workers_of(self, work: Work) -> AbstractContextManager[Submit]:
        """Join the cluster, unless this process is already connected to one."""
        from sft_lab.core.workers import ray_tasks

        return ray_tasks(work, self.address)
