"""Output of the commands: streams without secrets, results of runs and sweeps, plans, the store."""

from __future__ import annotations

import io
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from sft_lab.core import tolerant_readers
from sft_lab.core.console import console, new_table, print_lines
from sft_lab.core.redaction import printable, redact
from sft_lab.core.text import count_of
from sft_lab.core.timed_share import has_resumed
from sft_lab.core.verdict_warnings import verdict_with_warnings, warnings_beside

if TYPE_CHECKING:
    from rich.table import Table

    from sft_lab.core.run_dir import RunDir
    from sft_lab.core.store import Store
    from sft_lab.jobs.plan import JobForecast
    from sft_lab.jobs.supervise import Failure
    from sft_lab.search.loop import SearchResult
    from sft_lab.training.memory import Footprint


class _Guarded:
    """A stream that hides secrets, and all control characters but a terminal's colors."""

    _COLOR = re.compile(r"(\x1b\[[0-9;]*m)")

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        parts = self._COLOR.split(redact(text)) if self._stream.isatty() else [redact(text)]
        # The parts with an odd index are the colors.
        self._stream.write("".join(part if index % 2 else printable(part) for index, part in enumerate(parts)))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Redacted(_Guarded):
    """A stream that hides secrets, but keeps control characters, which progress bars need."""

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)


@contextmanager
def guarded() -> Iterator[None]:
    r"""Keep control characters and secrets off the terminal: text from a folder may be a stranger's.

    Characters that a stream's encoding lacks are escaped like ``\u2026``, so that no result is lost over one.
    """
    streams = sys.stdout, sys.stderr
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = cast("TextIO", _Guarded(streams[0])), cast("TextIO", _Redacted(streams[1]))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def print_message(text: str) -> None:
    """Write a line on standard error, without control characters and secrets."""
    sys.stderr.write(f"{printable(redact(text))}\n")


def show_summary(folder: RunDir) -> None:
    """Print the result of a finished run: waterfall, losses, verdict, samples, report; nothing without a summary."""
    from rich.text import Text

    summary = tolerant_readers.read(folder.summary)
    if not summary:
        return
    out = console()
    out.print(_waterfall(folder))
    for row in tolerant_readers.read_lines(folder.samples, []):
        out.print(Text(row.get("prompt", ""), style="bold"))
        for name in ("base", "prompted_base", "tuned"):
            if row.get(name) is not None:
                answer = " ".join(row[name].split())[:300] or "(nothing)"
                out.print(Text(f"  {name.replace('_', ' '):<14}{answer}"))
            if calls := row.get(f"{name}_calls"):
                out.print(Text(f"  {'':<14}calls {calls}"))
    out.print()
    print_lines([*result_lines(summary), f"Report: {folder.report}"])


def show_prepared(folder: RunDir) -> None:
    """Print the result of the data stages: waterfall, and the files to open next; nothing if they wrote no report.

    They write one also where no training row is left.
    """
    if not folder.report.exists():
        return
    console().print(_waterfall(folder))
    lines = [f"Data set: {folder.dataset}"] if folder.dataset.exists() else []
    if any((tolerant_readers.read(folder.data).get("pairs") or {}).values()):
        lines.append(f"Borderline pairs to decide: {folder.review} (then filter=[...,reviewed])")
    print_lines([*lines, f"Report: {folder.report}"])


def _waterfall(folder: RunDir) -> Table:
    from sft_lab.data.waterfall import WATERFALL_COLUMNS, waterfall_rows

    table = new_table(*WATERFALL_COLUMNS, title="Waterfall")
    table.columns[1].justify = table.columns[2].justify = "right"
    for row in waterfall_rows(tolerant_readers.read(folder.waterfall).get("stages") or []):
        table.add_row(*row)
    return table


