"""Ratios of counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def share(part: Sequence[Any] | int, whole: Sequence[Any] | int) -> float:
    """``part / whole`` of counts or lengths, 0 when there is nothing."""
    top, bottom = (value if isinstance(value, int) else len(value) for value in (part, whole))
    return top / bottom if bottom else 0.0
