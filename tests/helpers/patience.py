"""Waiting for other processes on a machine that may be busy: only what hangs takes as long as this."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 240.0  # seconds; pytest's own limit for a test, in pyproject.toml, is longer


def wait_until(holds: Callable[[], T], process: subprocess.Popen[Any] | None = None) -> T:
    """Return the first true answer.

    Args:
        holds: the question.
        process: that must not end before.
    """
    deadline = time.monotonic() + PATIENCE
    while not (answer := holds()):
        assert process is None or process.poll() is None, process.stderr.read() if process.stderr else process.args
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} seconds in vain"
        time.sleep(0.02)
    return answer


@contextmanager
def halted(pid: int) -> Iterator[None]:
    """Halt a process at work, so that what must happen beside it does, however slowly; then let it go on."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
