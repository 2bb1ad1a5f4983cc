"""Small files: written atomically, and read with limits, since they may come from elsewhere; hashes."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import stat
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard

from sft_lab.core.errors import FolderError

if TYPE_CHECKING:
    import numpy as np
    import yaml

FORMAT = 1  # of every JSON file that sft_lab writes
TEMPORARY = ".part"  # suffix of half-written files
MOST_DIGITS = 300  # of an integer in JSON; a float holds 308
MOST_VALUES = 10_000  # of a YAML file with aliases
SMALL = 64 * 2**20  # bytes; JSON and YAML files are held in memory, several times over
LONG = 2**30  # bytes; logs and JSON lines
ANYWHERE = Path("/")


def write_text(path: Path, text: str) -> None:
    """Write a text through a temporary file and a rename, so that no reader sees half of it."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes as ``write_text`` writes a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}")
    try:
        # Not by tempfile, whose files are private: this file's mode follows the user's umask.
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(folder: Path) -> None:
    """Flush a folder with everything below it to the disk, so that it survives a power cut."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def clear_temporary(folder: Path, older_than: float = 0.0) -> None:
    """Remove the temporary files that a killed ``write_text`` left below a folder.

    Args:
        folder: to clear; with ``older_than=0`` no other process may be writing there.
        older_than: minimum age of a file in seconds, longer than any write takes.
    """
    for file in folder.rglob(f".*{TEMPORARY}"):
        with suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime >= older_than:
                file.unlink()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` with ``"format": 1`` first; NaN and infinity become null, since JSON has neither."""
    text = json.dumps(finite({"format": FORMAT, **content}), ensure_ascii=False, indent=2, allow_nan=False)
    # A file name that is not UTF-8 holds lone surrogates, which are written as JSON's escapes.
    write_text(path, text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")


def write_array(path: Path, array: np.ndarray) -> None:
    """Write the file that ``np.save`` writes, which on a full disk may end early without an error."""
    import numpy as np
    from numpy.lib import format as npy

    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(array))
        file.write(array.data)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines."""
    lines = (json.dumps(finite(row), ensure_ascii=False) for row in rows)
    write_text(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "replace").decode("utf-8"))


def finite(content: Any) -> Any:
    """Return ``content`` with every NaN and infinity replaced by None."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {str(key): finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return content


