"""``sft-lab plan``: what a command would do, judged by the store and the run folders, without computing anything."""

from __future__ import annotations

import datetime
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sft_lab import config as configs
from sft_lab import pipeline
from sft_lab.core import heavy_imports, tolerant_readers
from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError, ModelError, SftLabError, SourceError, all_problems
from sft_lab.core.gpus import has_gpu
from sft_lab.core.io import digest
from sft_lab.core.store_view import NotStored, StoreView
from sft_lab.core.text import count_of
from sft_lab.dedup.forecast import forecast as forecast_dedup
from sft_lab.jobs import slurm
from sft_lab.jobs.layout import JobFolder, find_job_folders
from sft_lab.jobs.list_runs import other_versions
from sft_lab.jobs.raw_data import FirstRecords, RawData, count_raw_data, read_first_records
from sft_lab.jobs.timed_runs import TimedRun, estimate_time, finished_runs
from sft_lab.run.checks import check_rows, doubtful_settings
from sft_lab.run.config import Run
from sft_lab.run.identity import training_key
from sft_lab.run.launch_config import Slurm
from sft_lab.tracking.manifest import template_date, versions
from sft_lab.training.config import planned_steps

if TYPE_CHECKING:
    from sft_lab.data.preparation import Prepared
    from sft_lab.training.memory import Footprint

# Trainer's keys that decide the memory.
MEMORY_KEYS = (
    "kind", "peft", "quantization", "optim", "max_length", "precision", "per_device_train_batch_size",
    "activation_checkpointing",
)  # fmt: skip
FOR_GPUS = 500e6  # parameters of models that hardly anyone trains without a GPU


@dataclass(frozen=True)
class JobForecast:
    """What is known about a job before it runs.

    Attributes:
        job_folder: the job and its folder.
        other_versions: packages whose version has changed since a finished job, with the old version.
        stages: the waterfall up to the last stored stage.
        missing: the first data stage that is not stored, and its key; None if all are.
        rows: training rows; tokens: of their prompts and answers; None until all data stages are stored.
        steps: optimizer steps; None if they depend on unknown rows.
        epochs: passes over the rows; None if unknown.
        seconds: estimate from a finished run of the same shape; None without one.
        like: folder of that run.
        memory: what training holds; None where the model's shape is not known.
        no_memory: why ``memory`` is None.
        memory_on_gpu: the same with bf16 on a GPU, for a large model on a machine without one.
        doubts: a sentence for each setting that is allowed and probably a mistake.
        lacking: packages and devices without which this machine would refuse to run the job.
        trained_as: a key of the training rows and of all that is done with them; None where they are not known.
        dedup: how long semantic dedup will take; empty where that is seconds, done or not known.
        held_out_rows: None until all data stages are stored.
        probe: what a probe has measured; empty without one.
        first_records: what load would make of them; None once load is stored, or where they have been read already.
        refusal: the error with which the job would end, as far as its stored or first rows show; None without one.
    """

    job_folder: JobFolder
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
    dedup: str
    no_memory: str = ""
    memory_on_gpu: Footprint | None = None
    doubts: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    held_out_rows: int | None = None
    probe: str = ""
    first_records: FirstRecords | None = None
    refusal: SftLabError | None = None


class StoredData(NamedTuple):
    """A job's stored data: ``stages`` and ``missing`` as in ``JobForecast``, and the rows if all stages are stored.

    Attributes:
        refusal: the error with which training would refuse the rows.
    """

    stages: list[dict[str, Any]]
    missing: tuple[str, str] | None
    prepared: Prepared | None = None
    refusal: SftLabError | None = None


def forecast_jobs(plan: configs.Plan) -> list[JobForecast]:
    """Return the forecast of every job of a command.

    Raises:
        FolderError: if the job folders could not be created.
    """
    job_folders = find_job_folders(plan, to_start=False)
    known = _Known(list(finished_runs(job_folders[0].folder.path.parent)))
    with silenced_log():
        with heavy_imports.imports():  # the first job needs all of them
            forecasts = [_forecast(job_folders[0], known)]
        return [*forecasts, *(_forecast(job_folder, known) for job_folder in job_folders[1:])]


