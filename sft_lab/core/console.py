"""The log on standard error, without the output of libraries, and the console for standard output."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from sft_lab.core.log import log
from sft_lab.core.notebook import in_notebook
from sft_lab.core.redaction import Formatter

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_LIBRARIES = (
    ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
    ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
    ("TQDM_DISABLE", "1"),
    ("TOKENIZERS_PARALLELISM", "false"),
    ("TRANSFORMERS_VERBOSITY", "error"),
    ("DATASETS_VERBOSITY", "error"),
    ("WANDB_SILENT", "true"),
    # Threads that wait by spinning slow each other down as soon as anything else runs on the machine: on two busy
    # cores a forward pass did 33 tokens/s without this setting and 185 with it (docs/decisions.md).
    ("OMP_WAIT_POLICY", "passive"),
)


def prepare(*, verbose: bool = False) -> None:
    """Set up the log on the terminal and silence the libraries; call it before they are imported.

    Environment variables that the user has set are left as they are.
    """
    logging.raiseExceptions = False  # a log that cannot be written (full disk) must not print a second error
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    log.propagate = False
    if not log.handlers:
        log.addHandler(_Stderr())
    if verbose:
        return
    for name, value in _LIBRARIES:
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)


def show_in_notebook() -> None:
    """Show the log below the notebook's cell; outside a notebook, setting up the log is left to the program."""
    if in_notebook() and not any(isinstance(handler, _Stderr) for handler in log.handlers):
        log.addHandler(_Stderr())
        log.setLevel(logging.INFO)
        log.propagate = False  # Colab's root logger would show each line a second time


@contextmanager
def each_line_once() -> Iterator[None]:
    """Show each line of the data stages and each warning once, although every job of a sweep logs it."""
    hide = _Repeats()
    handlers = [handler for handler in log.handlers if isinstance(handler, _Stderr)]
    for handler in handlers:
        handler.addFilter(hide)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(hide)


class _Repeats(logging.Filter):
    """Hides lines that were shown before; never those of training or of a launcher, nor errors."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        of_launcher = Path(record.pathname).parent.name == "jobs"
        if of_launcher or message.startswith("train: ") or record.levelno >= logging.ERROR:
            return True
        line = re.sub(r" (computed|stored) +| +\d+\.\d s\b", "", message)
        is_new = line not in self._lines
        self._lines.add(line)
        return is_new


def console(width: int | None = None) -> Console:
    """Return the console for standard output, without markup, highlighting and emoji, since what it prints is data.

    Args:
        width: in characters, where the output is not a terminal; wide enough that no number is cut off.
    """
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else width)


def new_table(*headings: str, title: str | None = None) -> Table:
    """Return an empty table for the console."""
    from rich import box
    from rich.table import Table

    return Table(*headings, box=box.SIMPLE_HEAD, title=title, title_justify="left")


def print_lines(lines: Iterable[str]) -> None:
    """Print lines on standard output without breaking the long ones."""
    out = console()
    for line in lines:
        out.print(line, soft_wrap=True)


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to the current ``sys.stderr``, whenever it was replaced.

    In a notebook it writes to standard output, since notebooks show standard error in red.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(Formatter("%(message)s"))

    @property
    def stream(self) -> TextIO:
        return sys.stdout if in_notebook() else sys.stderr
