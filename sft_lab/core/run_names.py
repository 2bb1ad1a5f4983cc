"""Short names for runs: their data, their model, and the values set for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft_lab.core.tolerant_readers import read_overrides

# Options whose file or model is a better name than the option itself.
_NAMED_BY = {"dataset": ("name", "path"), "model": ("name_or_path",), "template": ("path",)}
_UNNAMED_OPTIONS = ("file", "hub", "local")
# Keys whose values distinguish runs: options of the stages and of training, not the paths of files.
_NAMING_KEY = re.compile(
    r"seed$|dataset\.(limit|turns|train_on|leading_assistant|consecutive|bad_answers|group)$"
    r"|(split|filter|decontaminate|dedup|template|model|trainer)\."
)


def option_names(config: dict[str, Any], groups: Sequence[str]) -> list[str]:
    """Return the option chosen in each group, or the last part of the path or name given to it."""
    choices = config.get("choices") or {}
    return [_option_name(group, choices[group], config) for group in groups if group in choices]


def _option_name(group: str, option: Any, config: dict[str, Any]) -> str:
    values = config.get(group) or {}
    if option in _UNNAMED_OPTIONS:
        for key in _NAMED_BY.get(group, ()):
            if value := values.get(key):
                return re.split(r"[/\\]", str(value).rstrip("/\\"))[-1]
    if option == "mixture" and isinstance(sources := values.get("sources"), dict):
        return "+".join(map(str, sources))
    return str(option)


def set_values(hydra: Path) -> list[str]:
    """Return ``key=value``, with the last part of the key, for each value that the command set.

    Args:
        hydra: the run's ``.hydra`` folder, with the overrides of the command.
    """
    overrides = read_overrides(hydra / "overrides.yaml") or []
    keyed = [override.lstrip("+").partition("=") for override in overrides]
    return [f"{key.rpartition('.')[2]}={value}" for key, _, value in keyed if _NAMING_KEY.match(key)]
