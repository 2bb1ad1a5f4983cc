"""Filters: one file each. A new one is a file here and an option file in ``conf/filter/``; nothing else changes."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import ClassVar

from sft_lab.bench import Selector


@dataclass
class Filter(Selector):
    """A stage that judges each row by itself."""

    group: ClassVar[str] = "filter"


def filter_schemas() -> dict[str, type[Filter]]:
    """Every filter class of this folder, by the name of its file."""
    found: dict[str, type[Filter]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        found[module_info.name] = getattr(module, module_info.name.title().replace("_", ""))
    return found
