"""The comparison in sentences: what may be claimed, how certainly, and with what limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sft_lab.compare.axes import SEED, format_value, short_names
from sft_lab.compare.scores import Measure, Obstacle
from sft_lab.compare.settle import settling_commands
from sft_lab.compare.uncertainty import SEEDS_NEEDED, WINNING_CLAIMS, Claim, Interval, LossDifference
from sft_lab.core.text import count_of
from sft_lab.core.types import RunState
from sft_lab.core.verdict_warnings import warnings_beside
from sft_lab.report.formatting import with_minus

if TYPE_CHECKING:
    from sft_lab.compare.analyze import Comparison

NOISE = ", within the noise"  # of a difference that other rows or seeds may explain
MAX_NAMES = 3  # in a list inside a sentence
UNITS: dict[str, str] = {Measure.LOSS: "nats per token", Measure.BITS_PER_BYTE: "bits per byte"}
CLAIM_TEXTS = {
    Claim.OVER_SEEDS: "differs over seeds",
    Claim.BEYOND_SPREAD: "differs by more than the seed spread",
    Claim.ON_ROWS: "differs for these trainings only",
    Claim.NONE: "cannot be told apart",
}
OBSTACLE_TEXTS = {
    Obstacle.OTHER_ROWS: "Not all jobs were scored on the same held-out rows, so no winner is named",
    Obstacle.NO_COMMON_ROWS: "The jobs have no held-out rows in common, so they are not compared",
    Obstacle.OTHER_TEXTS: "Held-out rows with the same id have different texts, so the jobs are not compared",
}


class Headline(NamedTuple):
    """The main result.

    Attributes:
        badge: the result in two or three words.
        tone: of the badge: ``good``, ``fair``, ``bad`` or ``none``.
        sentences: the result in full; never empty.
        next_step: what would settle an order that chance may explain; empty where nothing is to be settled.
        commands: that do it.
    """

    badge: str
    tone: str
    sentences: list[str]
    next_step: str = ""
    commands: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the result without its badge as lines of text."""
        return [*self.sentences, *([self.next_step] if self.next_step else []), *self.commands]


def headline(comparison: Comparison) -> Headline:
    """Return which setting has the lowest loss, by how much, how certain that is, and what would settle it."""
    if comparison.obstacle:
        return Headline("not comparable", "bad", alarms(comparison))
    if comparison.best is None:
        finished = sum(job.state == RunState.FINISHED for job in comparison.jobs)
        total = count_of(len(comparison.jobs), "job")
        sentence = f"{finished} of {total} finished, none with a held-out loss."
        return Headline("nothing to compare yet", "none", [sentence])
    if len(comparison.settings) == 1:
        sentences = [_only_setting(comparison), *_seed_range(comparison), *_warnings(comparison)]
        return Headline("one setting", "none", sentences)

    sentences = [
        _lowest_loss(comparison),
        *_certainty(comparison),
        *_unequal_seeds(comparison),
        *_axis_that_mattered(comparison),
        *_seed_range(comparison),
        *_warnings(comparison),
    ]
    if not comparison.winner:
        return Headline("no clear winner", "fair", sentences, *_next_step(comparison))
    claims = {setting.from_best.claim for setting in comparison.settings[1:] if setting.from_best}
    badge = "better over seeds" if claims == {Claim.OVER_SEEDS} else "likely better"
    return Headline(badge, "good", sentences)


def _only_setting(comparison: Comparison) -> str:
    setting = comparison.settings[0]
    loss = f"{setting.loss:.4f} {UNITS[comparison.measure]}"
    if len(setting.jobs) > 1:
        result = f"its {len(setting.jobs)} seeds average {loss}"
    else:
        result = f"{_best_name(comparison)}: {loss}"
    return f"{result}{_beside_base(comparison)}."


def _lowest_loss(comparison: Comparison) -> str:
    best = comparison.settings[0]
    seeds = f" (mean of {len(best.jobs)} seeds)" if len(best.jobs) > 1 else ""
    loss = f"{best.loss:.4f} {UNITS[comparison.measure]}{seeds}"
    return f"{_best_name(comparison)} has the lowest loss, {loss}{_beside_base(comparison)}."


