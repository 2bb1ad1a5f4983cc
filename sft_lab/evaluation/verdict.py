"""Verdicts: one judgement per run, by held-out loss, with the numbers and the rule behind it.

The rules, in order; the first that holds is the verdict:

1. ``not_judged``: no held-out loss, or fewer evaluations than ``min_evaluations``.
2. ``diverged``: a loss that is no number, or a held-out loss that ends ``diverged_rise`` above the base model's.
3. ``overfitting``: held-out loss ends ``overfitting_rise`` above its best while training loss went on falling
   (generalization loss of Prechelt, "Early stopping, but when?", LNCS 1524).
4. ``underfitting``: the best held-out loss is less than ``underfitting_gain`` below the base model's.
5. ``undertrained``: over the last third of training it still fell by ``undertrained_slope`` or more.
6. ``healthy``.

Held-out loss is not the last word (InstructGPT's testers preferred models that overfitted by this measure), so read
the samples beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sft_lab.errors import require

Curve = list[tuple[int, float]]


@dataclass
class Limits:
    """Where the rules cut; shares of a loss.

    Attributes:
        converged_within: converged is the step from which held-out loss stays this near to its best.
    """

    min_evaluations: int = 3
    diverged_rise: float = 0.2
    overfitting_rise: float = 0.05
    underfitting_gain: float = 0.01
    undertrained_slope: float = 0.01
    converged_within: float = 0.01

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require(self.min_evaluations >= 2, "min_evaluations", self.min_evaluations, "at least 2")
        for name in (
            "diverged_rise", "overfitting_rise", "underfitting_gain", "undertrained_slope", "converged_within",
        ):  # fmt: skip
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")


@dataclass(frozen=True)
class Verdict:
    """A judgement and its evidence: for each rule looked at its name, value, limit and what it says."""

    name: str
    evidence: list[dict[str, Any]]


def judge(
    held_out: Curve, train: Curve, base_loss: float | None, limits: Limits, *, all_finite: bool = True
) -> Verdict:
    """Judge a run.

    Args:
        held_out: (step, held-out loss) of each evaluation after step 0, in order.
        train: (step, training loss) of each log, in order.
        base_loss: held-out loss of the base model.
        limits: where the rules cut.
        all_finite: no loss or gradient was NaN or infinite.
    """
    evidence: list[dict[str, Any]] = []

    def holds(rule: str, value: float, limit: float, says: str) -> bool:
        evidence.append({"rule": rule, "value": value, "limit": limit, "says": says})
        return value >= limit

    losses = [loss for _, loss in held_out]
    if not all_finite or not all(map(math.isfinite, losses)):
        evidence.append({"rule": "diverged", "value": None, "limit": None, "says": "a loss was not a number"})
        return Verdict("diverged", evidence)
    if base_loss is None or len(losses) < limits.min_evaluations:
        says = f"{len(losses)} held-out evaluations, {limits.min_evaluations} are needed"
        evidence.append({"rule": "not_judged", "value": len(losses), "limit": limits.min_evaluations, "says": says})
        return Verdict("not_judged", evidence)

    best, last = min(losses), losses[-1]
    rise = last / base_loss - 1
    says = f"held-out loss ended {abs(rise):.1%} {'above' if rise > 0 else 'below'} the base model's"
    if holds("diverged", rise, limits.diverged_rise, says):
        return Verdict("diverged", evidence)
    back = last / best - 1
    says = f"held-out loss ended {back:.1%} above its best"
    if holds("overfitting", back, limits.overfitting_rise, says) and _still_falls(held_out, train):
        return Verdict("overfitting", evidence)
    gain = 1 - best / base_loss
    says = f"the best held-out loss is {abs(gain):.1%} {'below' if gain > 0 else 'above'} the base model's"
    if not holds("underfitting", gain, limits.underfitting_gain, says):
        return Verdict("underfitting", evidence)
    slope = 1 - last / _two_thirds(held_out)
    says = f"over the last third of training, held-out loss changed by {-slope:+.1%}"
    if holds("undertrained", slope, limits.undertrained_slope, says):
        return Verdict("undertrained", evidence)
    return Verdict("healthy", evidence)


def converged_at(held_out: Curve, within: float) -> int | None:
    """Step from which held-out loss stays within a share of its best; None when it ends outside."""
    if not held_out or not all(math.isfinite(loss) for _, loss in held_out):
        return None
    limit = min(loss for _, loss in held_out) * (1 + within)
    step = None
    for at, loss in reversed(held_out):
        if loss > limit:
            break
        step = at
    return step


def _two_thirds(curve: Curve) -> float:
    """The loss at the last evaluation at or before two thirds of the steps."""
    end = curve[-1][0]
    return next((loss for step, loss in reversed(curve) if step <= end * 2 / 3), curve[0][1])


def _still_falls(held_out: Curve, train: Curve) -> bool:
    """Whether training loss after the held-out best lies below that at the best."""
    best_step = min(held_out, key=lambda point: point[1])[0]
    before = [loss for step, loss in train if step <= best_step]
    after = [loss for step, loss in train if step > best_step]
    return bool(before and after) and after[-1] < before[-1]
