"""The files that a path, a URL or a glob names, each real file once."""

from __future__ import annotations

import fnmatch
import glob
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from sft_lab.core import remote
from sft_lab.core.errors import SourceError
from sft_lab.core.packages import is_url, package_path


def files_of(path: str) -> list[Path] | list[str]:
    """Return the files, or their URLs, that a path, a URL or a glob names, in reading order.

    A folder written by ``datasets.save_to_disk`` stands for its Arrow files.

    Raises:
        SourceError: if a URL cannot be listed, or a folder has several splits.
    """
    if is_url(path):
        may_be_folder = not Path(remote.file_name(path)).suffix and not glob.has_magic(path)
        names = _saved_files(path, remote.read_small) if may_be_folder else []
        return [f"{path.rstrip('/')}/{name}" for name in names] or remote.expand(path)
    files: list[Path] = []
    for file in expand(str(package_path(path))):
        names = _saved_files(str(file), _read_small) if file.is_dir() else []
        files += [file / name for name in names] or [file]
    return files


def _read_small(path: str) -> bytes | None:
    file = Path(path)
    return file.read_bytes() if file.is_file() else None


def _saved_files(folder: str, read: Callable[[str], bytes | None]) -> list[str]:
    """Return the names of the Arrow files in a folder written by ``datasets.save_to_disk``; empty for any other folder.

    Args:
        folder: its path or URL.
        read: returns the content of a small file, None if there is no such file.
    """
    folder = folder.rstrip("/")
    try:
        if state := read(f"{folder}/state.json"):
            return [Path(str(file["filename"])).name for file in json.loads(state)["_data_files"]]
        splits = json.loads(read(f"{folder}/dataset_dict.json") or b"{}").get("splits")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{folder}: not written by datasets.save_to_disk ({error}); save it again") from error
    if splits:
        raise SourceError(
            f"{folder}: has the splits {', '.join(splits)}; give the path of one of them, {folder}/{splits[0]}"
        )
    return []


def expand(pattern: str) -> list[Path]:
    """Return the files of an absolute path or glob in order, each real file once.

    A part of the pattern that is the name of an existing file is taken literally, such as a folder named ``[proj]``.
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
    literal = os.path.join(folder, head)  # noqa: PTH118 - faster, for tens of thousands of files
    if head == "**":
        for below in _folders(folder):
            yield from _matches(below, rest or ["*"])
    elif os.path.lexists(literal):
        yield from _matches(literal, rest)
    elif glob.has_magic(head):
        with suppress(OSError):  # not a folder, or one that may not be listed
            for name in os.listdir(folder):  # noqa: PTH208 - as above
                if fnmatch.fnmatchcase(name, head) and (not name.startswith(".") or head.startswith(".")):
                    yield from _matches(os.path.join(folder, name), rest)  # noqa: PTH118


def _folders(top: str) -> Iterator[str]:
    """Yield a folder and all its subfolders, breadth first; one reached again through a link is skipped."""
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
