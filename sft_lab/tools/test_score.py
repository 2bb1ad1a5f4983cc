"""``sft-lab compare --test``: score a chosen run on test rows, which no job was compared on."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from sft_lab import config as configs
from sft_lab.core.errors import UserError
from sft_lab.core.io import read_json, write_json
from sft_lab.core.run_dir import RunDir

FILE_NAME = "test.json"


@dataclass(frozen=True)
class FinalScore:
    """A run's score on its test rows.

    Attributes:
        folder: the run.
        numbers: ``test/loss`` and ``test/bits_per_byte``, the base model's, and ``test_rows``.
        held_out_loss: the loss that the run was chosen by.
    """

    folder: RunDir
    numbers: dict[str, Any]
    held_out_loss: float | None


def score_test(folder: RunDir) -> FinalScore:
    """Score a run's weights on the test side of its split, and save the numbers as ``test.json``.

    Raises:
        UserError: if the run has no test side, or no weights.
    """
    run = configs.load(folder.config)
    if not getattr(run.split, "test_share", 0):
        raise UserError(
            f"{folder.path}: has no test rows; a sweep with split.test_share=0.1 keeps some that no job is compared on"
        )
    numbers = run.score_test(folder)
    write_json(folder.path / FILE_NAME, numbers)
    summary = read_json(folder.summary) if folder.summary.exists() else {}
    return FinalScore(folder, numbers, summary.get("eval/loss"))


def print_test_score(score: FinalScore) -> None:
    """Print the score beside the base model's and the held-out loss."""
    numbers = score.numbers
    sys.stdout.write(
        f"{score.folder.path.name} on {numbers['test_rows']} test rows, which no job was compared on: loss "
        f"{numbers['test/loss']:.4f} (base model {numbers['base/test_loss']:.4f}; held-out loss, by which it was "
        f"chosen, {score.held_out_loss or float('nan'):.4f})\n"
    )
