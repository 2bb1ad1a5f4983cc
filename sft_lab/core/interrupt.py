"""Ctrl-C, SIGTERM and Slurm's SIGUSR2: the first signal ends the work cleanly, a second Ctrl-C ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

REQUEUE_SECONDS = 60  # for a safe point after SIGUSR2, which submitit lets Slurm send 90 s before a job is killed
REQUEUE_VARIABLE = "SFT_LAB_REQUEUE_SECONDS"  # set where Slurm sends it earlier or later
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
_SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


@contextmanager
def second_ends_at_once() -> Iterator[None]:
    """Let the first Ctrl-C raise ``KeyboardInterrupt`` as usual, and a second one end the process without a traceback.

    This includes clean-up and the interpreter's exit, so the second handler is not removed.
    """
    if not _may_handle() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # a shell's background job ignores Ctrl-C; a notebook handles it itself
        return
    signal.signal(signal.SIGINT, _first)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _first:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class Request:
    """A request to stop.

    Attributes:
        number: the signal that came first, or 0.
        requeue: submitit's handler of SIGUSR2, if that is the signal: it requeues the job and exits.
    """

    def __init__(self) -> None:
        self.number = 0
        self.requeue: Callable[[int, FrameType | None], Any] | None = None

    def __bool__(self) -> bool:
        return self.number != 0

    def obey(self) -> NoReturn:
        """End the process the way the signal would by default."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.requeue:
            self.requeue(self.number, None)
        sys.exit(128 + (self.number or signal.SIGTERM))


@contextmanager
def blocked() -> Iterator[None]:
    """Let the kernel hold these signals back while processes are forked; they are delivered at the end.

    Python drops an exception that a handler raises in a fork hook, and a pool interrupted between its first process
    and its thread is never ended. Processes forked here begin with the signals blocked, and call ``unblock``.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock() -> None:
    """Let a process forked while they were blocked get the signals."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)


@contextmanager
def deferred(notice: str, numbers: tuple[int, ...] = _STOPPING) -> Iterator[Request]:
    """Record Ctrl-C and SIGTERM instead of raising, for work that stops at its next safe point.

    So is SIGUSR2 where submitit handles it. Work without a safe point within ``REQUEUE_SECONDS`` (or what
    ``REQUEUE_VARIABLE`` says) is requeued all the same, since Slurm requeues no job that it had to kill.

    Args:
        notice: written to standard error when the first signal comes.
        numbers: of the signals to record.
    """
    request = Request()
    if not _may_handle():
        yield request
        return
    before = _deferrable(numbers)

    def note(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:  # before the notice is out: a second Ctrl-C may come right behind it
            signal.signal(number, _second if before[number] is _first else before[number])
        if request:
            return
        request.number = number
        if number == signal.SIGUSR2:
            request.requeue = before[number]
            signal.signal(signal.SIGALRM, lambda *_: request.obey())
            signal.alarm(int(os.environ.get(REQUEUE_VARIABLE, REQUEUE_SECONDS)))
        _write(f"{notice}; Ctrl-C again ends at once" if number == signal.SIGINT else notice)

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        if request.requeue:
            signal.alarm(0)
        for number, handler in before.items():
            if signal.getsignal(number) is note:
                signal.signal(number, handler)


def _deferrable(numbers: tuple[int, ...]) -> dict[int, Any]:
    """Return the handlers of the signals to defer: those that nobody ignores, and SIGUSR2 only if it is handled."""
    handlers = {number: signal.getsignal(number) for number in numbers}
    if handlers.get(signal.SIGUSR2) == signal.SIG_DFL:
        del handlers[signal.SIGUSR2]
    return {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}


def _may_handle() -> bool:
    return threading.current_thread() is threading.main_thread()


def _first(number: int, _: FrameType | None) -> NoReturn:
    signal.signal(number, _second)
    raise KeyboardInterrupt


def _second(number: int, _: FrameType | None) -> NoReturn:
    _write("sft-lab: ended at once")
    os._exit(128 + number)


def _write(line: str) -> None:
    """Write to standard error without Python's buffers, which the interrupted code may be writing to."""
    with suppress(OSError):
        os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + f"{line}\n".encode())
