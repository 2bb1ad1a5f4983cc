"""Plan: what a command would do, from what the store and the run folders hold. Nothing is computed or written."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab import config as configs
from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError, SftLabError
from sft_lab.core.io import digest, flat, read_json
from sft_lab.core.run_dir import FINISHED, RunDir
from sft_lab.core.store_view import NotStored, StoreView
from sft_lab.jobs.layout import Placed, Standing, find
from sft_lab.run.config import Run
from sft_lab.tracking.manifest import template_date, versions
from sft_lab.training.config import planned_steps

if TYPE_CHECKING:
    from sft_lab.data.preparation import Prepared
    from sft_lab.training.memory import Footprint

# Trainer's keys that change neither what a step costs nor what it needs.
_SAME_COST = ("learning_rate", "num_train_epochs", "max_steps", "warmup_steps", "lr_scheduler_type", "weight_decay",
              "max_grad_norm", "budget")  # fmt: skip
_MOST_LOOKED_AT = 200  # finished runs that a time is taken from; the newest


@dataclass(frozen=True)
class Outlook:
    """What is known of a job before it runs.

    Attributes:
        placed: the job and its folder.
        other_versions: package: version then, of a finished job, where another one is installed now.
        stages: the waterfall so far as it is stored.
        missing: the first data stage that is not stored, and its key; None when all are.
        rows: training rows; tokens: of their prompts and answers; None until all data stages are stored.
        steps: optimizer steps; None where they follow from rows that are not known.
        epochs: passes over the rows; None where that is not known.
        seconds: from a finished run of the same shape, None without one.
        like: that run's folder.
        memory: what training holds; None where the model is not here yet.
        trained_as: a key of the training rows and of all that is done with them; None where they are not known.
    """

    placed: Placed
    other_versions: dict[str, str]
    stages: list[dict[str, Any]]
    missing: tuple[str, str] | None
    rows: int | None
    tokens: int | None
    steps: int | None
    epochs: float | None
    seconds: float | None
    like: Path | None
    memory: Footprint | None
    trained_as: str | None


def look(plan: configs.Plan) -> list[Outlook]:
    """Look ahead of every job.

    Raises:
        FolderError: as placing the jobs would.
    """
    placed = find(plan)
    done = list(_finished_runs(placed))
    tokenizers: dict[str, Any] = {}
    footprints: dict[str, Footprint | None] = {}
    with _quiet():
        return [_outlook(one, done, tokenizers, footprints) for one in placed]


def shared(outlooks: list[Outlook]) -> list[tuple[str, int]]:
    """The data stages to compute first, and how many jobs wait for each: one computation serves them all."""
    counted = Counter(one.missing for one in outlooks if one.missing and one.placed.standing is not Standing.finished)
    return [(stage, jobs) for (stage, _), jobs in counted.most_common()]


def same_rows(outlooks: list[Outlook]) -> list[str]:
    """Name the jobs that would train the same on the same rows: their thresholds are one."""
    groups: dict[str, list[str]] = {}
    for one in outlooks:
        if one.trained_as:
            named = ", ".join(f"{key}={value}" for key, value in one.placed.job.axes.items())
            groups.setdefault(one.trained_as, []).append(named)
    return ["; ".join(group) for group in groups.values() if len(group) > 1]


def _outlook(
    placed: Placed,
    done: list[tuple[Path, dict[str, Any]]],
    tokenizers: dict[str, Any],
    footprints: dict[str, Footprint | None],
) -> Outlook:
    run = placed.job.run
    stages, missing, data = _data(placed, tokenizers)
    saved = run.saved()
    shape = digest([saved["model"], *map(saved["trainer"].get, ("kind", "peft", "optim", "max_length"))])
    if shape not in footprints:
        footprints[shape] = _memory(run)
    rows = len(data.train.rows) if data else None
    steps = _steps(run, data)
    epochs = None
    if steps and rows and not run.trainer.packing:  # blocks are counted when packing has made them
        epochs = steps / _planned(run, rows) * run.trainer.num_train_epochs
    seconds, like = _time(run, steps, done)
    return Outlook(
        placed, _other_versions(placed), stages, missing, rows, stages[-1]["tokens_kept"] if data else None,
        steps, epochs, seconds, like, footprints[shape], run.trained_as(data) if data else None,
    )  # fmt: skip


def _data(
    placed: Placed, tokenizers: dict[str, Any]
) -> tuple[list[dict[str, Any]], tuple[str, str] | None, Prepared | None]:
    """Go through the data stages as far as they are stored."""
    run = placed.job.run
    view = StoreView(run.store.open().root)
    which = digest([run.saved()["model"], run.template.special_tokens])

    def tokenizer() -> Any:
        if which not in tokenizers:
            tokenizers[which] = run.model.tokenizer(context, run.template.special_tokens)
        return tokenizers[which]

    context = StageContext(view, tokenizer, template_date(placed.folder.manifest))
    work = run.preparation(context)
    data, missing = None, None
    try:
        data = run.prepare(context, work)
    except NotStored as error:
        missing = (error.stage, error.key)
    except SftLabError:
        missing = ("model", which)  # not downloaded yet, say: the run itself will tell
    return work.stages, missing, data


def _memory(run: Run) -> Footprint | None:
    from sft_lab.training.memory import footprint
    from sft_lab.training.rehearsal import refuse_misfit

    context = run.context(StoreView(run.store.open().root))
    try:
        refuse_misfit(run.model, run.trainer, context)
        return footprint(run.model, run.trainer, context)
    except ConfigError:
        raise  # so would the job itself, before it reads any data
    except (NotStored, SftLabError):
        return None  # not converted or not downloaded yet


def _steps(run: Run, data: Prepared | None) -> int | None:
    if run.trainer.max_steps > 0:
        return run.trainer.max_steps
    by_steps = run.trainer.budget.name == "steps"
    if data is None or (run.trainer.packing and not by_steps):
        return None
    return _planned(run, len(data.sides.train if by_steps else data.train.rows))


def _planned(run: Run, rows: int) -> int:
    return planned_steps(rows, run.trainer, run.launch.num_processes)


def _other_versions(placed: Placed) -> dict[str, str]:
    if placed.standing is not Standing.finished:
        return {}
    then, now = read_json(placed.folder.manifest).get("packages", {}), versions()
    return {name: version for name, version in then.items() if now.get(name) != version}


def _finished_runs(placed: list[Placed]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Finished runs near by, newest first: beside the jobs, in outputs/ and in multirun/."""
    found = {
        path
        for root in (placed[0].folder.path.parent, Path("outputs"), Path("multirun"))
        for pattern in ("*/summary.json", "*/*/summary.json")
        for path in root.glob(pattern)
    }
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[:_MOST_LOOKED_AT]:
        folder = RunDir(path.parent)
        try:
            if folder.state() == FINISHED:
                yield path.parent, _shape(configs.load(folder.config)) | {"summary": read_json(path)}
        except (OSError, ValueError, LookupError):
            continue


def _shape(run: Run) -> dict[str, Any]:
    """What decides the cost of an optimizer step."""
    saved = run.saved()
    trainer = {name: value for name, value in flat(saved["trainer"]).items() if name not in _SAME_COST}
    return {"model": saved["model"], "trainer": trainer, "template": saved["template"], "threads": saved["threads"]}


def _time(run: Run, steps: int | None, done: list[tuple[Path, dict[str, Any]]]) -> tuple[float | None, Path | None]:
    """Seconds of the job, from the newest finished run whose steps cost the same; a guess from nothing is no help."""
    wanted = _shape(run)
    for path, found in done:
        summary = found["summary"]
        if all(found[name] == wanted[name] for name in wanted) and summary.get("steps") and steps:
            step = summary["train_seconds"] / summary["steps"]
            return summary["seconds"] - summary["train_seconds"] + step * steps, path
    return None, None


@contextmanager
def _quiet() -> Iterator[None]:
    """The stages' own log lines are about work that is not done here."""
    log = logging.getLogger("sft_lab")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
