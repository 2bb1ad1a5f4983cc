"""The adapter to Optuna: its study in the sweep folder, what it proposes, and what it is told of each trial."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sft_lab.core.errors import FolderError
from sft_lab.run.trial import STUDY, open_storage, successive_halving

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

    from sft_lab.config import SearchAxis, SearchSpace
    from sft_lab.search.options import SearchOptions

MAX_RANDOM = 10  # trials before the sampler uses what it has learned
MIN_FOR_IMPORTANCE = 8  # finished trials


class Outcome(StrEnum):
    """How a trial ended."""

    FINISHED = "finished"
    PRUNED = "pruned"
    DIVERGED = "diverged"  # its training broke down
    FAILED = "failed"
    REPEATED = "repeated"  # an earlier trial's job; it counts for nothing


@dataclass(frozen=True)
class Trial:
    """A proposal of the sampler, and what came of it.

    Attributes:
        number: from 0.
        values: of the axes as overrides have them, by key; empty where a kill came before they were written.
        outcome: None while it is open.
        loss: of a finished trial; of one that ended early, what it last had, if anything.
        job: name of its folder; empty before it has one.
        reason: why it has failed.
    """

    number: int
    values: dict[str, str]
    outcome: Outcome | None = None
    loss: float | None = None
    job: str = ""
    reason: str = ""

    @property
    def counts(self) -> bool:
        """Whether it is one of the jobs that were to be trained, and has ended."""
        return self.outcome not in (None, Outcome.REPEATED) and bool(self.values)


class SearchStudy:
    """Optuna's study of a search; this process alone proposes trials in it.

    Args:
        sweep: the folder.
        space: what is varied.
        options: of the search.
        seed: of the sampler.

    Raises:
        FolderError: if the folder's search had another space, or its record cannot be read.
    """

    def __init__(self, sweep: Path, space: SearchSpace, options: SearchOptions, seed: int) -> None:
        import optuna

        self._sweep = sweep
        try:
            self._storage = open_storage(sweep)
            self._study = optuna.create_study(study_name=STUDY, storage=self._storage, load_if_exists=True)
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
            raise FolderError(
                f"{sweep}: this folder's record of the search cannot be read ({error}); choose another with "
                "hydra.sweep.dir"
            ) from error
        self._refuse_other_space(space)
        self._axes = space.axes
        self._distributions = {axis.key: _distribution(axis) for axis in space.axes}
        self._is_grid = options.sampler == "grid"
        trials = options.planned_trials(space)
        # Another seed each time a search goes on: the same one would propose the same values again.
        self._study.sampler = _sampler(options.sampler, seed + len(self.trials()), trials)
        self._study.pruner = _pruner(options.pruner)
        self._close_waiting()

    def _refuse_other_space(self, space: SearchSpace) -> None:
        kinds = {axis.key: axis.kind for axis in space.axes}
        known = self._study.user_attrs.setdefault("axes", kinds)
        if known != kinds:
            keys = sorted(key for key in known.keys() | kinds.keys() if known.get(key) != kinds.get(key))
            raise FolderError(
                f"{self._sweep}: this folder's search had different values for {', '.join(keys)}; only the ends of "
                "intervals and ranges can change; choose another folder with hydra.sweep.dir"
            )
        self._study.set_user_attr("axes", kinds)

    def _close_waiting(self) -> None:
        """End the trials of a grid that waited in an older journal: Optuna would take them before any proposal."""
        from optuna.trial import TrialState

        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self._storage.set_trial_state_values(self._trial_id(trial.number), TrialState.FAIL)

    # --- trials -----------------------------------------------------------------------------------------------------

    def trials(self) -> list[Trial]:
        """Return all trials, the open ones too."""
        return [_read_trial(trial) for trial in self._study.get_trials(deepcopy=False)]

    def propose(self) -> Trial | None:
        """Return a new trial; None where each point of a grid has been one."""
        from optuna.samplers import PartialFixedSampler, RandomSampler

        with _quiet():
            if self._is_grid:
                point = self._next_point()
                if point is None:
                    return None
                self._study.sampler = PartialFixedSampler(point, RandomSampler())
            trial = self._study.ask(self._distributions)
        values = {axis.key: axis.format(trial.params[axis.key]) for axis in self._axes}
        trial.set_user_attr("values", values)
        return Trial(trial.number, values)

    def _next_point(self) -> dict[str, Any] | None:
        """Return the first point of the grid that no trial has had."""
        known = {tuple(trial.values.get(axis.key) for axis in self._axes) for trial in self.trials()}
        for values in itertools.product(*(axis.points() for axis in self._axes)):
            if tuple(axis.format(value) for axis, value in zip(self._axes, values, strict=True)) not in known:
                return {axis.key: value for axis, value in zip(self._axes, values, strict=True)}
        return None

    def note_job(self, trial: Trial, job: str) -> None:
        """Note the folder of an open trial."""
        self._note(trial, "job", job)

    def report(self, trial: Trial, outcome: Outcome, loss: float | None = None, reason: str = "") -> None:
        """End a trial.

        One that diverged or was pruned counts to the sampler as worse than those that finished, whatever its loss;
        of one that failed it learns nothing.
        """
        from optuna.trial import TrialState

        loss = loss if loss is not None and math.isfinite(loss) else None
        self._note(trial, "outcome", outcome)
        if reason:
            self._note(trial, "reason", reason)
        if outcome is Outcome.DIVERGED and loss is not None:
            self._note(trial, "loss", loss)
        with _quiet():
            if outcome in (Outcome.FINISHED, Outcome.REPEATED) and loss is not None:
                self._study.tell(trial.number, loss)
            elif outcome in (Outcome.PRUNED, Outcome.DIVERGED):
                self._study.tell(trial.number, state=TrialState.PRUNED)
            else:
                self._study.tell(trial.number, state=TrialState.FAIL)

    def _note(self, trial: Trial, name: str, value: Any) -> None:
        self._storage.set_trial_user_attr(self._trial_id(trial.number), name, value)

    def _trial_id(self, number: int) -> int:
        study_id = self._storage.get_study_id_from_name(STUDY)
        return self._storage.get_trial_id_from_study_id_trial_number(study_id, number)

    # --- facts of the whole search ----------------------------------------------------------------------------------

    def first_value(self, name: str, value: Any) -> Any:
        """Return the value that the search first had of something, which is this one in a new search."""
        known = self._study.user_attrs.get(name)
        if known is None:
            self._study.set_user_attr(name, value)
        return value if known is None else known

    def importance(self) -> dict[str, float]:
        """Return each axis' share in what the values change of the loss; empty after too few trials."""
        import optuna

        finished = [trial for trial in self.trials() if trial.outcome is Outcome.FINISHED]
        if len(finished) < MIN_FOR_IMPORTANCE:
            return {}
        try:
            with _quiet():
                # Of a forest's trees. After 20 trials it named the axis that mattered for 10 of 10 seeds, where
                # PED-ANOVA, Optuna's default, did for 6 and fANOVA for 8.
                evaluator = optuna.importance.MeanDecreaseImpurityImportanceEvaluator(seed=0)
                return dict(optuna.importance.get_param_importances(self._study, evaluator=evaluator))
        except (ValueError, RuntimeError):  # all losses are equal, say
            return {}


