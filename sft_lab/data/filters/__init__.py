"""Filters: one file each. A new one is a file here and an option file in ``conf/filter/``; nothing else changes."""

from __future__ import annotations

import importlib
import pkgutil

from sft_lab.bench import Selector


def filter_schemas() -> dict[str, type[Selector]]:
    """Every filter class of this folder, by the name of its file."""
    found: dict[str, type[Selector]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        found[module_info.name] = getattr(module, module_info.name.title().replace("_", ""))
    return found
