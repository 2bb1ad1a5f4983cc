"""What a user sees while a run works: one line per stage, and nothing from the libraries."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, cast

from sft_lab.core.console import console
from sft_lab.core.redaction import printable, redact

if TYPE_CHECKING:
    from rich.table import Table

    from sft_lab.core.run_dir import RunDir
    from sft_lab.core.store import Store
    from sft_lab.jobs.plan import Outlook
    from sft_lab.run.config import Run


class _Guarded:
    """A stream that shows no secret, and of control characters none but the colors of a terminal."""

    _COLOR = re.compile(r"(\x1b\[[0-9;]*m)")

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        parts = self._COLOR.split(redact(text)) if self._stream.isatty() else [redact(text)]
        # split gives what matched at the odd places
        self._stream.write("".join(part if at % 2 else printable(part) for at, part in enumerate(parts)))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Redacted(_Guarded):
    """A stream that shows no secret: the libraries draw progress bars on it, with control characters."""

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)


@contextmanager
def guarded() -> Iterator[None]:
    r"""Guard what is printed: paths, names and texts of a folder may be a stranger's, a word of ours a secret.

    What the encoding of a stream lacks is written as ``\u2026``: a result must not be lost for a letter.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = cast("TextIO", _Guarded(before[0])), cast("TextIO", _Redacted(before[1]))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def tell(text: str) -> None:
    """Write a line on standard error, without control characters and secrets."""
    sys.stderr.write(f"{printable(redact(text))}\n")


def choices_line(run: Run) -> str:
    """Return the options that a run is made of, on one line."""
    choices = {group: "+".join(names) if isinstance(names, list) else names for group, names in run.choices.items()}
    groups = ("dataset", "filter", "dedup", "template", "model", "trainer", "tracking")
    return "  ".join(f"{group}={choices.get(group, '?')}" for group in groups)


def show_summary(folder: RunDir, summary: dict[str, Any]) -> None:
    """Print what a finished run came to: waterfall, losses, verdict, samples, report."""
    from rich.text import Text

    out = console()
    out.print(_waterfall(folder))
    for row in _samples(folder):
        out.print(Text(row["prompt"], style="bold"))
        for name in ("base", "prompted_base", "tuned"):
            if name in row:
                answer = " ".join(row[name].split())[:300] or "(nothing)"
                out.print(Text(f"  {name.replace('_', ' '):<14}{answer}"))
    out.print()
    for line in result_lines(summary):
        out.print(line, soft_wrap=True)
    out.print(f"Report: {folder.report}", soft_wrap=True)


def show_prepared(folder: RunDir) -> None:
    """Print what the data stages left: waterfall, what to look at next."""
    from sft_lab.core.io import read_json

    out = console()
    out.print(_waterfall(folder))
    lines = [f"Data set: {folder.dataset}", f"Report: {folder.report}"]
    if any((read_json(folder.data).get("pairs") or {}).values()):
        lines.insert(1, f"Borderline pairs to decide: {folder.review} (then filter=[...,reviewed])")
    for line in lines:
        out.print(line, soft_wrap=True)


def _waterfall(folder: RunDir) -> Table:
    from rich import box
    from rich.table import Table

    from sft_lab.core.io import read_json

    table = Table("stage", "rows", "tokens", "dropped", box=box.SIMPLE_HEAD, title="Waterfall", title_justify="left")
    table.columns[1].justify = table.columns[2].justify = "right"
    for stage in read_json(folder.waterfall)["stages"]:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in stage["dropped"].items())
        table.add_row(stage["stage"], f"{stage['rows_kept']:,}", f"{stage['tokens_kept']:,}", dropped)
    return table


