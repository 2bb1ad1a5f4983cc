"""Checks that a stored entry's files are as written: disks fail, and a power cut may leave empty files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sft_lab.core import tolerant_readers
from sft_lab.core.errors import FolderError
from sft_lab.core.io import open_file

RECIPE = "recipe.json"


def recipe_of(path: Path) -> dict[str, Any]:
    """Return an entry's recipe; empty if it cannot be read."""
    return tolerant_readers.read(path / RECIPE, [])


def contents(folder: Path) -> dict[str, list[int | str]]:
    """Return the size and hash of every file; xxHash, which is fast and need only detect accidents."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): [file.stat().st_size, _xxh3(file)] for file in sorted(files)}


def damage(path: Path) -> str:
    """Return what is wrong with an entry's files; empty if they are as they were written."""
    files = recipe_of(path).get("files")
    if not isinstance(files, dict):
        return f"its {RECIPE} does not list its files"
    for name, noted in files.items():
        if not isinstance(noted, list) or len(noted) != 2:
            return f"its {RECIPE} does not list {name}"
        size, content = noted
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        try:
            same = _xxh3(file) == content
        except FolderError as error:
            return str(error)
        if not same:
            return f"{name} has changed since it was written"
    return ""


def _xxh3(file: Path) -> str:
    import xxhash

    content_hash = xxhash.xxh3_128()
    with open_file(file) as opened:
        while block := opened.read(2**20):
            content_hash.update(block)
    return str(content_hash.hexdigest())
