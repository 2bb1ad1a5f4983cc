"""Filters, one file each. A new one needs a file here and an option file in ``conf/filter/``, nothing else."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import ClassVar

from sft_lab.core.stage import ReadsFiles, Selector


@dataclass
class Filter(Selector, ReadsFiles):
    """A stage that judges each row by itself."""

    group: ClassVar[str] = "filter"
    judges_by_id: ClassVar[bool] = False  # whether it has a list of decisions by id and does not judge other rows

    def insists_on(self) -> set[str]:
        """Return the ids of rows that dedup must not drop."""
        return set()


def filter_schemas() -> dict[str, type[Filter]]:
    """Return every filter class of this folder, by the name of its file."""
    schemas: dict[str, type[Filter]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        schemas[module_info.name] = getattr(module, module_info.name.title().replace("_", ""))
    return schemas
