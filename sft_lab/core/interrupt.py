"""Ctrl-C and SIGTERM: the first is obeyed in good order, a second Ctrl-C at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

_SHOW_CURSOR = b"\x1b[?25h"  # which a progress bar hides


@contextmanager
def twice_ends_at_once() -> Iterator[None]:
    """Let the first Ctrl-C raise ``KeyboardInterrupt``, as ever, and a second end the process without a traceback.

    What the first begins (clean-up, and the interpreter's own end) is covered too, so its handler stays.
    """
    if not _may_handle() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # a shell's background job ignores Ctrl-C; a notebook has a way of its own
        return
    signal.signal(signal.SIGINT, _first)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _first:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class Request:
    """Whether somebody has asked the work to stop, and by which signal."""

    def __init__(self) -> None:
        self.number = 0

    def __bool__(self) -> bool:
        return self.number != 0

    def obey(self) -> NoReturn:
        """End the work the way the signal does where nothing is in the way."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + (self.number or signal.SIGTERM))


@contextmanager
def noted(notice: str) -> Iterator[Request]:
    """Note Ctrl-C and SIGTERM in place of raising them, for work that stops by itself at its next good moment.

    Args:
        notice: what is said then.
    """
    request = Request()
    if not _may_handle():
        yield request
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: FrameType | None) -> None:
        if not request:
            _write(notice)
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
    """Write to standard error past Python's buffers, which the interrupted code may be in the middle of."""
    with suppress(OSError):
        os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + f"{line}\n".encode())
