"""Verdicts: one judgement per run, by held-out loss and its companions, with the numbers and the rule behind it.

The rules, in order; the first that holds is the verdict (``docs/verdicts.md`` has the reasons):

1. ``diverged``: a loss that is no number.
2. ``not_judged``: no held-out loss, none of the base model that is a number, or fewer measurements than
   ``min_evaluations``.
3. ``diverged``: held-out loss ends ``diverged_rise`` above the base model's or above its own best, and so does what is
   trained on.
4. ``template_not_learned``: ``stray_share`` of the answers to held-out prompts hold control tokens, and fewer of the
   base model's; or the template writes another model family's end token as text before its own, and behind an answer
   that is likelier than an end.
5. ``memorizing``: ``recalled_share`` more of the training rows than of held-out rows, and than by the base model, are
   continued word for word (Carlini et al., ICLR 2023).
6. ``overfitting``: held-out loss ends ``overfitting_rise`` above its best while training loss went on falling
   (generalization loss of Prechelt, "Early stopping, but when?", LNCS 1524); two fifths of that are enough where
   training drew the loss on training rows ``overfitting_gap`` below that on held-out rows.
7. ``underfitting``: the best held-out loss is less than ``underfitting_gain`` below the base model's.
8. ``undertrained``: the last third of training, by learning rate spent, brought ``undertrained_share`` of all that was
   gained; a third of it would be a straight line.
9. ``template_not_learned``: neither an own answer nor the end of a true one ends its turn with a chance of
   ``ended_share``, in a model that foretells ``able_accuracy`` of the held-out tokens.
10. ``healthy``.

Held-out loss is not the last word (InstructGPT's testers preferred models that overfitted by this measure), so read
the samples beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sft_lab.errors import require

Curve = list[tuple[int, float]]
ECHOED = 0.5  # share of answers that only repeat the question, from which a healthy run is doubted


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
    overfitting_gap: float = 0.2
    underfitting_gain: float = 0.01
    undertrained_share: float = 0.33
    ended_share: float = 0.1
    able_accuracy: float = 0.2
    converged_within: float = 0.01

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require(self.min_evaluations >= 2, "min_evaluations", self.min_evaluations, "at least 2")
        for name in (
            "diverged_rise", "stray_share", "recalled_share", "overfitting_rise", "overfitting_gap",
            "underfitting_gain", "undertrained_share", "ended_share", "able_accuracy",
            "converged_within",
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
        rates: (step, learning rate) of each log; without them all steps count alike.
        all_finite: no loss or gradient was NaN or infinite.
    """

    held_out: Curve
    train: Curve
    base: Mapping[str, Any]
    tuned: Mapping[str, Any]
    rates: Curve = field(default_factory=list)
    all_finite: bool = True

    @property
    def gap_share(self) -> float:
        """How far training drew the loss on training rows below that on held-out rows, as a share of the latter."""

        def gap(found: Mapping[str, Any]) -> float:
            probe, held_out = found.get("train/probe_loss"), found.get("eval/loss")
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
    def back(self) -> float:
        """How far it ended above its lowest, as a share."""
        return _rise(self.last, self.best)


@dataclass(frozen=True)
class Verdict:
    """A judgement and its evidence: for each rule looked at its name, value, limit and what it says."""

    name: str
    evidence: list[dict[str, Any]]


@dataclass(frozen=True)
class Finding:
    """What one rule found.

    Attributes:
        rule: the verdict it gives.
        holds: whether it gives it.
        value: the number it looked at; None where there is none.
        limit: from the config.
        says: the same in words.
    """

    rule: str
    holds: bool
    value: float | None
    limit: float | None
    says: str


def judge(seen: Observed, limits: Limits) -> Verdict:
    """Judge a run by the first rule that holds."""
    evidence = []
    for rule in RULES:
        found = rule(seen, limits)
        if found is None:
            continue
        evidence.append({"rule": found.rule, "value": found.value, "limit": found.limit, "says": found.says})
        if found.holds:
            return Verdict(found.rule, evidence)
    rise = _rise(seen.last, seen.base["eval/loss"])
    says = f"held-out loss ended {_change(rise)} the base model's and {_from_best(seen)}"
    return Verdict("healthy", [*evidence, {"rule": "healthy", "value": rise, "limit": None, "says": says}])


def _not_a_number(seen: Observed, _: Limits) -> Finding | None:
    losses = [loss for _, loss in (*seen.held_out, *seen.train)]
    losses += [seen.tuned.get(name) or 0.0 for name in ("eval/loss", "train/probe_loss")]
    broken = not seen.all_finite or not all(map(math.isfinite, losses))
    return Finding("diverged", True, None, None, "a loss was not a number") if broken else None


