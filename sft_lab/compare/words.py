"""The comparison in sentences: what may be claimed, and what it does not say."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from sft_lab.compare.axes import SEED, short_names, shown
from sft_lab.compare.collect import is_diverged, is_number
from sft_lab.compare.noise import (
    BEYOND_SPREAD,
    FEW_ROWS,
    NONE,
    ON_ROWS,
    OVER_SEEDS,
    SEEDS_NEEDED,
    WINS,
    Difference,
    Interval,
)  # fmt: skip
from sft_lab.folder import FINISHED
from sft_lab.run import CHOOSING

if TYPE_CHECKING:
    from sft_lab.compare.comparison import Comparison, Setting

# Claim -> in a few words.
CLAIMS = {
    OVER_SEEDS: "differs over seeds",
    BEYOND_SPREAD: "differs by more than the seed spread",
    ON_ROWS: "differs on these rows only",
    NONE: "not told apart",
}
UNITS = {"eval/loss": "nats per token", "eval/bits_per_byte": "bits per byte"}
MOST_NAMES = 3


class Headline(NamedTuple):
    """What comes first: a badge with its tone (``good``, ``fair``, ``bad``, ``none``), and sentences."""

    badge: str
    tone: str
    sentences: list[str]


def name_of(axes: dict[str, Any], names: dict[str, str]) -> str:
    """Name a setting or job by its axes."""
    return ", ".join(f"{names.get(key, key)}={shown(value)}" for key, value in axes.items())


def headline(found: Comparison) -> Headline:
    """Say which setting is best, by how much, how sure that is, and what mattered most."""
    if found.alarms:
        return Headline("not comparable", "bad", found.alarms)
    if not found.settings or found.best is None:
        done = sum(job.state == FINISHED for job in found.jobs)
        return Headline(
            "nothing to compare yet",
            "none",
            [f"{done} of {_jobs(len(found.jobs))} finished, none with a held-out loss."],
        )
    names = short_names(found.axes)
    first, *others = found.settings
    title = name_of(first.axes, names) or found.best.name
    level = f"{first.loss:.4f} {UNITS[found.measure]}"
    if not others:
        what = (
            f"{len(first.jobs)} seeds of one setting: {level} on average"
            if len(first.jobs) > 1
            else f"{title}: {level}"
        )
        return Headline("one setting", "none", [f"{what}{_beside_base(found)}.", *_seed_range(found)])
    mean = f" (mean of {len(first.jobs)} seeds)" if len(first.jobs) > 1 else ""
    sentences = [f"{title} is best: {level}{mean}{_beside_base(found)}{_before_next(others[0], names)}."]
    sentences += [*_claim(found, names), *_mattered(found, names)]
    if found.winner:
        claims = {one.from_best.claim for one in others if one.from_best}
        badge = "better over seeds" if claims == {OVER_SEEDS} else "likely better"
        return Headline(badge, "good", sentences)
    return Headline("no clear winner", "fair", sentences)


def _beside_base(found: Comparison) -> str:
    base = found.over_base
    if base is None:
        return ""
    return f", {percent(abs(base.share))} {'below' if base.value < 0 else 'above'} the base model{_within(base)}"


def _before_next(second: Setting, names: dict[str, str]) -> str:
    difference = second.from_best
    if difference is None:
        return f"; next is {name_of(second.axes, names)} with {second.loss:.4f}"
    return f"; the next, {name_of(second.axes, names)}, is {percent(difference.share)} above it{_within(difference)}"


def _within(difference: Difference) -> str:
    """The interval over rows and seeds in percent, in the direction that the sentence speaks of."""
    scale = difference.share / difference.value if difference.value else 0.0
    sign = -1 if difference.value < 0 else 1
    low, high = sorted(sign * scale * end for end in difference.over_seeds)
    return f" ({percent(low)} to {percent(high)})"


def _claim(found: Comparison, names: dict[str, str]) -> list[str]:
    others = [(setting, setting.from_best) for setting in found.settings[1:]]
    if any(difference is None for _, difference in others):
        return ["Without the loss of each row nothing is said about chance."]
    near = [setting for setting, difference in others if difference and difference.claim not in WINS]
    guessed = any(difference.claim in (BEYOND_SPREAD, ON_ROWS) for _, difference in others if difference)
    if not near:
        sure = "Its lead over every other setting is larger than chance in rows and seeds would make it"
        return [f"{sure}; the spread of seeds is {_source(found)}." if guessed else f"{sure}."]
    only_rows = sum(1 for setting in near if setting.from_best and setting.from_best.claim == ON_ROWS)
    listed = _listed([name_of(setting.axes, names) for setting in near], "; ")
    says = [f"As settings it is not told apart from {listed}: with other seeds or rows the order may turn."]
    if only_rows:
        one = "one of them differs" if only_rows == 1 else f"{only_rows} of them differ"
        says.append(f"On these rows, with these weights, {one} from it.")
    return says


def _source(found: Comparison) -> str:
    share = percent(found.spread.share)
    if found.spread.replicates:
        return f"{share} of the loss, from {_many(found.spread.replicates, 'replicate')} here and a prior"
    return (
        f"assumed to be {share} of the loss, since no setting has two seeds; {SEEDS_NEEDED} seeds of each would show it"
    )


def _mattered(found: Comparison, names: dict[str, str]) -> list[str]:
    choices = [effect for effect in found.effects if effect.axis != SEED]
    if len(found.axes) < 2 or not choices:
        return []
    top = choices[0]
    between = f"{top.range:.4f} between its best value, {shown(top.best.value)}, and its worst"
    says = f"{names[top.axis]} mattered most: {between}"
    if not top.matched:
        says += ", though other axes differ between them too"
    if top.difference and top.difference.claim not in WINS:
        says += ", which chance may explain"
    rest = "; ".join(f"{names[effect.axis]} {effect.range:.4f}" for effect in choices[1:3])
    return [f"{says} ({rest})." if rest else f"{says}.", *_seed_range(found)]


def _seed_range(found: Comparison) -> list[str]:
    effect = next((one for one in found.effects if one.axis == SEED), None)
    if effect is None or not (effect.matched or len(found.settings) == 1):
        return []
    losses = [loss for level in effect.levels for _, loss in level.jobs]
    if len(found.settings) == 1:
        return [f"Its losses lie from {min(losses):.4f} to {max(losses):.4f}."]
    return [f"The seed alone moved the mean by {effect.range:.4f}."]


def other_rows(fingerprints: dict[str, list[str]]) -> str:
    """Say that jobs were scored on other rows."""
    groups = "; ".join(f"{fingerprint[:12]}: {_listed(jobs, ', ')}" for fingerprint, jobs in fingerprints.items())
    return f"The held-out rows are not the same for all jobs, so no winner is named ({groups})."


def notes(found: Comparison) -> list[str]:
    """Give what a reader should know before believing the numbers."""
    says = []
    if found.why:
        says.append(f"Compared by bits per byte, the objective by default: {found.why}.")
    if len(found.settings) > 1:
        says.append(
            f"The best of {_many(len(found.settings), 'setting')} was chosen on the held-out rows it is judged on, so "
            "its own loss is a little too good; rows that nobody chose by would tell."
        )
        says.append(_seeds(found))
    if 0 < found.rows < FEW_ROWS:
        says.append(f"Only {_many(found.rows, 'held-out row')}: intervals are wide, and rough.")
    scored = [len(job.tuned.ids) for job in found.jobs if job.judged and job.tuned]
    if found.rows and max(scored) > found.rows:
        says.append(
            f"Compared on the {found.rows} held-out rows that all jobs have; the table has each job's own loss."
        )
    left = [job for job in found.jobs if not job.judged]
    if left and found.settings:
        says.append(f"{_jobs(len(left))} not judged: {_states(found)}. What is said here may change.")
    if "unknown" in found.fingerprints:
        without = _listed(found.fingerprints["unknown"], ", ")
        says.append(f"No held-out fingerprint in {without}; rows are matched by their ids.")
    if found.effects and (broken := sum(is_diverged(job) for job in found.jobs)):
        says.append(f"{_jobs(broken)} diverged, and {'is' if broken == 1 else 'are'} left out of what each axis did.")
    if len(found.bases) > 1 and not found.alarms:
        says.append("Jobs began from different base models; each is measured against its own.")
    return [*says, *_same_rows(found), *_kept_equal(found)]


def _same_rows(found: Comparison) -> list[str]:
    """Choices of rows that came to the same: they are one setting, whatever the table says."""
    groups: dict[str, list[str]] = {}
    names = short_names(found.axes)
    for job in found.jobs:
        chosen = {axis: value for axis, value in job.axes.items() if axis.partition(".")[0] in CHOOSING}
        if job.judged and job.trained and chosen:
            others = {axis: value for axis, value in job.axes.items() if axis not in chosen}
            groups.setdefault(json.dumps([job.trained, others], default=str), []).append(name_of(chosen, names))
    alike = dict.fromkeys(" and ".join(group) for group in groups.values() if len(set(group)) > 1)
    return [f"{told} kept the same training rows: one training, done more than once." for told in alike]


def _seeds(found: Comparison) -> str:
    fewest = min(len(setting.jobs) for setting in found.settings)
    if fewest >= SEEDS_NEEDED:
        return f"Every setting has {fewest} seeds or more: differences are claimed over seeds and rows."
    have = "one seed" if fewest == 1 else f"{fewest} seeds"
    return (
        f"Settings have as few as {have}, which does not show what a seed does. A difference is claimed between "
        f"settings only where it is larger than the spread of seeds, {_source(found)}."
    )


def _states(found: Comparison) -> str:
    states = [job.state if job.state != FINISHED else "no held-out loss" for job in found.jobs if not job.judged]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _kept_equal(found: Comparison) -> list[str]:
    """Where the number of rows differs, something else cannot stay equal; say what did."""
    judged = [job.summary for job in found.jobs if job.judged]
    rows = {summary.get("train_rows") for summary in judged}
    if len(rows) < 2:
        return []
    kept = []
    for key, name in (("steps", "optimizer steps"), ("epochs", "epochs"), ("train_tokens", "trained tokens")):
        values = [float(value) for summary in judged if is_number(value := summary.get(key))]
        if len(values) == len(judged) and max(values) - min(values) <= 0.01 * abs(max(values)):
            kept.append(name)
    equal = f"{' and '.join(kept)} stayed equal" if kept else "neither steps, epochs nor tokens stayed equal"
    return [f"Jobs trained on different numbers of rows; {equal}."]


def percent(share: float) -> str:
    """A share in percent, with a digit more where it is small."""
    return (f"{share:.2%}" if abs(share) < 0.1 else f"{share:.1%}").replace("-", "−")


def interval(ends: Interval, digits: int = 4) -> str:
    """An interval in the measure's unit."""
    return f"{ends.low:+.{digits}f} to {ends.high:+.{digits}f}".replace("-", "−")


def _listed(names: list[str], between: str) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"{between.join(names[:MOST_NAMES])}{more}"


def _jobs(count: int) -> str:
    return _many(count, "job")


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