def _best_name(comparison: Comparison) -> str:
    """Return the best setting's axes; the job's name where no axis differs."""
    names = short_names(comparison.axes)
    job_name = comparison.best.name if comparison.best else ""
    return describe_axes(comparison.settings[0].axes, names) or job_name


def _beside_base(comparison: Comparison) -> str:
    base = comparison.over_base
    if base is None:
        return ""
    side = "below" if base.value < 0 else "above"
    noise = "" if base.claim in WINNING_CLAIMS else NOISE
    return f", {percent(abs(base.share))} {side} the base model{noise}{_relative_interval(base)}"


def _relative_interval(difference: LossDifference) -> str:
    """Return the interval over rows and seeds in percent, positive in the direction of the difference."""
    scale = difference.share / difference.value if difference.value else 0.0
    sign = -1 if difference.value < 0 else 1
    low, high = sorted(sign * scale * end for end in difference.over_seeds)
    return f" (95%: {percent(low)} to {percent(high)})"


def _certainty(comparison: Comparison) -> list[str]:
    """Return how far the others are from the lowest loss, and which of these distances chance may explain."""
    names = short_names(comparison.axes)
    second = comparison.settings[1]
    name = describe_axes(second.axes, names)
    if second.from_best is None:
        return [
            f"The next, {name}, has {second.loss:.4f}.",
            "Without per-row losses, chance cannot be ruled out.",
        ]

    distance = f"{percent(second.from_best.share)} above it"
    interval = _relative_interval(second.from_best)
    rivals = comparison.rivals
    if not rivals:
        claims = {setting.from_best.claim for setting in comparison.settings[1:] if setting.from_best}
        source = "" if claims == {Claim.OVER_SEEDS} else f"; the spread over seeds is {spread_source(comparison)}"
        lead = "The lead over every other setting is larger than different rows or seeds would explain"
        return [f"The next, {name}, is {distance}{interval}.", f"{lead}{source}."]

    is_near = second in rivals
    sentences = [f"The next, {name}, is {distance}{NOISE if is_near else ''}{interval}."]
    further = [setting for setting in rivals if setting is not second]
    if further:
        listed = [
            f"{describe_axes(setting.axes, names)} ({percent(setting.from_best.share)} above it)"
            for setting in further
            if setting.from_best
        ]
        sentences.append(f"{'Also within' if is_near else 'Within'} the noise: {join_names(listed, '; ')}.")
    on_rows = sum(rival.from_best is not None and rival.from_best.claim == Claim.ON_ROWS for rival in rivals)
    if on_rows:
        order = "this order" if on_rows == len(rivals) else f"the order of {on_rows} of them"
        sentences.append(
            f"{order.capitalize()} would hardly change on other held-out rows, but it might with other seeds."
        )
    return sentences


def _unequal_seeds(comparison: Comparison) -> list[str]:
    """Return that the first two settings have different seeds, and which is lower on the seeds they share."""
    names = short_names(comparison.axes)
    first, second = comparison.settings[:2]
    losses = [
        {job.config.get(SEED, 0): loss for job, loss in zip(setting.jobs, setting.losses, strict=True)}
        for setting in (first, second)
    ]
    if losses[0].keys() == losses[1].keys():
        return []
    titles = [describe_axes(setting.axes, names) for setting in (first, second)]
    listed = "; ".join(
        f"{title}: {', '.join(map(str, sorted(seeds)))}" for title, seeds in zip(titles, losses, strict=True)
    )
    sentence = f"Their seeds differ ({listed})"
    if shared := losses[0].keys() & losses[1].keys():
        means = [sum(seeds[seed] for seed in shared) / len(shared) for seeds in losses]
        lower = titles[means.index(min(means))]
        sentence += f"; on those they share, {lower} is lower ({min(means):.4f} against {max(means):.4f})"
    return [f"{sentence}."]


