"""The search: trials are proposed, executed as jobs of a sweep folder and reported back, until there are enough.

The same command goes on with the trials of its folder: those that a kill cut off first, then new ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sft_lab.compare.scores import choose_measure
from sft_lab.config import Plan, SearchSpace
from sft_lab.core import tolerant_readers
from sft_lab.core.errors import ConfigError, FolderError, UserError
from sft_lab.core.gpus import release_memory
from sft_lab.core.io import is_number, write_json
from sft_lab.core.locks import file_lock, holder
from sft_lab.core.log import log
from sft_lab.core.run_dir import RunDir, make_folders
from sft_lab.core.text import count_of
from sft_lab.core.types import RunState, Verdict
from sft_lab.jobs.launch import launch
from sft_lab.jobs.layout import JobFolder, create_job_folders, find_job_folders
from sft_lab.run.config import Run
from sft_lab.run.launch_config import Processes, Serial
from sft_lab.run.trial import SEARCH_LOCK
from sft_lab.search.options import SearchOptions
from sft_lab.search.search_record import write_record
from sft_lab.search.study import Outcome, SearchStudy, Trial

DEFAULT_OBJECTIVE = "eval/bits_per_byte"  # of evaluation.objective
CLUSTER_AT_ONCE = 4  # jobs that are proposed together where a cluster executes them
MAX_REPEATS = 20  # proposals of known jobs, one after another, before a search ends
SAME_FAILURES = 3  # of the first trials, all by the same wrong input: the others would fail alike
BEST = 3  # trials that --confirm trains again


@dataclass
class SearchResult:
    """What a search came to.

    Attributes:
        folder: the sweep folder.
        measure: that the trials are ranked by.
        trials: those that count, by number.
        importance: share of each axis in what the values change.
        failures: messages of confirming jobs that failed.
    """

    folder: Path
    measure: str
    trials: list[Trial]
    importance: dict[str, float]
    failures: list[str] = field(default_factory=list)

    @property
    def ranked(self) -> list[Trial]:
        """The finished trials, best first."""
        return rank(self.trials)


def rank(trials: list[Trial]) -> list[Trial]:
    """Return the finished trials, best first."""
    finished = [trial for trial in trials if trial.outcome is Outcome.FINISHED and trial.loss is not None]
    return sorted(finished, key=lambda trial: trial.loss or 0.0)


def describe(values: dict[str, str]) -> str:
    """Return the values of axes on one line."""
    return ", ".join(f"{key}={value}" for key, value in values.items())


def run_search(space: SearchSpace, options: SearchOptions) -> SearchResult:
    """Carry out a search, or go on with it.

    Raises:
        UserError: for wrong values, a folder of another search, and input that fails every trial.
    """
    probe = space.probe()
    run = probe.jobs[0].run
    if run.rerun:
        raise ConfigError(
            "rerun=true: a search never trains the same values twice; choose a new folder with hydra.sweep.dir"
        )
    sweep = find_job_folders(probe)[0].folder.path.parent
    created = make_folders(sweep)
    lock = file_lock(sweep / SEARCH_LOCK)
    _claim(lock, sweep)
    try:
        search = _Search(space, options, sweep, run)
        search.go_on()
        failures = search.confirm() if options.confirm else []
        return SearchResult(sweep, search.measure, search.ended(), search.importance, failures)
    finally:
        (sweep / SEARCH_LOCK).unlink(missing_ok=True)
        lock.release()
        _remove_unused(sweep, created)


def _claim(lock: Any, sweep: Path) -> None:
    from filelock import Timeout

    try:
        lock.acquire(timeout=0.5)
    except Timeout as error:
        process = holder(sweep / SEARCH_LOCK) or "another process"
        raise FolderError(f"{sweep}: {process} is running a search here; wait until it ends") from error


def _remove_unused(sweep: Path, created: list[Path]) -> None:
    """Remove a new folder in which no job was begun."""
    if created and not any(path.is_dir() for path in sweep.iterdir()):
        for path in sweep.iterdir():
            path.unlink()
        for path in created:
            if not any(path.iterdir()):
                path.rmdir()


class _Search:
    """A search at work in its folder."""

    def __init__(self, space: SearchSpace, options: SearchOptions, sweep: Path, run: Run) -> None:
        self.space, self.options, self.sweep, self.run = space, options, sweep, run
        self.planned = options.planned_trials(space)
        self.at_once = options.at_once or _capacity(run)
        self.held_out_measure: str = choose_measure([], [axis.key for axis in space.axes])[0]  # of the pruner
        objective = run.evaluation.objective
        self.measure = self.held_out_measure if objective == DEFAULT_OBJECTIVE else objective
        self.importance: dict[str, float] = {}
        self._recorded: list[Trial] | None = None
        seed = run.seed if options.seed is None else options.seed
        self.study = SearchStudy(sweep, space, options, seed)
        self._failed_by_input = False  # whether a trial of this command did

    def ended(self) -> list[Trial]:
        """Return the trials that count."""
        trials = [trial for trial in self.study.trials() if trial.counts]
        if self.measure != self.held_out_measure:  # the last that was measured of a pruned one is another number
            trials = [replace(trial, loss=None) if trial.outcome is Outcome.PRUNED else trial for trial in trials]
        return trials

    def go_on(self) -> None:
        """Carry out the open trials, and new ones until there are enough."""
        self._close_unbegun()
        begun = f", {len(self.ended())} of them already done" if self.ended() else ""
        trials = count_of(self.planned, "trial")
        log.info("search: %s%s, proposed by %s, in %s", trials, begun, self.options.sampler, self.sweep)
        repeats = 0
        while repeats < MAX_REPEATS:
            open_trials = [trial for trial in self.study.trials() if trial.outcome is None][: self.at_once]
            wanted = min(self.at_once, self.planned - len(self.ended())) - len(open_trials)
            proposals = (self.study.propose() for _ in range(wanted))
            batch = [*open_trials, *(trial for trial in proposals if trial)]
            if not batch:
                break
            before = len(self.ended())
            self._carry_out(batch)
            repeats = 0 if len(self.ended()) > before else repeats + len(batch)
            self._write()
            self._refuse_hopeless_input()
        else:
            log.warning("search: %d proposals in a row repeated earlier jobs, so it stops here", repeats)
        self._write()

    def _close_unbegun(self) -> None:
        """End trials that a kill cut off before their values were written."""
        for trial in self.study.trials():
            if trial.outcome is None and not trial.values:
                self.study.report(trial, Outcome.FAILED)

    def _carry_out(self, batch: list[Trial]) -> None:
        """Execute the jobs of trials and report them."""
        jobs: dict[int, JobFolder] = {}
        for trial in batch:
            job_folder = self._create_job(trial)
            if job_folder:
                jobs[trial.number] = job_folder
        if not jobs:
            return
        ended = len(self.ended())
        for position, trial in enumerate((trial for trial in batch if trial.number in jobs), start=ended + 1):
            log.info("trial %d of %d: %s", position, self.planned, describe(trial.values))
        failures = {failure.folder.path: failure for failure in launch([*jobs.values()], keeps_failed=True)}
        release_memory()  # for the next trial
        self._failed_by_input = self._failed_by_input or any(failure.by_input for failure in failures.values())
        for trial in batch:
            if job_folder := jobs.get(trial.number):
                failure = failures.get(job_folder.folder.path)
                self._report(trial, job_folder.folder, failure.message if failure else "")

    def _create_job(self, trial: Trial) -> JobFolder | None:
        """Make the folder of a trial's job; None for one that needs no work or cannot be, which is reported here."""
        try:
            plan = self._plan(trial.values)
            (job_folder,) = create_job_folders(plan)
        except ConfigError as error:  # values that do not go together
            log.warning("trial: failed: %s", error)
            self.study.report(trial, Outcome.FAILED, reason=str(error))
            self._failed_by_input = True
            return None
        folder = job_folder.folder
        job = folder.path.name
        twin = next((other for other in self.study.trials() if other.job == job and other.number != trial.number), None)
        if twin:
            self.study.report(trial, Outcome.REPEATED, twin.loss if twin.outcome is Outcome.FINISHED else None)
            return None
        self.study.note_job(trial, job)
        if folder.state() == RunState.PRUNED:  # a kill came before that was reported
            self.study.report(trial, Outcome.PRUNED)
            return None
        pruner = self.options.pruner if self.options.pruner != "none" else None
        write_json(folder.trial, {"number": trial.number, "measure": self.held_out_measure, "pruner": pruner})
        return job_folder

    def _plan(self, values: dict[str, str]) -> Plan:
        plan = self.space.plan([values])
        return Plan(plan.jobs, swept=True, name=plan.name, run_dir=None, sweep_dir=str(self.sweep))

    def _report(self, trial: Trial, folder: RunDir, message: str) -> None:
        outcome, loss, reason = self._outcome(folder, message)
        self.study.report(trial, outcome, loss, reason)
        result = f" with {loss:.4f}" if loss is not None else f": {reason}" if reason else ""
        if outcome is not Outcome.PRUNED:  # which was logged when it happened
            log.info("%s: %s%s", folder.path.name, outcome, result)

    def _outcome(self, folder: RunDir, message: str) -> tuple[Outcome, float | None, str]:
        """Return how a trial's job ended, with its loss or the reason."""
        status = tolerant_readers.read(folder.status)
        if status.get("state") == RunState.PRUNED:
            return Outcome.PRUNED, None, ""
        if message or status.get("state") != RunState.FINISHED:
            return Outcome.FAILED, None, message or "it has not finished"

        self._refuse_other_rows(folder)
        summary = tolerant_readers.read(folder.summary)
        loss = summary.get(self.measure)
        if not is_number(loss):
            loss = None
        if summary.get("verdict") == Verdict.DIVERGED:
            return Outcome.DIVERGED, loss, ""
        if loss is None:
            return Outcome.FAILED, None, f"its summary.json has no {self.measure}"
        return Outcome.FINISHED, loss, ""

    def _refuse_other_rows(self, folder: RunDir) -> None:
        """Refuse trials that were measured on different rows.

        Raises:
            UserError: naming the folder.
        """
        rows = tolerant_readers.read(folder.manifest).get("held_out_fingerprint")
        if rows and self.study.first_value("held_out_rows", rows) != rows:
            raise UserError(
                f"{folder.path.name}: was measured on different held-out rows than earlier trials, so their losses "
                "cannot be compared; search only keys that do not change the held-out rows (not split.*, dataset.*)"
            )

    def _refuse_hopeless_input(self) -> None:
        """End a search whose trials have all failed by the same wrong input.

        Raises:
            UserError: with the reason.
        """
        trials = self.ended()
        reasons = {trial.reason for trial in trials}
        all_failed = all(trial.outcome is Outcome.FAILED for trial in trials)
        if self._failed_by_input and all_failed and len(trials) >= SAME_FAILURES and len(reasons) == 1:
            raise UserError(f"search: the first {len(trials)} trials all failed with the same error: {reasons.pop()}")

    # --- seeds of the best ------------------------------------------------------------------------------------------

    def confirm(self) -> list[str]:
        """Train the best few trials again with other seeds; return the messages of those jobs that failed."""
        seeds = [self.run.seed + number for number in range(1, self.options.confirm)]
        jobs = []
        for trial in rank(self.ended())[:BEST]:
            for seed in seeds:
                jobs += create_job_folders(self._plan({**trial.values, "seed": str(seed)}))
        if not jobs:
            return []
        log.info(
            "search: training the best %s with %d seeds each",
            count_of(min(BEST, len(rank(self.ended()))), "trial"),
            self.options.confirm,
        )
        return [f"{failure.folder.path.name}: {failure.message}" for failure in launch(jobs, keeps_failed=True)]

    def _write(self) -> None:
        trials = self.ended()
        if trials != self._recorded:
            self._recorded, self.importance = trials, self.study.importance()
            write_record(self.sweep, self.space, self.options, self.measure, trials, self.importance)


def _capacity(run: Run) -> int:
    """Return how many jobs the launcher executes at once."""
    if isinstance(run.launch, Processes):
        return len(run.launch.device_groups())
    return 1 if type(run.launch) is Serial else CLUSTER_AT_ONCE
