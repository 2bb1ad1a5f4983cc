"""Optuna behind its adapter: a known valley is found, kills in the middle included, and a damaged record mended."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest

from sft_lab.config import SearchAxis, SearchSpace
from sft_lab.core.errors import FolderError
from sft_lab.run.trial import JOURNAL, open_storage
from sft_lab.search.options import SearchOptions
from sft_lab.search.study import Outcome, SearchStudy

RATE = SearchAxis("rate", "tag(log, interval(1e-5,1e-1))", low=1e-5, high=1e-1, is_log=True)
KIND = SearchAxis("kind", "choice(a,b,c)", choices=["a", "b", "c"])
SPACE = SearchSpace(None, [], [RATE, KIND])
Loss = Callable[[dict[str, str]], float]
VALLEY = -2.5  # the best rate's power of ten, in the upper half of the interval


def loss_at(values: dict[str, str]) -> float:
    return (math.log10(float(values["rate"])) - VALLEY) ** 2 + {"a": 0.5, "b": 0.0, "c": 1.0}[values["kind"]]


def search(
    folder: Path, seed: int, trials: int, space: SearchSpace = SPACE, loss_at: Loss = loss_at, **options: object
) -> SearchStudy:
    """Go on with a search until it has so many trials."""
    study = SearchStudy(folder, space, SearchOptions(trials=trials, **options), seed)  # type: ignore[arg-type]
    for trial in study.trials():
        if trial.outcome is None:  # what a kill cut off
            study.report(trial, Outcome.FINISHED, loss_at(trial.values))
    while sum(trial.counts for trial in study.trials()) < trials:
        trial = study.propose()
        assert trial
        study.report(trial, Outcome.FINISHED, loss_at(trial.values))
    return study


@pytest.mark.slow
def test_the_better_half_of_a_valley_is_found_by_nine_of_ten_seeds_though_killed_twice(tmp_path: Path) -> None:
    hits = 0
    for seed in range(10):
        folder = tmp_path / str(seed)
        folder.mkdir()
        for stop in (6, 13):
            search(folder, seed, stop).propose()  # left open, as by a kill
        study = search(folder, seed, 20)
        trials = study.trials()
        assert len(trials) == 20
        assert len({trial.values["rate"] for trial in trials}) > 15  # going on does not begin anew
        late = sorted(trial.loss for trial in trials[10:] if trial.loss is not None)
        # The median of the space is about 1.6; chance alone stays there.
        best = min(trials, key=lambda trial: trial.loss or 0.0)
        hits += abs(math.log10(float(best.values["rate"])) - VALLEY) < 1 and late[5] < 1.3
    assert hits >= 9


# Held-out losses of the tiny model after 8 steps at 1e-5, 1.778e-5 and so on to 0.3162: a real valley.
MEASURED = [
    8.32157, 8.32145, 8.32122, 8.32082, 8.32010, 8.31881, 8.31649, 8.31231, 8.30469, 8.29095,
    8.26867, 8.24807, 8.24356, 8.23982, 8.24082, 8.24056, 8.24563, 8.28579, 8.27891,
]  # fmt: skip


@pytest.mark.slow
def test_so_is_that_of_the_tiny_model(tmp_path: Path) -> None:
    """Its better half are the rates from 0.0018 on."""
    rate = SearchAxis("rate", "tag(log, interval(1e-5,0.3162))", low=1e-5, high=0.3162, is_log=True)
    space = SearchSpace(None, [], [rate])

    def measured_loss(values: dict[str, str]) -> float:
        position = 4 * (math.log10(float(values["rate"])) + 5)
        return float(np.interp(position, range(len(MEASURED)), MEASURED))

    hits = 0
    for seed in range(10):
        folder = tmp_path / str(seed)
        folder.mkdir()
        for stop in (6, 13):
            search(folder, seed, stop, space, loss_at=measured_loss).propose()
        losses = [trial.loss or 9.0 for trial in search(folder, seed, 20, space, loss_at=measured_loss).trials()]
        hits += min(losses) < 8.245 and float(np.median(losses[10:])) < float(np.median(MEASURED))
    assert hits >= 9


@pytest.mark.slow
def test_the_importance_of_an_axis_is_its_share(tmp_path: Path) -> None:
    importance = search(tmp_path, 1, 20).importance()
    assert set(importance) == {"rate", "kind"}
    assert sum(importance.values()) == pytest.approx(1)
    assert search(tmp_path, 1, 20).importance() == importance


def test_a_grid_is_every_combination_once(tmp_path: Path) -> None:
    steps = SearchAxis("rate", "range(1,4)", low=1, high=3, step=1, is_whole=True)
    space = SearchSpace(None, [], [steps, KIND])
    assert SearchOptions(sampler="grid").planned_trials(space) == 9
    study = search(tmp_path, 1, 4, space, sampler="grid")
    study = search(tmp_path, 1, 9, space, sampler="grid")
    pairs = [tuple(trial.values.values()) for trial in study.trials()]
    assert pairs == [(str(rate), kind) for rate in (1, 2, 3) for kind in "abc"]
    assert study.propose() is None


@pytest.mark.parametrize("is_old", [False, True])
def test_another_sampler_goes_on_after_a_grid_within_its_own_ends(tmp_path: Path, *, is_old: bool) -> None:
    """An old journal holds all points of the grid as waiting trials."""
    wide, narrow = (
        SearchSpace(None, [], [SearchAxis("rate", f"range({low},21)", low=low, high=20, step=1, is_whole=True)])
        for low in (1, 11)
    )
    study = SearchStudy(tmp_path, wide, SearchOptions(sampler="grid"), 1)
    first = study.propose()
    assert first
    study.report(first, Outcome.FINISHED, 1.0)
    assert [trial.values for trial in study.trials()] == [{"rate": "1"}]  # nothing waits
    if is_old:
        old = optuna.load_study(study_name="search", storage=open_storage(tmp_path))
        for rate in (2, 3):
            old.enqueue_trial({"rate": rate})
    study = SearchStudy(tmp_path, narrow, SearchOptions(sampler="random"), 1)
    proposed = [study.propose() for _ in range(4)]
    assert all(trial and int(trial.values["rate"]) > 10 for trial in proposed)
    assert sum(trial.counts for trial in study.trials()) == 1


def test_a_failed_trial_teaches_nothing_and_a_diverged_one_is_worst(tmp_path: Path) -> None:
    study = SearchStudy(tmp_path, SPACE, SearchOptions(trials=5), 1)
    failed, diverged, pruned, finished = filter(None, (study.propose() for _ in range(4)))
    study.report(failed, Outcome.FAILED, reason="no memory")
    study.report(diverged, Outcome.DIVERGED, 1.0)
    study.report(pruned, Outcome.PRUNED)
    study.report(finished, Outcome.FINISHED, 2.0)
    outcomes = {trial.number: (trial.outcome, trial.loss, trial.reason, trial.counts) for trial in study.trials()}
    assert outcomes == {
        0: ("failed", None, "no memory", True),
        1: ("diverged", 1.0, "", True),
        2: ("pruned", None, "", True),
        3: ("finished", 2.0, "", True),
    }
    assert optuna.load_study(study_name="search", storage=open_storage(tmp_path)).best_trial.number == 3


def test_a_line_that_a_kill_cut_off_is_forgotten(tmp_path: Path) -> None:
    search(tmp_path, 1, 3)
    journal = tmp_path / JOURNAL
    complete = journal.read_bytes()
    journal.write_bytes(complete + b'{"op_code":4,"worker_id":"x","stud')
    study = search(tmp_path, 1, 5)
    assert len(study.trials()) == 5
    assert journal.read_bytes().startswith(complete)


def test_ends_may_change_and_kinds_may_not(tmp_path: Path) -> None:
    search(tmp_path, 1, 3)
    wider = SearchAxis("rate", "tag(log, interval(1e-6,1))", low=1e-6, high=1.0, is_log=True)
    assert len(search(tmp_path, 1, 5, SearchSpace(None, [], [wider, KIND])).trials()) == 5
    linear = SearchAxis("rate", "interval(1e-6,1)", low=1e-6, high=1.0)
    for axes in ([linear, KIND], [RATE, SearchAxis("kind", "a,b", choices=["a", "b"])], [RATE]):
        with pytest.raises(FolderError, match=r"different values for (rate|kind); .*hydra.sweep.dir"):
            search(tmp_path, 1, 5, SearchSpace(None, [], axes))


def test_a_damaged_record_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text('{"op_code": "x"}\nnot json\n')
    with pytest.raises(FolderError, match=r"record of the search cannot be read .*hydra.sweep.dir"):
        search(tmp_path, 1, 2)


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def test_a_strangers_journal_runs_no_code(here: Path) -> None:
    """Optuna's sampler CMA-ES unpickles its state from the journal."""
    search(here, 1, 2).propose()  # an open trial still takes attributes
    journal = here / JOURNAL
    payload = pickle.dumps(_Payload()).hex()
    for key in ("cma:optimizer:0", "sepcma:optimizer:0", "cmawm:optimizer:0"):
        entry = {"op_code": 9, "worker_id": "stranger", "trial_id": 2, "system_attr": {key: payload}}
        with journal.open("a") as file:
            file.write(json.dumps(entry) + "\n")
    storage = open_storage(here)
    assert storage.get_trial(2).system_attrs["forgotten"]
    assert payload not in str(storage.get_trial(2).system_attrs)
    storage.set_trial_system_attr(storage.create_new_trial(0), "cma:optimizer:0", "own")
    assert storage.get_trial(3).system_attrs == {"cma:optimizer:0": "own"}
    assert not Path("ran").exists()
