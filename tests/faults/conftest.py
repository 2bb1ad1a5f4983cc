"""A process that everything was imported into, to be forked."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
import warm_process as attempts


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of one process, warm: what is submitted to it forks from there."""
    spawn = multiprocessing.get_context("spawn")
    folder = tmp_path_factory.mktemp("warm")
    with ProcessPoolExecutor(1, spawn, initializer=attempts.begin, initargs=(folder,)) as pool:
        yield pool