def result_lines(summary: dict[str, Any]) -> list[str]:
    """Say losses and verdict in a few lines."""
    lines = []
    before, after = summary["base/eval_loss"], summary["eval/loss"]
    if before and after is not None:
        prompted = summary.get("prompted/eval_bits_per_byte")
        lines.append(
            f"Held-out loss: {before:.4f} base -> {after:.4f} tuned ({after / before - 1:+.1%}); "
            f"bits per byte {summary['base/eval_bits_per_byte']:.4f} -> {summary['eval/bits_per_byte']:.4f}; "
            f"{summary['eval_rows']} rows" + (f"; base model prompted {prompted:.4f}" if prompted else "")
        )
    elif before:
        lines.append(f"Held-out loss: {before:.4f} base -> not a number")
    says = summary["evidence"][-1]["says"] if summary["evidence"] else ""
    lines.append(f"Verdict: {summary['verdict']} (by held-out loss: {says})")
    if advice := summary.get("advice"):
        lines.append(f"Next: {advice['says']} Try {advice['override']}")
    speed = summary["tokens_per_second"] or 0
    lines.append(
        f"Training: {summary['steps']} steps on {summary['train_rows']} rows, {summary['train_tokens']:,} tokens, "
        f"{speed:.0f} tokens/s; {summary['seconds']:.0f} s in all"
    )
    return lines


def _samples(folder: RunDir) -> list[dict[str, str]]:
    import json

    from sft_lab.core.io import LONG, read_text

    if not folder.samples.exists():
        return []
    return [json.loads(line) for line in read_text(folder.samples, LONG).splitlines()]


def show_prepared_sweep(jobs: list[tuple[RunDir, dict[str, str]]]) -> None:
    """Print the jobs of a sweep over data side by side: what differs, what is left."""
    from rich import box
    from rich.table import Table

    from sft_lab.core.io import read_json

    axes = list(dict.fromkeys(key for _, found in jobs for key in found))
    table = Table(*axes, "state", "rows", "tokens", "report", box=box.SIMPLE_HEAD)
    for folder, found in jobs:
        last = read_json(folder.waterfall)["stages"][-1] if folder.waterfall.exists() else {}
        numbers = [f"{last[name]:,}" if last else "" for name in ("rows_kept", "tokens_kept")]
        report = str(folder.report) if folder.report.exists() else ""
        table.add_row(*(found.get(key, "") for key in axes), folder.state() or "", *numbers, report)
    console(160).print(table)


