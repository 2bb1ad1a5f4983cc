"""Readers: each kind of file as records, with an error for each broken part.

All of them read in pieces, so memory depends on the longest record and not on the file's size.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sft_lab.core.characters import not_json
from sft_lab.core.errors import SourceError
from sft_lab.core.io import HashingReader
from sft_lab.data.json_array import read_array, unique_fields
from sft_lab.data.load import Record
from sft_lab.data.utf8 import OtherEncoding, not_utf8, utf16_problem

if TYPE_CHECKING:
    import pyarrow as pa

    from sft_lab.core.store import Store

KINDS = ".jsonl, .json, .csv, .arrow (plain, .gz, .bz2, .xz or .zst) or .parquet"
BATCH_BYTES = 16 * 2**20  # of a Parquet file, decoded at a time


def _unpacked_zstd(stream: IO[bytes]) -> IO[bytes]:
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(stream, "zstd"), 2**20)


# By suffix of the name: the first bytes of a compressed file, and what decompresses it.
_PACKINGS: dict[str, tuple[bytes, Any]] = {
    ".gz": (b"\x1f\x8b", lambda stream: gzip.GzipFile(fileobj=stream)),
    ".bz2": (b"BZh", bz2.BZ2File),
    ".xz": (b"\xfd7zXZ\x00", lzma.LZMAFile),
    ".zst": (b"\x28\xb5\x2f\xfd", _unpacked_zstd),
}


def name_problem(name: str) -> str:
    """Return what is wrong with a file's name; empty if files of its kind can be read."""
    kind, packing = kind_of(name)
    return "" if kind in _READERS or (kind == ".parquet" and not packing) else "not a supported file type"


def problem_with(file: Path) -> str:
    """Return why a path cannot hold rows: reading a device or a pipe might never end; empty if it can."""
    if file.is_dir():
        return "a folder"
    if not file.exists():
        return "a broken link"
    if not file.is_file():
        return "a device or a pipe"
    return name_problem(file.name)


def kind_of(name: str) -> tuple[str, str]:
    """Return the suffixes of a name for the file's kind and for its compression, empty if not compressed."""
    path = Path(name.lower())
    return (Path(path.stem).suffix, path.suffix) if path.suffix in _PACKINGS else (path.suffix, "")


# What a reader yields: a record, None for a value that is not a mapping of columns, or an error naming what is broken
# and where. After an error, a reader continues if it can.
Outcome = Record | None | SourceError


def read(file: Path, name: str, store: Store | None, max_record_mb: float) -> Iterator[Outcome]:
    """Yield every record of a file; its hash and its records come from the same opened file.

    Args:
        file: to read.
        name: of the file in messages: its path, or the URL from which it was copied.
        store: that keeps the hash; None: the file is not hashed, and not read further than its records are taken.
        max_record_mb: the longest record allowed, in MiB.
    """
    kind, packing = kind_of(file.name)
    try:
        with _opened(file, store) as raw:
            buffered = _Buffered(raw, 2**20)
            if kind == ".parquet":
                yield from _read_parquet(name, raw, is_hashed=store is not None)
            else:
                yield from _READERS[kind](name, _unpacked(name, packing, buffered), max_record_mb)
    except _CUT_SHORT as error:
        yield SourceError(f"{name}: cannot be read completely ({error}); copy or download it again")