def result_lines(summary: dict[str, Any]) -> list[str]:
    """Return losses, verdict, warnings, advice and speed in a few lines."""
    lines = []
    base, tuned = summary["base/eval_loss"], summary["eval/loss"]
    if base and tuned is not None:
        prompted = summary.get("prompted/eval_bits_per_byte")
        lines.append(
            f"Held-out loss: {base:.4f} base -> {tuned:.4f} tuned ({tuned / base - 1:+.1%}); "
            f"bits per byte {summary['base/eval_bits_per_byte']:.4f} -> {summary['eval/bits_per_byte']:.4f}; "
            + count_of(summary["eval_rows"], "row")
            + (f"; base model prompted {prompted:.4f}" if prompted else "")
        )
    elif base:
        lines.append(f"Held-out loss: {base:.4f} base -> not a number")
    evidence = summary["evidence"][-1]["says"] if summary["evidence"] else ""
    lines.append(f"Verdict: {summary['verdict']} (by held-out loss: {evidence})")
    lines += [f"Warning: {warning.sentence}" for warning in warnings_beside(summary)]
    if advice := summary.get("advice"):
        lines.append(f"Next: {advice['says']} Try {advice['override']}")
    speed = summary["tokens_per_second"]  # None where the last attempt resumed with no step left to train
    lines.append(
        f"Training: {count_of(summary['steps'], 'step')} on {count_of(summary['train_rows'], 'row')}, "
        f"{count_of(summary['train_tokens'], 'token')} read"
        + (f", {speed:.0f} tokens/s" if speed else "")
        + f"; {summary['seconds']:.0f} s {'since it resumed' if has_resumed(summary) else 'in all'}"
    )
    return lines


def show_prepared_sweep(jobs: list[tuple[RunDir, dict[str, str]]]) -> None:
    """Print the jobs of a sweep over data side by side: axes, state, rows left."""
    axes = list(dict.fromkeys(key for _, values in jobs for key in values))
    table = new_table(*axes, "state", "rows", "tokens", "report")
    for folder, values in jobs:
        last = (tolerant_readers.read(folder.waterfall, []).get("stages") or [{}])[-1]
        numbers = [f"{last[name]:,}" if last else "" for name in ("rows_kept", "tokens_kept")]
        report = str(folder.report) if folder.report.exists() else ""
        table.add_row(*(values.get(key, "") for key in axes), folder.state() or "", *numbers, report)
    console(160).print(table)
    print_lines(_sync_lines(jobs[0][0].path.parent))


def show_sweep(jobs: list[tuple[RunDir, dict[str, str]]]) -> None:
    """Print the jobs of a sweep side by side: axes, state, losses, verdict."""
    axes = list(dict.fromkeys(key for _, values in jobs for key in values))
    leaves = [axis.rpartition(".")[2] for axis in axes]
    names = leaves if len(set(leaves)) == len(axes) else axes
    title = "Jobs (held-out loss of the saved weights)"
    table = new_table(*names, "state", "rows", "loss", "bits/byte", "gap", "verdict", title=title)
    axes_by_name = {folder.path.name: values for folder, values in jobs}
    for folder, values in jobs:
        summary = tolerant_readers.read(folder.summary, [])
        numbers = [_number(summary.get(name)) for name in ("eval/loss", "eval/bits_per_byte", "gap")]
        rows = str(summary.get("train_rows", ""))
        verdict = verdict_with_warnings(summary)
        if same_as := summary.get("same_as"):
            other = axes_by_name.get(same_as, {})
            differing = [f"{key.rpartition('.')[2]}={other[key]}" for key in other if other[key] != values.get(key)]
            verdict += f" (same training as {', '.join(differing) or same_as})"
        state = folder.state() or ""
        table.add_row(*(values.get(key, "") for key in axes), state, rows, *numbers, verdict)
    console(160).print(table)


def show_search(result: SearchResult) -> None:
    """Print the trials of a search, best first, and what to do next."""
    ranked = result.ranked
    axes = list(dict.fromkeys(key for trial in result.trials for key in trial.values))
    table = new_table("trial", *axes, "outcome", "loss", title=f"Trials (loss: {result.measure})")
    positions = {trial.number: str(position) for position, trial in enumerate(result.trials, start=1)}
    for trial in [*ranked, *(trial for trial in result.trials if trial not in ranked)]:
        cells = (positions[trial.number], *(trial.values.get(axis, "") for axis in axes), str(trial.outcome))
        table.add_row(*cells, _number(trial.loss), style="bold" if trial in ranked[:1] else "")
    console(160).print(table)
    lines = [
        f"{count} failed: {reason}" for reason, count in Counter(t.reason for t in result.trials if t.reason).items()
    ]
    if len(result.importance) > 1:
        shares = ", ".join(f"{axis} {share:.0%}" for axis, share in result.importance.items())
        lines.append(f"Importance of each axis for the loss: {shares}")
    if ranked:
        lines.append(f"Best: {result.folder / ranked[0].job}")
    print_lines([*lines, *_sync_lines(result.folder), f"Next: sft-lab compare {_typed(result.folder)}"])


