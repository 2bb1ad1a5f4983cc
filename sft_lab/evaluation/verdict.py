"""Verdicts: one judgement per run, by held-out loss and its companions, with the numbers and the rule behind it.

The rules, in order; the first that holds is the verdict (``docs/verdicts.md`` has the reasons):

1. ``diverged``: a loss that is no number.
2. ``not_judged``: no held-out loss, or fewer measurements than ``min_evaluations``.
3. ``diverged``: held-out loss ends ``diverged_rise`` above the base model's or above its own best, and so does what is
   trained on.
4. ``template_not_learned``: ``stray_share`` of the answers to held-out prompts hold control tokens, and fewer of the
   base model's.
5. ``memorizing``: ``recalled_share`` more of the training rows than of held-out rows, and than by the base model, are
   continued word for word (Carlini et al., ICLR 2023).
6. ``overfitting``: held-out loss ends ``overfitting_rise`` above its best while training loss went on falling
   (generalization loss of Prechelt, "Early stopping, but when?", LNCS 1524).
7. ``underfitting``: the best held-out loss is less than ``underfitting_gain`` below the base model's.
8. ``undertrained``: over the last third of training it still fell by ``undertrained_slope`` or more.
9. ``template_not_learned``: no answer to a held-out prompt ends its turn, nor does ``ended_share`` of the true answers
   make the end of turn the likeliest token.
10. ``healthy``.

Held-out loss is not the last word (InstructGPT's testers preferred models that overfitted by this measure), so read
the samples beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sft_lab.errors import require

Curve = list[tuple[int, float]]


@dataclass
class Limits:
    """Where the rules cut; shares of a loss, or of rows.

    Attributes:
        converged_within: converged is the step from which held-out loss stays this near to its best.
    """

    min_evaluations: int = 3
    diverged_rise: float = 0.2
    stray_share: float = 0.5
    recalled_share: float = 0.5
    overfitting_rise: float = 0.05
    underfitting_gain: float = 0.01
    undertrained_slope: float = 0.01
    ended_share: float = 0.1
    converged_within: float = 0.01

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require(self.min_evaluations >= 2, "min_evaluations", self.min_evaluations, "at least 2")
        for name in (
            "diverged_rise", "stray_share", "recalled_share", "overfitting_rise", "underfitting_gain",
            "undertrained_slope", "ended_share", "converged_within",
        ):  # fmt: skip
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")


@dataclass(frozen=True)
class Observed:
    """What a run is judged by.

    Attributes:
        held_out: (step, held-out loss) of each measurement after step 0, in order.
        train: (step, training loss) of each log, in order.
        base: numbers of the base model, by their summary names (``eval/loss``, ``train/probe_loss``, ...).
        tuned: the same of the tuned one.
        all_finite: no loss or gradient was NaN or infinite.
    """

    held_out: Curve
    train: Curve
    base: Mapping[str, Any]
    tuned: Mapping[str, Any]
    all_finite: bool = True


@dataclass(frozen=True)
class Verdict:
    """A judgement and its evidence: for each rule looked at its name, value, limit and what it says."""

    name: str
    evidence: list[dict[str, Any]]


def judge(seen: Observed, limits: Limits) -> Verdict:
    """Judge a run."""
    evidence: list[dict[str, Any]] = []

    def holds(rule: str, value: float | None, limit: float, says: str) -> bool:
        if value is None:
            return False
        evidence.append({"rule": rule, "value": value, "limit": limit, "says": says})
        return value >= limit

    losses = [loss for _, loss in seen.held_out]
    base_loss = seen.base.get("eval/loss")
    if not seen.all_finite or not all(map(math.isfinite, losses)):
        evidence.append({"rule": "diverged", "value": None, "limit": None, "says": "a loss was not a number"})
        return Verdict("diverged", evidence)
    if base_loss is None or len(losses) < limits.min_evaluations:
        says = f"{len(losses)} held-out measurements, {limits.min_evaluations} are needed"
        evidence.append({"rule": "not_judged", "value": len(losses), "limit": limits.min_evaluations, "says": says})
        return Verdict("not_judged", evidence)

    best, last = min(losses), losses[-1]
    rise = last / base_loss - 1
    says = f"held-out loss ended {_change(rise)} the base model's"
    if holds("diverged", rise, limits.diverged_rise, says) and _probe_rise(seen) > 0:
        return Verdict("diverged", evidence)
    back = last / best - 1
    if back >= limits.diverged_rise and _train_rise(seen.train) >= limits.diverged_rise:
        says = f"held-out loss ended {back:.1%} above its best, and training loss {_train_rise(seen.train):.1%}"
        holds("diverged", back, limits.diverged_rise, says)
        return Verdict("diverged", evidence)

    stray = _more(seen, "outputs/stray_share")
    says = f"{_percent(seen.tuned.get('outputs/stray_share'))} of the answers to held-out prompts hold control tokens"
    if holds("template_not_learned", stray, limits.stray_share, says):
        return Verdict("template_not_learned", evidence)
    recalled = _recalled(seen)
    says = f"{_percent(recalled)} more of the training rows are known word for word than of unseen ones"
    if holds("memorizing", recalled, limits.recalled_share, says):
        return Verdict("memorizing", evidence)
    says = f"held-out loss ended {back:.1%} above its best"
    if holds("overfitting", back, limits.overfitting_rise, says) and _still_falls(seen.held_out, seen.train):
        return Verdict("overfitting", evidence)
    gain = 1 - best / base_loss
    says = f"the best held-out loss is {_change(-gain)} the base model's"
    if not holds("underfitting", gain, limits.underfitting_gain, says):
        return Verdict("underfitting", evidence)
    slope = 1 - last / _two_thirds(seen.held_out)
    says = f"over the last third of training, held-out loss changed by {-slope:+.1%}"
    if holds("undertrained", slope, limits.undertrained_slope, says):
        return Verdict("undertrained", evidence)
    ended = max(seen.tuned.get("outputs/ended_share") or 0.0, seen.tuned.get("eval/ended_share") or 0.0)
    says = f"{ended:.0%} of the answers end their turn"
    if not holds("template_not_learned", ended, limits.ended_share, says):
        return Verdict("template_not_learned", evidence)
    return Verdict("healthy", evidence)


def _change(share: float) -> str:
    return f"{abs(share):.1%} {'above' if share > 0 else 'below'}"


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.0%}"


def _more(seen: Observed, name: str) -> float | None:
    """How much more of something the tuned model has than the base model."""
    value = seen.tuned.get(name)
    return None if value is None else float(value) - float(seen.base.get(name) or 0.0)


def _recalled(seen: Observed) -> float | None:
    """Share of the training rows known word for word, beyond what the base model or chance gives."""
    known = seen.tuned.get("train/recalled_share")
    if known is None:
        return None
    unseen = max(seen.tuned.get("eval/recalled_share") or 0.0, seen.base.get("train/recalled_share") or 0.0)
    return float(known) - float(unseen)


def _probe_rise(seen: Observed) -> float:
    """How far the loss on the probe of training rows ended above the base model's, as a share."""
    before, after = (found.get("train/probe_loss") for found in (seen.base, seen.tuned))
    return after / before - 1 if before and after else 0.0


