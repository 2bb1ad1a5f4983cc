"""Filters: one file each. A new one is a file here and an option file in ``conf/filter/``; nothing else changes."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sft_lab.bench import Selector


@dataclass
class Filter(Selector):
    """A stage that judges each row by itself."""

    group: ClassVar[str] = "filter"
    judges_by_id: ClassVar[bool] = False  # rows that it does not know of are no reason to wonder

    def check(self) -> list[str]:
        """Say what is wrong with the world as this filter needs it, by key or file; empty when nothing is."""
        return []

    def files(self) -> list[Path]:
        """The files it reads, whose content is a part of the run's data."""
        return []

    def insists_on(self) -> set[str]:
        """Ids of rows that stay in spite of dedup."""
        return set()


def filter_schemas() -> dict[str, type[Filter]]:
    """Every filter class of this folder, by the name of its file."""
    found: dict[str, type[Filter]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        found[module_info.name] = getattr(module, module_info.name.title().replace("_", ""))
    return found