def _next_step(comparison: Comparison) -> tuple[str, tuple[str, ...]]:
    """Return what would settle the order of the settings that chance may have ordered, and the commands for it."""
    if not comparison.rivals:
        return "", ()
    if comparison.search is not None:
        return f"To settle it, run the same search again with --confirm {SEEDS_NEEDED}.", ()
    settling = settling_commands(comparison)
    if not settling.commands:
        return f"To settle it, train each of them with at least {SEEDS_NEEDED} seeds.", ()
    which = "each" if settling.settings > len(comparison.rivals) else f"the nearest {settling.settings}"
    return f"To settle it, train {settling.seeds} seeds of {which} (finished jobs are kept):", tuple(settling.commands)


def spread_source(comparison: Comparison) -> str:
    """Return the spread over seeds, and whether it is measured or assumed."""
    spread = comparison.spread
    if spread.replicates:
        replicates = count_of(spread.replicates, "replicate")
        return f"{percent(spread.share)} of the loss, estimated from {replicates} here and a prior"
    return (
        f"assumed to be {percent(spread.share)} of the loss, since no setting has two seeds; "
        f"{SEEDS_NEEDED} seeds of each would measure it"
    )


def _axis_that_mattered(comparison: Comparison) -> list[str]:
    """Return the largest effect where several axes compete; the distances say it all where there is one."""
    effects = [effect for effect in comparison.effects if effect.axis != SEED]
    if len(effects) < 2:
        return []

    names = short_names(comparison.axes)
    top, *rest = effects
    is_noise = top.difference is not None and top.difference.claim not in WINNING_CLAIMS
    levels = f"between {format_value(top.best.value)} (lowest) and {format_value(top.worst.value)} (highest)"
    sentence = f"{names[top.axis]} changed the loss most, by {top.range:.4f} {levels}{NOISE if is_noise else ''}"
    if not top.is_matched:
        sentence += ", though other axes differ between them too"
    listed = "; ".join(f"{names[effect.axis]} {effect.range:.4f}" for effect in rest[:2])
    return [f"{sentence}; then {listed}."]


def _warnings(comparison: Comparison) -> list[str]:
    """Return the warnings beside the verdict of the job with the lowest loss."""
    warnings = warnings_beside(comparison.best.summary) if comparison.best else []
    return [f"Warning about the job with the lowest loss: {warning.sentence}" for warning in warnings]


def _seed_range(comparison: Comparison) -> list[str]:
    """Return the effect of the seed, if it can be separated from the other axes."""
    effect = next((effect for effect in comparison.effects if effect.axis == SEED), None)
    if effect is None:
        return []
    if len(comparison.settings) == 1:
        losses = [loss for level in effect.levels for loss in level.losses.values()]
        return [f"Its losses range from {min(losses):.4f} to {max(losses):.4f}."]
    return [f"The seed alone moved the mean by {effect.range:.4f}."] if effect.is_matched else []


def alarms(comparison: Comparison) -> list[str]:
    """Return why finished jobs are not ranked; empty where they are."""
    if comparison.obstacle is None:
        return []
    text = OBSTACLE_TEXTS[comparison.obstacle]
    if comparison.obstacle != Obstacle.OTHER_ROWS:
        return [f"{text}."]
    groups = (f"{key[:12]}: {join_names(jobs, ', ')}" for key, jobs in comparison.fingerprints.items())
    return [f"{text} ({'; '.join(groups)})."]


def describe_axes(axes: dict[str, Any], names: dict[str, str]) -> str:
    """Return the axis values of a setting or job as ``name=value, name=value``."""
    return ", ".join(f"{names.get(key, key)}={format_value(value)}" for key, value in axes.items())


def percent(share: float) -> str:
    """Return a share in percent, with one more digit where it is small."""
    return with_minus(f"{share:.2%}" if abs(share) < 0.1 else f"{share:.1%}")


def format_interval(interval: Interval) -> str:
    """Return an interval in the unit of the measure."""
    return with_minus(f"{interval.low:+.4f} to {interval.high:+.4f}")


def join_names(names: list[str], separator: str) -> str:
    """Return the first names of a list, and how many are left out."""
    rest = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{separator.join(names[:MAX_NAMES])}{rest}"
