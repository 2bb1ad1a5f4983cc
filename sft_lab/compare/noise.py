"""How sure a difference is: what other rows, and what other seeds, would make of it.

Two things make one run's held-out loss differ from another's by chance. **Rows:** other held-out rows would give other
losses. Both runs were scored on the same rows, so rows are drawn again for both together (paired bootstrap): what makes
a row hard for both cancels. **Seeds:** the same setting trained with another seed gives other weights, which really
differ on any rows; no number of rows shows it. So three claims are told apart, the weakest that holds is not enough for
the next:

* ``differs_on_these_rows``: the interval over rows leaves zero out. About two sets of weights, not two settings.
* ``differs_beyond_seed_spread``: it still does when the spread of seeds is added. There are too few seeds to see it in
  these two settings, so it is taken from the replicates of the whole sweep and a stated prior.
* ``differs_over_seeds``: both settings have at least three seeds; the spread is their own, with the prior or
  without it, whichever is wider.

A winner is named only if one of the latter two holds against every other setting. Since all must hold, more settings
make no winner more likely.

**The prior.** The sd of a setting's loss over seeds is taken to be 0.35% of the loss, worth four replicates beside
those of the sweep (a moderated variance as in Smyth, "Linear models and empirical Bayes methods", 2004). So two
settings with one seed each must differ by 1.4%, and one that is 2% worse is found. It is meant for pretrained weights;
where all weights start at random it is 6% of what training did to the loss, if that is more. Both were measured
(docs/decisions.md); near divergence both are too small, and three seeds decide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 2000
SEEDS_NEEDED = 3
PRIOR_SPREAD = 0.0035  # sd over seeds, as a share of the loss
RANDOM_START = 0.06  # the same of a model trained from random weights, as a share of the change in log loss
PRIOR_FREEDOM = 4  # replicates that it is worth
FEW_ROWS = 30  # held-out rows below which intervals deserve a warning

OVER_SEEDS, BEYOND_SPREAD, ON_ROWS, NONE = (
    "differs_over_seeds", "differs_beyond_seed_spread", "differs_on_these_rows", "not_told_apart",
)  # fmt: skip
WINS = (OVER_SEEDS, BEYOND_SPREAD)
# 97.5% quantiles of Student's t by degrees of freedom; between them 1/df is interpolated, as tables say to.
_FREEDOM = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 30, 60, 120, math.inf)
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.228, 2.179, 2.131, 2.086, 2.042, 2.000, 1.980, 1.960,
)  # fmt: skip


class Interval(NamedTuple):
    """95%: low and high."""

    low: float
    high: float

    @property
    def leaves_out_zero(self) -> bool:
        """Whether it lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Spread:
    """The sd of a setting's loss over seeds, as a share of the loss.

    Attributes:
        replicates: that it was estimated from beside the prior; 0: the prior alone.
        prior: what was expected before any were seen.
        worth: replicates that the prior counts for.
    """

    share: float
    replicates: int
    prior: float = PRIOR_SPREAD
    worth: int = PRIOR_FREEDOM

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the estimate."""
        return max(1, self.worth + self.replicates)


@dataclass(frozen=True)
class Difference:
    """How much worse the second is than the first, in the unit of the measure; below zero, it is better.

    Attributes:
        share: the same as a share of the first one's.
        on_rows: interval over held-out rows, the weights as they are.
        over_seeds: interval over rows and seeds.
        claim: what may be said of it.
    """

    value: float
    share: float
    on_rows: Interval
    over_seeds: Interval
    claim: str

    def plain(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        found = {"difference": self.value, "share": self.share, "claim": self.claim}
        return found | {"on_these_rows": list(self.on_rows), "with_seeds": list(self.over_seeds)}


class Rows:
    """Held-out rows, and how often each was drawn in every resample.

    Args:
        weight: of a row in the measure (its tokens, or the bits of its bytes), shape (rows,).
    """

    def __init__(self, weight: np.ndarray) -> None:
        self.weight = weight
        self.count = len(weight)
        drawn = np.random.default_rng(0).multinomial(self.count, np.full(self.count, 1 / self.count), RESAMPLES)
        self._drawn = drawn / (drawn @ weight)[:, None]
        # The quantiles of a small sample's bootstrap lie too near: they are widened as Student's t is, and by n/(n-1)
        # (the expanded percentile interval: Hesterberg, "What teachers should know about the bootstrap", 2015).
        reach = student(self.count - 1) * math.sqrt(self.count / max(1, self.count - 1))
        self._outside = math.erfc(reach / math.sqrt(2)) / 2

    def loss(self, nats: np.ndarray) -> np.ndarray:
        """Give the loss of each run: nats of shape (..., rows) to (...,)."""
        found: np.ndarray = nats.sum(axis=-1) / self.weight.sum()
        return found

    def difference(
        self, first: np.ndarray, second: np.ndarray, spread: Spread, *, seeded: bool = True, alike: bool = True
    ) -> Difference:
        """Compare two settings.

        Args:
            first: nats of one run for each seed, shape (seeds, rows).
            second: likewise; more than it are worse.
            spread: of seeds, where the settings have too few to see it.
            seeded: whether chance had a part in the first; the base model was not trained here.
            alike: whether the runs of a side differ by their seed alone, so that they show its spread.
        """
        gone = second.mean(axis=0) - first.mean(axis=0)
        value, level = float(self.loss(gone)), float(self.loss(first.mean(axis=0)))
        again = self._drawn @ gone
        low, high = np.quantile(again, [self._outside, 1 - self._outside])
        on_rows = Interval(float(low), float(high))
        trained = [first, second] if seeded else [second]
        observed = alike and all(len(runs) >= SEEDS_NEEDED for runs in trained)
        spreads = [spread]
        if observed:  # both ways: the prior steadies few seeds, but must not talk down what they show
            own = [self.loss(runs) for runs in trained]
            spreads = [seed_spread(own, spread.prior), seed_spread(own, spread.prior, worth=0)]
        by_rows = (float(again.var(ddof=1)), self.count - 1)
        shares = sum(1 / len(runs) for runs in trained)
        reach = max(_reach([by_rows, ((one.share * level) ** 2 * shares, one.freedom)]) for one in spreads)
        over_seeds = Interval(value - reach, value + reach)
        if over_seeds.leaves_out_zero:
            claim = OVER_SEEDS if observed else BEYOND_SPREAD
        else:
            claim = ON_ROWS if on_rows.leaves_out_zero else NONE
        return Difference(value, value / level if level else math.nan, on_rows, over_seeds, claim)


def _reach(parts: list[tuple[float, int]]) -> float:
    """Half a 95% interval of a sum of (variance, degrees of freedom), by Welch and Satterthwaite."""
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return 0.0
    return student(total**2 / sum(variance**2 / freedom for variance, freedom in parts)) * math.sqrt(total)


def seed_spread(settings: list[np.ndarray], prior: float = PRIOR_SPREAD, worth: int = PRIOR_FREEDOM) -> Spread:
    """Estimate the spread of seeds from settings that have several, and the prior.

    Args:
        settings: the losses of each setting's runs, shape (seeds,).
        prior: the spread expected, as a share of the loss.
        worth: replicates that the prior counts for.
    """
    replicated = [np.log(losses) for losses in settings if len(losses) > 1 and (losses > 0).all()]
    replicates = sum(len(losses) - 1 for losses in replicated)
    squares = sum(float(losses.var(ddof=1)) * (len(losses) - 1) for losses in replicated)
    variance = (worth * prior**2 + squares) / max(1, worth + replicates)
    return Spread(math.sqrt(variance), replicates, prior, worth)


def student(freedom: float) -> float:
    """97.5% quantile of Student's t; at least one degree of freedom is taken."""
    at = [1 / one for one in reversed(_FREEDOM)]
    return float(np.interp(1 / max(1.0, freedom), at, list(reversed(_STUDENT))))
