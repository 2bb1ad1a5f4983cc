"""The table of jobs, base models first: the same rows on the terminal and on the page."""

from __future__ import annotations

import sys
from bisect import bisect_left
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from sft_lab.compare import claims
from sft_lab.compare.axes import format_value, short_names
from sft_lab.compare.notes import notes_on
from sft_lab.core.console import console, new_table, print_lines
from sft_lab.core.io import is_number
from sft_lab.core.notebook import html_table
from sft_lab.core.timed_share import has_resumed
from sft_lab.core.verdict_warnings import VerdictWarning, warnings_beside
from sft_lab.report.formatting import shown_convergence, with_minus

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from sft_lab.compare.analyze import Comparison
    from sft_lab.compare.collect import ComparedJob

# Heading -> key of summary.json and format of its value.
COLUMNS = {
    "rows": ("train_rows", "{:,.0f}"),
    "tokens read": ("train_tokens", "{:,.0f}"),
    "best loss": ("best_eval_loss", "{:.4f}"),
    "final loss": ("eval/loss", "{:.4f}"),
    "bits/byte": ("eval/bits_per_byte", "{:.4f}"),
    "gap": ("gap", "{:+.4f}"),
    "converged at": ("converged_at", "{:,.0f}"),
    "seconds": ("seconds", "{:,.0f}"),
}
MAX_EXTRAS = 6  # columns of custom metrics and benchmark tasks; compare.json has all of them
ERROR_WIDTH = 60  # characters of an error on the terminal
CONSOLE_WIDTH = 200  # characters of a line where the output is a file
LEAST_AXES = 3  # columns of axes on a terminal, however narrow
VERDICT_WIDTH = 30  # characters, where the whole table does not fit; longer verdicts are wrapped
MAX_BASE_ROWS = 3  # base models that get a row each


class TableRow(NamedTuple):
    """A row of the table, its values as text.

    Attributes:
        job: None for a base model.
        axes: values of the axes, in the order of the comparison's; empty where the job has none.
        state: of the job; the name of a base model.
        numbers: in the order of the columns; empty where a number is not known.
        verdict: of a finished job.
        warnings: beside the verdict.
        error: first line of what stopped the job.
        is_best: whether no other job has a lower loss.
    """

    job: ComparedJob | None
    axes: list[str]
    state: str
    numbers: list[str]
    verdict: str = ""
    warnings: tuple[VerdictWarning, ...] = ()
    error: str = ""
    is_best: bool = False