def _read_trial(trial: FrozenTrial) -> Trial:
    attributes = trial.user_attrs
    ended = trial.state.is_finished()
    loss = attributes.get("loss", trial.value)
    return Trial(
        trial.number,
        dict(attributes.get("values") or {}),
        Outcome(attributes.get("outcome", Outcome.FAILED)) if ended else None,
        loss if ended and loss is not None and math.isfinite(loss) else None,
        str(attributes.get("job", "")),
        str(attributes.get("reason", "")),
    )


def _distribution(axis: SearchAxis) -> BaseDistribution:
    from optuna import distributions

    if axis.choices:
        return distributions.CategoricalDistribution(axis.choices)
    if axis.is_whole:
        step = int(axis.step or 1)
        return distributions.IntDistribution(int(axis.low), int(axis.high), log=axis.is_log, step=step)
    return distributions.FloatDistribution(axis.low, axis.high, log=axis.is_log, step=axis.step)


def _sampler(name: str, seed: int, trials: int) -> BaseSampler:
    from optuna import samplers

    if name == "tpe":
        # Of a short search no more than a third is spent on chance alone.
        return samplers.TPESampler(seed=seed, n_startup_trials=max(2, min(MAX_RANDOM, trials // 3)))
    if name == "cmaes":
        return samplers.CmaEsSampler(seed=seed)
    return samplers.RandomSampler(seed=seed)


def _pruner(name: str) -> BasePruner:
    from optuna import pruners

    return successive_halving() if name == "halving" else pruners.NopPruner()


class _quiet(warnings.catch_warnings):  # noqa: N801 - used as a function
    """Hide Optuna's warnings, which are for who writes the code: of experimental arguments, of single values."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
