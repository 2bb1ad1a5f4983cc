"""Sources: where raw records come from. A dataset option is one of these classes."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sft_lab.bench import log, package_path, saved_path
from sft_lab.data.dataset import Dataset, OnError, Record
from sft_lab.errors import SourceError, require
from sft_lab.files import HashingReader, digest
from sft_lab.hub import fall_back_on_cache

if TYPE_CHECKING:
    from sft_lab.store import Store

TOLD = 3  # broken places of a source that are named in the log; all are counted


@dataclass
class File(Dataset):
    """Local files: .jsonl, .json, their .gz, .csv and .parquet; a path or a glob."""

    path: str = field(default="???", metadata={"changes_result": False})  # the bytes do: see fingerprint

    def __post_init__(self) -> None:
        """Make the path absolute, so that a saved config runs from any folder."""
        super().__post_init__()
        self.path = saved_path(self.path)

    def named(self) -> str:
        """The path as given."""
        return f"dataset.path={self.path}"

    def files(self) -> list[Path]:
        """Every file that is read, in order."""
        pattern = str(package_path(self.path))
        if Path(pattern).is_file():
            return [Path(pattern)]
        return sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 - an absolute pattern

    def check(self) -> list[str]:
        """Every file is there and of a kind that can be read."""
        return file_problems(self.named(), self.files())

    def is_known(self, store: Store) -> bool:
        """Whether every file was read before and not touched since."""
        return all(store.known_sha256(file) for file in self._found())

    def fingerprint(self, store: Store) -> str:
        """SHA-256 over the files' bytes, in the order they are read."""
        return digest([store.sha256(file) for file in self._found()])

    def _found(self) -> list[Path]:
        files = self.files()
        if not files:
            raise SourceError(self.check()[0])
        return files

    def records(self, store: Store) -> Iterator[tuple[str, Record | None]]:
        """Every record of every file, in order; None for one that cannot be read.

        Raises:
            SourceError: naming file and line where a file is broken, unless ``on_error=skip``.
        """
        for file in self.files():
            broken = 0
            for found in _read(file, store):
                if not isinstance(found, SourceError):
                    yield "", found
                    continue
                if self.on_error is OnError.fail:
                    raise SourceError(f"{found}, or leave out what is broken with dataset.on_error=skip") from found
                broken += 1
                if broken <= TOLD:
                    log.warning("load: left out: %s", found)
                yield "", None
            if broken > TOLD:
                log.warning("load: left out: %d more places of %s", broken - TOLD, file)


def file_problems(where: str, files: list[Path]) -> list[str]:
    """Say what is wrong with the files that a key names; empty when all can be read."""
    if not files:
        return [f"{where}: no such file; give the path of a {_KINDS} file, or a glob of them"]
    return [
        f"{where}: {file} is {problem}; give the path of a {_KINDS} file, or a glob of them"
        for file in files
        if (problem := _no_data_file(file))
    ]


def _no_data_file(file: Path) -> str:
    """Say why a path cannot hold rows: a device or a pipe would be read without end."""
    if file.is_dir():
        return "a folder"
    if not file.exists():
        return "a link to nowhere"
    if not file.is_file():
        return "a device or a pipe"
    return "" if file.name.lower().endswith(_ENDS) else "of another kind"


_ENDS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".csv", ".parquet")
_KINDS = ".jsonl, .json, .jsonl.gz, .json.gz, .csv or .parquet"

# What a reader yields: a record, None for one that is no mapping of columns, or what is broken and where. After the
# last, a reader goes on where it can.
Found = Record | None | SourceError


def _read(file: Path, store: Store) -> Iterator[Found]:
    name = file.name.lower()
    if name.endswith(".parquet"):
        yield from _read_parquet(file, store)
        return
    read = _read_csv if name.endswith(".csv") else _read_lines if ".jsonl" in name[-9:] else _read_array
    try:
        with _opened(file, store) as stream:
            yield from read(file, stream)
    except (OSError, EOFError, zlib.error) as error:
        yield SourceError(f"{file}: cannot be read to its end ({error}); copy or download it again")


@contextmanager
def _opened(file: Path, store: Store) -> Iterator[IO[bytes]]:
    """Open a file for reading, unpacked; its hash is known when it has been read.

    Raises:
        SourceError: if the file is packed in another way than its name tells, or was written to meanwhile.
    """
    before = file.stat()
    with HashingReader(file) as raw:
        buffered = io.BufferedReader(raw, 2**20)
        if advice := _packed(file, buffered.peek(4)[:4]):
            raise SourceError(f"{file}: {advice}")
        stream: Any = gzip.GzipFile(fileobj=buffered) if file.name.lower().endswith(".gz") else buffered
        try:
            yield stream
        finally:  # also behind a broken place: what is left out is part of the file
            value = raw.sha256()
            after = file.stat()
            still = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
            if still:
                store.remember_sha256(file, before, value)
    if not still:
        raise SourceError(f"{file}: changed while it was read; start again when nothing writes to it")


def _packed(file: Path, begins: bytes) -> str:
    """Say what to do with a file that is packed in a way its name does not tell; empty when it is not."""
    if begins.startswith(b"\x1f\x8b") and not file.name.lower().endswith(".gz"):
        return f"is packed with gzip; call it {file.name}.gz"
    return "is a zip archive; unpack it and give the files in it" if begins == b"PK\x03\x04" else ""


