"""``report.html``: a run on one page that needs nothing beside it, made from the run folder alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sft_lab.core import parquet
from sft_lab.core.io import is_number, read_text, write_text
from sft_lab.core.records import read, read_config, read_lines
from sft_lab.core.run_dir import FINISHED, PREPARE, RUNNING
from sft_lab.report import figures
from sft_lab.report.style import COLORS

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

    from sft_lab.core.run_dir import RunDir

EXAMPLES = 3  # dropped rows shown for each reason
DASH = "–"

# Verdict -> its tone, and what it means in a sentence.
VERDICTS = {
    "healthy": ("good", "Held-out loss fell below the base model's and stayed near its best."),
    "undertrained": ("fair", "Held-out loss was still falling when training ended: more steps should help."),
    "overfitting": ("fair", "Held-out loss rose again while training loss fell: fewer steps, or more and better data."),
    "underfitting": ("fair", "Held-out loss hardly improved on the base model's: look at learning rate and data."),
    "memorizing": ("fair", "Training rows are known far better than held-out ones: fewer epochs, more varied data."),
    "template_not_learned": ("fair", "Answers do not follow the chat template: more steps, or check the template."),
    "diverged": ("bad", "Training broke down: lower the learning rate."),
    "not_judged": ("none", "There is too little held-out evidence to judge by."),
}


# What was measured of each model beside the key numbers: its name in the summary, how it is called, and its form.
MEASURES = (
    ("eval/bits_per_byte", "Bits per byte of held-out answers", "{:.3f}"),
    ("eval/token_accuracy", "Held-out tokens predicted correctly", "{:.1%}"),
    ("eval/stop_probability", "Chance to end the turn where a held-out answer ends (median)", "{:.0%}"),
    ("outputs/ended_share", "Own answers that end their turn", "{:.0%}"),
    ("outputs/stray_share", "Own answers with control tokens inside", "{:.0%}"),
    ("outputs/echoed_share", "Own answers that only repeat the question", "{:.0%}"),
    ("outputs/json_share", "Own answers in JSON of the right form, where it was asked for", "{:.0%}"),
    ("outputs/exact_share", "Own answers exactly right, where the right one is short", "{:.0%}"),
    ("outputs/distinct_2", "Variety: different word pairs of all", "{:.0%}"),
    ("outputs/likeness", "Likeness to the nearest training answer (ROUGE-L)", "{:.2f}"),
    ("train/recalled_share", "Training rows continued word for word", "{:.0%}"),
    ("eval/recalled_share", "Held-out rows continued word for word", "{:.0%}"),
    ("general/loss", "Loss on general questions (rises with forgetting)", "{:.3f}"),
    ("domain/loss", "Loss on your domain's questions", "{:.3f}"),
    ("domain/right_share", "Your domain's questions answered rightly", "{:.0%}"),
)


class Number(NamedTuple):
    """A key number: what it is called, its value, the base model's beside it, and a remark with its tone."""

    label: str
    value: str
    before: str = ""
    note: str = ""
    tone: str = ""


def write(folder: RunDir) -> Path:
    """Draw the figures and write ``report.html``; what the run has no file for is left out.

    The page is self-contained and runs no script. Of ``figures/`` only those are shown that were drawn for it just now.

    Returns:
        The page's path.

    Raises:
        FolderError: if a file of the run folder cannot be read.
    """
    drawn = {path.stem: _inline(path) for path in figures.draw(folder)}
    html = environment().get_template("page.html.jinja").render({**_content(folder), "figures": drawn})
    # A lone surrogate may stand in JSON but not in UTF-8.
    write_text(folder.report, html.encode("utf-8", "replace").decode("utf-8"))
    return folder.report


def environment(*folders: Path) -> jinja2.Environment:
    """Give the templates of these folders and this package; all that is put into an HTML one is escaped."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "count": count,
        "decimal": decimal,
        "short": short,
        "span": span,
        "share": share,
        "part": part,
        "apart": apart,
    }
    return made


# Words written from right to left, with spaces and signs between them.
_LETTERS = "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]+"
_RIGHT_TO_LEFT = re.compile(rf"{_LETTERS}(?:[^\w]*{_LETTERS})*")


def apart(text: object) -> str:
    """Keep a name written from right to left, in a sentence of ours, from turning the numbers beside it round.

    Each stretch of such words is put between Unicode's isolates (FSI and PDI).
    """
    return _RIGHT_TO_LEFT.sub("\u2068\\g<0>\u2069", str(text))


def count(value: object) -> str:
    """A whole number with thousands apart; a dash for what is no number."""
    return f"{value:,.0f}" if is_number(value) else DASH


def decimal(value: object, digits: int = 3) -> str:
    """A number with so many digits behind the point; a dash for what is no number."""
    return f"{value:,.{digits}f}".replace("-", "−") if is_number(value) else DASH


def short(value: object) -> str:
    """A number in three digits that count; a dash for what is no number."""
    return f"{value:.3g}".replace("-", "−") if is_number(value) else DASH


def share(part: object, whole: object) -> str:
    """A part of a whole in percent, or a dash where there is no whole."""
    return f"{part / whole:.1%}" if is_number(part) and is_number(whole) and whole else DASH


def part(value: object, whole: object) -> str:
    """A part of a whole as a CSS length, never more than the whole."""
    return f"{min(1.0, value / whole):.2%}" if is_number(value) and is_number(whole) and whole else "0"


def span(seconds: object) -> str:
    """A length of time, in the two largest units; a dash for what is no number."""
    if not is_number(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _content(folder: RunDir) -> dict[str, Any]:
    """Everything the page shows."""
    summary, waterfall, status = read(folder.summary), read(folder.waterfall), read(folder.status)
    name, job, place = _heading(folder)
    tone, meaning = VERDICTS.get(summary.get("verdict") or "", ("none", ""))
    return {
        "name": name,
        "hash": job,
        "place": place,
        "summary": summary,
        "tone": tone,
        "meaning": meaning,
        "state": _state(status, done=bool(summary) or status.get("work") == PREPARE),
        "error": status.get("error"),
        "numbers": _numbers(summary),
        "stages": waterfall.get("stages") or [],
        "held_out": waterfall.get("held_out") or [],
        "dropped": _dropped(folder.dropped),
        "data": read(folder.data),
        "measures": _measures(summary),
        "samples": read_lines(folder.samples),
        "outputs": read_lines(folder.outputs),
        "training_samples": read_lines(folder.training_samples),
        "manifest": read(folder.manifest),
        "config": read_text(folder.config) if folder.config.exists() else "",
        "colors": COLORS,
    }


_WHEN = re.compile(r"\d\d-\d\d-\d\d(-\d+)?")
_TELLING = ("dataset", "dedup", "template", "model", "trainer")  # the choices that a title names


def _heading(folder: RunDir) -> tuple[str, str, str]:
    """What a run is called, the hash of a sweep's job, and where it lies."""
    where = folder.path.absolute()
    name, _, job = where.name.rpartition("-")  # a job is <what differs>-<hash>
    if folder.sweep and name:
        return name, job, where.parent.name
    if _WHEN.fullmatch(where.name) and (chosen := _choices(folder)):  # a time says nothing of what was done
        return chosen, "", f"{where.parent.name} {where.name}"
    return where.name, "", where.parent.name


