"""``report.html``: a run on one page that needs no other file, made from the run folder alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sft_lab.core import parquet
from sft_lab.core.errors import FolderError
from sft_lab.core.io import is_number, read_text
from sft_lab.core.run_names import option_names, set_values
from sft_lab.core.timed_share import has_resumed
from sft_lab.core.tolerant_readers import extra_keys, read, read_config, read_lines
from sft_lab.core.types import RunState, Verdict, Work
from sft_lab.core.verdict_warnings import warnings_beside
from sft_lab.report.figures import draw_figures
from sft_lab.report.formatting import DASH, format_count, format_decimal, format_seconds, format_significant, with_minus
from sft_lab.report.pages import template_environment, write_page
from sft_lab.report.style import COLORS, inline_svg

if TYPE_CHECKING:
    from sft_lab.core.run_dir import RunDir

MAX_DROPPED_ROWS = 3  # shown for each stage and reason

# Verdict -> its tone, and what it means.
VERDICTS: dict[str, tuple[str, str]] = {
    Verdict.HEALTHY: ("good", "Held-out loss fell below the base model's and stayed near its best."),
    Verdict.UNDERTRAINED: ("fair", "Held-out loss was still falling when training ended: more steps should help."),
    Verdict.OVERFITTING: (
        "fair",
        "Held-out loss rose again while training loss fell: fewer steps, or more and better data.",
    ),
    Verdict.UNDERFITTING: (
        "fair",
        "Held-out loss hardly improved on the base model's: check the learning rate and the data.",
    ),
    Verdict.MEMORIZING: (
        "fair",
        "Training rows are known far better than held-out ones: fewer epochs, more varied data.",
    ),
    Verdict.TEMPLATE_NOT_LEARNED: (
        "fair",
        "Answers do not follow the chat template: more steps, or check the template.",
    ),
    Verdict.DIVERGED: ("bad", "Training broke down: lower the learning rate."),
    Verdict.NOT_JUDGED: ("none", "There is too little held-out evidence to judge the run."),
}

# Measures below the key numbers: name in the summary, label, and format of the value.
MEASURES = (
    ("eval/bits_per_byte", "Bits per byte of held-out answers", "{:.3f}"),
    ("eval/token_accuracy", "Held-out tokens predicted correctly", "{:.1%}"),
    ("eval/stop_probability", "Probability of ending the turn where a held-out answer ends (median)", "{:.0%}"),
    ("outputs/ended_share", "Generated answers that end their turn", "{:.0%}"),
    ("outputs/stray_share", "Generated answers with control tokens inside", "{:.0%}"),
    ("outputs/echoed_share", "Generated answers that only repeat the question", "{:.0%}"),
    ("outputs/json_share", "Generated answers in JSON of the right form, where JSON was requested", "{:.0%}"),
    ("outputs/exact_share", "Generated answers that match exactly, where the reference is short", "{:.0%}"),
    ("outputs/call_share", "Generated answers that call a known tool correctly, where a call was expected", "{:.0%}"),
    ("outputs/distinct_2", "Variety: distinct word pairs among all (distinct-2)", "{:.0%}"),
    ("outputs/likeness", "Similarity to the nearest training answer (ROUGE-L)", "{:.2f}"),
    ("train/recalled_share", "Training rows continued verbatim", "{:.0%}"),
    ("eval/recalled_share", "Held-out rows continued verbatim", "{:.0%}"),
    ("general/loss", "Loss on general questions (rises with forgetting)", "{:.3f}"),
    ("domain/loss", "Loss on your domain's questions", "{:.3f}"),
    ("domain/right_share", "Your domain's questions answered correctly", "{:.0%}"),
)
TIMESTAMP = re.compile(r"\d\d-\d\d-\d\d(-\d+)?")  # name of a run folder outside a sweep
TITLE_CHOICES = ("dataset", "dedup", "template", "model", "trainer")  # groups whose options name such a run
MAX_VALUE = 40  # characters of a key and value that stand in a title
NAMED_IN_OPTIONS = ("path", "name_or_path")  # keys whose values those options are named by


class KeyNumber(NamedTuple):
    """A key number: its label, its value, the base model's value, and a note with its tone."""

    label: str
    value: str
    before: str = ""
    note: str = ""
    tone: str = ""


