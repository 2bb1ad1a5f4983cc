"""The stage store: a result is computed once and looked up by its recipe.

A key is the hash of a recipe: stage, version, the parameters that change the result, and the keys of its inputs.
``<root>/<stage>/<key>/`` contains the result and ``recipe.json``, with the recipe and the size and hash of each file.
An entry is written in a temporary folder and renamed into place under a file lock, so that every entry is complete. A
process checks sizes and hashes before it uses an entry, since disks fail and a power cut may leave empty files.
Nothing is pickled.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sft_lab.core.errors import FolderError, SourceError, UserError
from sft_lab.core.integrity import RECIPE, contents, damage, recipe_of
from sft_lab.core.io import HashingReader, digest, read_text, write_json, write_text
from sft_lab.core.locks import file_lock, holding, lock_problem
from sft_lab.core.log import log

_LEFTOVER = re.compile(r"\.[^.]+\.(?:[0-9a-f]{8}|blocks|pruned)")  # an entry being written or removed
FRESH = 2.0  # seconds, the coarsest resolution of time stamps: a younger file may change without a new time stamp


def default_root() -> Path:
    """Return ``$SFT_LAB_STORE``, else ``sft_lab`` in the user's cache folder."""
    if root := os.environ.get("SFT_LAB_STORE"):
        return Path(root).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "sft_lab"


def blocks_folder(temporary: Path) -> Path:
    """Return the folder for the blocks of a result that is being written to ``temporary``; it is made if missing."""
    folder = _blocks_path(temporary)
    folder.mkdir(exist_ok=True)
    return folder


def _blocks_path(temporary: Path) -> Path:
    return temporary.with_suffix(".blocks")


