"""How certain a difference in held-out loss is, considering other rows and other seeds.

Chance enters the held-out loss of a run in two ways.

**Rows.** Other held-out rows would give another loss. Both runs were scored on the same rows, so the rows
are resampled for both together (paired bootstrap): what makes a row hard for both cancels out.

**Seeds.** The same setting trained with another seed ends in other weights. Those really differ on any
rows, so no number of rows shows this part.

Hence three claims; a weaker one does not imply the next:

* ``differs_on_these_rows``: the interval over rows excludes zero. This is about two sets of weights, not
  about two settings.
* ``differs_beyond_seed_spread``: it still does when the spread over seeds is added. The two settings have
  too few seeds to show their own spread, so it is estimated from the replicates of the whole sweep and a
  stated prior.
* ``differs_over_seeds``: both settings have at least three seeds. The spread is their own, with or without
  the prior, whichever is wider.

A winner is named only if one of the last two holds against every other setting. Since all of them must
hold, more settings do not make a winner more likely.

**The prior.** The standard deviation of a setting's loss over seeds is taken to be 0.35% of the loss, worth
four replicates beside those of the sweep (a moderated variance as in Smyth, "Linear models and empirical
Bayes methods", 2004). So two settings with one seed each must differ by 1.4%, and one that is 2% worse is
detected. That value is for pretrained weights; where all weights start at random, it is 6% of the change in
log loss that training made, if that is more. Both were measured (docs/decisions.md). Near divergence both
are too small, and three seeds decide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
SEEDS_NEEDED = 3
PRIOR_SHARE = 0.0035  # sd over seeds, as a share of the loss
RANDOM_START_SHARE = 0.06  # the same for random initial weights, as a share of the change in log loss
PRIOR_REPLICATES = 4  # how many replicates the prior is worth


class Claim(StrEnum):
    """What may be claimed about the difference between two settings, as ``compare.json`` writes it."""

    OVER_SEEDS = "differs_over_seeds"
    BEYOND_SPREAD = "differs_beyond_seed_spread"
    ON_ROWS = "differs_on_these_rows"
    NONE = "not_told_apart"


WINNING_CLAIMS = (Claim.OVER_SEEDS, Claim.BEYOND_SPREAD)  # the stronger first


class Interval(NamedTuple):
    """A 95% interval."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class SeedSpread:
    """The standard deviation of a setting's loss over seeds.

    Attributes:
        share: the standard deviation as a share of the loss.
        replicates: number of replicates behind the estimate, beside the prior; 0: the prior alone.
        prior: the share expected before any replicate was seen.
        prior_replicates: how many replicates the prior counts for.
    """

    share: float
    replicates: int
    prior: float = PRIOR_SHARE
    prior_replicates: int = PRIOR_REPLICATES

    @property
    def degrees_of_freedom(self) -> int:
        """Degrees of freedom of the estimate."""
        return max(1, self.prior_replicates + self.replicates)


@dataclass(frozen=True)
class LossDifference:
    """How much worse the second setting is than the first; negative where it is better.

    Attributes:
        value: difference of the losses, in the unit of the measure.
        share: the same as a share of the first setting's loss.
        on_rows: interval over held-out rows, for the weights as they are.
        over_seeds: interval over rows and seeds.
        claim: what may be claimed about the two settings.
    """

    value: float
    share: float
    on_rows: Interval
    over_seeds: Interval
    claim: Claim