def show_next(sweep: Path, failures: list[Failure]) -> None:
    """Print where the jobs of a sweep are, and what to do next."""
    lines = [f"Folder: {sweep}", *_sync_lines(sweep)]
    by_input = sum(failure.by_input for failure in failures)
    if by_input:
        lines.append(f"Wrong input in {count_of(by_input, 'failed job')}: correct it before you run the command again")
    if retriable := len(failures) - by_input:
        lines.append(f"Run the same command again to retry {count_of(retriable, 'failed job')}")
    print_lines([*lines, f"Next: sft-lab compare {_typed(sweep)}"])


def _sync_lines(sweep: Path) -> list[str]:
    """Return the command that uploads what the jobs of a sweep wrote for W&B while offline."""
    if not any(sweep.glob("wandb/offline-run-*")):
        return []
    return [f"W&B (offline): wandb sync {_typed(sweep)}/wandb/offline-run-*"]


def _typed(path: Path) -> str:
    """Return a path as one types it, from the working folder if it lies below."""
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def show_plan(
    forecasts: list[JobForecast], shared: list[tuple[str, int]], same_rows: list[str], raw_data: list[str]
) -> None:
    """Print what a command would do: jobs, what is known of their data, steps, time.

    Args:
        forecasts: forecasts of the jobs.
        shared: data stages with the number of jobs that need each.
        same_rows: jobs that differ in nothing but the way to the same rows.
        raw_data: what is known of data that no stage has read.
    """
    console(160).print(_plan_table(forecasts))
    lines = [f"{stage}: computed once for {jobs} jobs" for stage, jobs in shared if jobs > 1]
    lines += [_known_rows(forecasts[0])] if forecasts[0].stages else raw_data
    to_come = [forecast for forecast in forecasts if not forecast.refusal]
    unknown = [name for name, texts in _plan_columns(forecasts).items() if to_come and not any(texts)]
    if counts := [name for name in unknown if name != "time"]:
        lines.append(
            f"{', '.join(counts).capitalize()}: unknown until the data is prepared; `sft-lab prepare` does only that"
        )
    if "time" in unknown:
        lines.append(
            "Time: unknown until a run with the same model, template, trainer settings (except learning rate, epochs "
            "and steps) and processes has finished; `sft-lab plan --probe` trains a few steps to measure it"
        )
    lines += dict.fromkeys(forecast.probe for forecast in forecasts if forecast.probe)
    lines += dict.fromkeys(forecast.dedup for forecast in forecasts if forecast.dedup)
    lines += _memory_lines(forecasts)
    lacking = dict.fromkeys(problem for forecast in forecasts for problem in forecast.lacking)
    lines += [f"This machine would refuse the run: {problem}" for problem in lacking]
    versions = {f"{name} {old}": None for forecast in forecasts for name, old in forecast.other_versions.items()}
    if versions:
        lines.append(
            f"Finished jobs marked (other versions) ran with {', '.join(versions)}; rerun=true runs them again"
        )
    if sources := {str(forecast.like): None for forecast in forecasts if forecast.like}:
        lines.append(
            f"Times are estimated from the seconds per step of {', '.join(sources)}; longer rows "
            "take longer, and jobs that differ in model, trainer or processes have no estimate"
        )
    lines += [f"Trained only once, since they keep the same rows: {jobs}" for jobs in same_rows]
    lines += dict.fromkeys(f"Warning: {doubt}" for forecast in forecasts for doubt in forecast.doubts)

    job_folder = forecasts[0].job_folder
    if request := job_folder.job.run.launch.cluster_request():
        lines.append(f"Requested from the cluster for each job: {request}")
    unfinished = [forecast for forecast in forecasts if not forecast.job_folder.is_finished]
    if unfinished and (unused := job_folder.job.run.launch.unused_gpus(in_sweep=len(unfinished) > 1)):
        lines.append(unused)
    path = job_folder.folder.path
    print_lines([*lines, f"Folder: {path.parent if len(forecasts) > 1 else path}"])


