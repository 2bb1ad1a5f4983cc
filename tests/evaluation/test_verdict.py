"""Verdicts on artificial curves: each rule and its limit, and no alarm for a good run."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from sft_lab.evaluation.advice import advise
from sft_lab.evaluation.verdict import Judgment, Limits, Observed, converged_at, judge
from sft_lab.report.html_report import VERDICTS

FALLING = [(step, 2.5 - step / 100) for step in range(0, 101, 10)]
RISING = [(step, 2.0 + step / 20) for step in range(0, 101, 10)]
GOOD = [2.4, 2.2, 2.1, 2.05, 2.045, 2.04]


def judged(
    held_out: list[float],
    train: list[tuple[int, float]] = FALLING,
    base: float | None = 2.8,
    limits: Limits | None = None,
    *,
    all_finite: bool = True,
    before: dict[str, Any] | None = None,
    **tuned: Any,
) -> Judgment:
    curve = [(20 * (index + 1), loss) for index, loss in enumerate(held_out)]
    numbers = {name.replace("__", "/"): value for name, value in tuned.items()}
    seen = Observed(curve, train, {"eval/loss": base, **(before or {})}, numbers, all_finite=all_finite)
    return judge(seen, limits or Limits())


@pytest.mark.parametrize(
    ("name", "held_out", "train", "base"),
    [
        ("healthy", GOOD, FALLING, 2.8),
        ("healthy", [2.4, 2.2, 2.1, 2.06, 2.07, 2.08], FALLING, 2.8),  # a small rise is no overfitting
        ("undertrained", [2.7, 2.6, 2.5, 2.4, 2.3, 2.2], FALLING, 2.8),
        ("overfitting", [2.4, 2.2, 2.1, 2.2, 2.35, 2.5], FALLING, 2.8),
        ("underfitting", [2.799, 2.798, 2.797, 2.796, 2.795, 2.794], FALLING, 2.8),
        ("diverged", [2.9, 3.4, 4.0, 5.0, 6.0, 7.0], RISING, 2.8),
        ("diverged", [2.4, 2.2, math.nan, 2.1, 2.1, 2.1], FALLING, 2.8),
        ("diverged", [7.0, 6.0, 6.5, 7.5, 7.8, 8.0], RISING, 8.3),  # worse than it was, if not than a random model
        ("not_judged", [2.4, 2.2], FALLING, 2.8),
        ("not_judged", [], FALLING, None),
    ],
)
def test_made_curves(name: str, held_out: list[float], train: list[tuple[int, float]], base: float | None) -> None:
    verdict = judged(held_out, train, base)
    assert verdict.name == name
    assert verdict.evidence
    assert verdict.evidence[-1]["says"]


def test_a_gradient_that_is_no_number_is_divergence() -> None:
    assert judged([2.4, 2.2, 2.1], all_finite=False).name == "diverged"


def test_held_out_rise_without_falling_training_loss_is_not_overfitting() -> None:
    flat = [(step, 2.0) for step in range(0, 81, 10)]
    assert judged([2.4, 2.1, 2.2, 2.3], flat).name != "overfitting"


def test_far_above_the_base_model_is_overfitting_where_training_rows_are_known_better() -> None:
    curve = [2.6, 2.4, 2.9, 3.3, 3.6]
    before = {"train/probe_loss": 2.7}
    assert judged(curve, before=before, train__probe_loss=0.4).name == "overfitting"
    assert judged(curve, before=before, train__probe_loss=3.5).name == "diverged"


@pytest.mark.parametrize(
    ("recalled", "unseen", "base", "name"),
    [
        (0.9, 0.0, 0.0, "memorizing"),
        (0.9, 0.0, None, "memorizing"),
        (0.4, 0.0, 0.0, "healthy"),
        (0.9, 0.6, 0.0, "healthy"),  # answers so predictable that unseen ones are too
        (0.9, 0.0, 0.6, "healthy"),  # known before training
        (None, None, None, "healthy"),  # no answer is long enough
    ],
)
def test_memorizing_is_what_is_known_word_for_word_and_was_not_before(
    recalled: float | None, unseen: float | None, base: float | None, name: str
) -> None:
    before = {"train/recalled_share": base}
    judgment = judged(GOOD, before=before, train__recalled_share=recalled, eval__recalled_share=unseen)
    assert judgment.name == name


def test_memorizing_says_more_than_overfitting() -> None:
    assert judged([2.4, 2.1, 2.5, 3.0], train__recalled_share=1.0).name == "memorizing"


@pytest.mark.parametrize(
    ("after", "before", "name"),
    [
        (1.0, 0.0, "template_not_learned"),
        (0.4, 0.0, "healthy"),
        (1.0, 0.9, "healthy"),
        (1.0, None, "template_not_learned"),
    ],
)
def test_control_tokens_inside_answers(after: float, before: float | None, name: str) -> None:
    judgment = judged(
        GOOD, before={"outputs/stray_share": before}, outputs__stray_share=after, outputs__ended_share=1.0
    )
    assert judgment.name == name


@pytest.mark.parametrize(
    ("written", "stops", "accuracy", "name"),
    [
        (0.0, 0.01, 0.4, "template_not_learned"),
        (0.0, 0.5, 0.4, "healthy"),
        (0.5, 0.01, 0.4, "healthy"),
        (None, 0.01, 0.4, "template_not_learned"),
        (0.0, 0.01, 0.1, "healthy"),  # it predicts hardly anything, so it is not expected to predict the end
    ],
)
def test_answers_that_never_end(written: float | None, stops: float, accuracy: float, name: str) -> None:
    numbers = {"outputs__ended_share": written, "eval__stop_probability": stops, "eval__token_accuracy": accuracy}
    assert judged(GOOD, **numbers).name == name


@pytest.mark.parametrize(("foreign", "name"), [(0.5, "template_not_learned"), (0.01, "healthy"), (0.0, "healthy")])
def test_another_family_s_end_token(foreign: float, name: str) -> None:
    numbers = {"eval__foreign_probability": foreign, "eval__stop_probability": 0.2, "outputs__ended_share": 1.0}
    assert judged(GOOD, **numbers).name == name


def test_limits_come_from_the_config() -> None:
    curve = [2.4, 2.2, 2.1, 2.25]
    assert judged(curve, limits=Limits(overfitting_rise=0.10)).name == "healthy"
    assert judged(curve, limits=Limits(overfitting_rise=0.05)).name == "overfitting"


def test_every_verdict_but_healthy_says_what_to_try() -> None:
    trainer = SimpleNamespace(learning_rate=2e-4, num_train_epochs=3.0, max_steps=-1, eval_steps=0.34)
    run = SimpleNamespace(trainer=trainer, split=SimpleNamespace(eval_share=0.1), choices={"template": "file"})
    assert advise("healthy", run) is None
    better = {"eval/bits_per_byte": 1.0, "prompted/eval_bits_per_byte": 1.1, "outputs/echoed_share": 0.1}
    assert advise("healthy", run, better) is None
    beaten = advise("healthy", run, better | {"prompted/eval_bits_per_byte": 0.99})
    assert beaten
    assert "A prompt may be enough" in beaten["says"]
    parrot = advise("healthy", run, better | {"outputs/echoed_share": 0.9})
    assert parrot
    assert "learned too little to answer" in parrot["says"]
    for name in VERDICTS.keys() - {"healthy"}:
        advice = advise(name, run)
        assert advice is not None
        assert advice["says"].endswith(".")
        assert "=" in advice["override"]
    assert advise("undertrained", run)["override"] == "trainer.num_train_epochs=6"  # type: ignore[index]
    assert "at least three times" in advise("not_judged", run)["says"]  # type: ignore[index]
    assert advise("underfitting", run)["override"] == "trainer.learning_rate=0.002"  # type: ignore[index]
    trainer.max_steps = 12
    assert advise("underfitting", run)["override"] == "trainer.max_steps=24"  # type: ignore[index]
    run.choices["trainer"] = "smoke"
    assert advise("not_judged", run)["override"] == "trainer=lora"  # type: ignore[index]
    run.choices["trainer"] = "lora"
    run.split.eval_share = 0
    assert "Hold out rows" in advise("not_judged", run)["says"]  # type: ignore[index]
    trainer.max_steps = 100
    assert advise("undertrained", run)["override"] == "trainer.max_steps=200"  # type: ignore[index]


@pytest.mark.parametrize(
    ("losses", "step"),
    [([3.0, 2.0, 1.99, 1.985], 20), ([3.0, 2.0, 1.5, 1.9], None), ([2.0], 10), ([], None), ([2.0, math.nan], None)],
)
def test_converged_at(losses: list[float], step: int | None) -> None:
    curve = [(10 * (index + 1), loss) for index, loss in enumerate(losses)]
    assert converged_at(curve, 0.01) == step