class EvidenceLine(NamedTuple):
    """A rule's message, whether and why it holds (empty without a number), and whether it decides the verdict."""

    message: str
    outcome: str
    decides: bool


def write_report(folder: RunDir) -> Path:
    """Draw the figures and write ``report.html``; parts that the run has no file for are left out.

    The page runs no script. Of ``figures/`` it shows only what was drawn for it.

    Returns:
        The page's path.

    Raises:
        FolderError: if a file of the run folder cannot be read.
    """
    figures = {path.stem: inline_svg(read_text(path, inside=folder.path), path.stem) for path in draw_figures(folder)}
    template = template_environment().get_template("page.html.jinja")
    write_page(folder.report, template.render({**_content(folder), "figures": figures}))
    return folder.report


def _content(folder: RunDir) -> dict[str, Any]:
    """Return the variables of the template."""
    summary, waterfall, status = read(folder.summary), read(folder.waterfall), read(folder.status)
    title, job_hash, parent, subject = _heading(folder)
    tone, meaning = VERDICTS.get(summary.get("verdict") or "", ("none", ""))
    return {
        "title": title,
        "hash": job_hash,
        "parent": parent,
        "subject": subject,
        "summary": summary,
        "tone": tone,
        "meaning": meaning,
        "warnings": warnings_beside(summary),
        "evidence": _evidence(summary),
        "state": _state_to_show(status, has_result=bool(summary) or status.get("work") == Work.PREPARE),
        "error": status.get("error"),
        "numbers": _key_numbers(summary),
        "stages": waterfall.get("stages") or [],
        "held_out": waterfall.get("held_out") or [],
        "dropped": _dropped_rows(folder.dropped),
        "data": read(folder.data),
        "measures": _measures(summary),
        "samples": read_lines(folder.samples),
        "outputs": read_lines(folder.outputs),
        "training_samples": read_lines(folder.training_samples),
        "manifest": read(folder.manifest),
        "config": read_text(folder.config) if folder.config.exists() else "",
        "colors": COLORS,
    }


def _heading(folder: RunDir) -> tuple[str, str, str, str]:
    """Return the title, the hash of a sweep's job, the folder that the run is in, and its data and model.

    Data and model are part of the title where nobody named the folder, so that it is the time at which the run began.
    """
    path = folder.path.absolute()
    try:
        config = read_config(folder.config)
    except FolderError:
        config = {}
    axes, _, job_hash = path.name.rpartition("-")  # a job's folder is <what differs>-<hash>
    subject = ", ".join(option_names(config, ("dataset", "model")))
    if folder.sweep and axes:
        return axes, job_hash, path.parent.name, subject
    if TIMESTAMP.fullmatch(path.name) and (options := option_names(config, TITLE_CHOICES)):
        values = [
            text
            for text in set_values(folder.hydra)
            if text.partition("=")[0] not in NAMED_IN_OPTIONS and len(text) <= MAX_VALUE
        ]
        return ", ".join([*options, *values]), "", f"{path.parent.name} {path.name}", ""
    return path.name, "", path.parent.name, subject


def _state_to_show(status: dict[str, Any], *, has_result: bool) -> str | None:
    """Return the run's state unless its verdict says it all; the page is written while the run still works."""
    state = status.get("state")
    return None if state == RunState.FINISHED or (state == RunState.RUNNING and has_result) else state


# What these rules require beside a value at their limit, as it is when they do not hold.
_REQUIRED = {
    Verdict.DIVERGED: "the loss on training rows did not rise",
    Verdict.OVERFITTING: "training loss did not keep falling",
}


def _evidence(summary: dict[str, Any]) -> list[EvidenceLine]:
    """Return the rules that were applied in order, of which only the last can hold."""
    entries = summary.get("evidence") or []
    lines = []
    for number, entry in enumerate(entries, 1):
        decides = number == len(entries) and entry["rule"] == summary.get("verdict")
        lines.append(EvidenceLine(entry.get("says"), _outcome(entry, holds=decides), decides))
    return lines


