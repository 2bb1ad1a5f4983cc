"""The search that the jobs are trials of, read from ``search.json`` in their sweep folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sft_lab.compare import charts
from sft_lab.core.run_dir import SEARCH
from sft_lab.core.text import count_of
from sft_lab.core.tolerant_readers import read

if TYPE_CHECKING:
    from sft_lab.compare.collect import ComparedJob


@dataclass(frozen=True)
class SearchTrial:
    """A trial: its number from 1, the name of its job, how it ended, and the loss that the search learned from."""

    number: int
    job: str
    outcome: str
    loss: float | None


@dataclass(frozen=True)
class SearchHistory:
    """A search so far.

    Attributes:
        sampler: what proposed the trials.
        pruner: what ended hopeless ones.
        measure: a key of ``summary.json``, the loss of a trial.
        trials: by number.
        importance: of each axis: its share in what the values change of the loss, the largest first.
    """

    sampler: str
    pruner: str
    measure: str
    trials: list[SearchTrial]
    importance: dict[str, float] = field(default_factory=dict)

    @property
    def best_so_far(self) -> list[tuple[float, float]]:
        """The lowest loss of a finished trial up to each trial, as the corners of a staircase."""
        corners: list[tuple[float, float]] = []
        for trial in self.trials:
            if trial.outcome != "finished" or trial.loss is None:
                continue
            if corners and trial.loss < corners[-1][1]:
                corners += [(trial.number, corners[-1][1]), (trial.number, trial.loss)]
            elif not corners:
                corners.append((trial.number, trial.loss))
        return [*corners, (self.trials[-1].number, corners[-1][1])] if corners else []


def read_search(jobs: list[ComparedJob]) -> SearchHistory | None:
    """Return the search of the jobs in one sweep folder; None if they are not trials.

    Raises:
        FolderError: if its record does not fit.
    """
    sweeps = {job.folder.path.parent for job in jobs}
    content: dict[str, Any] = read(sweeps.pop() / SEARCH) if len(sweeps) == 1 else {}
    if not content.get("trials"):
        return None
    trials = [
        SearchTrial(index, trial["job"], trial["outcome"], trial.get("loss"))
        for index, trial in enumerate(content["trials"], start=1)
    ]
    importance = sorted((content.get("importance") or {}).items(), key=lambda item: -item[1])
    sampler, pruner, measure = (str(content.get(name)) for name in ("sampler", "pruner", "measure"))
    return SearchHistory(sampler, pruner, measure, trials, dict(importance))


def describe_search(
    search: SearchHistory, dots: list[charts.JobMark], unit: str, starts: list[float]
) -> dict[str, Any]:
    """Return a search as the page shows it: in a sentence, and the losses by trial.

    Args:
        search: the history.
        dots: of its trials.
        unit: of the losses.
        starts: losses before training, which bound the plot.
    """
    outcomes = [trial.outcome for trial in search.trials]
    counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes))
    chart = charts.draw_scatter(
        "trials",
        f"Loss of each trial ({search.measure}), and the best so far",
        dots,
        ("trial", unit),
        paths=[charts.JobMark("", "best so far", search.best_so_far)],
        starts=starts,
    )
    return {"summary": f"{count_of(len(outcomes), 'trial')}, proposed by {search.sampler}: {counts}.", "chart": chart}
