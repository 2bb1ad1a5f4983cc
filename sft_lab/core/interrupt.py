"""Ctrl-C and SIGTERM: the first signal ends the work cleanly, a second Ctrl-C ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

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
    """A request to stop: the signal that came first, or 0."""

    def __init__(self) -> None:
        self.number = 0

    def __bool__(self) -> bool:
        return self.number != 0

    def obey(self) -> NoReturn:
        """End the process the way the signal would by default."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + (self.number or signal.SIGTERM))


@contextmanager
def deferred(notice: str) -> Iterator[Request]:
    """Record Ctrl-C and SIGTERM instead of raising, for work that stops at its next safe point.

    Args:
        notice: written to standard error when the first signal comes.
    """
    request = Request()
    if not _may_handle():
        yield request
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: FrameType | None) -> None:
        if not request:
            _write(f"{notice}; Ctrl-C again ends at once" if number == signal.SIGINT else notice)
        request.number = request.number or number
        if number == signal.SIGINT:
            signal.signal(number, _second if before[number] is _first else before[number])

    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is note:
                signal.signal(number, handler)


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
