"""Shorter spellings that people type: a file in the place of a dataset option, a Hub name in that of a model option."""

from __future__ import annotations

import re
from pathlib import Path

_DATA_FILE = re.compile(r"[./~].*|.*://.*|package:.*|.*\.(jsonl|json|csv|arrow|parquet)(\.(gz|bz2|xz|zst))?")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def expand(override: str) -> list[str]:
    """Return what an override stands for.

    ``dataset=rows.jsonl`` is ``dataset=file dataset.path=rows.jsonl``, ``dataset=owner/name`` a set of the Hub, and
    ``model=owner/name`` or ``model=./folder`` is ``model=hub model.name_or_path=...``; so are several after a comma.
    """
    group, _, value = override.partition("=")
    items = [item.strip("'\"") for item in value.split(",")]
    if group == "dataset":
        if all(map(is_data_file, items)):
            return ["dataset=file", f"dataset.path={value}"]
        if all(map(_HUB_NAME.fullmatch, items)):
            return ["dataset=hub", f"dataset.name={value}"]
    if group == "model" and all("/" in item for item in items):
        return ["model=hub", f"model.name_or_path={value}"]
    return [override]


def is_data_file(text: str) -> bool:
    """Return whether a text is a path or URL of data, or a file here of any kind, whose reader then names the kinds."""
    return bool(_DATA_FILE.fullmatch(text)) or (any(mark in text for mark in "./") and Path(text).exists())
