"""The last measurement: a chosen run on test rows that no job was compared on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sft_lab import config as configs
from sft_lab.core.errors import UserError
from sft_lab.core.io import read_json, write_json
from sft_lab.core.run_dir import RunDir

FILE = "test.json"


@dataclass(frozen=True)
class Final:
    """A run on its test rows.

    Attributes:
        folder: the run.
        numbers: ``test/loss`` and ``test/bits_per_byte``, the base model's beside them, and ``test_rows``.
        held_out: the loss on held-out rows, which the run was chosen by.
    """

    folder: RunDir
    numbers: dict[str, Any]
    held_out: float | None


def score_test(folder: RunDir) -> Final:
    """Score a run's weights on the test side of its split, and keep the result as ``test.json``.

    Raises:
        UserError: if the run has no test side, or no weights.
    """
    run = configs.load(folder.config)
    if not getattr(run.split, "test_share", 0):
        raise UserError(
            f"{folder.path}: has no test rows; a sweep with split.test_share=0.1 keeps some that no job is compared on"
        )
    numbers = run.score_test(folder)
    write_json(folder.path / FILE, numbers)
    summary = read_json(folder.summary) if folder.summary.exists() else {}
    return Final(folder, numbers, summary.get("eval/loss"))


def show(found: Final) -> None:
    """Print it."""
    import sys

    numbers = found.numbers
    sys.stdout.write(
        f"{found.folder.path.name} on {numbers['test_rows']} test rows, which no job was compared on: loss "
        f"{numbers['test/loss']:.4f} (base model {numbers['base/test_loss']:.4f}; held out, by which it was chosen, "
        f"{found.held_out or float('nan'):.4f})\n"
    )
