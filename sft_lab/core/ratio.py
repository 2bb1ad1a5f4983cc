"""Ratios of counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def share(part: Sequence[Any] | int, total: Sequence[Any] | int) -> float:
    """Return ``part / total`` of counts or lengths; 0 if the total is 0."""
    top, bottom = (value if isinstance(value, int) else len(value) for value in (part, total))
    return top / bottom if bottom else 0.0
