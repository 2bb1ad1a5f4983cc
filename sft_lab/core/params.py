"""Stage options as plain data, for keys and saved configs."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import partial
from typing import Any


def result_params(stage: Any) -> dict[str, Any]:
    """Return a stage's options as plain data, without those marked ``changes_result=False``."""
    params: dict[str, Any] = plain(stage)
    return params


def plain(value: Any, *, every_knob: bool = False, complete: bool = False) -> Any:
    """Return options as plain data: enums by name, dataclasses as dicts.

    Args:
        value: an option, or a dataclass of options.
        every_knob: include those marked ``changes_result=False``.
        complete: include those marked ``added=True`` at their defaults. They are left out of keys and hashes, so that
            those of configs from before they existed stay the same.
    """
    as_plain = partial(plain, every_knob=every_knob, complete=complete)
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value) and not isinstance(value, type):
        knobs = [knob for knob in fields(value) if every_knob or knob.metadata.get("changes_result", True)]
        if not complete:
            knobs = [knob for knob in knobs if not _is_added_default(knob, getattr(value, knob.name))]
        return {knob.name: as_plain(getattr(value, knob.name)) for knob in knobs}
    if isinstance(value, dict):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    return value


def _is_added_default(knob: Field[Any], value: Any) -> bool:
    return bool(knob.metadata.get("added")) and value == default(knob)


def default(knob: Field[Any]) -> Any:
    """Return the default of a dataclass field."""
    return knob.default if knob.default_factory is MISSING else knob.default_factory()