def _outcome(entry: dict[str, Any], *, holds: bool) -> str:
    """Return whether a rule holds, and why: ``diverged: no, since −0.116 is below 0.2``."""
    rule, value, limit = entry["rule"], entry.get("value"), entry.get("limit")
    if not is_number(value) or not is_number(limit):
        return ""
    is_reached = value >= limit
    comparison = f"{format_significant(value)} is {'at least' if is_reached else 'below'} {format_significant(limit)}"
    name = f"{rule.replace('_', ' ')}: {'yes' if holds else 'no'}"
    if is_reached and not holds and rule in _REQUIRED:
        return f"{name}, although {comparison}, since {_REQUIRED[rule]}"
    return f"{name}, since {comparison}"


def _key_numbers(summary: dict[str, Any]) -> list[KeyNumber]:
    """Return the key numbers that the summary has."""
    get = summary.get
    prompted = _format_known("; prompted base model: {:.3f}", get("prompted/eval_bits_per_byte"))
    gap, rate = get("gap"), get("tokens_per_second")
    numbers = [
        _beside_base("Held-out loss", get("base/eval_loss"), get("eval/loss"), "nats per token"),
        _beside_base(
            "Bits per byte",
            get("base/eval_bits_per_byte"),
            get("eval/bits_per_byte"),
            f"of held-out answers{prompted}",
        ),
        KeyNumber("Gap", DASH if gap is None else with_minus(f"{gap:+.3f}"), note="held-out above training loss"),
        KeyNumber("Steps", format_count(get("steps")), note=_format_epochs(get("epochs"))),
        KeyNumber(
            "Training rows",
            format_count(get("train_rows")),
            note=_format_known("{:,} tokens read in training: template and every epoch included", get("train_tokens")),
        ),
        KeyNumber("Held-out rows", format_count(get("eval_rows"))),
        KeyNumber(
            "Tokens per second",
            format_count(rate),
            note=_format_known("{:.0%} of training time spent on measuring", get("watching_share")),
        ),
        KeyNumber("Time", format_seconds(get("seconds")), note=_time_note(summary)),
    ]
    return [number for number in numbers if number.value != DASH]


def _beside_base(label: str, base: float | None, tuned: float | None, unit: str) -> KeyNumber:
    """Return a loss with the base model's, and its relative change as a note."""
    if not base or tuned is None:
        return KeyNumber(label, format_decimal(tuned), note=unit)
    change = tuned / base - 1
    note = f"{with_minus(f'{change:+.1%}')}, {unit}"
    tone = "good" if change < 0 else "bad"
    return KeyNumber(label, format_decimal(tuned), before=format_decimal(base), note=note, tone=tone)


def _time_note(summary: dict[str, Any]) -> str:
    """Return what the time covers, and how much of it was spent on measuring."""
    seconds = summary.get("measuring_seconds")
    measuring = f"{format_seconds(seconds)} of it measuring before and after training" if seconds else ""
    return "; ".join(filter(None, ["since the run resumed" if has_resumed(summary) else "", measuring]))


def _format_epochs(epochs: float | None) -> str:
    text = _format_known("{:.3g} epochs", epochs)
    return "1 epoch" if text == "1 epochs" else text


def _format_known(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)


def _measures(summary: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return each measure's label with its values for base model, prompted base model and tuned model."""
    rows = []
    extras = [(key, key.partition(".")[2], "{:.4g}") for key in extra_keys(summary)]
    for name, label, form in (*MEASURES, *extras):
        base_name = name.replace("/", "_")
        values = [summary.get(key) for key in (f"base/{base_name}", f"prompted/{base_name}", name)]
        if any(is_number(value) for value in values):
            rows.append((label, [form.format(value) if is_number(value) else DASH for value in values]))
    return rows


def _dropped_rows(path: Path) -> list[dict[str, Any]]:
    """Return the first dropped rows of each stage and reason: id, stage, reason, score, nearest, cause."""
    if not path.exists():
        return []
    table = parquet.read(path, parquet.DROPPED)
    counts: dict[tuple[str, str], int] = {}
    rows: list[dict[str, Any]] = []
    for index, group in enumerate(zip(table["stage"].to_pylist(), table["reason"].to_pylist(), strict=True)):
        counts[group] = counts.get(group, 0) + 1
        if counts[group] <= MAX_DROPPED_ROWS:
            rows += table.slice(index, 1).to_pylist()
    return rows
