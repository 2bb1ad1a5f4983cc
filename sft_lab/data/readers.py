"""Readers: how a file of each kind becomes records, and what is said of a broken place in it."""

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
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sft_lab.core.errors import JobError, SourceError
from sft_lab.core.io import HashingReader
from sft_lab.data.load import Record

if TYPE_CHECKING:
    from sft_lab.core.store import Store


def problem_with(file: Path) -> str:
    """Say why a path cannot hold rows: a device or a pipe would be read without end."""
    if file.is_dir():
        return "a folder"
    if not file.exists():
        return "a link to nowhere"
    if not file.is_file():
        return "a device or a pipe"
    kind, packing = _kind(file)
    return "" if kind in _READERS or (kind == ".parquet" and not packing) else "of another kind"


KINDS = ".jsonl, .json, .csv (also with .gz, .bz2 or .xz) or .parquet"
# How a packed file begins, what its name must end in, and what unpacks it.
_PACKINGS: dict[str, tuple[bytes, Any]] = {
    ".gz": (b"\x1f\x8b", lambda stream: gzip.GzipFile(fileobj=stream)),
    ".bz2": (b"BZh", bz2.BZ2File),
    ".xz": (b"\xfd7zXZ\x00", lzma.LZMAFile),
}


def _kind(file: Path) -> tuple[str, str]:
    """Return the ending that names a file's kind, and the one of its packing, empty where it is not packed."""
    name = Path(file.name.lower())
    return (Path(name.stem).suffix, name.suffix) if name.suffix in _PACKINGS else (name.suffix, "")


# What a reader yields: a record, None for one that is no mapping of columns, or what is broken and where. After the
# last, a reader goes on where it can.
Found = Record | None | SourceError


def read(file: Path, store: Store, max_record_mb: float) -> Iterator[Found]:
    """Yield every record of a file; its hash and its rows come from one opened file."""
    kind, _ = _kind(file)
    try:
        with _opened(file, store) as raw:
            buffered = io.BufferedReader(raw, 2**20)  # held here: it closes the file when it goes
            if kind == ".parquet":
                yield from _read_parquet(file, raw)
            else:
                yield from _READERS[kind](file, _unpacked(file, buffered), max_record_mb)
    except _CUT_SHORT as error:
        yield SourceError(f"{file}: cannot be read to its end ({error}); copy or download it again")


@contextmanager
def _opened(file: Path, store: Store) -> Iterator[HashingReader]:
    """Open a file for reading; its hash is known when it has been read.

    Raises:
        SourceError: if it was written to or replaced meanwhile, or since this run first read it.
    """
    with HashingReader(file) as raw:
        try:
            yield raw
        finally:  # also behind a broken place: what is left out is part of the file
            store.remember_sha256(file, raw)


def _unpacked(file: Path, buffered: io.BufferedReader[Any]) -> IO[bytes]:
    """Return the content of a file as its name says it is packed.

    Raises:
        SourceError: if it is packed in another way.
    """
    begins = buffered.peek(6)[:6]
    _, packing = _kind(file)
    for name, (magic, _) in _PACKINGS.items():
        if begins.startswith(magic) and name != packing:
            raise SourceError(f"{file}: is packed as {name}; call it {file.name.removesuffix(packing)}{name}")
    for magic, name in ((b"PK\x03\x04", "a zip archive"), (b"\x28\xb5\x2f\xfd", "packed with zstd")):
        if begins.startswith(magic):
            raise SourceError(f"{file}: is {name}; unpack it and give what is in it")

    unpacked: IO[bytes] = _PACKINGS[packing][1](buffered) if packing else buffered
    return unpacked


class _TooLong(SourceError):
    """A line is longer than any record may be; the next one can be read."""


