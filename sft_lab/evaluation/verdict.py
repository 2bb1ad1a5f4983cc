"""The verdict on a run, with the numbers and the rule behind it.

``RULES`` has the rules in order; the first one that holds gives the verdict. ``docs/verdicts.md`` has the reasons.
Held-out loss is not everything (InstructGPT's labelers preferred models that had overfitted by this measure), so read
the samples too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sft_lab.core.bounds import Bounded, bounded
from sft_lab.core.text import count_of
from sft_lab.core.types import Curve, Verdict


@dataclass
class Limits(Bounded):
    """Thresholds of the rules, as shares of a loss or of rows.

    Attributes:
        converged_within: a run has converged at the step from which its held-out loss stays this close to its best.
    """

    min_evaluations: int = bounded(3, at_least=2)
    diverged_rise: float = bounded(0.2, above=0)
    stray_share: float = bounded(0.5, above=0)
    recalled_share: float = bounded(0.5, above=0)
    overfitting_rise: float = bounded(0.05, above=0)
    overfitting_gap: float = bounded(0.2, above=0)
    underfitting_gain: float = bounded(0.01, above=0)
    undertrained_share: float = bounded(0.33, above=0)
    ended_share: float = bounded(0.1, above=0)
    able_accuracy: float = bounded(0.2, above=0)
    converged_within: float = bounded(0.01, above=0)


@dataclass(frozen=True)
class Observed:
    """The measurements by which a run is judged.

    Attributes:
        held_out: (step, held-out loss) of each measurement after step 0, in order.
        train: (step, training loss) of each log, in order.
        base: metrics of the base model, by their summary names (``eval/loss``, ``train/probe_loss``, ...).
        tuned: metrics of the tuned model.
        rates: (step, learning rate) of each log; without them all steps count the same.
        all_finite: whether no loss or gradient was NaN or infinite.
    """

    held_out: Curve
    train: Curve
    base: Mapping[str, Any]
    tuned: Mapping[str, Any]
    rates: Curve = field(default_factory=list)
    all_finite: bool = True

    @property
    def gap_share(self) -> float:
        """How far training lowered the loss on training rows below that on held-out rows, as a share of the latter."""

        def gap(metrics: Mapping[str, Any]) -> float:
            probe, held_out = metrics.get("train/probe_loss"), metrics.get("eval/loss")
            return 1 - probe / held_out if probe is not None and held_out else 0.0

        return gap(self.tuned) - gap(self.base)

    @property
    def best(self) -> float:
        """The lowest held-out loss."""
        return min(loss for _, loss in self.held_out)

    @property
    def last(self) -> float:
        """The held-out loss at the end."""
        return self.held_out[-1][1]

    @property
    def rise_from_best(self) -> float:
        """How far the held-out loss ended above its lowest, as a share."""
        return _rise(self.last, self.best)


@dataclass(frozen=True)
class Judgment:
    """A verdict and its evidence: the rule, value, limit and message of each rule that was applied."""

    name: Verdict
    evidence: list[dict[str, Any]]


@dataclass(frozen=True)
class Finding:
    """The outcome of one rule.

    Attributes:
        rule: the verdict that the rule gives if it holds.
        holds: whether it holds.
        value: the number that it compares; None without one.
        limit: the number with which it is compared, from the config.
        message: the outcome as a sentence.
    """

    rule: Verdict
    holds: bool
    value: float | None
    limit: float | None
    message: str

    def as_evidence(self) -> dict[str, Any]:
        """Return the outcome as ``summary.json`` has it."""
        return {"rule": self.rule, "value": self.value, "limit": self.limit, "says": self.message}


def judge(observed: Observed, limits: Limits) -> Judgment:
    """Return the verdict on a run, by the first rule that holds."""
    evidence = []
    for rule in RULES:
        finding = rule(observed, limits)
        if finding is None:
            continue
        evidence.append(finding.as_evidence())
        if finding.holds:
            return Judgment(finding.rule, evidence)
    raise AssertionError("the last rule holds always")


def _not_a_number(observed: Observed, _: Limits) -> Finding | None:
    """``diverged``: a loss or gradient is not a finite number."""
    losses = [loss for _, loss in (*observed.held_out, *observed.train)]
    losses += [observed.tuned.get(name) or 0.0 for name in ("eval/loss", "train/probe_loss")]
    broken = not observed.all_finite or not all(map(math.isfinite, losses))
    return Finding(Verdict.DIVERGED, True, None, None, "a loss was not a number") if broken else None


def _too_little(observed: Observed, limits: Limits) -> Finding | None:
    """``not_judged``: no finite held-out loss of the base model, or fewer than ``min_evaluations`` measurements."""
    known, needed, base = len(observed.held_out), limits.min_evaluations, observed.base.get("eval/loss")
    if base is not None and not math.isfinite(base):
        return Finding(Verdict.NOT_JUDGED, True, None, None, "the base model's held-out loss is not a number")
    if base is not None and known >= needed:
        return None
    return Finding(
        Verdict.NOT_JUDGED,
        True,
        known,
        needed,
        f"only {count_of(known, 'held-out measurement')}, but {needed} are needed",
    )


def _above_base(observed: Observed, limits: Limits) -> Finding:
    """``diverged``: held-out loss ends ``diverged_rise`` above the base model's, and training rows got worse too."""
    rise = _rise(observed.last, observed.base["eval/loss"])
    before, after = (metrics.get("train/probe_loss") for metrics in (observed.base, observed.tuned))
    worse = before is None or after is None or after > before  # a run that overfits gets better on its training rows
    message = f"held-out loss ended {_change(rise)} the base model's"
    if rise >= limits.diverged_rise and not worse:
        message += ", but the loss on training rows fell"
    return Finding(Verdict.DIVERGED, rise >= limits.diverged_rise and worse, rise, limits.diverged_rise, message)