@dataclass(frozen=True)
class Entry:
    """A complete result: its folder, whether it was stored already (``hit``), and the seconds it took."""

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
        self._hashes: dict[Path, str] = {}
        self._states: dict[Path, os.stat_result] = {}  # of the files in _hashes, when they were read
        self._computed: dict[str, Any] = {}  # by ``once``
        self._verified: set[Path] = set()  # entries whose hashes this process has checked

    def entry(self, stage: str, recipe: dict[str, Any], compute: Callable[[Path], None]) -> Entry:
        """Return the entry of ``recipe``; if it is missing, ``compute`` writes it into a folder.

        Processes that need the same entry at the same time wait for the first one.

        Raises:
            FolderError: if the store cannot be written.
        """
        began = time.monotonic()
        if entry := self._lookup(stage, recipe):
            return entry

        recipe = {"stage": stage, **recipe}
        key = digest(recipe)[:32]
        path = self.root / stage / key
        with self.lock(f"{stage}-{key}"):
            if self._is_complete(path):
                return Entry(stage, key, path, hit=True, seconds=time.monotonic() - began)
            if os.path.lexists(path):
                log.warning("store: %s: %s; it is computed again", path, damage(path))

            with self._writing(stage, key) as temporary:
                compute(temporary)
                write_json(temporary / RECIPE, {**recipe, "files": contents(temporary)})
                self._replace(path, temporary)

        self._verified.add(path)
        return Entry(stage, key, path, hit=False, seconds=time.monotonic() - began)

    def entry_once_read(
        self, stage: str, name: str, recipe: Callable[[], dict[str, Any] | None], compute: Callable[[Path], None]
    ) -> Entry:
        """Return an entry whose recipe may not be known before its input has been read to the end.

        Args:
            stage: as for ``entry``.
            name: of the input; processes that read the same input wait for each other.
            recipe: returns the recipe, None until it is known.
            compute: writes the entry; afterwards the recipe is known.

        Raises:
            SourceError: if the recipe is unknown even then.
        """
        began = time.monotonic()
        if entry := self._lookup(stage, recipe()):
            return entry

        with self.lock(f"{stage}-{name}"):
            if entry := self._lookup(stage, recipe()):
                return entry

            with self._writing(stage, name) as temporary:
                compute(temporary)
                # Known by now, for the bytes that were read, even if the file has changed meanwhile.
                if (known := recipe()) is None:
                    raise SourceError(f"{stage}: the input ends unexpectedly; copy or download it again")
                entry = self.entry(stage, known, lambda folder: _move_all(temporary, folder))
        return replace(entry, seconds=time.monotonic() - began)

    @contextmanager
    def _writing(self, stage: str, name: str) -> Iterator[Path]:
        """Make a temporary folder, removed afterwards, and remove those of dead processes; called under the lock.

        If a long computation is killed, its finished blocks stay, so that it can resume; if its input is wrong, they
        are removed too.
        """
        temporary = self.root / stage / f".{name}.{uuid.uuid4().hex[:8]}"
        for dead in (self.root / stage).glob(f".{name}.*"):
            if dead != _blocks_path(temporary):
                shutil.rmtree(dead, ignore_errors=True)
        self._make(temporary)
        try:
            yield temporary
        except UserError:
            shutil.rmtree(_blocks_path(temporary), ignore_errors=True)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            with suppress(OSError):
                _blocks_path(temporary).rmdir()  # if no block was finished
        shutil.rmtree(_blocks_path(temporary), ignore_errors=True)

    def _replace(self, path: Path, temporary: Path) -> None:
        """Move an entry to its path, in place of a damaged one; a link there is removed, never followed."""
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            temporary.rename(path)
        except OSError as error:
            raise self._unwritable(f"{path}: {error.strerror}") from error

    def _lookup(self, stage: str, recipe: dict[str, Any] | None) -> Entry | None:
        began = time.monotonic()
        key = digest({"stage": stage, **(recipe or {})})[:32]
        path = self.root / stage / key
        if recipe is None or not self._is_complete(path):
            return None
        return Entry(stage, key, path, hit=True, seconds=time.monotonic() - began)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return the result of ``compute()``, cached so that it stays the same during a run."""
        if name not in self._computed:
            self._computed[name] = compute()
        return self._computed[name]

    def sha256(self, file: Path) -> str:
        """Return the SHA-256 of a file, which is read only if it is not known."""
        return self.sha256_of([file])[0]

    def sha256_of(self, files: Sequence[Path]) -> list[str]:
        """Return the SHA-256 of each file; files are read only if one is not known.

        The store object keeps the hashes: during a run, a file counts as it was when first read.

        Raises:
            SourceError: if a file changes while it is read.
        """
        if not self.knows_sha256(files):
            for file in files:
                if file not in self._hashes:
                    with HashingReader(file) as raw:
                        self.record_sha256(file, raw)
            self.store_sha256(files)
        return [self._hashes[file] for file in files]

    def knows_sha256(self, files: Sequence[Path]) -> bool:
        """Return whether the hashes of files are known: they were read together before and have not changed since."""
        if not all(file in self._hashes for file in files):
            recipe = {"stage": "file", **_recipe_of_files(files, map(Path.stat, files))}
            path = self.root / "file" / digest(recipe)[:32]
            if self._is_complete(path):
                self._hashes |= dict(zip(files, read_text(path / "sha256").split(), strict=True))
        return all(file in self._hashes for file in files)

    def record_sha256(self, file: Path, raw: HashingReader) -> None:
        """Read a file to its end and remember its hash while this store object lives.

        Raises:
            SourceError: if it changed while it was read, or since this run first read it.
        """
        value = raw.sha256()
        if not raw.is_unchanged():
            raise SourceError(f"{file}: changed while it was read; start again when nothing is writing to it")
        if self._hashes.setdefault(file, value) != value:
            raise SourceError(f"{file}: has changed since this run first read it; start again")
        self._states[file] = raw.opened_as

    def store_sha256(self, files: Sequence[Path]) -> None:
        """Store the hashes of files that were read together as one entry."""
        if not all(file in self._states for file in files):
            return
        states = [self._states[file] for file in files]
        # Files in the store never change.
        outside = [state for file, state in zip(files, states, strict=True) if not file.is_relative_to(self.root)]
        if time.time() - max((max(state.st_mtime, state.st_ctime) for state in outside), default=0.0) > FRESH:
            text = "\n".join(self._hashes[file] for file in files)
            self.entry("file", _recipe_of_files(files, states), lambda folder: write_text(folder / "sha256", text))

    def check(self, *, several_machines: bool = False) -> list[str]:
        """Return an error if the file system's locks do not work: two processes could write one entry at a time.

        Args:
            several_machines: whether other machines use the store too.
        """
        if problem := lock_problem(self.root / ".locks", several_machines=several_machines):
            return [f"store.path={self.root}: {problem}; set store.path or SFT_LAB_STORE to another folder"]
        return []

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Return a lock shared by all processes on this store; waiting for it is logged, with its holder."""
        stage, _, key = name.rpartition("-")
        return holding(self._lock_file(name), f"store: {stage} {key[:12]}")

    def _lock_file(self, name: str) -> Path:
        folder = self.root / ".locks"
        self._make(folder)
        if not os.access(folder, os.W_OK):
            raise self._unwritable("read-only")
        return folder / f"{name}.lock"

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(str(error.strerror)) from error

    def _unwritable(self, reason: str) -> FolderError:
        return FolderError(
            f"store.path={self.root}: cannot be written ({reason}); "
            "set store.path or SFT_LAB_STORE to a folder you can write to"
        )

    def _is_complete(self, path: Path) -> bool:
        if not self._is_present(path):
            return False
        if path not in self._verified and not damage(path):
            self._verified.add(path)
        return path in self._verified

    def _is_present(self, path: Path) -> bool:
        try:
            os.utime(path / RECIPE)  # marks the entry as used, for prune; raises if there is none
        except OSError:  # a read-only store raises too, but can be read
            return os.path.exists(path / RECIPE)  # noqa: PTH110 - False for a path that is too long
        return True

    def listing(self) -> Iterator[Listing]:
        """Yield every complete entry, by stage and key."""
        for recipe in sorted(self.root.glob(f"*/*/{RECIPE}")):
            folder = recipe.parent
            if folder.name.startswith(".") or _is_linked(folder):
                continue
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            idle = time.time() - recipe.stat().st_mtime
            yield Listing(folder.parent.name, folder.name, folder, size, idle, recipe_of(folder).get("params") or {})

    def prune(self, older_than: float, stage: str | None = None) -> list[Listing]:
        """Remove entries unused for ``older_than`` seconds, and incomplete ones left by killed runs.

        Entries that are being written stay.

        Returns:
            The removed entries.
        """
        from filelock import Timeout

        removed = []
        for entry in list(self.listing()):
            if entry.idle < older_than or (stage and entry.stage != stage):
                continue
            with self.lock(f"{entry.stage}-{entry.key}"):
                # Renamed first, so that no reader sees half of it. Another process may have removed it already.
                if entry.path.exists():
                    doomed = entry.path.with_name(f".{entry.key}.pruned")
                    shutil.rmtree(doomed, ignore_errors=True)  # of a prune that was killed
                    entry.path.rename(doomed)
                    shutil.rmtree(doomed)
                    removed.append(entry)

        for leftover in self.root.glob("*/.*"):
            if not (_LEFTOVER.fullmatch(leftover.name) and leftover.is_dir()) or _is_linked(leftover):
                continue
            # A run that is writing has the lock, and removes the folder itself.
            with (
                suppress(Timeout),
                file_lock(self._lock_file(f"{leftover.parent.name}-{leftover.name.split('.')[1]}")).acquire(timeout=0),
            ):
                shutil.rmtree(leftover, ignore_errors=True)
        return removed


def _is_linked(folder: Path) -> bool:
    """Return whether an entry's folder or its stage's is a link, whose target must not be removed."""
    return folder.is_symlink() or folder.parent.is_symlink()


def _file_recipe(file: Path, state: os.stat_result) -> dict[str, Any]:
    # ctime too, since a program can reset mtime.
    times = {"mtime_ns": state.st_mtime_ns, "ctime_ns": state.st_ctime_ns}
    return {"path": str(file), "size": state.st_size, "inode": state.st_ino, **times}


def _recipe_of_files(files: Sequence[Path], states: Iterable[os.stat_result]) -> dict[str, Any]:
    recipes = [_file_recipe(file, state) for file, state in zip(files, states, strict=True)]
    return recipes[0] if len(recipes) == 1 else {"files": digest(recipes)}


def _move_all(source: Path, target: Path) -> None:
    for file in source.iterdir():
        file.rename(target / file.name)