def open_file(path: Path, max_bytes: int | None = None, inside: Path | None = None) -> BinaryIO:
    """Open a file of a run folder or of the store, which may come from elsewhere: opening a pipe would hang.

    Args:
        path: of the file; its folder may itself be reached through a link.
        max_bytes: the largest size allowed; None for files that are not read into memory at once.
        inside: the folder that links must not lead out of; None: the folder of the file.

    Raises:
        FolderError: if it is a pipe or a device, too big, or a link that leads out of the folder.
        OSError: if it cannot be opened.
    """
    root = (inside or path.parent).resolve()
    if not (target := path.resolve(strict=True)).is_relative_to(root):
        raise FolderError(
            f"{path}: is a link that leads out of its folder (to {target}); replace it by a copy of the file"
        )
    if not target.is_file() and not target.is_dir():  # checked first, since opening a device may have an effect
        raise FolderError(f"{path}: is a pipe, socket or device; remove it, or replace it by the file")
    file = open(os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: PTH123, SIM115
    state = os.fstat(file.fileno())
    if not stat.S_ISREG(state.st_mode) or (max_bytes is not None and state.st_size > max_bytes):
        file.close()
        limit = (
            f"has {state.st_size:,} bytes; the limit is {max_bytes:,}" if max_bytes else "has become a pipe or a device"
        )
        raise FolderError(f"{path}: {limit}; remove it, or replace it by the right file")
    return file


def read_bytes(path: Path, max_bytes: int = SMALL, inside: Path | None = None) -> bytes:
    """Return the bytes of a file, with the checks of ``open_file``."""
    with open_file(path, max_bytes, inside) as file:
        return file.read(max_bytes + 1)


def read_text(path: Path, max_bytes: int = SMALL, inside: Path | None = None, errors: str = "strict") -> str:
    """Return the text of a file, every line ended by a line feed, with the checks of ``open_file``."""
    text = read_bytes(path, max_bytes, inside).decode("utf-8", errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, inside: Path | None = None) -> dict[str, Any]:
    """Return the object in a JSON file, with the checks of ``open_file``."""
    content: dict[str, Any] = parse_json(read_text(path, inside=inside))
    return content


def parse_json(text: str) -> Any:
    """Parse JSON that may come from elsewhere.

    Raises:
        ValueError: if it is not JSON, or nested too deep.
    """
    try:
        return json.loads(text, parse_int=_integer)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _integer(digits: str) -> int | float:
    """Return an int; infinity for one too large for a float, with which later arithmetic would raise."""
    return int(digits) if len(digits) < MOST_DIGITS else float(digits)


def follow_mask(folder: Path) -> None:
    """Give weights the mode of the ``*config.json`` beside them: safetensors makes them private, whatever the umask."""
    mode = next(folder.glob("*config.json")).stat().st_mode
    for file in folder.glob("*.safetensors"):
        file.chmod(mode & 0o777)


def parse_yaml(text: str) -> Any:
    """Parse plain YAML that may come from elsewhere.

    Raises:
        ValueError: if it is not YAML, nested too deep, or its aliases expand to too many values.
    """
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        refuse_alias_bomb(node, text)
        return None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    finally:
        loader.dispose()


def refuse_alias_bomb(root: yaml.Node | None, text: str) -> None:
    """Refuse YAML whose expanded aliases would fill the memory: nine lines can expand to a billion values.

    Args:
        root: the composed document.
        text: of the document.

    Raises:
        ValueError: if they expand to more than ``MOST_VALUES``, as an alias inside its own anchor does.
    """
    values, nodes = 0, [root] if "&" in text else []
    while nodes:
        node = nodes.pop()
        values += 1
        if values > MOST_VALUES:
            raise ValueError(
                f"its aliases (&, *) expand to more than {MOST_VALUES:,} values or refer to themselves; write them out"
            )

        parts = node.value if node and not isinstance(node.value, str) else []
        nodes += [part for pair in parts for part in (pair if isinstance(pair, tuple) else [pair])]


def sha256_file(path: Path) -> str:
    """Return SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class HashingReader(io.RawIOBase):
    """Reads a file and hashes it along the way, so that a big file is read only once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb", buffering=0)
        self._hash = hashlib.sha256()
        self.opened_as = os.fstat(self._file.fileno())

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self._file.readinto(buffer) or 0
        self._hash.update(memoryview(buffer)[:size])
        return size

    def sha256(self) -> str:
        """Read the rest of the file and return SHA-256 of all of it, as 64 hex digits."""
        while self.read(2**20):
            pass
        return self._hash.hexdigest()

    def rewound(self) -> io.FileIO:
        """Read the rest of the file and return the open file, rewound and seekable."""
        self.sha256()
        return self.unhashed()

    def unhashed(self) -> io.FileIO:
        """Return the open file, rewound and seekable; what is read from it is not hashed."""
        self._file.seek(0)
        return self._file

    def is_unchanged(self) -> bool:
        """Return whether the file is unchanged since it was opened, and the path still leads to it."""
        try:
            states = (os.fstat(self._file.fileno()), self._path.stat())
        except OSError:
            return False
        return all(_state(state) == _state(self.opened_as) for state in states)

    def close(self) -> None:
        self._file.close()
        super().close()


def _state(state: os.stat_result) -> tuple[int, ...]:
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def digest(content: object) -> str:
    """Return SHA-256 of ``content`` as canonical JSON (sorted keys, no white space), as 64 hex digits."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested config with dotted keys (``trainer.learning_rate``); lists stay as they are."""
    flattened: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            flattened |= flat(value, f"{prefix}{name}.")
        else:
            flattened[f"{prefix}{name}"] = value
    return flattened


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value from a JSON file is a finite number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