def _broke_down(observed: Observed, limits: Limits) -> Finding | None:
    """``diverged``: held-out and training loss both end ``diverged_rise`` above their own lowest."""
    rise = _train_rise(observed.train)
    if rise < limits.diverged_rise or observed.rise_from_best < limits.diverged_rise:
        return None
    message = f"training loss ended {_change(rise)} its lowest, and held-out loss {_change(observed.rise_from_best)}"
    return Finding(Verdict.DIVERGED, True, rise, limits.diverged_rise, message)


def _stray_tokens(observed: Observed, limits: Limits) -> Finding | None:
    """``template_not_learned``: ``stray_share`` more answers than of the base model's hold control tokens."""
    after = observed.tuned.get("outputs/stray_share")
    if after is None:
        return None
    increase = after - (observed.base.get("outputs/stray_share") or 0.0)
    message = f"{after:.0%} of the answers to held-out prompts contain control tokens"
    return Finding(Verdict.TEMPLATE_NOT_LEARNED, increase >= limits.stray_share, increase, limits.stray_share, message)


def _foreign_end(observed: Observed, limits: Limits) -> Finding | None:
    """``template_not_learned``: another model family's end token, written as text, is likelier than an end."""
    foreign, stop = (observed.tuned.get(f"eval/{name}_probability") or 0.0 for name in ("foreign", "stop"))
    if not foreign:
        return None
    share = foreign / (foreign + stop)
    message = f"another model family's end token makes up {share:.0%} of the probability that an answer ends"
    return Finding(Verdict.TEMPLATE_NOT_LEARNED, share >= limits.stray_share, share, limits.stray_share, message)


def _recalled(observed: Observed, limits: Limits) -> Finding | None:
    """``memorizing``: ``recalled_share`` more training rows than held-out rows are continued word for word.

    The measure of Carlini et al., "Quantifying memorization across neural language models", ICLR 2023.
    """
    recalled = observed.tuned.get("train/recalled_share")
    if recalled is None:
        return None
    # Rows that the base model knew, or that are as predictable as unseen ones, were not memorized.
    unseen = observed.tuned.get("eval/recalled_share") or 0.0
    untrained = observed.base.get("train/recalled_share") or 0.0
    excess = recalled - max(unseen, untrained)
    message = f"{recalled:.0%} of the training rows are continued word for word"
    return Finding(Verdict.MEMORIZING, excess >= limits.recalled_share, excess, limits.recalled_share, message)


def _rose_again(observed: Observed, limits: Limits) -> Finding:
    """``overfitting``: held-out loss ends ``overfitting_rise`` above its best while training loss kept falling.

    Generalization loss of Prechelt, "Early stopping, but when?", LNCS 1524. Two fifths of the rise are enough if
    training lowered the loss on training rows ``overfitting_gap`` below that on held-out rows.
    """
    limit = limits.overfitting_rise * (0.4 if observed.gap_share >= limits.overfitting_gap else 1)
    holds = observed.rise_from_best >= limit and _still_falls(observed.held_out, observed.train)
    message = f"held-out loss ended {_from_best(observed)}"
    if observed.gap_share > 0:
        message += f"; training brought the loss on training rows {observed.gap_share:.0%} below it"
    return Finding(Verdict.OVERFITTING, holds, observed.rise_from_best, limit, message)


def _hardly_improved(observed: Observed, limits: Limits) -> Finding:
    """``underfitting``: the best held-out loss is less than ``underfitting_gain`` below the base model's."""
    gain = -_rise(observed.best, observed.base["eval/loss"])
    message = f"the best held-out loss is {_change(-gain)} the base model's"
    return Finding(Verdict.UNDERFITTING, gain < limits.underfitting_gain, gain, limits.underfitting_gain, message)


