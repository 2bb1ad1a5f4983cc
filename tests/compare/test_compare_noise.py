"""What is claimed, and how often that is wrong: by simulation, where the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_jobs import TOKENS, nats_of

from sft_lab.compare.noise import (
    BEYOND_SPREAD,
    NONE,
    ON_ROWS,
    OVER_SEEDS,
    PRIOR_SPREAD,
    WINS,
    Difference,
    Rows,
    Spread,
    seed_spread,
    student,
)  # fmt: skip

PAIRS = 40
ROWS = Rows(TOKENS.astype(float))


def setting(worse: float, seeds: range, **moves: float) -> np.ndarray:
    return np.stack([nats_of(worse, seed, **moves) for seed in seeds])


def compared(first: np.ndarray, second: np.ndarray) -> Difference:
    return ROWS.difference(first, second, seed_spread([ROWS.loss(first), ROWS.loss(second)]))


def claims(worse: float, seeds: int, **moves: float) -> list[str]:
    """The claims of PAIRS comparisons of a setting with one so much worse."""
    found = []
    for pair in range(PAIRS):
        start = 1000 * seeds + 2 * seeds * pair
        first, second = range(start, start + seeds), range(start + seeds, start + 2 * seeds)
        found.append(compared(setting(1.0, first, **moves), setting(worse, second, **moves)).claim)
    return found


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_the_same_setting_with_other_seeds_gives_no_winner(seeds):
    wins = [claim for claim in claims(1.0, seeds) if claim in WINS]
    assert len(wins) <= 2, wins


@pytest.mark.parametrize(("seeds", "claim"), [(1, BEYOND_SPREAD), (2, BEYOND_SPREAD), (3, OVER_SEEDS), (5, OVER_SEEDS)])
def test_a_setting_made_worse_by_2_percent_is_found(seeds, claim):
    assert claims(1.02, seeds).count(claim) >= 0.8 * PAIRS


def test_other_seeds_differ_on_these_rows_and_it_is_said_apart():
    """Seeds give other weights: where rows agree on that, the interval over rows leaves zero out, and no more."""
    found = claims(1.0, 1, seeds_move=0.004, rows_move=0.005)
    assert found.count(ON_ROWS) >= PAIRS / 2
    assert sum(claim in WINS for claim in found) <= 2


def test_replicates_teach_how_much_a_seed_moves():
    """With seeds that move the loss by 2%, the prior alone would name winners; replicates in the sweep stop it."""
    noisy = [setting(1.0, range(10 * one, 10 * one + 2), seeds_move=0.02) for one in range(8)]
    spread = seed_spread([ROWS.loss(one) for one in noisy])
    assert spread.replicates == 8
    assert spread.share == pytest.approx(0.017, rel=0.5)
    pairs = [(setting(1.0, range(300 + at, 301 + at), seeds_move=0.02), noisy[at % 8][:1]) for at in range(PAIRS)]
    assert sum(ROWS.difference(*pair, spread).claim in WINS for pair in pairs) <= 2
    assert sum(ROWS.difference(*pair, seed_spread([])).claim in WINS for pair in pairs) > 2


def test_of_twelve_equal_settings_none_wins():
    """A winner must lead every other setting, so many settings make none more likely."""
    wins = 0
    for sweep in range(PAIRS):
        jobs = [nats_of(1.0, 5000 + 12 * sweep + at)[None] for at in range(12)]
        jobs.sort(key=lambda nats: float(ROWS.loss(nats[0])))
        wins += all(compared(jobs[0], other).claim in WINS for other in jobs[1:])
    assert wins <= 2


def test_the_interval_over_rows_covers_the_truth():
    """In 200 draws of 30 rows, the 95% interval holds the difference over all rows in 90% or more."""
    chance = np.random.default_rng(3)
    tokens = chance.integers(20, 200, 20000).astype(float)
    first = tokens * chance.normal(2.0, 0.5, 20000)
    second = first * chance.normal(1.01, 0.05, 20000)
    truth = (second.sum() - first.sum()) / tokens.sum()
    held = 0
    for _ in range(200):
        drawn = chance.choice(20000, 30, replace=False)
        found = Rows(tokens[drawn]).difference(first[None, drawn], second[None, drawn], Spread(0.003, 0))
        held += found.on_rows.low <= truth <= found.on_rows.high
    assert held >= 180


def test_pairing_cancels_what_makes_a_row_hard():
    """Losses of rows differ by 20%, the two jobs by 0.5% on every row: the interval is about the latter."""
    first = nats_of()[None]
    found = ROWS.difference(first, first * 1.005, Spread(0.0, 0))
    assert found.share == pytest.approx(0.005)
    assert found.on_rows.high - found.on_rows.low < 0.1 * found.value
    assert found.claim == BEYOND_SPREAD


@given(st.floats(0.9, 1.1), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_turning_a_comparison_around_turns_its_sign(worse, one, other):
    spread = Spread(PRIOR_SPREAD, 0)
    first, second = setting(1.0, range(one)), setting(worse, range(50, 50 + other))
    here, back = ROWS.difference(first, second, spread), ROWS.difference(second, first, spread)
    assert here.value == pytest.approx(-back.value)
    assert here.on_rows.low == pytest.approx(-back.on_rows.high, abs=1e-9)
    assert here.over_seeds.low <= here.value <= here.over_seeds.high


def test_equal_runs_are_not_told_apart():
    same = nats_of()[None]
    assert ROWS.difference(same, same, Spread(PRIOR_SPREAD, 0)).claim == NONE


def test_the_base_model_has_no_seed():
    base, tuned = nats_of(1.02)[None], setting(1.0, range(3))
    seeded = ROWS.difference(base, tuned, seed_spread([]))
    fixed = ROWS.difference(base, tuned, seed_spread([]), seeded=False)
    assert fixed.claim == OVER_SEEDS
    assert seeded.claim == BEYOND_SPREAD


def test_three_seeds_are_believed_over_a_prior_that_is_too_small():
    """Seeds that move the loss by 1.5%: five seeds each name few winners, though the prior says 0.35%."""
    found = claims(1.0, 5, seeds_move=0.015)
    assert sum(claim in WINS for claim in found) <= 4  # 5% are 2, and chance has its part


def test_losses_of_zero_are_no_winner_and_no_error():
    nothing = np.zeros((3, len(TOKENS)))
    assert ROWS.difference(nothing, nothing, seed_spread([np.zeros(3)])).claim == NONE


def test_two_rows_are_enough_to_compute():
    found = Rows(np.array([10.0, 20.0])).difference(np.array([[20.0, 41.0]]), np.array([[21.0, 40.0]]), seed_spread([]))
    assert all(map(math.isfinite, [*found.on_rows, *found.over_seeds]))
    assert found.claim == NONE


def test_students_quantiles_as_in_the_tables():
    assert [student(df) for df in (1, 4, 30, math.inf)] == [12.706, 2.776, 2.042, 1.96]
    assert student(40) == pytest.approx(2.021, abs=0.002)
    assert student(0.3) == 12.706
