"""Progress: a bar with a rate on a terminal, nothing elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest

from sft_lab.core.progress import progress, track


def test_on_a_terminal_rows_and_their_rate_are_shown(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    reader, writer = os.openpty()
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with progress("embed", 10, "texts") as done:
            done(4)
            done(3)
            done(3)
    shown = "".join(part.decode() for part in _read_all(reader))
    assert "embed" in shown
    assert "10/10" in shown
    assert "texts/s" in shown


def _read_all(reader: int) -> Iterator[bytes]:
    """Everything written to a terminal whose other end is closed, which ends in an error."""
    with suppress(OSError):
        while part := os.read(reader, 4096):
            yield part
    os.close(reader)


def test_elsewhere_nothing_is_shown(capsys: pytest.CaptureFixture[str]):
    with progress("embed", 10) as done:
        done(10)
    assert list(track([3, 1, 2], "steps")) == [3, 1, 2]
    assert capsys.readouterr() == ("", "")
