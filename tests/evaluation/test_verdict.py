"""Verdicts on made curves: each rule, its edge, and that a good run raises no alarm."""

from __future__ import annotations

import math

import pytest

from sft_lab.evaluation.verdict import Limits, converged_at, judge

FALLING = [(step, 2.5 - step / 100) for step in range(0, 101, 10)]


@pytest.mark.parametrize(
    ("name", "held_out", "train", "base"),
    [
        ("healthy", [2.4, 2.2, 2.1, 2.05, 2.045, 2.04], FALLING, 2.8),
        ("healthy", [2.4, 2.2, 2.1, 2.06, 2.07, 2.08], FALLING, 2.8),  # a small rise is no overfitting
        ("undertrained", [2.7, 2.6, 2.5, 2.4, 2.3, 2.2], FALLING, 2.8),
        ("overfitting", [2.4, 2.2, 2.1, 2.2, 2.35, 2.5], FALLING, 2.8),
        ("underfitting", [2.799, 2.798, 2.797, 2.796, 2.795, 2.794], FALLING, 2.8),
        ("diverged", [2.9, 3.4, 4.0, 5.0, 6.0, 7.0], FALLING, 2.8),
        ("diverged", [2.4, 2.2, math.nan, 2.1, 2.1, 2.1], FALLING, 2.8),
        ("not_judged", [2.4, 2.2], FALLING, 2.8),
        ("not_judged", [], FALLING, None),
    ],
)
def test_made_curves(name: str, held_out: list[float], train: list[tuple[int, float]], base: float | None) -> None:
    curve = [(20 * (index + 1), loss) for index, loss in enumerate(held_out)]
    verdict = judge(curve, train, base, Limits())
    assert verdict.name == name
    assert verdict.evidence
    assert verdict.evidence[-1]["says"]


def test_a_gradient_that_is_no_number_is_divergence() -> None:
    curve = [(20, 2.4), (40, 2.2), (60, 2.1)]
    assert judge(curve, FALLING, 2.8, Limits(), all_finite=False).name == "diverged"


def test_held_out_rise_without_falling_training_loss_is_not_overfitting() -> None:
    curve = [(20, 2.4), (40, 2.1), (60, 2.2), (80, 2.3)]
    flat = [(step, 2.0) for step in range(0, 81, 10)]
    assert judge(curve, flat, 2.8, Limits()).name != "overfitting"


def test_limits_come_from_the_config() -> None:
    curve = [(20, 2.4), (40, 2.2), (60, 2.1), (80, 2.25)]
    assert judge(curve, FALLING, 2.8, Limits(overfitting_rise=0.10)).name == "healthy"
    assert judge(curve, FALLING, 2.8, Limits(overfitting_rise=0.05)).name == "overfitting"


@pytest.mark.parametrize(
    ("losses", "step"),
    [([3.0, 2.0, 1.99, 1.985], 20), ([3.0, 2.0, 1.5, 1.9], None), ([2.0], 10), ([], None), ([2.0, math.nan], None)],
)
def test_converged_at(losses: list[float], step: int | None) -> None:
    curve = [(10 * (index + 1), loss) for index, loss in enumerate(losses)]
    assert converged_at(curve, 0.01) == step