def _too_little(seen: Observed, limits: Limits) -> Finding | None:
    known, needed, base = len(seen.held_out), limits.min_evaluations, seen.base.get("eval/loss")
    if base is not None and not math.isfinite(base):
        return Finding("not_judged", True, None, None, "the base model's held-out loss is not a number")
    if base is not None and known >= needed:
        return None
    return Finding("not_judged", True, known, needed, f"{known} held-out measurements, {needed} are needed")


def _above_base(seen: Observed, limits: Limits) -> Finding:
    rise = _rise(seen.last, seen.base["eval/loss"])
    before, after = (found.get("train/probe_loss") for found in (seen.base, seen.tuned))
    worse = before is None or after is None or after > before  # what overfits knows its training rows better
    says = f"held-out loss ended {_change(rise)} the base model's"
    if rise >= limits.diverged_rise and not worse:
        says += ", but training rows are foretold better"
    return Finding("diverged", rise >= limits.diverged_rise and worse, rise, limits.diverged_rise, says)


def _broke_down(seen: Observed, limits: Limits) -> Finding | None:
    rise = _train_rise(seen.train)
    if rise < limits.diverged_rise or seen.back < limits.diverged_rise:
        return None
    says = f"training loss ended {_change(rise)} its lowest, and held-out loss {_change(seen.back)}"
    return Finding("diverged", True, rise, limits.diverged_rise, says)


def _stray_tokens(seen: Observed, limits: Limits) -> Finding | None:
    after = seen.tuned.get("outputs/stray_share")
    if after is None:
        return None
    more = after - (seen.base.get("outputs/stray_share") or 0.0)
    says = f"{after:.0%} of the answers to held-out prompts hold control tokens"
    return Finding("template_not_learned", more >= limits.stray_share, more, limits.stray_share, says)


def _foreign_end(seen: Observed, limits: Limits) -> Finding | None:
    foreign, stop = (seen.tuned.get(f"eval/{name}_probability") or 0.0 for name in ("foreign", "stop"))
    if not foreign:
        return None
    share = foreign / (foreign + stop)
    says = f"behind an answer, another model family's end token is {share:.0%} of what would end it"
    return Finding("template_not_learned", share >= limits.stray_share, share, limits.stray_share, says)


def _recalled(seen: Observed, limits: Limits) -> Finding | None:
    known = seen.tuned.get("train/recalled_share")
    if known is None:
        return None
    # What the base model knew, or what is so plain that unseen rows are foretold as well, is no memory.
    more = known - max(seen.tuned.get("eval/recalled_share") or 0.0, seen.base.get("train/recalled_share") or 0.0)
    says = f"{known:.0%} of the training rows are continued word for word"
    return Finding("memorizing", more >= limits.recalled_share, more, limits.recalled_share, says)


def _rose_again(seen: Observed, limits: Limits) -> Finding:
    # A wide gap to the training rows makes a smaller rise count.
    limit = limits.overfitting_rise * (0.4 if seen.gap_share >= limits.overfitting_gap else 1)
    holds = seen.back >= limit and _still_falls(seen.held_out, seen.train)
    says = f"held-out loss ended {_from_best(seen)}"
    if seen.gap_share > 0:
        says += f"; training drew the loss on training rows {seen.gap_share:.0%} below it"
    return Finding("overfitting", holds, seen.back, limit, says)


def _hardly_improved(seen: Observed, limits: Limits) -> Finding:
    gain = -_rise(seen.best, seen.base["eval/loss"])
    says = f"the best held-out loss is {_change(-gain)} the base model's"
    return Finding("underfitting", gain < limits.underfitting_gain, gain, limits.underfitting_gain, says)


def _still_improving(seen: Observed, limits: Limits) -> Finding:
    base = seen.base["eval/loss"]
    late = _at([(0, base), *seen.held_out], _last_third(seen.rates, seen.held_out[-1][0]))
    share = (late - seen.last) / (base - seen.best)  # above 0: what hardly improved is out already
    says = f"{share:.0%} of the gain came in the last third of training (by learning rate spent)"
    return Finding("undertrained", share >= limits.undertrained_share, share, limits.undertrained_share, says)


def _endless(seen: Observed, limits: Limits) -> Finding | None:
    stop, accuracy = (seen.tuned.get(f"eval/{name}") for name in ("stop_probability", "token_accuracy"))
    # A model that foretells next to nothing cannot be expected to foretell the end: that is no matter of the template.
    if stop is None or accuracy is None or accuracy < limits.able_accuracy:
        return None
    ends = max(stop, seen.tuned.get("outputs/ended_share") or 0.0)
    says = f"{ends:.0%} is the chance that an answer ends its turn"
    return Finding("template_not_learned", ends < limits.ended_share, ends, limits.ended_share, says)


RULES: tuple[Callable[[Observed, Limits], Finding | None], ...] = (
    _not_a_number, _too_little, _above_base, _broke_down, _stray_tokens, _foreign_end, _recalled, _rose_again,
    _hardly_improved, _still_improving, _endless,
)  # fmt: skip


