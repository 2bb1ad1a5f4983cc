"""A run that is a trial of a search: where the search's record is, and whether the run is hopeless."""

from __future__ import annotations

import logging
import math
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core import tolerant_readers
from sft_lab.core.hardware import rank
from sft_lab.core.locks import file_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna.pruners import BasePruner
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    from sft_lab.core.run_dir import RunDir

JOURNAL = "search.journal"  # Optuna's record of a search, in its sweep folder
SEARCH_LOCK = ".search.lock"  # beside it, held while a command proposes trials
STUDY = "search"  # the one study in it
_CMAES_STATE = re.compile(r"(sep)?cma(wm)?:")  # keys of what Optuna keeps of CMA-ES
# Successive halving over the share of a training that is done, in percent: at a quarter and at a half of it, the better
# half of the trials that came this far continues.
FIRST_RUNG, REDUCTION = 25, 2


class _JournalLock:
    """Guards a journal between processes; unlike Optuna's own lock, it is freed when its holder dies."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._lock = file_lock(journal.with_name(f".{journal.name}.lock"))

    def acquire(self) -> bool:
        """Wait for the lock, and cut off a line that a killed process left unfinished."""
        self._lock.acquire()
        with self._journal.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """End the claim."""
        self._lock.release()


def open_storage(sweep: Path) -> JournalStorage:
    """Return Optuna's storage in a sweep folder, which may be a stranger's."""
    import optuna

    optuna.logging.set_verbosity(logging.ERROR)
    journal = sweep / JOURNAL
    return optuna.storages.JournalStorage(_journal_class()(str(journal), _JournalLock(journal)))  # type: ignore[arg-type]


@lru_cache
def _journal_class() -> type[JournalFileBackend]:
    from optuna.storages.journal import JournalFileBackend

    class Journal(JournalFileBackend):
        """A journal without the state of CMA-ES that other processes wrote: a pickle, which would run their code."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self._own_workers: set[str] = set()

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            self._own_workers |= {entry["worker_id"] for entry in logs}
            super().append_logs(logs)

        def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
            for entry in super().read_logs(log_number_from):
                if entry.get("worker_id") not in self._own_workers:
                    for name in ("system_attr", "system_attrs"):
                        if any(_CMAES_STATE.match(str(key)) for key in entry.get(name) or ()):
                            entry[name] = {"forgotten": True}
                yield entry

    return Journal


def successive_halving() -> BasePruner:
    """Return the pruner."""
    import optuna

    return optuna.pruners.SuccessiveHalvingPruner(min_resource=FIRST_RUNG, reduction_factor=REDUCTION)


def create_pruning(folder: RunDir) -> Callable[[float, dict[str, float]], bool] | None:
    """Return what reports a held-out measurement to the search and answers whether the run is hopeless.

    It takes the share of the training that is done, and the measurement.

    Args:
        folder: of the run; None is returned unless it is a trial of a search that prunes.
    """
    record = tolerant_readers.read(folder.trial)
    sweep = folder.path.parent
    if not record.get("pruner") or not (sweep / JOURNAL).is_file():
        return None
    if rank():  # the process of rank 0 decides for all
        return lambda _share, _event: False

    import optuna

    storage = open_storage(sweep)
    study = optuna.load_study(study_name=STUDY, storage=storage, pruner=successive_halving())
    study_id = storage.get_study_id_from_name(STUDY)
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, record["number"])

    def is_hopeless(share: float, event: dict[str, float]) -> bool:
        trial: Any = storage.get_trial(trial_id)
        step = round(100 * share)
        loss = event.get(record["measure"], math.nan)
        # A loss that is not a number needs no comparison: the run ends by itself, as diverged.
        if trial.state.is_finished() or step >= 100 or not math.isfinite(loss):
            return False
        if step not in trial.intermediate_values:  # else measured before the checkpoint that training went on from
            storage.set_trial_intermediate_value(trial_id, step, loss)
        return study.pruner.prune(study, storage.get_trial(trial_id))

    return is_hopeless
