"""``sft-lab compare --test``: score a chosen run on test rows, which no job was compared on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sft_lab import config as configs
from sft_lab.core import tolerant_readers
from sft_lab.core.errors import UserError
from sft_lab.core.io import write_json
from sft_lab.core.text import count_of

if TYPE_CHECKING:
    from sft_lab.core.run_dir import RunDir

FILE_NAME = "test.json"


def score_test(folder: RunDir) -> str:
    """Score a run's weights on the test side of its split, save the numbers as ``test.json``, and return them as text.

    Raises:
        UserError: if the run has no test side, or no weights.
    """
    run = configs.load(folder.config)
    if not getattr(run.split, "test_share", 0):
        raise UserError(f"{folder.path}: has no test rows; run the sweep with split.test_share=0.1 to set some aside")
    numbers = run.score_test(folder)
    write_json(folder.path / FILE_NAME, numbers)
    held_out_loss = tolerant_readers.read(folder.summary).get("eval/loss") or float("nan")
    return (
        f"{folder.path.name} on {count_of(numbers['test_rows'], 'test row')}, which no job was compared on: loss "
        f"{numbers['test/loss']:.4f} (base model {numbers['base/test_loss']:.4f}; held-out loss, by which it was "
        f"chosen, {held_out_loss:.4f})"
    )