def _choices(folder: RunDir) -> str:
    """Name a run by what was chosen for it; empty where the config cannot be read."""
    try:
        chosen = read_config(folder.config)["choices"]
        return ", ".join(str(chosen[name]) for name in _TELLING if name in chosen)
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _state(status: dict[str, Any], *, done: bool) -> str | None:
    """The run's state where it says more than the verdict does: the page is written before a run is finished."""
    state = status.get("state")
    return None if state == FINISHED or (state == RUNNING and done) else state


def _numbers(summary: dict[str, Any]) -> list[Number]:
    """Give the key numbers of those that the summary has."""
    get = summary.get
    prompted = get("prompted/eval_bits_per_byte")
    tokens, watched = get("train_tokens"), get("watching_share")
    found = [
        _compared("Held-out loss", get("base/eval_loss"), get("eval/loss"), "nats per token"),
        _compared(
            "Bits per byte",
            get("base/eval_bits_per_byte"),
            get("eval/bits_per_byte"),
            "of held-out answers" + _unless_missing("; the base model with a prompt: {:.3f}", prompted),
        ),
        Number("Gap", _signed(get("gap")), note="held-out above training loss"),
        Number("Steps", count(get("steps")), note=_unless_missing("{:.3g} epochs", get("epochs"))),
        Number("Training rows", count(get("train_rows")), note=_unless_missing("{:,} tokens trained", tokens)),
        Number("Held-out rows", count(get("eval_rows"))),
        Number(
            "Tokens a second",
            count(get("tokens_per_second")),
            note=_unless_missing("{:.0%} of the time went into measuring", watched),
        ),
        Number("Time", span(get("seconds"))),
    ]
    return [number for number in found if number.value != DASH]


def _measures(summary: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Give what each measure is called, and its value for base, prompted base and tuned model."""
    found = []
    for name, label, form in MEASURES:
        flat = name.replace("/", "_")
        values = [summary.get(key) for key in (f"base/{flat}", f"prompted/{flat}", name)]
        if any(is_number(value) for value in values):
            found.append((label, *(form.format(value) if is_number(value) else DASH for value in values)))
    return found  # type: ignore[return-value]


def _compared(label: str, base: float | None, tuned: float | None, unit: str) -> Number:
    if not base or tuned is None:
        return Number(label, decimal(tuned), note=unit)
    change = tuned / base - 1
    note = f"{f'{change:+.1%}'.replace('-', '−')}, {unit}"
    return Number(label, decimal(tuned), before=decimal(base), note=note, tone="good" if change < 0 else "bad")


def _signed(value: float | None) -> str:
    return DASH if value is None else f"{value:+.3f}".replace("-", "−")


def _unless_missing(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)


def _dropped(path: Path) -> list[dict[str, Any]]:
    """Give the first few dropped rows of each stage and reason: id, stage, reason, score, nearest."""
    if not path.exists():
        return []
    table = parquet.read(path, parquet.DROPPED)
    seen: dict[tuple[str, str], int] = {}
    chosen: list[dict[str, Any]] = []
    for index, pair in enumerate(zip(table["stage"].to_pylist(), table["reason"].to_pylist(), strict=True)):
        seen[pair] = seen.get(pair, 0) + 1
        if seen[pair] <= EXAMPLES:
            chosen += table.slice(index, 1).to_pylist()
    return chosen


def _inline(path: Path) -> Markup:
    """Give one of our own figures as SVG to stand in the page, its colors those of the page's light or dark mode."""
    from markupsafe import Markup

    text = read_text(path, inside=path.parent.parent)
    text = text[text.index("<svg") :]  # an XML declaration has no place in HTML
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{path.stem}-", text)  # ids are unique in a page
    for name, color in COLORS.items():
        text = re.sub(rf"(fill|stroke): {color}\b", rf"\g<1>: var(--{name})", text)
    return Markup(text)  # noqa: S704 - drawn a moment ago by figures.draw, which escapes what it writes