def _train_rise(train: Curve) -> float:
    """How far training loss ended above its lowest, as a share; means over a fifth of the log, since it is noisy."""
    losses = [loss for _, loss in train]
    width = max(1, len(losses) // 5)
    means = [sum(losses[start : start + width]) / width for start in range(len(losses) - width + 1)]
    return means[-1] / min(means) - 1 if means and min(means) > 0 else 0.0


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


def advice(verdict: str, trainer: Any) -> dict[str, str] | None:
    """Say what to try next: in a line, and as an override to copy.

    Args:
        verdict: a verdict's name.
        trainer: the knobs of the run it was given to.
    """
    rate, epochs = trainer.learning_rate, trainer.num_train_epochs
    by_steps = trainer.max_steps > 0
    longer = f"trainer.max_steps={2 * trainer.max_steps}" if by_steps else f"trainer.num_train_epochs={2 * epochs:g}"
    shorter = (
        f"trainer.max_steps={max(1, trainer.max_steps // 2)}"
        if by_steps
        else f"trainer.num_train_epochs={epochs / 2:g}"
    )
    return {
        "overfitting": {
            "says": "Train for fewer steps, or bring more varied data; early stopping keeps the best weights.",
            "override": f"{shorter} trainer.load_best_model_at_end=true",
        },
        "underfitting": {
            "says": "Raise the learning rate; if that does not help, look at the data, or take a larger model.",
            "override": f"trainer.learning_rate={10 * rate:g}",
        },
        "memorizing": {
            "says": "Train for fewer epochs, remove near copies, and bring more varied rows.",
            "override": f"{shorter} dedup=semantic",
        },
        "diverged": {
            "says": "Lower the learning rate.",
            "override": f"trainer.learning_rate={rate / 10:g}",
        },
        "undertrained": {"says": "Train longer: held-out loss was still falling.", "override": longer},
        "template_not_learned": {
            "says": "Look at what the template writes after an answer, and at samples.jsonl; then train longer.",
            "override": "template=auto",
        },
        "not_judged": {
            "says": "Measure more often, on more held-out rows.",
            "override": "trainer.eval_steps=0.2",
        },
    }.get(verdict)
