"""``sft-lab plan --probe``: train a few steps of a planned job in a temporary folder, to say how long it will take."""

from __future__ import annotations

import math
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core import tolerant_readers
from sft_lab.core.engine import LocalEngine
from sft_lab.core.gpus import release_memory
from sft_lab.core.io import digest
from sft_lab.core.log import log
from sft_lab.core.run_dir import RunDir
from sft_lab.dedup.decontaminate import Method
from sft_lab.dedup.exact import Nothing
from sft_lab.evaluation.config import Baseline
from sft_lab.jobs.plan import JobForecast, max_planned_steps, silenced_log
from sft_lab.jobs.supervise import sigterm_exits
from sft_lab.jobs.timed_runs import cost_shape
from sft_lab.run.config import StoreConfig
from sft_lab.run.launch_config import Serial
from sft_lab.tracking.config import Tracking

if TYPE_CHECKING:
    from sft_lab.run.config import Run

STEPS = 6
WARM_UP = 2  # the first of them, which are slower
MIN_ROWS = 64  # to train on; filters drop some


@dataclass(frozen=True)
class Speed:
    """What a probe has measured.

    Attributes:
        tokens_per_second: of training.
        step_seconds: of an optimizer step.
        row_seconds: of measuring a held-out row, and a row of the probe beside it.
    """

    tokens_per_second: float | None
    step_seconds: float
    row_seconds: float


def probe_jobs(forecasts: list[JobForecast]) -> list[JobForecast]:
    """Return forecasts with the time of each unfinished job, measured once for all whose steps cost the same.

    Raises:
        UserError, JobError: as a run, if the steps cannot be trained.
    """
    speeds: dict[str, Speed] = {}
    return [forecast if forecast.job_folder.is_finished else _probe(forecast, speeds) for forecast in forecasts]


def _probe(forecast: JobForecast, speeds: dict[str, Speed]) -> JobForecast:
    run = forecast.job_folder.job.run
    key = digest([cost_shape(run), run.saved()["dataset"], list(run.filter)])
    if key not in speeds:
        log.info(
            "probe: %d steps of trainer=%s on model=%s", STEPS, *(run.choices.get(k) for k in ("trainer", "model"))
        )
        speeds[key] = measure_speed(run)
    speed = speeds[key]
    steps = forecast.steps or max_planned_steps(run)
    rate = "" if speed.tokens_per_second is None else f"{speed.tokens_per_second:,.0f} tokens/s, "
    text = f"Probe of {STEPS} steps in a temporary folder, on this machine: {rate}{speed.step_seconds:.2g} s a step"
    if steps is None:
        return replace(forecast, like=None, probe=f"{text}; the number of steps is unknown until the data is prepared")
    bound = "" if forecast.steps else "; an upper bound, as if no rows were dropped"
    return replace(
        forecast,
        seconds=estimate_seconds(run, speed, steps, forecast.held_out_rows),
        like=None,
        probe=f"{text}; times cover training and held-out loss, not data stages and generated answers{bound}",
    )


def estimate_seconds(run: Run, speed: Speed, steps: int, held_out_rows: int | None) -> float:
    """Return the seconds that a job will take to train and to measure held-out loss.

    Args:
        run: of the job.
        speed: of its steps.
        steps: of the whole training.
        held_out_rows: None where they are not known; as many as the split allows, then.
    """
    rows = run.split.max_eval_rows if held_out_rows is None else held_out_rows
    every = run.trainer.eval_steps if run.trainer.eval_steps >= 1 else math.ceil(run.trainer.eval_steps * steps)
    measurements = math.ceil(steps / every) + 2  # before and after training, too
    return steps * speed.step_seconds + measurements * rows * speed.row_seconds


def measure_speed(run: Run) -> Speed:
    """Train a few steps of a run on its own rows; nothing is left behind."""
    with tempfile.TemporaryDirectory(prefix="sft-lab-probe-") as root, silenced_log(), sigterm_exits():
        folder = RunDir(Path(root) / "run")
        summary = _probe_config(run, Path(root) / "store").execute(folder.path)
        events = tolerant_readers.read_metrics(folder.metrics)
    release_memory()
    watching = summary["train_seconds"] * (summary["watching_share"] or 0.0)
    row_seconds = watching / summary["eval_rows"] if summary["eval_rows"] else 0.0
    rates = [event for event in events if event.get("tokens_per_second")]
    if len(rates) <= WARM_UP:
        return Speed(None, (summary["train_seconds"] - watching) / summary["steps"], row_seconds)
    counts = [event["train/num_tokens"] for event in rates]
    seconds = [
        (after - before) / event["tokens_per_second"]
        for before, after, event in zip([0.0, *counts], counts, rates, strict=False)
    ][WARM_UP:]
    tokens = (counts[-1] - counts[WARM_UP - 1]) / sum(seconds)
    return Speed(tokens, statistics.mean(seconds), row_seconds)


def _probe_config(run: Run, store: Path) -> Run:
    """Return a run with the same steps, but few, and few rows; nothing is answered or compared."""
    trainer, split = run.trainer, run.split
    rows = max(MIN_ROWS, 2 * trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps)
    watching: dict[str, Any] = {"eval_steps": STEPS, "save_steps": 10 * STEPS, "logging_steps": 1, "warmup_steps": 0}
    answers: dict[str, Any] = {"prompts": [], "outputs": 0, "samples_every": 0, "general": None, "domain": None}
    answers["objective"] = "eval/loss"  # another may need one of these
    plain: dict[str, Any] = {"load_best_model_at_end": False, "early_stopping_patience": None}
    return replace(
        run,
        dataset=replace(run.dataset, limit=min(rows, run.dataset.limit or rows)),
        split=replace(split, max_eval_rows=split.min_eval_rows),
        evaluation=replace(run.evaluation, baseline=Baseline(None, 0), **answers),
        decontaminate=replace(run.decontaminate, method=Method.exact),
        dedup=Nothing(),
        trainer=replace(trainer, max_steps=STEPS, **watching, **plain),
        tracking=Tracking(),
        launch=Serial(),
        engine=LocalEngine(),
        store=StoreConfig(str(store)),
        rerun=False,
    )