class PairedBootstrap:
    """Held-out rows that several runs were scored on, and how often each row is drawn in every resample.

    Args:
        weights: each row's weight in the measure (its tokens, or the bits of its bytes), shape (rows,).
    """

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights
        self.row_count = count = len(weights)

        draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
        self._draws = draws / (draws @ weights)[:, None]

        # The bootstrap quantiles of a small sample lie too close together. They are widened as Student's t
        # is, and by n/(n-1) (the expanded percentile interval: Hesterberg, "What Teachers Should Know About
        # the Bootstrap", 2015).
        half_width = student_quantile(count - 1) * math.sqrt(count / max(1, count - 1))
        self._tail = math.erfc(half_width / math.sqrt(2)) / 2

    def losses(self, nats: np.ndarray) -> np.ndarray:
        """Return the loss of each run: nats of shape (..., rows) to losses of shape (...)."""
        losses: np.ndarray = nats.sum(axis=-1) / self.weights.sum()
        return losses

    def compare(
        self,
        first: np.ndarray,
        second: np.ndarray,
        spread: SeedSpread,
        *,
        first_is_trained: bool = True,
        are_replicates: bool = True,
    ) -> LossDifference:
        """Return how much worse the second setting is than the first.

        Args:
            first: nats of one run for each seed, shape (seeds, rows).
            second: likewise, of the setting that is measured against the first.
            spread: over seeds, for settings with too few seeds to show their own.
            first_is_trained: whether a seed had a part in the first; a base model was not trained here.
            are_replicates: whether the runs of a side differ by their seed alone, so that they show its
                spread.
        """
        excess = second.mean(axis=0) - first.mean(axis=0)
        value, level = float(self.losses(excess)), float(self.losses(first.mean(axis=0)))

        resampled = self._draws @ excess
        on_rows = Interval(*map(float, np.quantile(resampled, [self._tail, 1 - self._tail])))

        trained = [first, second] if first_is_trained else [second]
        has_own_spread = are_replicates and all(len(runs) >= SEEDS_NEEDED for runs in trained)
        spreads = [spread]
        if has_own_spread:
            # The prior steadies few seeds, but must not talk down what they show: the wider of both counts.
            losses = [self.losses(runs) for runs in trained]
            spreads = [
                estimate_seed_spread(losses, spread.prior),
                estimate_seed_spread(losses, spread.prior, prior_replicates=0),
            ]

        row_variance = (float(resampled.var(ddof=1)), self.row_count - 1)
        inverse_seeds = sum(1 / len(runs) for runs in trained)
        half_width = max(
            _half_width([row_variance, ((sd.share * level) ** 2 * inverse_seeds, sd.degrees_of_freedom)])
            for sd in spreads
        )
        over_seeds = Interval(value - half_width, value + half_width)

        claim = _strongest_claim(on_rows, over_seeds, has_own_spread=has_own_spread)
        return LossDifference(value, value / level if level else math.nan, on_rows, over_seeds, claim)


def _strongest_claim(on_rows: Interval, over_seeds: Interval, *, has_own_spread: bool) -> Claim:
    if over_seeds.excludes_zero:
        return Claim.OVER_SEEDS if has_own_spread else Claim.BEYOND_SPREAD
    return Claim.ON_ROWS if on_rows.excludes_zero else Claim.NONE


def _half_width(variances: list[tuple[float, int]]) -> float:
    """Return half the 95% interval of a sum of parts, by Welch and Satterthwaite.

    Args:
        variances: (variance, degrees of freedom) of each part.
    """
    total = sum(variance for variance, _ in variances)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(variance**2 / freedom for variance, freedom in variances)
    return student_quantile(freedom) * math.sqrt(total)


def estimate_seed_spread(
    settings: list[np.ndarray], prior: float = PRIOR_SHARE, prior_replicates: int = PRIOR_REPLICATES
) -> SeedSpread:
    """Return the spread over seeds, from the settings that have several and the prior.

    Args:
        settings: the losses of each setting's runs, shape (seeds,).
        prior: the expected standard deviation, as a share of the loss.
        prior_replicates: how many replicates the prior counts for.
    """
    replicated = [np.log(losses) for losses in settings if len(losses) > 1 and (losses > 0).all()]
    replicates = sum(len(losses) - 1 for losses in replicated)
    squares = sum(float(losses.var(ddof=1)) * (len(losses) - 1) for losses in replicated)

    variance = (prior_replicates * prior**2 + squares) / max(1, prior_replicates + replicates)
    return SeedSpread(math.sqrt(variance), replicates, prior, prior_replicates)


def student_quantile(freedom: float) -> float:
    """Return the 97.5% quantile of Student's t; less than one degree of freedom counts as one."""
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    return float(stdtrit(max(1.0, freedom), 0.975))