class _Lines:
    """The lines of a stream as text, counted; goes on behind a line that is not UTF-8."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._stream.readline()
        if not line:
            raise StopIteration
        self.number += 1
        return line.decode("utf-8-sig" if self.number == 1 else "utf-8")


def _not_utf8(where: str, error: UnicodeDecodeError) -> SourceError:
    return SourceError(f"{where}: not UTF-8 ({error.reason}, byte {error.start + 1}); save it as UTF-8")


def _read_csv(file: Path, stream: IO[bytes]) -> Iterator[Found]:
    csv.field_size_limit(2**31 - 1)
    lines = _Lines(stream)
    # Strict: a quote that is never closed would else swallow the rest of the file as one field.
    reader = csv.DictReader(lines, strict=True)
    try:
        known = reader.fieldnames is not None
    except (UnicodeDecodeError, csv.Error) as error:
        yield SourceError(f"{file}, line 1: no header of a CSV file in UTF-8 ({error}); save it as one")
        return
    while known:
        try:
            record = next(reader, None)
        except UnicodeDecodeError as error:
            yield _not_utf8(f"{file}, line {lines.number}", error)
        except csv.Error as error:
            yield SourceError(f"{file}, line {lines.number}: not CSV ({error}); mend the line")
        except _CUT_SHORT as error:
            raise _cut_short(error, lines.number) from error
        else:
            if record is None:
                return
            yield None if None in record else record  # more fields than columns: an unquoted comma cut a text


def _read_lines(file: Path, stream: IO[bytes]) -> Iterator[Found]:
    lines = _Lines(stream)
    while True:
        try:
            line = next(lines, None)
            if line is None:
                return
            record = json.loads(line) if line.strip() else ...
        except UnicodeDecodeError as error:
            yield _not_utf8(f"{file}, line {lines.number}", error)
        except _CUT_SHORT as error:
            raise _cut_short(error, lines.number) from error
        except (ValueError, RecursionError) as error:
            yield SourceError(f"{file}, line {lines.number}: not JSON ({error}); mend or remove the line")
        else:
            if record is not ...:
                yield record if isinstance(record, dict) else None


_CUT_SHORT = (OSError, EOFError, zlib.error)


def _cut_short(error: Exception, line: int) -> OSError:
    return OSError(f"after line {line}: {error}")


def _read_array(file: Path, stream: IO[bytes]) -> Iterator[Found]:
    try:
        content = json.loads(stream.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        yield _not_utf8(str(file), error)
        return
    except (ValueError, RecursionError) as error:
        yield SourceError(f"{file}: not JSON ({error}); one object a line belongs into a .jsonl file")
        return
    if not isinstance(content, list):
        yield SourceError(f"{file}: must hold a list of records, holds {type(content).__name__}; mend it")
        return
    yield from (record if isinstance(record, dict) else None for record in content)


def _read_parquet(file: Path, store: Store) -> Iterator[Found]:
    store.sha256(file)  # by itself, since the file is read by its own index and not from beginning to end
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
            rows += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())
        yield SourceError(f"{file}, after row {rows}: not a parquet file ({said}); copy or download it again")
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date beyond the year 9999
        yield SourceError(f"{file}, after row {rows}: a value that cannot be read ({error}); write the file again")


@dataclass
class Hub(Dataset):
    """A data set of the Hugging Face Hub. Needs a network the first time; a gated one needs HF_TOKEN or a login."""

    name: str = "???"
    config: str | None = None
    split: str = "train"
    eval_split: str | None = None
    revision: str = "main"

    def __post_init__(self) -> None:
        """Refuse impossible names."""
        super().__post_init__()
        require(bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.name)), "name", self.name, "a hub name, owner/name")

    def named(self) -> str:
        """The hub's name."""
        return f"dataset.name={self.name}"

    def fingerprint(self, store: Store) -> str:  # noqa: ARG002 - the hub knows
        """Repository, resolved commit and split: what the hub holds under a branch name is not content."""
        return digest(["hub", self.name, self._commit(), self.config, self.split, self.eval_split])

    def _commit(self) -> str:
        from huggingface_hub import HfApi

        if re.fullmatch(r"[0-9a-f]{40}", self.revision):
            return self.revision
        fall_back_on_cache()
        try:
            return str(HfApi().dataset_info(self.name, revision=self.revision, timeout=20).sha)
        except Exception as error:  # of the client or of what it talks through; all mean: no rows
            raise SourceError(f"{self.named()}: {_hub_remedy(error)}") from error

    def records(self, store: Store) -> Iterator[tuple[str, Record | None]]:  # noqa: ARG002
        """Every record of the split, then of the source's own test split where one is named; of the very commit."""
        import datasets

        commit = self._commit()
        fall_back_on_cache()
        for split in filter(None, (self.split, self.eval_split)):
            try:
                rows = datasets.load_dataset(self.name, self.config, split=split, revision=commit)
            except Exception as error:  # the hub's client raises dozens of types, all mean: no rows
                raise SourceError(f"{self.named()}, split {split}: {_hub_remedy(error)}") from error
            yield from ((split, dict(record)) for record in rows)


def _hub_remedy(error: Exception) -> str:
    return (
        f"cannot be loaded from the hub ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
        "check the network and the name, and for a gated set run `hf auth login` or set HF_TOKEN; "
        "a local copy works with dataset=file dataset.path=..., and rows that were loaded before are found without a "
        "network when dataset.revision is their commit"
    )