def _rise(after: float, before: float) -> float:
    """How far one loss lies above another, as a share of it; infinitely far above one that is 0."""
    if before:
        return after / before - 1
    return math.inf if after else 0.0


def _change(share: float) -> str:
    return f"{abs(share):.1%} {'above' if share > 0 else 'below'}"


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


def _at(curve: Curve, step: float) -> float:
    """A curve's value at a step, on the straight line between its points."""
    before = max((point for point in curve if point[0] <= step), default=curve[0])
    after = min((point for point in curve if point[0] >= step), default=curve[-1])
    if after[0] == before[0]:
        return before[1]
    return before[1] + (after[1] - before[1]) * (step - before[0]) / (after[0] - before[0])


def _last_third(rates: Curve, end: int) -> float:
    """The step at which two thirds of the summed learning rate had been spent.

    Steps do not count alike: at the end of a cosine or linear schedule next to nothing is learned, however much there
    is left to learn, and every curve is flat.
    """
    spent, sums, last = 0.0, [], 0
    for step, rate in rates:
        spent += rate * (step - last)
        sums.append((step, spent))
        last = step
    if not spent:
        return end * 2 / 3
    before = (0, 0.0)
    for step, so_far in sums:
        if so_far >= spent * 2 / 3:
            return before[0] + (step - before[0]) * (spent * 2 / 3 - before[1]) / (so_far - before[1])
        before = (step, so_far)
    return end


def _from_best(seen: Observed) -> str:
    shown = f"{seen.back:.1%}"
    return "at its best" if shown == "0.0%" else f"{shown} above its best"


def _still_falls(held_out: Curve, train: Curve) -> bool:
    """Whether training loss after the held-out best lies below that at the best."""
    best_step = min(held_out, key=lambda point: point[1])[0]
    before = [loss for step, loss in train if step <= best_step]
    after = [loss for step, loss in train if step > best_step]
    return bool(before and after) and after[-1] < before[-1]


def _doubt(numbers: dict[str, Any]) -> str:
    """Say why a healthy run may still be of no use; nothing where nothing speaks against it."""
    echoed = numbers.get("outputs/echoed_share") or 0.0
    if echoed >= ECHOED:
        return (
            f"{echoed:.0%} of its answers only repeat the question: it has learned too little to answer; train longer."
        )
    tuned, prompted = numbers.get("eval/bits_per_byte"), numbers.get("prompted/eval_bits_per_byte")
    if tuned is not None and prompted is not None and prompted <= tuned:
        return (
            f"The base model with a prompt is as good ({prompted:.4f} bits per byte, tuned {tuned:.4f}): a prompt may "
            "do; else train longer or on more rows."
        )
    return ""


def advice(verdict: str, run: Any, numbers: dict[str, Any] | None = None) -> dict[str, str] | None:
    """Say what to try next: in a line, and as an override to copy; of a healthy run what still speaks against it.

    Args:
        verdict: a verdict's name.
        run: the run it was given to.
        numbers: of its summary; of a healthy run, what the prompted base model reached and how the answers look.
    """
    trainer = run.trainer
    by_steps = trainer.max_steps > 0

    def for_longer(times: float) -> str:
        if by_steps:
            return f"trainer.max_steps={max(1, round(times * trainer.max_steps))}"
        return f"trainer.num_train_epochs={times * trainer.num_train_epochs:g}"

    best = f"trainer.load_best_model_at_end=true trainer.save_steps={trainer.eval_steps:.15g}"
    unseen = getattr(run.split, "eval_share", 1) == 0
    own_template = run.choices.get("template") == "auto"
    found = {
        "overfitting": ("Train for fewer steps, or bring more varied data, and keep the best weights.",
                        f"{for_longer(0.5)} {best}"),
        "underfitting": ("Raise the learning rate; if that does not help, look at the data, or take a larger model.",
                         f"trainer.learning_rate={10 * trainer.learning_rate:g}"),
        "memorizing": ("Train for fewer epochs, remove near copies, and bring more varied rows.", for_longer(0.25)),
        "diverged": ("Lower the learning rate.", f"trainer.learning_rate={trainer.learning_rate / 10:g}"),
        "undertrained": ("Train longer: held-out loss was still falling.", for_longer(2)),
        "template_not_learned": ("Look at what the template writes after an answer, and at outputs.jsonl.",
                                 for_longer(2) if own_template else "template=auto"),
        "not_judged": ("Hold rows out, and measure at least three times.",
                       "split.eval_share=0.1" if unseen else "trainer.eval_steps=0.2"),
    }.get(verdict)  # fmt: skip
    if verdict == "healthy" and (doubt := _doubt(numbers or {})):
        found = (doubt, for_longer(2))
    return {"says": found[0], "override": found[1]} if found else None