def _still_improving(observed: Observed, limits: Limits) -> Finding:
    """``undertrained``: ``undertrained_share`` of the gain came in the last third; 1/3 would be a straight line."""
    base = observed.base["eval/loss"]
    late = _at([(0, base), *observed.held_out], _last_third(observed.rates, observed.held_out[-1][0]))
    share = (late - observed.last) / (base - observed.best)  # above 0: `underfitting` came first
    message = f"{share:.0%} of the gain came in the last third of training (by learning rate spent)"
    return Finding(Verdict.UNDERTRAINED, share >= limits.undertrained_share, share, limits.undertrained_share, message)


def _never_ends(observed: Observed, limits: Limits) -> Finding | None:
    """``template_not_learned``: neither its own answers nor true ones are ended with a chance of ``ended_share``."""
    stop, accuracy = (observed.tuned.get(f"eval/{name}") for name in ("stop_probability", "token_accuracy"))
    # A model that predicts hardly any token cannot be expected to predict the end of a turn.
    if stop is None or accuracy is None or accuracy < limits.able_accuracy:
        return None
    ends = max(stop, observed.tuned.get("outputs/ended_share") or 0.0)
    message = f"answers end their turn with a probability of {ends:.0%}"
    return Finding(Verdict.TEMPLATE_NOT_LEARNED, ends < limits.ended_share, ends, limits.ended_share, message)


def _healthy(observed: Observed, _: Limits) -> Finding:
    rise = _rise(observed.last, observed.base["eval/loss"])
    message = f"held-out loss ended {_change(rise)} the base model's and {_from_best(observed)}"
    return Finding(Verdict.HEALTHY, True, rise, None, message)


RULES: tuple[Callable[[Observed, Limits], Finding | None], ...] = (
    _not_a_number, _too_little, _above_base, _broke_down, _stray_tokens, _foreign_end, _recalled, _rose_again,
    _hardly_improved, _still_improving, _never_ends, _healthy,
)  # fmt: skip


def _rise(after: float, before: float) -> float:
    """Return how far one loss is above another, as a share of the latter; infinity above a loss of 0."""
    if before:
        return after / before - 1
    return math.inf if after else 0.0


def _change(share: float) -> str:
    return f"{abs(share):.1%} {'above' if share > 0 else 'below'}"


def _train_rise(train: Curve) -> float:
    """Return how far training loss ended above its lowest, as a share; each is a mean over a fifth of the noisy log."""
    losses = [loss for _, loss in train]
    width = max(1, len(losses) // 5)
    means = [sum(losses[start : start + width]) / width for start in range(len(losses) - width + 1)]
    return means[-1] / min(means) - 1 if means and min(means) > 0 else 0.0


def converged_at(held_out: Curve, within: float) -> int | None:
    """Return the step from which held-out loss stays within a share of its best; None if it ends outside."""
    if not held_out or not all(math.isfinite(loss) for _, loss in held_out):
        return None
    limit = min(loss for _, loss in held_out) * (1 + within)
    step = None
    for measured_at, loss in reversed(held_out):
        if loss > limit:
            break
        step = int(measured_at)
    return step


def _at(curve: Curve, position: float) -> float:
    """Return a curve's value at a position, linear between its points."""
    before = max((point for point in curve if point[0] <= position), default=curve[0])
    after = min((point for point in curve if point[0] >= position), default=curve[-1])
    if after[0] == before[0]:
        return after[1]
    return before[1] + (after[1] - before[1]) * (position - before[0]) / (after[0] - before[0])


def _last_third(rates: Curve, end: float) -> float:
    """Return the step by which two thirds of the summed learning rate had been spent.

    Steps do not count equally: at the end of a cosine or linear schedule hardly anything is learned, however much there
    is left to learn, and every curve is flat.
    """
    spent, last_step = 0.0, 0.0
    step_by_spent: Curve = [(0.0, 0)]
    for step, rate in rates:
        spent += rate * (step - last_step)
        step_by_spent.append((spent, step))
        last_step = step
    return _at(step_by_spent, spent * 2 / 3) if spent else end * 2 / 3


def _from_best(observed: Observed) -> str:
    rise = f"{observed.rise_from_best:.1%}"
    return "at its best" if rise == "0.0%" else f"{rise} above its best"


def _still_falls(held_out: Curve, train: Curve) -> bool:
    """Return whether training loss kept falling after the step of the best held-out loss."""
    best_step = min(held_out, key=lambda point: point[1])[0]
    before = [loss for step, loss in train if step <= best_step]
    after = [loss for step, loss in train if step > best_step]
    return bool(before and after) and after[-1] < before[-1]
