"""Our log on standard error, and the libraries' talk kept off it; the console for what is printed."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING, TextIO

from sft_lab.core.redaction import Formatter

if TYPE_CHECKING:
    from rich.console import Console

_LIBRARIES = (
    ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
    ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
    ("TQDM_DISABLE", "1"),
    ("TOKENIZERS_PARALLELISM", "false"),
    ("TRANSFORMERS_VERBOSITY", "error"),
    ("DATASETS_VERBOSITY", "error"),
    ("WANDB_SILENT", "true"),
    # Threads that wait by spinning take the cores from one another as soon as anything else runs on the machine:
    # a forward pass on two busy cores did 33 tokens/s so, 185 with this (docs/decisions.md).
    ("OMP_WAIT_POLICY", "passive"),
)


def prepare(*, verbose: bool = False) -> None:
    """Set up our log on the terminal, and keep the libraries' talk off it.

    Called before anything heavy is imported; what the user has set in the environment stays.
    """
    logging.raiseExceptions = False  # a log that cannot be written (the disk is full) is no second error to tell
    own = logging.getLogger("sft_lab")
    own.setLevel(logging.DEBUG if verbose else logging.INFO)
    own.propagate = False
    if not own.handlers:
        handler = _Stderr()
        handler.setFormatter(Formatter("%(message)s"))
        own.addHandler(handler)
    if verbose:
        return
    for name, value in _LIBRARIES:
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)


def console(width: int | None = None) -> Console:
    """What prints our tables and lines on standard output: they are data, so no bracket is markup, no number a color.

    Args:
        width: characters where the output is a file: rather a long line than a cut-off number.
    """
    from rich.console import Console

    return Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else width)


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what ``sys.stderr`` is now, not to what it was when the handler was made."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr
