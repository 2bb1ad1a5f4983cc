"""Paths: the files that a path or a glob names, each real file once."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def expand(pattern: str) -> list[Path]:
    """Return the files of an absolute path or glob in order, each real file once.

    A part of the pattern that is the name of something is a name: ``[proj]/*.jsonl`` looks into a folder of that name.
    """
    if os.path.lexists(pattern):
        return [Path(pattern)]
    root, *parts = Path(pattern).parts
    by_real_path: dict[str, Path] = {}
    for path in sorted(map(Path, _matches(root, parts))):
        by_real_path.setdefault(os.path.realpath(path), path)
    return list(by_real_path.values())


def _matches(folder: str, parts: list[str]) -> Iterator[str]:
    if not parts:
        yield folder
        return
    head, *rest = parts
    literal = os.path.join(folder, head)  # noqa: PTH118 - ten thousand of them
    if head == "**":
        for below in _folders(folder):
            yield from _matches(below, rest or ["*"])
    elif os.path.lexists(literal):
        yield from _matches(literal, rest)
    elif glob.has_magic(head):
        with suppress(OSError):  # no folder, or one that may not be listed
            for name in os.listdir(folder):  # noqa: PTH208 - as above
                if fnmatch.fnmatchcase(name, head) and (not name.startswith(".") or head.startswith(".")):
                    yield from _matches(os.path.join(folder, name), rest)  # noqa: PTH118


def _folders(top: str) -> Iterator[str]:
    """Yield a folder and all below it, the nearest first; one that links lead to again is passed over."""
    seen = set[str]()
    waiting = deque([top])
    while waiting:
        folder = waiting.popleft()
        if not os.path.isdir(folder) or (real := os.path.realpath(folder)) in seen:  # noqa: PTH112
            continue
        seen.add(real)
        yield folder
        with suppress(OSError), os.scandir(folder) as entries:
            waiting.extend(sorted(entry.path for entry in entries if entry.is_dir() and not entry.name.startswith(".")))