class _Lines:
    """The lines of a stream as text, counted; goes on behind a line that is too long or not UTF-8."""

    def __init__(self, file: Path, stream: IO[bytes], max_record_mb: float) -> None:
        self._file, self._stream, self._max_mb = file, stream, max_record_mb
        self._most = int(max_record_mb * 2**20)
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(self._most + 1)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) > self._most:
            while line and not line.endswith(b"\n"):
                line = self._stream.readline(2**20)
            raise _TooLong(
                f"{self._file}, line {self.number}: longer than dataset.max_record_mb={self._max_mb:g} allows; "
                "is a line break missing? Mend or remove the line, or raise dataset.max_record_mb"
            )
        return line.decode("utf-8-sig" if self.number == 1 else "utf-8")


def _not_utf8(where: str, error: UnicodeDecodeError) -> SourceError:
    return SourceError(f"{where}: not UTF-8 ({error.reason}, byte {error.start + 1}); save it as UTF-8")


def _read_csv(file: Path, stream: IO[bytes], max_record_mb: float) -> Iterator[Found]:
    csv.field_size_limit(int(max_record_mb * 2**20))
    lines = _Lines(file, stream, max_record_mb)
    # Strict: a quote that is never closed would else swallow the rest of the file as one field.
    reader = csv.DictReader(lines, strict=True)
    try:
        known = reader.fieldnames is not None
    except (UnicodeDecodeError, csv.Error) as error:
        yield SourceError(f"{file}, line 1: no header of a CSV file in UTF-8 ({error}); save it as one")
        return
    _refuse_duplicates(file, reader.fieldnames or ())
    while known:
        try:
            record = next(reader, None)
        except _TooLong as error:
            yield error
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


def _read_lines(file: Path, stream: IO[bytes], max_record_mb: float) -> Iterator[Found]:
    lines = _Lines(file, stream, max_record_mb)
    while True:
        try:
            line = next(lines, None)
            if line is None:
                return
            record = json.loads(line, object_pairs_hook=_fields) if line.strip() else ...
        except _TooLong as error:
            yield error
        except UnicodeDecodeError as error:
            yield _not_utf8(f"{file}, line {lines.number}", error)
        except _CUT_SHORT as error:
            raise _cut_short(error, lines.number) from error
        except (ValueError, RecursionError) as error:
            yield SourceError(f"{file}, line {lines.number}: not JSON ({error}); mend or remove the line")
        else:
            if record is not ...:
                yield record if isinstance(record, dict) else None


def _fields(pairs: list[tuple[str, Any]]) -> Record:
    """Return the fields of a JSON object; of two with one name only the last could be read."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise ValueError(f"more than one field named {', '.join(twice)}")
    return fields


_CUT_SHORT = (OSError, EOFError, zlib.error, lzma.LZMAError)


def _cut_short(error: Exception, line: int) -> OSError:
    return OSError(f"after line {line}: {error}")


def _read_array(file: Path, stream: IO[bytes], max_record_mb: float) -> Iterator[Found]:  # noqa: ARG001 - in memory at once
    try:
        content = json.loads(stream.read().decode("utf-8-sig"), object_pairs_hook=_fields)
    except MemoryError as error:
        raise JobError(f"{file}: out of memory, as a .json array is read whole; save it as .jsonl") from error
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


def _read_parquet(file: Path, raw: HashingReader) -> Iterator[Found]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 0
    try:
        table = pq.ParquetFile(raw.rewound())  # hashed first, since it is read by its own index
        _refuse_duplicates(file, table.schema_arrow.names)
        for batch in table.iter_batches():
            yield from batch.to_pylist()
            rows += batch.num_rows
    except MemoryError:  # Arrow's own is both
        raise
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())
        yield SourceError(f"{file}, after row {rows}: not a parquet file ({said}); copy or download it again")
    except SourceError:
        raise
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date beyond the year 9999
        yield SourceError(f"{file}, after row {rows}: a value that cannot be read ({error}); write the file again")


def _refuse_duplicates(file: Path, columns: Sequence[str]) -> None:
    """Refuse a table in which two columns have one name: only one of them could be read."""
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise SourceError(f"{file}: has more than one column named {', '.join(twice)}; rename or remove one")


_READERS: dict[str, Callable[[Path, IO[bytes], float], Iterator[Found]]] = {
    ".jsonl": _read_lines,
    ".json": _read_array,
    ".csv": _read_csv,
}
