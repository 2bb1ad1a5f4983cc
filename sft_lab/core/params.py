"""Stage options as plain data, for keys and saved configs."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from typing import Any


def result_params(stage: Any) -> dict[str, Any]:
    """Return a stage's options as plain data, without those marked ``changes_result=False``."""
    params: dict[str, Any] = plain(stage)
    return params


def plain(value: Any, *, every_knob: bool = False) -> Any:
    """Return options as plain data: enums by name, dataclasses as dicts.

    Args:
        value: an option, or a dataclass of options.
        every_knob: include those marked ``changes_result=False``.
    """
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value) and not isinstance(value, type):
        knobs = [knob for knob in fields(value) if every_knob or knob.metadata.get("changes_result", True)]
        # A key added later (metadata ``added=True``) is left out at its default, so old configs keep their hashes.
        knobs = [
            knob for knob in knobs if not (knob.metadata.get("added") and getattr(value, knob.name) == default(knob))
        ]
        return {knob.name: plain(getattr(value, knob.name), every_knob=every_knob) for knob in knobs}
    if isinstance(value, dict):
        return {str(key): plain(item, every_knob=every_knob) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, every_knob=every_knob) for item in value]
    return value


def default(knob: Field[Any]) -> Any:
    """Return the default of a dataclass field."""
    return knob.default if knob.default_factory is MISSING else knob.default_factory()
