"""A short description of a run, and a table for a notebook."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from sft_lab.core.notebook import html_table
from sft_lab.core.params import default

if TYPE_CHECKING:
    from sft_lab.run.config import Run

GROUPS = ("dataset", "filter", "dedup", "template", "model", "trainer", "tracking")


def choices_line(run: Run) -> str:
    """Return the chosen options of a run on one line."""
    return "  ".join(f"{group}={_choice(run, group)}" for group in GROUPS)


def choices_table(run: Run) -> str:
    """Return the chosen options of a run, with the values that differ from the defaults of their kind, as HTML."""
    rows = [(group, _choice(run, group), _changes(getattr(run, group))) for group in GROUPS]
    return html_table(("group", "option", "values"), rows, f"Run {run.hash}, seed {run.seed}")


def _choice(run: Run, group: str) -> str:
    names = run.choices.get(group, "?")
    return "+".join(names) if isinstance(names, list) else str(names)


def _changes(stage: Any) -> str:
    if isinstance(stage, dict):  # filters, or mirrors of the tracking
        return "; ".join(f"{name}: {changes}" for name, part in stage.items() if (changes := _changes(part)))
    if not is_dataclass(stage):
        return ""
    values = {knob.name: (getattr(stage, knob.name), default(knob)) for knob in fields(stage)}
    return ", ".join(
        f"{name}={value.name if isinstance(value, Enum) else value}"
        for name, (value, usual) in values.items()
        if value != usual and not is_dataclass(value)
    )
