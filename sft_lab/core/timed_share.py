"""How much of a training the times in ``summary.json`` cover."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ALMOST_ALL = 0.99  # of a training: below it, the times are those of a part


def timed_share(summary: Mapping[str, Any]) -> float:
    """Return the share of the training that ``train_seconds`` and ``seconds`` cover, from 0 to 1.

    They are those of the last attempt, while steps and tokens are counted over all of them, so a run that resumed from
    a checkpoint has less than 1; one that had no step left to train has 0.
    """
    speed, tokens, seconds = (summary.get(name) for name in ("tokens_per_second", "train_tokens", "train_seconds"))
    if not tokens or seconds is None:  # of an older version
        return 1.0
    trained = float(speed or 0) * seconds * (1 - (summary.get("watching_share") or 0))
    return min(1.0, float(trained / tokens))


def has_resumed(summary: Mapping[str, Any]) -> bool:
    """Return whether the times are those of a part of the training."""
    return timed_share(summary) < ALMOST_ALL
