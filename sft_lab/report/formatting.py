"""Numbers and names as text for a reader: on pages, cards, figures and the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sft_lab.core.io import is_number
from sft_lab.core.types import Verdict

DASH = "–"  # in place of a number that is not known

# Words written from right to left, with the spaces and signs between them.
_LETTERS = "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]+"
_RIGHT_TO_LEFT = re.compile(rf"{_LETTERS}(?:[^\w]*{_LETTERS})*")


def format_count(value: object) -> str:
    """Return a whole number with a comma every three digits."""
    return f"{value:,.0f}" if is_number(value) else DASH


def format_decimal(value: object, digits: int = 3) -> str:
    """Return a number with a fixed number of digits behind the point."""
    return with_minus(f"{value:,.{digits}f}") if is_number(value) else DASH


def format_significant(value: object) -> str:
    """Return a number rounded to three significant digits."""
    return with_minus(f"{value:.3g}") if is_number(value) else DASH


def format_share(part: object, total: object) -> str:
    """Return a part of a total in percent."""
    return f"{part / total:.1%}" if is_number(part) and is_number(total) and total else DASH


def css_share(part: object, total: object) -> str:
    """Return a part of a total as a CSS length, at most 100%."""
    return f"{min(1.0, part / total):.2%}" if is_number(part) and is_number(total) and total else "0"


def format_seconds(seconds: object) -> str:
    """Return a duration in its two largest units."""
    if not is_number(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def with_minus(text: str) -> str:
    """Return a formatted number with a minus sign, which is as wide as a plus, in place of a hyphen."""
    return text.replace("-", "−")


def isolate_right_to_left(text: object) -> str:
    """Return text whose right-to-left words do not reorder adjacent numbers.

    Each stretch of such words is put between Unicode's isolates FSI and PDI (Unicode Standard Annex 9).
    """
    return _RIGHT_TO_LEFT.sub("\u2068\\g<0>\u2069", str(text))


def shown_convergence(summary: Mapping[str, Any]) -> int | None:
    """Return the step to name as convergence; None where the loss was still falling, or has fallen by less than 1%."""
    has_none = summary.get("verdict") in (Verdict.UNDERTRAINED, Verdict.UNDERFITTING)
    return None if has_none else summary.get("converged_at")