def show_batch_script(script: str) -> None:
    """Print the batch script that would be submitted to Slurm, line by line as it is."""
    if script:
        sys.stdout.write(
            "Batch script that would be submitted; launch.additional_parameters changes its #SBATCH lines, "
            f"launch.setup adds lines before srun, launch.srun_args arguments of srun:\n\n{script}\n"
        )


def _plan_table(forecasts: list[JobForecast]) -> Table:
    axes = list(dict.fromkeys(key for forecast in forecasts for key in forecast.job_folder.job.axes))
    columns = {name: texts for name, texts in _plan_columns(forecasts).items() if any(texts)}
    title = f"{len(forecasts)} jobs" if len(forecasts) > 1 else "One run"
    table = new_table(*axes, "state", *columns, "data", title=title)
    for index, forecast in enumerate(forecasts):
        values = (forecast.job_folder.job.axes.get(key, "") for key in axes)
        state = f"{forecast.job_folder.progress}{' (other versions)' if forecast.other_versions else ''}"
        data = "stored" if forecast.missing is None else f"to compute: {forecast.missing[0]} onward"
        if forecast.refusal:
            data = "refused"
        table.add_row(*values, state, *(texts[index] for texts in columns.values()), data)
    return table


def _plan_columns(forecasts: list[JobForecast]) -> dict[str, list[str]]:
    """Return the numbers of each job as text, by what they are; empty where a number is not known."""
    return {
        **{
            name: ["" if (count := getattr(forecast, name)) is None else f"{count:,}" for forecast in forecasts]
            for name in ("rows", "tokens", "steps")
        },
        "epochs": ["" if forecast.epochs is None else f"{forecast.epochs:.3g}" for forecast in forecasts],
        "time": [_duration(forecast.seconds) for forecast in forecasts],
    }


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _memory_lines(forecasts: list[JobForecast]) -> list[str]:
    footprints = dict.fromkeys((forecast.memory, forecast.memory_on_gpu) for forecast in forecasts if forecast.memory)
    unknown = dict.fromkeys(forecast.no_memory for forecast in forecasts if forecast.no_memory)
    lines = [f"Memory: unknown; {reason}" for reason in unknown]
    for memory, on_gpu in footprints:
        lines.append(
            f"Memory: {memory.parameters / 1e6:,.1f} million parameters, {memory.trained / 1e6:,.1f} million of them "
            f"trained; {_sizes(memory)} for a batch of rows of trainer.max_length tokens"
        )
        if on_gpu and on_gpu != memory:
            lines[-1] += " (on this machine, which has no GPU)"
            lines.append(f"On a GPU with bf16: {_sizes(on_gpu)}")
    return lines


def _sizes(memory: Footprint) -> str:
    parts = {"weights": memory.weights, "gradients": memory.gradients, "optimizer": memory.optimizer}
    sizes = ", ".join(f"{name} {size / 1e9:,.2f} GB" for name, size in parts.items() if size is not None)
    activations = f" of about {memory.activations / 1e9:,.2f} GB" if memory.activations is not None else ""
    return f"{sizes}, and activations{activations}"


def _known_rows(forecast: JobForecast) -> str:
    counts = ", ".join(f"{stage['stage']} {stage['rows_kept']:,}" for stage in forecast.stages)
    rest = f"; unknown from {forecast.missing[0]} on, which is not computed yet" if forecast.missing else ""
    subject = "Rows after each stage" + (" of the first job" if forecast.job_folder.job.axes else "")
    return f"{subject}: {counts or 'none known'}{rest}"


def show_store(store: Store) -> None:
    """Print what the store holds: stage, key, size, how long unused."""
    entries = list(store.listing())
    table = new_table("stage", "key", "MB", "unused", "parameters")
    for entry in entries:
        days = f"{entry.idle / 86400:.1f} days"
        params = ", ".join(f"{name}={value}" for name, value in entry.params.items())
        table.add_row(entry.stage, entry.key[:12], f"{entry.size / 1e6:,.1f}", days, params[:60])
    console().print(table)
    total = sum(entry.size for entry in entries) / 1e6
    print_lines([f"{count_of(len(entries), 'stored result')}, {total:,.1f} MB in {store.root}"])
