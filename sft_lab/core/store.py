"""The stage store: a result is computed once and found again by its recipe.

A key is the hash of a recipe: stage, version, the parameters that change the result, and the keys of its inputs.
``<root>/<stage>/<key>/`` holds the result, ``recipe.json`` in it says how it came to be and what its files hold, so
``cat`` explains any entry. An entry is written in a temporary folder and renamed into place under a file lock:
existence means complete. Before a process uses an entry it compares sizes and hashes, since disks fail and a power cut
may leave empty files behind. Nothing is pickled.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sft_lab.core import records
from sft_lab.core.errors import FolderError, SourceError
from sft_lab.core.io import HashingReader, digest, open_file, read_text, write_json, write_text
from sft_lab.core.locks import distrust, file_lock, holding

RECIPE = "recipe.json"
log = logging.getLogger("sft_lab")
_LEFTOVER = re.compile(r"\.[^.]+\.(?:[0-9a-f]{8}|blocks|pruned)")  # an entry in the making, or on its way out
FRESH = 2.0  # seconds; a file may change once more within its time stamp's resolution, 2 s on old file systems


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
        self._hashes: dict[Path, str] = {}
        self._read_as: dict[Path, os.stat_result] = {}  # what the file system said of files that this process read
        self._answers: dict[str, Any] = {}
        self._whole: set[Path] = set()  # entries whose bytes this process has looked at

    def entry(self, stage: str, recipe: dict[str, Any], compute: Callable[[Path], None]) -> Entry:
        """Find the entry of ``recipe``, or let ``compute`` write it into the folder it is given.

        Processes that want one entry at the same time wait for the first to make it.

        Raises:
            FolderError: if the store cannot be written.
        """
        began = time.monotonic()
        if found := self._found(stage, recipe):
            return found
        recipe = {"stage": stage, **recipe}
        key = digest(recipe)[:32]
        place = self.root / stage / key
        with self.lock(f"{stage}-{key}"):
            if self._complete(place):
                return Entry(stage, key, place, hit=True, seconds=time.monotonic() - began)
            if os.path.lexists(place):
                log.warning("store: %s: %s; computed anew", place, _damage(place))
            temporary = self._begin(stage, key)
            try:
                compute(temporary)
                write_json(temporary / RECIPE, {**recipe, "files": _contents(temporary)})
                self._replace(place, temporary)
                shutil.rmtree(temporary.with_name(f".{key}.blocks"), ignore_errors=True)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        self._whole.add(place)
        return Entry(stage, key, place, hit=False, seconds=time.monotonic() - began)

    def entry_once_read(
        self, stage: str, name: str, recipe: Callable[[], dict[str, Any] | None], compute: Callable[[Path], None]
    ) -> Entry:
        """Find or compute an entry whose recipe may be known only when its input has been read to the end.

        Args:
            stage: as for ``entry``.
            name: of the input; processes that read the same one wait for each other.
            recipe: None until it is known.
            compute: writes the entry; afterwards the recipe is known.

        Raises:
            SourceError: if it is not, so that the entry has no name of its own.
        """
        began = time.monotonic()
        if found := self._found(stage, recipe()):
            return found
        with self.lock(f"{stage}-{name}"):
            if found := self._found(stage, recipe()):
                return found
            temporary = self._begin(stage, name)
            try:
                compute(temporary)
                shutil.rmtree(temporary.with_name(f".{name}.blocks"), ignore_errors=True)
                # Known by now, and of the bytes that were read, whatever has become of the file since.
                if (known := recipe()) is None:
                    raise SourceError(f"{stage}: the input cannot be read to its end; copy or download it again")
                entry = self.entry(stage, known, lambda folder: _move_all(temporary, folder))
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return replace(entry, seconds=time.monotonic() - began)

    def _begin(self, stage: str, name: str) -> Path:
        """Make a folder to write in, under the lock; whoever left another one has died."""
        for dead in (self.root / stage).glob(f".{name}.*"):
            if dead.suffix != ".blocks":  # what it had finished of a long piece of work goes on
                shutil.rmtree(dead, ignore_errors=True)
        temporary = self.root / stage / f".{name}.{uuid.uuid4().hex[:8]}"
        self._make(temporary)
        return temporary

    def _replace(self, path: Path, temporary: Path) -> None:
        """Put a whole entry where there is none, or what is left of one: a link is removed, never followed."""
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            temporary.rename(path)
        except OSError as error:
            raise self._unwritable(f"{path}: {error.strerror}") from error

    def _found(self, stage: str, recipe: dict[str, Any] | None) -> Entry | None:
        began = time.monotonic()
        key = digest({"stage": stage, **(recipe or {})})[:32]
        place = self.root / stage / key
        if recipe is None or not self._complete(place):
            return None
        return Entry(stage, key, place, hit=True, seconds=time.monotonic() - began)

    def once(self, question: str, answer: Callable[[], Any]) -> Any:
        """Return what ``answer`` gave when the question first came up: in one run the world outside does not change."""
        if question not in self._answers:
            self._answers[question] = answer()
        return self._answers[question]

    def sha256(self, file: Path) -> str:
        """SHA-256 of a file's bytes, which are read only if they are not known."""
        return self.sha256_of([file])[0]

    def sha256_of(self, files: Sequence[Path]) -> list[str]:
        """Return SHA-256 of each file's bytes, which are read only if they are not known.

        A store remembers what it was told of a file for as long as it is open: to a run a file is what it was when it
        was read, even if it changes on the way.

        Raises:
            SourceError: if one changes while it is read.
        """
        if not self.know_sha256(files):
            for file in files:
                if file not in self._hashes:
                    self._read_for_hash(file)
            self.keep_sha256(files)
        return [self._hashes[file] for file in files]

    def _read_for_hash(self, file: Path) -> None:
        with HashingReader(file) as raw:
            self.remember_sha256(file, raw)

    def know_sha256(self, files: Sequence[Path]) -> bool:
        """Whether the hashes of files are known: they were read before, together, and none was touched since."""
        if not all(file in self._hashes for file in files):
            place = (
                self.root / "file" / digest({"stage": "file", **_recipe_of_files(files, map(Path.stat, files))})[:32]
            )
            if self._complete(place):
                self._hashes |= dict(zip(files, read_text(place / "sha256").split(), strict=True))
        return all(file in self._hashes for file in files)

    def remember_sha256(self, file: Path, raw: HashingReader) -> None:
        """Read a file to its end and remember its hash for as long as this store is open.

        Raises:
            SourceError: if it changed between its first byte and its last, or since this run first looked at it.
        """
        value = raw.sha256()
        if not raw.is_unchanged():
            raise SourceError(f"{file}: changed while it was read; start again when nothing writes to it")
        if self._hashes.setdefault(file, value) != value:
            raise SourceError(f"{file}: has changed since this run looked at it first; start again")
        self._read_as[file] = raw.opened_as

    def keep_sha256(self, files: Sequence[Path]) -> None:
        """Keep the hashes of files that were read together: one entry, however many there are."""
        if not all(file in self._read_as for file in files):
            return
        states = [self._read_as[file] for file in files]
        if time.time() - max(max(state.st_mtime, state.st_ctime) for state in states) > FRESH:
            text = "\n".join(self._hashes[file] for file in files)
            self.entry("file", _recipe_of_files(files, states), lambda folder: write_text(folder / "sha256", text))

    def check(self, *, several_machines: bool = False) -> list[str]:
        """Refuse a file system that keeps no locks: two processes would write one entry, and readers see half of it.

        Args:
            several_machines: whether others than this one work on the store.
        """
        if why := distrust(self.root / ".locks", several_machines=several_machines):
            return [f"store.path={self.root}: {why}; set store.path or SFT_LAB_STORE to a folder elsewhere"]
        return []

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Hold a lock shared by all processes on this store; while another has it, wait and say for whom."""
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

    def _unwritable(self, why: str) -> FolderError:
        return FolderError(
            f"store.path={self.root}: cannot be written ({why}); set store.path or SFT_LAB_STORE to a folder of yours"
        )

    def _complete(self, place: Path) -> bool:
        if not self._present(place):
            return False
        if place not in self._whole and not _damage(place):
            self._whole.add(place)
        return place in self._whole

    def _present(self, place: Path) -> bool:
        try:
            os.utime(place / RECIPE)  # marks the entry as used, for prune; fails when there is none
        except OSError:  # a read-only store still serves what it holds
            return os.path.exists(place / RECIPE)  # noqa: PTH110 - False where no such path can be, too long a one
        return True

    def listing(self) -> Iterator[Listing]:
        """Every complete entry, by stage and key."""
        for recipe in sorted(self.root.glob(f"*/*/{RECIPE}")):
            folder = recipe.parent
            if folder.name.startswith(".") or _is_linked(folder):
                continue
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            idle = time.time() - recipe.stat().st_mtime
            yield Listing(folder.parent.name, folder.name, folder, size, idle, _recipe(folder).get("params") or {})

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
            if not (_LEFTOVER.fullmatch(leftover.name) and leftover.is_dir()) or _is_linked(leftover):
                continue
            # A run that is writing holds the lock; waiting for it would be long, and nothing would be left.
            with (
                suppress(Timeout),
                file_lock(self._lock_file(f"{leftover.parent.name}-{leftover.name.split('.')[1]}")).acquire(timeout=0),
            ):
                shutil.rmtree(leftover, ignore_errors=True)
        return removed


def _recipe(place: Path) -> dict[str, Any]:
    return records.read(place / RECIPE, [])


def _contents(folder: Path) -> dict[str, list[int | str]]:
    """Give size and hash of every file: xxHash, since it guards against accidents and reads 20 GB/s."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): [file.stat().st_size, _xxh3(file)] for file in sorted(files)}


