"""Bounds of config fields: kept in each field's metadata, checked by one base class.

    @dataclass
    class Trainer(Bounded):
        learning_rate: float = bounded(2e-5, above=0)

A rule between two fields stays in ``__post_init__``, after ``super().__post_init__()``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from sft_lab.core.errors import require

T = TypeVar("T")


@dataclass(frozen=True)
class Bound:
    """What the value of a field must be.

    Attributes:
        holds: returns whether a value, never None, is within the bound.
        limit: the bound as text that follows "must be".
    """

    holds: Callable[[Any], bool]
    limit: str


def bounded(
    default: T,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: Collection[Any] | None = None,
    holds: Callable[[Any], bool] | None = None,
    limit: str = "",
    **metadata: Any,
) -> T:
    """Return a dataclass field with a default and a bound; None, where the type allows it, is always within.

    Args:
        default: of the field; an empty value of a list or dict is made anew for each object.
        at_least: the lower end, included.
        above: the lower end, excluded.
        at_most: the upper end, included.
        below: the upper end, excluded.
        choices: the values that are allowed.
        holds: another test; needs ``limit``.
        limit: the bound as text, in place of one made from the numbers.
        metadata: more of the field's metadata, such as ``changes_result=False``.
    """

    def is_within(value: Any) -> bool:
        return (
            (at_least is None or value >= at_least)
            and (above is None or value > above)
            and (at_most is None or value <= at_most)
            and (below is None or value < below)
            and (choices is None or value in choices)
            and (holds is None or holds(value))
        )

    if not limit:
        limit = _describe(at_least, above, at_most, below, choices) + (", or null" if default is None else "")
    metadata["bound"] = Bound(is_within, limit)
    if isinstance(default, list | dict):
        copy: Callable[[], Any] = default.copy
        copied: T = field(default_factory=copy, metadata=metadata)
        return copied
    return field(default=default, metadata=metadata)


def _describe(
    at_least: float | None,
    above: float | None,
    at_most: float | None,
    below: float | None,
    choices: Collection[Any] | None,
) -> str:
    if choices is not None:
        return f"one of {', '.join(map(str, choices))}"
    if at_least is not None and (at_most is not None or below is not None):
        return f"from {at_least:,} to {f'{at_most:,}' if below is None else f'below {below:,}'}"
    ends = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    return " and ".join(f"{name} {end:,}" for name, end in ends.items() if end is not None)


class Bounded:
    """Base of config dataclasses: refuses values outside the bounds of their fields."""

    def __post_init__(self) -> None:
        """Check each bounded field, in order.

        Raises:
            ConfigError: naming field, value and limit.
        """
        for knob in fields(self):  # type: ignore[arg-type]
            bound, value = knob.metadata.get("bound"), getattr(self, knob.name)
            if bound is not None and value is not None:
                require(bound.holds(value), knob.name, value, bound.limit)