@contextmanager
def unpacked(file: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading its content, decompressed as its name says; it is not hashed.

    Raises:
        SourceError: if it is compressed in another way.
    """
    with _opened(file, None) as raw:
        yield _unpacked(file.name, kind_of(file.name)[1], _Buffered(raw, 2**20))


class _Buffered(io.BufferedReader):
    """A buffer that does not close its file when the readers stacked on it are closed."""

    def close(self) -> None:
        """Do nothing: ``_opened`` closes the file."""


@contextmanager
def _opened(file: Path, store: Store | None) -> Iterator[HashingReader]:
    """Open a file for reading, and store its hash when it has been read.

    Raises:
        SourceError: if it was written to or replaced in the meantime, or since this run first read it.
    """
    with HashingReader(file) as raw:
        try:
            yield raw
        finally:  # also after a broken part: parts that are left out count for the hash
            if store is not None:
                store.record_sha256(file, raw)


def _unpacked(name: str, packing: str, buffered: io.BufferedReader[Any]) -> IO[bytes]:
    """Return the content of a file, decompressed as its name says.

    Raises:
        SourceError: if it is compressed in another way.
    """
    beginning = buffered.peek(6)[:6]
    for suffix, (magic, _) in _PACKINGS.items():
        if beginning.startswith(magic) and suffix != packing:
            right_name = Path(name.removesuffix(packing)).name + suffix
            raise SourceError(f"{name}: is compressed as {suffix}; rename it to {right_name}")
    if beginning.startswith(b"PK\x03\x04"):
        raise SourceError(f"{name}: is a zip archive; unpack it and give the files in it")

    unpacked: IO[bytes] = _PACKINGS[packing][1](buffered) if packing else buffered
    return unpacked


class _Lines:
    """The lines of a stream as text, counted; iteration continues after a line that is too long or not UTF-8."""

    def __init__(self, name: str, stream: IO[bytes], max_record_mb: float) -> None:
        self._name, self._stream, self._max_mb = name, stream, max_record_mb
        self._max_bytes = int(max_record_mb * 2**20)
        self._has_utf8 = False  # beyond ASCII, which most encodings have in common
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(self._max_bytes + 1)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) > self._max_bytes:
            while line and not line.endswith(b"\n"):
                line = self._stream.readline(2**20)
            raise SourceError(
                f"{self._name}, line {self.number}: longer than dataset.max_record_mb={self._max_mb:g} allows; "
                "is a line break missing? Fix or remove the line, or raise dataset.max_record_mb"
            )
        location = f"{self._name}, line {self.number}"
        # UTF-8 may allow it, with zeros as characters.
        if self.number == 1 and (problem := utf16_problem(location, line)):
            raise problem
        try:
            text = line.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(location, error, is_file=not self._has_utf8) from error
        self._has_utf8 = self._has_utf8 or not text.isascii()
        return text


def csv_reader(lines: Iterator[str]) -> csv.DictReader[str]:
    """Return a reader of CSV; where the header has no comma, its semicolons or tabs separate the fields."""
    header = next(lines, "")
    delimiter = next((mark for mark in ",;\t" if mark in header), ",")
    # Strict, or else a quote that is never closed would swallow the rest of the file as a single field.
    return csv.DictReader(chain([header] if header else [], lines), strict=True, delimiter=delimiter)


def _read_csv(name: str, stream: IO[bytes], max_record_mb: float) -> Iterator[Outcome]:
    csv.field_size_limit(int(max_record_mb * 2**20))
    lines = _Lines(name, stream, max_record_mb)
    try:
        reader = csv_reader(lines)
        has_header = reader.fieldnames is not None
    except OtherEncoding as error:
        yield error
        return
    except csv.Error as error:
        yield SourceError(f"{name}, line 1: not a CSV header ({error}); save it as CSV")
        return
    _refuse_duplicates(name, reader.fieldnames or ())
    while has_header:
        try:
            record = next(reader, None)
        except SourceError as error:
            yield error
        except csv.Error as error:
            yield SourceError(f"{name}, line {lines.number}: not CSV ({error}); fix the line")
        except _CUT_SHORT as error:
            raise _cut_short(error, lines.number) from error
        else:
            if record is None:
                return
            yield None if None in record else record  # more fields than columns: an unquoted comma split a text


# What a file that is no JSON Lines may be, by its first character.
_OF_OTHER_LAYOUT = {
    "[": "name the file .json if it holds one list",
    "{": "fix or remove the line, or put each record on a line of its own",
}


def _read_lines(name: str, stream: IO[bytes], max_record_mb: float) -> Iterator[Outcome]:
    lines = _Lines(name, stream, max_record_mb)
    while True:
        try:
            line = next(lines, None)
            if line is None:
                return
            opening = line.lstrip()[:1] if lines.number == 1 else ""
            record = json.loads(line, object_pairs_hook=unique_fields) if line.strip() else ...
        except SourceError as error:
            yield error
        except _CUT_SHORT as error:
            raise _cut_short(error, lines.number) from error
        except (ValueError, RecursionError) as error:
            remedy = _OF_OTHER_LAYOUT.get(opening, "fix or remove the line")
            yield SourceError(f"{name}, line {lines.number}: {not_json(error)}; {remedy}")
        else:
            if record is not ...:
                yield record if isinstance(record, dict) else None


_CUT_SHORT = (OSError, EOFError, zlib.error, lzma.LZMAError)


def _cut_short(error: Exception, line: int) -> OSError:
    return OSError(f"after line {line}: {error}")


def _read_arrow(name: str, stream: IO[bytes], max_record_mb: float) -> Iterator[Outcome]:  # noqa: ARG001 - it is framed
    """Read Arrow's IPC stream, or its file format, which is such a stream after eight bytes, followed by an index."""
    import pyarrow as pa

    if stream.peek(6)[:6] == b"ARROW1":  # type: ignore[attr-defined]  # all streams here have it
        stream.read(8)

    def batches() -> Iterator[pa.RecordBatch]:
        with pa.ipc.open_stream(stream) as opened:
            _refuse_duplicates(name, opened.schema.names)
            yield from opened

    yield from _records_of(name, batches(), "an Arrow file")


def _read_parquet(name: str, raw: HashingReader, *, is_hashed: bool) -> Iterator[Outcome]:
    import pyarrow.parquet as pq

    def batches() -> Iterator[pa.RecordBatch]:
        # Hashed first, since reading starts with the index at the end; a column's pages are read some at a time.
        content = raw.rewound() if is_hashed else raw.unhashed()
        file = pq.ParquetFile(content, buffer_size=2**20, pre_buffer=False)
        _refuse_duplicates(name, file.schema_arrow.names)
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        size = sum(group.total_byte_size for group in groups)
        yield from file.iter_batches(max(1, min(1024, BATCH_BYTES * file.metadata.num_rows // max(1, size))))

    yield from _records_of(name, batches(), "a Parquet file")


def _records_of(name: str, batches: Iterator[pa.RecordBatch], kind: str) -> Iterator[Outcome]:
    """Yield the rows of a table's batches as records.

    Args:
        name: of the file.
        batches: which may raise Arrow's errors.
        kind: what the file should be: ``a Parquet file``.
    """
    import pyarrow as pa

    rows = 0
    try:
        for batch in batches:
            for start in range(0, batch.num_rows, 1024):
                yield from batch.slice(start, 1024).to_pylist()
            rows += batch.num_rows
    except MemoryError:  # Arrow's own is both
        raise
    except (pa.ArrowException, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = " ".join(str(error).split())
        yield SourceError(f"{name}, after row {rows}: not {kind} ({reason}); copy or download it again")
    except SourceError:
        raise
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date beyond the year 9999
        yield SourceError(f"{name}, after row {rows}: a value that cannot be read ({error}); write the file again")


def _refuse_duplicates(name: str, columns: Sequence[str]) -> None:
    """Refuse a table in which two columns have the same name: only the last one could be read."""
    if duplicates := [column for column, count in Counter(columns).items() if count > 1]:
        raise SourceError(f"{name}: has more than one column named {', '.join(duplicates)}; rename or remove one")


_READERS: dict[str, Callable[[str, IO[bytes], float], Iterator[Outcome]]] = {
    ".jsonl": _read_lines,
    ".json": read_array,
    ".csv": _read_csv,
    ".arrow": _read_arrow,
}