def columns_of(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Return the columns of numbers: the usual ones, what the jobs are sorted by, and extra numbers."""
    chosen = [comparison.order.key] if comparison.order else []
    usual = {key for key, _ in COLUMNS.values()}
    extras = [key for key in dict.fromkeys([*chosen, *comparison.extras]) if key not in usual]
    return COLUMNS | {key.partition(".")[2] or key: (key, "{:.4g}") for key in extras[:MAX_EXTRAS]}


def build_rows(comparison: Comparison) -> list[TableRow]:
    """Return the rows of the table."""
    columns = [*columns_of(comparison).values()]
    rows = _base_rows(comparison, columns)
    for job in comparison.jobs:
        rows.append(
            TableRow(
                job,
                _format_axes(job.axes, comparison.axes),
                job.state,
                _format_numbers(_meaningful_numbers(job), columns),
                verdict=str(job.summary.get("verdict") or "").replace("_", " "),
                warnings=tuple(warnings_beside(job.summary)),
                error=next((line.strip() for line in job.error.splitlines() if line.strip()), ""),
                is_best=job is comparison.best,
            )
        )
    return rows


def _meaningful_numbers(job: ComparedJob) -> dict[str, Any]:
    """Return a job's numbers without those that would mislead: the time of a part, and where a loss still fell."""
    seconds = {"seconds": None} if has_resumed(job.summary) else {}
    return {**job.numbers, "converged_at": shown_convergence(job.summary), **seconds}


def _base_rows(comparison: Comparison, columns: list[tuple[str, str]]) -> list[TableRow]:
    """Return a row for each base model, or one with their range where seeds made many."""
    bases = comparison.base_models
    if len(bases) > MAX_BASE_ROWS:
        texts = zip(*(_format_numbers(base.losses, columns) for base in bases), strict=True)
        ranges = [f"{min(values)}–{max(values)}" if max(values) else "" for values in texts]
        return [TableRow(None, [""] * len(comparison.axes), f"{len(bases)} base models", ranges)]

    rows = []
    for base in bases:
        axes = _format_axes(base.axes, comparison.axes)
        rows.append(TableRow(None, axes, "base model", _format_numbers({**base.losses, **base.extras}, columns)))
        if base.prompted:
            rows.append(TableRow(None, axes, "base, prompted", _format_numbers(base.prompted, columns)))
    return rows


def _format_axes(values: dict[str, Any], axes: list[str]) -> list[str]:
    return [format_value(values[axis]) if axis in values else "" for axis in axes]


def _format_numbers(numbers: Mapping[Any, Any], columns: list[tuple[str, str]]) -> list[str]:
    values = [(numbers.get(key), form) for key, form in columns]
    return [with_minus(form.format(value)) if is_number(value) else "" for value, form in values]


def print_comparison(comparison: Comparison, page: Path) -> None:
    """Print the table, what may be claimed, and the path of the page."""
    from rich.text import Text

    out = console(CONSOLE_WIDTH)
    table, hidden = _fitting_table(comparison, out)
    out.print(table)
    if hidden:
        print_lines([f"{hidden} of {len(comparison.axes)} axes do not fit here; the page has all of them.", ""])

    headline = claims.headline(comparison)
    first, *rest = headline.lines()
    out.print(Text(f"{headline.badge.capitalize()}: ", style="bold") + Text(first), soft_wrap=True)
    print_lines(rest)
    if notes := notes_on(comparison):
        print_lines(["", "Before you rely on it:", *(f"- {note}" for note in notes)])
    print_lines(["", f"Page: {page}"])


def _fitting_table(comparison: Comparison, out: Console) -> tuple[Table, int]:
    """Return the table with as many axes as fit, and how many do not: of those that changed the loss least.

    A few axes are shown even where no column would be left whole.
    """
    by_effect = list(dict.fromkeys([*(effect.axis for effect in comparison.effects), *comparison.axes]))
    unlimited = out.options.update(max_width=sys.maxsize)  # else nothing is measured wider than the console

    def build(count: int, verdict_width: int | None = None) -> Table:
        visible = by_effect[:count]
        table = build_table(replace(comparison, axes=[axis for axis in comparison.axes if axis in visible]))
        table.columns[-1].max_width = verdict_width
        return table

    def is_too_wide(table: Table) -> bool:
        return out.measure(table, options=unlimited).maximum > out.width

    counts = range(LEAST_AXES + 1, len(by_effect) + 1)
    fitting = bisect_left(counts, True, key=lambda count: is_too_wide(build(count, VERDICT_WIDTH)))
    count = min(len(by_effect), LEAST_AXES + fitting)
    table = build(count)
    return build(count, VERDICT_WIDTH) if fitting and is_too_wide(table) else table, len(by_effect) - count


def build_table(comparison: Comparison) -> Table:
    """Return the table for the terminal; a star marks the best job."""
    numbers = columns_of(comparison)
    table = new_table(title=_title(comparison))
    for heading in _headings(comparison):
        table.add_column(heading, justify="right" if heading in numbers else "left")
    for row in build_rows(comparison):
        style = "bold" if row.is_best else "dim" if row.job is None else ""
        table.add_row(*_cells(comparison, row), style=style)
    return table


def build_html(comparison: Comparison) -> str:
    """Return the table for a notebook, under what may be claimed."""
    headline = claims.headline(comparison)
    caption = f"{headline.badge}: {' '.join(headline.lines())} {_title(comparison)}"
    rows = [_cells(comparison, row) for row in build_rows(comparison)]
    return html_table(_headings(comparison), rows, caption)


def _title(comparison: Comparison) -> str:
    order = f"; sorted by {comparison.order}" if comparison.order else ""
    return f"Jobs (losses: held-out; *: the lowest in {claims.UNITS[comparison.measure]}{order})"


def _headings(comparison: Comparison) -> list[str]:
    names = short_names(comparison.axes)
    axes = [names[axis] for axis in comparison.axes]
    return ["", *axes, "state", *columns_of(comparison), "verdict", *([] if axes else ["job"])]


def _cells(comparison: Comparison, row: TableRow) -> list[str]:
    warnings = [warning.short for warning in row.warnings]
    verdict = "; ".join(filter(None, [row.verdict, *warnings, row.error[:ERROR_WIDTH]]))
    names = [] if comparison.axes else [row.job.name if row.job else ""]
    return ["*" if row.is_best else "", *row.axes, row.state, *row.numbers, verdict, *names]
