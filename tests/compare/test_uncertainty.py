"""What is claimed, and how often that is wrong: simulations, in which the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from job_folders import TOKENS, nats_of

from sft_lab.compare.uncertainty import (
    PRIOR_SHARE,
    WINNING_CLAIMS,
    Claim,
    LossDifference,
    PairedBootstrap,
    SeedSpread,
    estimate_seed_spread,
    student_quantile,
)

PAIRS = 40
BOOTSTRAP = PairedBootstrap(TOKENS.astype(float))
PRIOR = SeedSpread(PRIOR_SHARE, 0)


def setting(worse: float, seeds: range, **moves: float) -> np.ndarray:
    return np.stack([nats_of(worse, seed, **moves) for seed in seeds])


def compare(first: np.ndarray, second: np.ndarray) -> LossDifference:
    spread = estimate_seed_spread([BOOTSTRAP.losses(first), BOOTSTRAP.losses(second)])
    return BOOTSTRAP.compare(first, second, spread)


def claims(worse: float, seeds: int, **moves: float) -> list[Claim]:
    """Return the claims of PAIRS comparisons of a setting with one that is so much worse."""
    differences = []
    for pair in range(PAIRS):
        start = 1000 * seeds + 2 * seeds * pair
        first, second = range(start, start + seeds), range(start + seeds, start + 2 * seeds)
        differences.append(compare(setting(1.0, first, **moves), setting(worse, second, **moves)))
    return [difference.claim for difference in differences]


def count_wins(claims: list[Claim]) -> int:
    return sum(claim in WINNING_CLAIMS for claim in claims)


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_the_same_setting_with_other_seeds_gives_no_winner(seeds):
    assert count_wins(claims(1.0, seeds)) <= 2


@pytest.mark.parametrize(
    ("seeds", "claim"),
    [(1, Claim.BEYOND_SPREAD), (2, Claim.BEYOND_SPREAD), (3, Claim.OVER_SEEDS), (5, Claim.OVER_SEEDS)],
)
def test_a_setting_that_is_2_percent_worse_is_detected(seeds, claim):
    assert claims(1.02, seeds).count(claim) >= 0.8 * PAIRS


def test_other_seeds_differ_on_these_rows_and_that_is_a_claim_of_its_own():
    """Seeds give other weights: where rows agree on that, the interval over rows excludes zero, and no more."""
    of_pairs = claims(1.0, 1, seeds_move=0.004, rows_move=0.005)
    assert of_pairs.count(Claim.ON_ROWS) >= PAIRS / 2
    assert count_wins(of_pairs) <= 2


def test_replicates_show_how_much_a_seed_moves():
    """With seeds that move the loss by 2%, the prior alone would name winners; replicates in the sweep stop it."""
    noisy = [setting(1.0, range(10 * number, 10 * number + 2), seeds_move=0.02) for number in range(8)]
    spread = estimate_seed_spread([BOOTSTRAP.losses(nats) for nats in noisy])
    assert spread.replicates == 8
    assert spread.share == pytest.approx(0.017, rel=0.5)
    pairs = [
        (setting(1.0, range(300 + pair, 301 + pair), seeds_move=0.02), noisy[pair % 8][:1]) for pair in range(PAIRS)
    ]
    assert count_wins([BOOTSTRAP.compare(*pair, spread).claim for pair in pairs]) <= 2
    assert count_wins([BOOTSTRAP.compare(*pair, estimate_seed_spread([])).claim for pair in pairs]) > 2


def test_of_twelve_equal_settings_none_wins():
    """A winner must lead every other setting, so many settings make none more likely."""
    wins = 0
    for sweep in range(PAIRS):
        jobs = [nats_of(1.0, 5000 + 12 * sweep + job)[None] for job in range(12)]
        best, *rest = sorted(jobs, key=lambda nats: float(BOOTSTRAP.losses(nats[0])))
        wins += all(compare(best, job).claim in WINNING_CLAIMS for job in rest)
    assert wins <= 2


def test_the_interval_over_rows_covers_the_truth():
    """In 200 draws of 30 rows, the 95% interval contains the difference over all rows in 90% or more."""
    chance = np.random.default_rng(3)
    tokens = chance.integers(20, 200, 20000).astype(float)
    first = tokens * chance.normal(2.0, 0.5, 20000)
    second = first * chance.normal(1.01, 0.05, 20000)
    truth = (second.sum() - first.sum()) / tokens.sum()
    covered = 0
    for _ in range(200):
        rows = chance.choice(20000, 30, replace=False)
        interval = PairedBootstrap(tokens[rows]).compare(first[None, rows], second[None, rows], PRIOR).on_rows
        covered += interval.low <= truth <= interval.high
    assert covered >= 180


def test_pairing_cancels_what_makes_a_row_hard():
    """Losses of rows differ by 20%, the two jobs by 0.5% on every row: the interval is about the latter."""
    first = nats_of()[None]
    difference = BOOTSTRAP.compare(first, first * 1.005, SeedSpread(0.0, 0))
    assert difference.share == pytest.approx(0.005)
    assert difference.on_rows.high - difference.on_rows.low < 0.1 * difference.value
    assert difference.claim == Claim.BEYOND_SPREAD


@given(st.floats(0.9, 1.1), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_turning_a_comparison_around_turns_its_sign(worse, first_seeds, second_seeds):
    first, second = setting(1.0, range(first_seeds)), setting(worse, range(50, 50 + second_seeds))
    forth, back = BOOTSTRAP.compare(first, second, PRIOR), BOOTSTRAP.compare(second, first, PRIOR)
    assert forth.value == pytest.approx(-back.value)
    assert forth.on_rows.low == pytest.approx(-back.on_rows.high, abs=1e-9)
    assert forth.over_seeds.low <= forth.value <= forth.over_seeds.high


def test_equal_runs_are_not_told_apart():
    nats = nats_of()[None]
    assert BOOTSTRAP.compare(nats, nats, PRIOR).claim == Claim.NONE


def test_the_base_model_has_no_seed():
    base, tuned = nats_of(1.02)[None], setting(1.0, range(3))
    spread = estimate_seed_spread([])
    assert BOOTSTRAP.compare(base, tuned, spread, first_is_trained=False).claim == Claim.OVER_SEEDS
    assert BOOTSTRAP.compare(base, tuned, spread).claim == Claim.BEYOND_SPREAD


def test_three_seeds_are_believed_over_a_prior_that_is_too_small():
    """Seeds that move the loss by 1.5%: five seeds each name few winners, though the prior says 0.35%."""
    assert count_wins(claims(1.0, 5, seeds_move=0.015)) <= 4  # 5% are 2, and chance has its part


def test_losses_of_zero_are_no_winner_and_no_error():
    nothing = np.zeros((3, len(TOKENS)))
    assert BOOTSTRAP.compare(nothing, nothing, estimate_seed_spread([np.zeros(3)])).claim == Claim.NONE


def test_two_rows_are_enough_to_compute():
    bootstrap = PairedBootstrap(np.array([10.0, 20.0]))
    difference = bootstrap.compare(np.array([[20.0, 41.0]]), np.array([[21.0, 40.0]]), estimate_seed_spread([]))
    assert all(map(math.isfinite, [*difference.on_rows, *difference.over_seeds]))
    assert difference.claim == Claim.NONE


def test_a_fraction_of_a_degree_of_freedom_counts_as_one():
    assert [round(student_quantile(freedom), 3) for freedom in (0.3, 1, 4, 1e9)] == [12.706, 12.706, 2.776, 1.96]