@dataclass
class _Known:
    """What the forecasts of several jobs have in common, each found out once.

    Attributes:
        timed_runs: to estimate times from.
        tokenizers: by model.
        footprints: memory by model and trainer, or why it is not known.
        templates: by model and template, the error with which a run would refuse the template; None without one.
        first_records: by data set.
    """

    timed_runs: list[TimedRun]
    tokenizers: dict[str, Any] = field(default_factory=dict)
    footprints: dict[str, tuple[Footprint | str, Footprint | None]] = field(default_factory=dict)
    templates: dict[str, SftLabError | None] = field(default_factory=dict)
    first_records: dict[str, FirstRecords] = field(default_factory=dict)

    def context(self, run: Run, date: datetime.date | None = None) -> StageContext:
        """Return a context that computes nothing, with the tokenizer that all jobs of this model share.

        Args:
            run: of the job.
            date: that the chat template reads; None: today.
        """
        key = tokenizer_key(run)

        def tokenizer() -> Any:
            if key not in self.tokenizers:
                self.tokenizers[key] = run.model.tokenizer(context, run.template.special_tokens)
            return self.tokenizers[key]

        context = StageContext(StoreView(run.store.open().root), tokenizer, date)
        return context


def tokenizer_key(run: Run) -> str:
    """Return a key of the model's files and of what is added to its tokenizer."""
    return digest([run.saved()["model"], run.template.special_tokens])


def shared_stages(forecasts: list[JobForecast]) -> list[tuple[str, int]]:
    """Return the data stages to compute first, with the number of jobs that share each."""
    waiting = Counter(
        forecast.missing for forecast in forecasts if forecast.missing and not forecast.job_folder.is_finished
    )
    return [(stage, jobs) for (stage, _), jobs in waiting.most_common()]


def same_rows(forecasts: list[JobForecast]) -> list[str]:
    """Return the groups of jobs that would train identically on the same rows, described by their axes."""
    groups: dict[str, list[str]] = {}
    for forecast in forecasts:
        if forecast.trained_as:
            axes = ", ".join(f"{key}={value}" for key, value in forecast.job_folder.job.axes.items())
            groups.setdefault(forecast.trained_as, []).append(axes)
    return ["; ".join(group) for group in groups.values() if len(group) > 1]


def batch_script(forecasts: list[JobForecast]) -> str:
    """Return the batch script that the command would submit to Slurm; empty without Slurm or anything to submit."""
    launcher = forecasts[0].job_folder.job.run.launch
    folders = [forecast.job_folder.folder for forecast in forecasts if not forecast.job_folder.is_finished]
    return slurm.batch_script(folders, launcher) if isinstance(launcher, Slurm) else ""


def describe_raw_data(forecasts: list[JobForecast]) -> list[str]:
    """Return what is known of data that was not read yet, a line for each data set."""
    runs = {digest(run.saved()["dataset"]): run for run in (forecast.job_folder.job.run for forecast in forecasts)}
    if any(forecast.stages for forecast in forecasts):
        return []
    lines = []
    for run in runs.values():
        if raw := count_raw_data(run):
            tokens = "" if raw.tokens is None else f", about {raw.tokens:,} tokens (estimated from a sample)"
            steps = ""
            if run.trainer.max_steps <= 0 and not run.trainer.packing:
                rows = _max_rows(run, raw)
                steps = f"; at most {count_of(rows, 'row')} and {count_of(_planned_steps(run, rows), 'step')}"
            lines.append(f"Data before any stage: {count_of(raw.records, 'record')}{tokens}{steps}")
    formats = [line for forecast in forecasts if forecast.first_records for line in forecast.first_records.lines]
    return list(dict.fromkeys([*lines, *formats]))  # data sets may differ in what changes no count, such as turns


def max_planned_steps(run: Run) -> int | None:
    """Return the steps of a job if no row of its files were dropped; None where they cannot be counted."""
    raw = None if run.trainer.packing else count_raw_data(run)
    return _planned_steps(run, _max_rows(run, raw)) if raw else None


def _max_rows(run: Run, raw: RawData) -> int:
    return raw.records if run.dataset.limit is None else min(raw.records, run.dataset.limit)


def _forecast(job_folder: JobFolder, known: _Known) -> JobForecast:
    run = job_folder.job.run
    data = _stored_data(job_folder, known)
    template_refusal = None if data.prepared or job_folder.is_finished else _template_refusal(run, known)
    first_records = None if data.stages or data.refusal or job_folder.is_finished else _first_records(run, known)
    prepared = data.prepared
    rows = len(prepared.train.rows) if prepared else None
    steps = _steps(run, prepared)
    epochs = None
    if steps and rows and not run.trainer.packing:  # blocks are counted when packing has made them
        epochs = steps / _planned_steps(run, rows) * run.trainer.num_train_epochs

    saved = run.saved()
    shape = digest([saved["model"], *map(saved["trainer"].get, MEMORY_KEYS)])
    if shape not in known.footprints:
        known.footprints[shape] = _memory(run, known)
    memory, memory_on_gpu = known.footprints[shape]
    seconds, like = estimate_time(run, steps, known.timed_runs)
    manifest = tolerant_readers.read(job_folder.folder.manifest) if job_folder.is_finished else {}
    return JobForecast(
        job_folder=job_folder,
        other_versions=other_versions(manifest, versions()),
        stages=data.stages,
        missing=data.missing,
        rows=rows,
        tokens=data.stages[-1]["tokens_kept"] if prepared else None,
        steps=steps,
        epochs=epochs,
        seconds=seconds,
        like=like,
        memory=None if isinstance(memory, str) else memory,
        no_memory=memory if isinstance(memory, str) else "",
        memory_on_gpu=memory_on_gpu,
        doubts=tuple(doubtful_settings(run)),
        lacking=() if job_folder.is_finished else tuple(run.missing()),
        trained_as=training_key(run, prepared) if prepared else None,
        dedup=forecast_dedup(run.dedup, _rows_before_dedup(data), run.threads),
        held_out_rows=len(prepared.held_out.rows) if prepared else None,
        first_records=first_records,
        refusal=(first_records.refusal if first_records else data.refusal) or template_refusal,
    )