def _damage(place: Path) -> str:
    """Say what is wrong with an entry's files; nothing when they are as they were written."""
    files = _recipe(place).get("files")
    if not isinstance(files, dict):
        return f"its {RECIPE} does not say what its files hold"
    for name, noted in files.items():
        if not isinstance(noted, list) or len(noted) != 2:
            return f"its {RECIPE} does not say what {name} holds"
        size, content = noted
        file = place / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        try:
            same = _xxh3(file) == content
        except FolderError as error:
            return str(error)
        if not same:
            return f"{name} holds other bytes than were written"
    return ""


def _xxh3(file: Path) -> str:
    import xxhash

    found = xxhash.xxh3_128()
    with open_file(file) as opened:
        while block := opened.read(2**20):
            found.update(block)
    return str(found.hexdigest())


def _is_linked(folder: Path) -> bool:
    """Whether an entry's folder, or its stage's, is a link: what lies behind it is not the store's to remove."""
    return folder.is_symlink() or folder.parent.is_symlink()


def _file_recipe(file: Path, found: os.stat_result) -> dict[str, Any]:
    # The time of the last change of any kind (ctime) cannot be set back, as that of the content (mtime) can.
    times = {"mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns}
    return {"path": str(file), "size": found.st_size, "inode": found.st_ino, **times}


def _recipe_of_files(files: Sequence[Path], states: Iterable[os.stat_result]) -> dict[str, Any]:
    recipes = [_file_recipe(file, state) for file, state in zip(files, states, strict=True)]
    return recipes[0] if len(recipes) == 1 else {"files": digest(recipes)}


def _move_all(source: Path, target: Path) -> None:
    for file in source.iterdir():
        file.rename(target / file.name)