def show_sweep(jobs: list[tuple[RunDir, dict[str, str]]]) -> None:
    """Print a sweep's jobs side by side: what differs, state, losses, verdict."""
    from rich import box
    from rich.table import Table

    from sft_lab.core.io import read_json

    axes = list(dict.fromkeys(key for _, found in jobs for key in found))
    leaves = [axis.rpartition(".")[2] for axis in axes]
    names = leaves if len(set(leaves)) == len(axes) else axes
    table = Table(*names, "state", "rows", "loss", "bits/byte", "gap", "verdict", box=box.SIMPLE_HEAD)
    table.title, table.title_justify = "Jobs (loss: held-out, by the weights that were saved)", "left"
    for folder, found in jobs:
        summary = read_json(folder.summary) if folder.summary.exists() else {}
        numbers = [_number(summary.get(name)) for name in ("eval/loss", "eval/bits_per_byte", "gap")]
        rows = str(summary.get("train_rows", ""))
        state = folder.state() or ""
        table.add_row(*(found.get(key, "") for key in axes), state, rows, *numbers, summary.get("verdict", ""))
    console(160).print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def show_plan(outlooks: list[Outlook], shared: list[tuple[str, int]], same_rows: list[str]) -> None:
    """Print what a command would do: jobs, what of their data is known, steps, time.

    Args:
        outlooks: of the jobs.
        shared: data stages with the number of jobs that wait for each.
        same_rows: jobs that differ in nothing but how they came to the same rows.
    """
    from rich import box
    from rich.table import Table

    out = console(160)
    axes = list(dict.fromkeys(key for one in outlooks for key in one.job_folder.job.axes))
    table = Table(*axes, "state", "rows", "tokens", "steps", "epochs", "about", "data", box=box.SIMPLE_HEAD)
    table.title, table.title_justify = f"{len(outlooks)} jobs" if len(outlooks) > 1 else "One run", "left"
    for one in outlooks:
        values = (one.job_folder.job.axes.get(key, "") for key in axes)
        numbers = ["?" if value is None else f"{value:,}" for value in (one.rows, one.tokens, one.steps)]
        epochs = "?" if one.epochs is None else f"{one.epochs:.3g}"
        about = (
            ""
            if one.seconds is None
            else f"{one.seconds / 60:.0f} min"
            if one.seconds >= 90
            else f"{one.seconds:.0f} s"
        )
        data = "stored" if one.missing is None else f"from {one.missing[0]} on to be computed"
        state = f"{one.job_folder.progress}{' (other versions)' if one.other_versions else ''}"
        table.add_row(*values, state, *numbers, epochs, about, data)
    out.print(table)
    request = outlooks[0].job_folder.job.run.launch.cluster_request()
    lines = [f"{stage}: computed once for {jobs} jobs, or so far as they agree" for stage, jobs in shared if jobs > 1]
    for one in outlooks[:1]:
        lines += _known_stages(one)
    if not any(one.memory for one in outlooks):
        lines.append("Memory: not known before the model is here; its file in conf/model/ says what it takes")
    for memory in dict.fromkeys(one.memory for one in outlooks if one.memory):
        held = {"weights": memory.weights, "gradients": memory.gradients, "optimizer": memory.optimizer}
        sizes = ", ".join(f"{name} {size / 1e9:,.2f} GB" for name, size in held.items() if size is not None)
        counts = (
            f"{memory.parameters / 1e6:,.1f} million parameters, {memory.trained / 1e6:,.1f} million of them trained"
        )
        lines.append(f"Memory: {counts}; {sizes}, and activations")
    changed = {f"{name} {then}": None for one in outlooks for name, then in one.other_versions.items()}
    if changed:
        lines.append(
            f"Finished jobs marked (other versions) were made with {', '.join(changed)}; rerun=true runs again"
        )
    if likes := {str(one.like): None for one in outlooks if one.like}:
        lines.append(
            f"Times are those of {', '.join(likes)}, by its seconds for a step; without such a run none is given"
        )
    lines += [f"Same training rows: {told}; one of them would do" for told in same_rows]
    if request:
        lines.append(f"Asked of the cluster for each job: {request}")
    path = outlooks[0].job_folder.folder.path
    lines.append(f"Folder: {path.parent if len(outlooks) > 1 else path}")
    for line in lines:
        out.print(line, soft_wrap=True)


def _known_stages(one: Outlook) -> list[str]:
    known = ", ".join(f"{stage['stage']} {stage['rows_kept']:,}" for stage in one.stages)
    more = f"; {one.missing[0]} and what follows it: not known before it is computed" if one.missing else ""
    return [
        f"Rows after each stage{' of the first job' if one.job_folder.job.axes else ''}: {known or 'none known'}{more}"
    ]


def show_store(store: Store) -> None:
    """Print what the store holds: stage, key, size, how long unused."""
    from rich import box
    from rich.table import Table

    entries = list(store.listing())
    table = Table("stage", "key", "MB", "unused", "parameters", box=box.SIMPLE_HEAD)
    for entry in entries:
        days = f"{entry.idle / 86400:.1f} days"
        params = ", ".join(f"{name}={value}" for name, value in entry.params.items())
        table.add_row(entry.stage, entry.key[:12], f"{entry.size / 1e6:,.1f}", days, params[:60])
    out = console()
    out.print(table)
    total = sum(entry.size for entry in entries) / 1e6
    out.print(f"{len(entries)} entries, {total:,.1f} MB in {store.root}", soft_wrap=True)
