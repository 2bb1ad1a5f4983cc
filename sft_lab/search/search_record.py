"""``search.json`` in the sweep folder: the trials so far, for ``compare`` and for other tools."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sft_lab.core.io import FORMAT, write_json
from sft_lab.core.run_dir import SEARCH

if TYPE_CHECKING:
    from pathlib import Path

    from sft_lab.config import SearchSpace
    from sft_lab.search.options import SearchOptions
    from sft_lab.search.study import Trial


def write_record(
    sweep: Path,
    space: SearchSpace,
    options: SearchOptions,
    measure: str,
    trials: list[Trial],
    importance: dict[str, float],
) -> None:
    """Write the record.

    Args:
        sweep: the folder.
        space: of the search.
        options: of the search.
        measure: that the trials are ranked by.
        trials: those that count.
        importance: of the axes.
    """
    write_json(
        sweep / SEARCH,
        {
            "format": FORMAT,
            "sampler": options.sampler,
            "pruner": options.pruner,
            "measure": measure,
            "axes": {axis.key: axis.text for axis in space.axes},
            "importance": importance,
            "trials": [
                {
                    "number": trial.number,
                    "job": trial.job,
                    "outcome": trial.outcome,
                    "loss": trial.loss,
                    "values": trial.values,
                    "reason": trial.reason,
                }
                for trial in trials
            ],
        },
    )
