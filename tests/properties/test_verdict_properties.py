"""Verdicts: any run gets one that is known, with evidence, in words, and an advice that can be followed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from example_counts import tried
from hypothesis import assume, example, given
from hypothesis import strategies as st

from sft_lab import compose
from sft_lab.core.io import finite
from sft_lab.evaluation.advice import advise
from sft_lab.evaluation.verdict import Judgment, Limits, Observed, converged_at, judge
from sft_lab.report.html_report import VERDICTS
from sft_lab.run.config import Run

LOSS = st.one_of(
    st.floats(0, 20),
    st.sampled_from([0.0, 1e-45, 1e-30, 2.0, 2.0 + 1e-9, 1e30, 3.4e38]),  # what float32 has
)
ANY = LOSS | st.sampled_from([math.nan, math.inf, -math.inf])
SHARE = st.floats(0, 1)
MEASURED = {
    "eval/loss": LOSS, "train/probe_loss": LOSS, "eval/stop_probability": SHARE, "eval/foreign_probability": SHARE,
    "eval/token_accuracy": SHARE, "train/recalled_share": SHARE, "eval/recalled_share": SHARE,
    "outputs/stray_share": SHARE, "outputs/ended_share": SHARE,
}  # fmt: skip
LIMITS = st.builds(
    Limits,
    min_evaluations=st.integers(2, 5),
    **dict.fromkeys(
        ("diverged_rise", "overfitting_rise", "overfitting_gap", "underfitting_gain", "undertrained_share",
         "converged_within", "stray_share", "ended_share"),
        st.floats(1e-9, 2),
    ),
)  # fmt: skip


def curves(values: Any) -> Any:
    """Steps that rise from 1, with a value each; none and one among them."""
    steps = st.lists(st.integers(1, 60), unique=True, max_size=10).map(sorted)
    return steps.flatmap(
        lambda at: st.lists(values, min_size=len(at), max_size=len(at)).map(
            lambda found: [*zip(at, found, strict=True)]
        )
    )


def numbers(values: dict[str, Any]) -> Any:
    return st.fixed_dictionaries({}, optional={name: st.none() | value for name, value in values.items()})


def runs(losses: Any = LOSS) -> Any:
    measured = {**MEASURED, "eval/loss": losses, "train/probe_loss": losses}
    return st.builds(
        Observed, curves(losses), curves(losses), numbers(measured), numbers(measured), curves(LOSS), st.booleans()
    )


@pytest.fixture(scope="module")
def run() -> Run:
    return compose(["model=tiny_random"])


def checked(found: Judgment, run: Run) -> str:
    """What holds of every verdict."""
    assert found.name in VERDICTS
    assert found.evidence
    assert found.evidence[-1]["rule"] == found.name
    for one in found.evidence:
        assert set(one) == {"rule", "value", "limit", "says"}
        assert one["says"]
        assert "nan" not in one["says"]
        assert one["value"] is None or isinstance(one["value"], int | float)
    json.dumps(finite(found.evidence), allow_nan=False)
    told = advise(found.name, run)
    assert (told is None) == (found.name == "healthy")
    return found.name


@tried(20, 2000)
@given(runs(ANY), LIMITS)
@example(Observed([(1, 2.0), (2, 0.0), (3, 0.1)], [], {"eval/loss": 2.0}, {}), Limits())
@example(Observed([(1, 0.0), (2, 0.0), (3, 0.1)], [], {"eval/loss": 0.0}, {}), Limits())
def test_any_run_gets_one_known_verdict(run: Run, seen: Observed, limits: Limits) -> None:
    checked(judge(seen, limits), run)
    assert judge(seen, limits) == judge(seen, limits)
    at = converged_at(seen.held_out, limits.converged_within)
    assert at is None or at in [step for step, _ in seen.held_out]


@tried(20, 2000)
@given(runs(), st.sampled_from([math.nan, math.inf, -math.inf]), st.sampled_from(["held_out", "train", "tuned"]),
       st.integers(0, 9), st.sampled_from(["eval/loss", "train/probe_loss"]), LIMITS)  # fmt: skip
def test_a_loss_that_is_no_number_is_diverged(
    seen: Observed, value: float, where: str, place: int, name: str, limits: Limits
) -> None:
    if where == "tuned":
        broken = replace(seen, tuned={**seen.tuned, name: value})
    else:
        curve = list(getattr(seen, where))
        assume(curve)
        place %= len(curve)
        curve[place] = (curve[place][0], value)
        broken = replace(seen, **{where: curve})
    assert judge(broken, limits).name == "diverged"
    assert judge(replace(seen, all_finite=False), limits).name == "diverged"


@tried(20, 2000)
@given(runs(), LIMITS)
def test_without_evidence_nothing_is_judged(seen: Observed, limits: Limits) -> None:
    seen = replace(seen, all_finite=True)
    few = replace(seen, held_out=seen.held_out[: limits.min_evaluations - 1])
    assert judge(few, limits).name == "not_judged"
    for base in (None, math.nan, math.inf):
        assert judge(replace(seen, base={**seen.base, "eval/loss": base}), limits).name == "not_judged"


FALLING = st.lists(st.floats(0.5, 0.99), min_size=3, max_size=9)


@tried(20, 2000)
@given(FALLING, st.floats(0.5, 10), LIMITS, st.floats(1e-3, 1e3))
def test_the_unit_of_the_loss_is_nothing(factors: list[float], base: float, limits: Limits, unit: float) -> None:
    """Rules cut at shares: a loss in bits is judged as one in nats, but where rounding decides."""

    def seen(scale: float) -> Observed:
        losses, loss = [], base * scale
        for factor in factors:
            loss *= factor
            losses.append(loss)
        curve = [(10 * (place + 1), loss) for place, loss in enumerate(losses)]
        return Observed(curve, curve, {"eval/loss": base * scale}, {"eval/loss": losses[-1]})

    one, other = judge(seen(1.0), limits), judge(seen(unit), limits)
    for a, b in zip(one.evidence, other.evidence, strict=False):
        close = a["limit"] and a["value"] is not None and math.isclose(a["value"], a["limit"], rel_tol=1e-6)
        assume(not close)
        assert (a["rule"], a["limit"]) == (b["rule"], b["limit"])
        if a["value"] is not None:
            assert math.isclose(a["value"], b["value"], rel_tol=1e-6, abs_tol=1e-9)
    assert one.name == other.name


@tried(20, 2000)
@given(st.floats(0.5, 10), FALLING, st.floats(0, 3), st.floats(0, 1))
def test_a_worse_end_is_never_a_better_verdict(base: float, factors: list[float], rise: float, more: float) -> None:
    """Ending higher above the best, all else alike, never turns overfitting or worse into healthy."""

    def seen(rise: float) -> Observed:
        losses = [base]
        for factor in factors:
            losses.append(losses[-1] * factor)
        held_out = [*((step, loss) for step, loss in enumerate(losses[1:], 1)), (99, losses[-1] * (1 + rise))]
        train = [(step, loss / 2) for step, loss in enumerate([*losses[1:], losses[-1] * 0.9], 1)]
        return Observed(held_out, train, {"eval/loss": base}, {})

    bad = ("overfitting", "diverged")
    if judge(seen(rise), Limits()).name in bad:
        assert judge(seen(rise + more), Limits()).name in bad


@tried(20, 2000)
@given(curves(LOSS), st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_convergence_is_earlier_for_who_asks_less(curve: list[tuple[int, float]], one: float, other: float) -> None:
    strict, lax = (converged_at(curve, within) for within in sorted([one, other]))
    assert strict is None or (lax is not None and lax <= strict)
    if strict is not None:
        best = min(loss for _, loss in curve)
        assert all(loss <= best * (1 + min(one, other)) for step, loss in curve if step >= strict)


KNOBS = st.fixed_dictionaries({
    "max_steps": st.sampled_from([-1, 1, 2, 7, 1000]),
    "num_train_epochs": st.sampled_from([0.1, 1, 3, 2.5, 7]),
    "learning_rate": st.sampled_from([1e-12, 2e-5, 3.3e-4, 0.123456789, 1.0]),
    "eval_steps": st.sampled_from([0.2, 0.123456789, 1, 7, 12345678]),
    "save_steps": st.sampled_from([0.2, 0.5, 1, 3]),
})  # fmt: skip


@pytest.mark.slow  # composes
@tried(6, 100)
@given(KNOBS, st.sampled_from(sorted(VERDICTS)), st.sampled_from(["lora", "full"]))
def test_an_advice_can_be_copied_to_the_command_line(knobs: dict[str, float], verdict: str, trainer: str) -> None:
    words = ["model=tiny_random", f"trainer={trainer}", *(f"trainer.{name}={value}" for name, value in knobs.items())]
    before = compose(words)
    if told := advise(verdict, before):
        after = compose([*words, *told["override"].split()])
        if verdict != "not_judged" and not (verdict in ("overfitting", "memorizing") and knobs["max_steps"] == 1):
            assert after.hash != before.hash