def _template_refusal(run: Run, known: _Known) -> SftLabError | None:
    """Return the error with which a run would refuse its chat template; None if it or the tokenizer is not known."""
    saved = run.saved()
    key = digest([saved["model"], saved["template"]])
    if key not in known.templates:
        context = known.context(run)
        known.templates[key] = None
        with suppress(NotStored, SftLabError):  # the tokenizer is not converted or not downloaded yet
            _ = context.tokenizer
            try:
                run.template.bind(context)
            except ModelError as error:
                known.templates[key] = error
    return known.templates[key]


def _first_records(run: Run, known: _Known) -> FirstRecords:
    saved = run.saved()
    key = digest([saved["dataset"], saved["split"]])
    if key not in known.first_records:
        known.first_records[key] = read_first_records(run)
    return known.first_records[key]


def _rows_before_dedup(data: StoredData) -> int:
    """Return the most training rows that dedup may see; 0 if dedup is done or the rows are unknown."""
    is_done = any(stage["stage"].startswith("dedup") for stage in data.stages)
    return 0 if is_done or not data.stages else int(data.stages[-1]["rows_kept"])


def _stored_data(job_folder: JobFolder, known: _Known) -> StoredData:
    """Run the data stages up to the first one that is not stored."""
    run = job_folder.job.run
    context = known.context(run, template_date(job_folder.folder.manifest))
    work = pipeline.start(run, context, to_train=False)
    try:
        prepared = run.prepare(context, work)
    except NotStored as error:
        refusal = ConfigError(work.shortage) if work.shortage else None
        return StoredData(work.stages, (error.stage, error.key), refusal=refusal)
    except (ConfigError, SourceError) as error:
        if getattr(error, "stage", "") == "split":  # of rows that load has stored
            return StoredData(work.stages, None, refusal=error)
        return StoredData(work.stages, ("load", run.dataset.named()))  # cannot be reached now, for example
    except SftLabError:  # the model is not downloaded yet, for example: the run itself will say so
        return StoredData(work.stages, ("model", tokenizer_key(run)))
    if not len(prepared.train.rows):
        return StoredData(work.stages, None, prepared, work.nothing_left())
    problems = check_rows(run, prepared)
    return StoredData(work.stages, None, prepared, all_problems(problems) if problems else None)


def _memory(run: Run, known: _Known) -> tuple[Footprint | str, Footprint | None]:
    """Return the memory that training would take, or why the model's shape is not known; and, without a GPU, on one.

    Raises:
        ConfigError: if the trainer does not fit the model, as the job itself would before it reads any data.
    """
    from sft_lab.training.memory import estimate_footprint
    from sft_lab.training.rehearsal import refuse_misfit

    context = known.context(run)
    try:
        refuse_misfit(run.model, run.trainer, context)
        footprint = estimate_footprint(run.model, run.trainer, context)
        if has_gpu() or footprint.parameters < FOR_GPUS:
            return footprint, None
        return footprint, estimate_footprint(run.model, run.trainer, context, on_gpu=True)
    except ConfigError:
        raise
    except NotStored:
        return "the first run unpacks the model", None
    except SftLabError as error:
        return str(error), None


def _steps(run: Run, prepared: Prepared | None) -> int | None:
    if run.trainer.max_steps > 0:
        return run.trainer.max_steps
    by_steps = run.trainer.budget.name == "steps"
    if prepared is None or (run.trainer.packing and not by_steps):
        return None
    return _planned_steps(run, len(prepared.sides.train if by_steps else prepared.train.rows))


def _planned_steps(run: Run, rows: int) -> int:
    return planned_steps(rows, run.trainer, run.launch.num_processes)


@contextmanager
def silenced_log() -> Iterator[None]:
    """Silence the log of the stages, which announces work that is not done here."""
    log = logging.getLogger("sft_lab")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
