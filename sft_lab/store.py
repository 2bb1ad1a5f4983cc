"""The stage store: a result is computed once and found again by its recipe.

A key is the hash of a recipe: stage, version, the parameters that change the result, and the keys of its inputs.
``<root>/<stage>/<key>/`` holds the result, ``recipe.json`` in it says how it came to be, so ``cat`` explains any
entry. An entry is written in a temporary folder and renamed into place under a file lock: existence means complete.
Nothing is pickled.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_lab.errors import FolderError
from sft_lab.files import digest, read_json, write_json

RECIPE = "recipe.json"


def default_root() -> Path:
    """``$SFT_LAB_STORE``, else ``sft_lab`` in the user's cache folder."""
    if given := os.environ.get("SFT_LAB_STORE"):
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "sft_lab"


@dataclass(frozen=True)
class Entry:
    """A complete result: its folder, and how this run came by it."""

    stage: str
    key: str
    path: Path
    hit: bool
    seconds: float


@dataclass(frozen=True)
class Listing:
    """A line of ``sft-lab store list``: an entry, its size in bytes and the seconds since it was last used."""

    stage: str
    key: str
    path: Path
    size: int
    idle: float
    params: dict[str, Any]


class Store:
    """Entries below one root folder, shared by every run and process that names it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def entry(self, stage: str, recipe: dict[str, Any], compute: Callable[[Path], None]) -> Entry:
        """Find the entry of ``recipe``, or let ``compute`` write it into the folder it is given.

        Processes that want one entry at the same time wait for the first to make it.

        Raises:
            FolderError: if the store cannot be written.
        """
        began = time.monotonic()
        recipe = {"stage": stage, **recipe}
        key = digest(recipe)[:32]
        place = self.root / stage / key
        if self._complete(place):
            return Entry(stage, key, place, hit=True, seconds=time.monotonic() - began)
        with self.lock(f"{stage}-{key}"):
            if self._complete(place):
                return Entry(stage, key, place, hit=True, seconds=time.monotonic() - began)
            temporary = place.with_name(f".{key}.{uuid.uuid4().hex[:8]}")
            self._make(temporary)
            try:
                compute(temporary)
                write_json(temporary / RECIPE, recipe)
                shutil.rmtree(place, ignore_errors=True)  # what is there without a recipe was half removed by hand
                temporary.rename(place)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        return Entry(stage, key, place, hit=False, seconds=time.monotonic() - began)

    def lock(self, name: str) -> Any:
        """Give a lock shared by all processes on this store, to be used in a ``with``; a dead holder frees it."""
        from filelock import FileLock

        locks = self.root / ".locks"
        self._make(locks)
        if not os.access(locks, os.W_OK):
            raise self._unwritable("read-only")
        return FileLock(locks / f"{name}.lock")

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(str(error.strerror)) from error

    def _unwritable(self, why: str) -> FolderError:
        return FolderError(
            f"store.path={self.root}: cannot be written ({why}); set store.path or SFT_LAB_STORE to a folder of yours"
        )

    def _complete(self, place: Path) -> bool:
        try:
            os.utime(place / RECIPE)  # marks the entry as used, for prune; fails when there is none
        except OSError:  # a read-only store still serves what it holds
            return (place / RECIPE).exists()
        return True

    def listing(self) -> Iterator[Listing]:
        """Every complete entry, by stage and key."""
        for recipe in sorted(self.root.glob(f"*/*/{RECIPE}")):
            folder = recipe.parent
            if folder.name.startswith("."):
                continue
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            idle = time.time() - recipe.stat().st_mtime
            content = read_json(recipe)
            yield Listing(folder.parent.name, folder.name, folder, size, idle, content.get("params", {}))

    def prune(self, older_than: float, stage: str | None = None) -> list[Listing]:
        """Remove entries unused for ``older_than`` seconds, and what a killed run left half-written.

        Returns the removed entries. An entry that a run is writing at the moment is left alone.
        """
        from filelock import Timeout

        removed = []
        for found in list(self.listing()):
            if found.idle < older_than or (stage and found.stage != stage):
                continue
            with self.lock(f"{found.stage}-{found.key}"):
                # Renamed first: a reader sees the whole entry or none. Another prune may have been faster.
                if found.path.exists():
                    grave = found.path.with_name(f".{found.key}.pruned")
                    found.path.rename(grave)
                    shutil.rmtree(grave)
                    removed.append(found)
        for leftover in self.root.glob("*/.*"):
            if leftover.parent.name == ".locks" or not leftover.is_dir():
                continue
            # A run that is writing holds the lock; waiting for it would be long, and nothing would be left.
            with (
                suppress(Timeout),
                self.lock(f"{leftover.parent.name}-{leftover.name.split('.')[1]}").acquire(timeout=0),
            ):
                shutil.rmtree(leftover, ignore_errors=True)
        return removed
