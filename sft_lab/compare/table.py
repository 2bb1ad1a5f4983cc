"""The table: a row per job, base models first; the same columns on the terminal and on the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sft_lab.compare import words
from sft_lab.compare.axes import short_names, shown
from sft_lab.compare.collect import is_number
from sft_lab.talk import console

if TYPE_CHECKING:
    from rich.table import Table

    from sft_lab.compare.collect import Job
    from sft_lab.compare.comparison import Comparison

# Heading -> key of the summary and how it is written.
COLUMNS = {
    "rows": ("train_rows", "{:,.0f}"),
    "tokens": ("train_tokens", "{:,.0f}"),
    "best loss": ("best_eval_loss", "{:.4f}"),
    "final loss": ("eval/loss", "{:.4f}"),
    "bits/byte": ("eval/bits_per_byte", "{:.4f}"),
    "gap": ("gap", "{:+.4f}"),
    "converged at": ("converged_at", "{:,.0f}"),
    "seconds": ("seconds", "{:,.0f}"),
}
REMARK = 60  # characters of an error on the terminal
MOST_BASES = 3  # that get a line each


class Row(NamedTuple):
    """A line: axis values, state, numbers in the order of COLUMNS, verdict.

    Attributes:
        job: None for a base model.
        remark: first line of what stopped it.
    """

    job: Job | None
    axes: list[str]
    state: str
    numbers: list[str]
    verdict: str
    remark: str
    best: bool


def rows(found: Comparison) -> list[Row]:
    """Give the lines of the table."""
    lines = _base_rows(found)
    for job in found.jobs:
        verdict = str(job.summary.get("verdict") or "").replace("_", " ")
        remark = next((line.strip() for line in job.error.splitlines() if line.strip()), "")
        best = job is found.best
        lines.append(Row(job, _axes(job.axes, found.axes), job.state, _numbers(job.numbers), verdict, remark, best))
    return lines


def _base_rows(found: Comparison) -> list[Row]:
    """A line for each base model; one with their range where seeds made many."""
    parts = [_numbers({"eval/loss": base.loss, "eval/bits_per_byte": base.bits_per_byte}) for base in found.bases]
    if len(parts) <= MOST_BASES:
        lines = []
        for base, numbers in zip(found.bases, parts, strict=True):
            axes = _axes(base.axes, found.axes)
            lines.append(Row(None, axes, "base model", numbers, "", "", best=False))
            if base.prompted:
                lines.append(Row(None, axes, "base, prompted", _numbers(base.prompted), "", "", best=False))
        return lines
    ranges = [f"{min(one)}–{max(one)}" if max(one) else "" for one in zip(*parts, strict=True)]
    return [Row(None, [""] * len(found.axes), f"{len(parts)} base models", ranges, "", "", best=False)]


def _axes(values: dict[str, Any], axes: list[str]) -> list[str]:
    return [shown(values[axis]) if axis in values else "" for axis in axes]


def _numbers(summary: dict[str, Any]) -> list[str]:
    found = [(summary.get(key), form) for key, form in COLUMNS.values()]
    return [form.format(value).replace("-", "−") if is_number(value) else "" for value, form in found]


def show(found: Comparison) -> None:
    """Print the table, what may be claimed, and where the page is."""
    from rich.text import Text

    out = console(200)
    out.print(table(found))
    said = words.headline(found)
    out.print(Text(f"{said.badge}: ", style="bold") + Text(" ".join(said.sentences)), soft_wrap=True)
    for line in [*found.notes, f"Page: {found.page}"]:
        out.print(line, soft_wrap=True)


def table(found: Comparison) -> Table:
    """Give the table for the terminal; the best job is marked with a star."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    names = short_names(found.axes)
    made = Table("", *(names[axis] for axis in found.axes), "state", box=box.SIMPLE_HEAD, title_justify="left")
    made.title = f"Jobs (losses: held-out; ranked by {words.UNITS[found.measure]})"
    for heading in COLUMNS:
        made.add_column(heading, justify="right")
    made.add_column("verdict")
    if not found.axes:
        made.add_column("job")
    for row in rows(found):
        last = [row.job.name if row.job else ""] if not found.axes else []
        cells = ["*" if row.best else "", *row.axes, row.state, *row.numbers, row.verdict or row.remark[:REMARK], *last]
        made.add_row(*map(Text, cells), style="bold" if row.best else "dim" if row.job is None else "")
    return made
