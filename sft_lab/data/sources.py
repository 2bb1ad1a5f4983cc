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
from dataclasses import dataclass, field
from pathlib import Path

from sft_lab.bench import package_path
from sft_lab.data.dataset import Dataset, Record
from sft_lab.errors import SourceError, require
from sft_lab.files import digest, sha256_file


@dataclass
class File(Dataset):
    """Local files: .jsonl, .json, their .gz, .csv and .parquet; a path or a glob."""

    path: str = field(default="???", metadata={"changes_result": False})  # the bytes do: see fingerprint

    def __post_init__(self) -> None:
        """Make the path absolute, so that a saved config runs from any folder."""
        super().__post_init__()
        if not self.path.startswith("package:"):
            self.path = str(package_path(self.path))

    def named(self) -> str:
        """The path as given."""
        return f"dataset.path={self.path}"

    def _files(self) -> list[Path]:
        pattern = str(package_path(self.path))
        if Path(pattern).is_file():
            return [Path(pattern)]
        return sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 - an absolute pattern

    def check(self) -> list[str]:
        """Every file is there and of a kind that can be read."""
        files = self._files()
        if not files:
            return [f"{self.named()}: no such file; give the path of a {_KINDS} file, or a glob of them"]
        return [
            f"dataset.path={file}: not one of {_KINDS}" for file in files if not file.name.lower().endswith(_ENDINGS)
        ]

    def fingerprint(self) -> str:
        """SHA-256 over the files' bytes, in the order they are read."""
        files = self._files()
        if not files:
            raise SourceError(self.check()[0])
        return digest([sha256_file(file) for file in files])

    def records(self) -> Iterator[tuple[str, Record | None]]:
        """Every record of every file, in order.

        Raises:
            SourceError: naming file and line where a file is broken.
        """
        for file in self._files():
            try:
                yield from (("", record) for record in _read(file))
            except UnicodeDecodeError as error:
                raise SourceError(f"{file}: not UTF-8 ({error}); save it as UTF-8") from error
            except (OSError, EOFError, zlib.error) as error:
                raise SourceError(f"{file}: cannot be read to its end ({error}); copy or download it again") from error


_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".csv", ".parquet")
_KINDS = ".jsonl, .json, .jsonl.gz, .json.gz, .csv or .parquet"


def _read(file: Path) -> Iterator[Record | None]:
    name = file.name.lower()
    if name.endswith(".parquet"):
        yield from _read_parquet(file)
        return
    newline = "" if name.endswith(".csv") else None
    opened = gzip.open if name.endswith(".gz") else open
    with opened(file, "rt", encoding="utf-8-sig", newline=newline) as text:
        if name.endswith(".csv"):
            yield from _read_csv(file, text)
        elif name.endswith((".jsonl", ".jsonl.gz")):
            yield from _read_lines(file, text)
        else:
            yield from _read_array(file, text)


def _read_csv(file: Path, text: io.TextIOBase) -> Iterator[Record | None]:
    csv.field_size_limit(2**31 - 1)
    # Strict: a quote that is never closed would else swallow the rest of the file as one field.
    reader = csv.DictReader(text, strict=True)
    try:
        for record in reader:
            yield None if None in record else record  # more fields than columns: an unquoted comma cut a text
    except csv.Error as error:
        raise SourceError(f"{file}, line {reader.reader.line_num}: not CSV ({error}); mend the line") from error


def _read_lines(file: Path, text: io.TextIOBase) -> Iterator[Record | None]:
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{file}, line {number}: not JSON ({error}); mend or remove the line") from error
        yield record if isinstance(record, dict) else None


def _read_array(file: Path, text: io.TextIOBase) -> Iterator[Record | None]:
    try:
        content = json.loads(text.read())
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{file}: not JSON ({error}); one object a line belongs into a .jsonl file") from error
    if not isinstance(content, list):
        raise SourceError(f"{file}: must hold a list of records, holds {type(content).__name__}")
    yield from (record if isinstance(record, dict) else None for record in content)


def _read_parquet(file: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise SourceError(f"{file}: not a parquet file ({error})") from error


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

    def fingerprint(self) -> str:
        """Repository, resolved commit and split: what the hub holds under a branch name is not content."""
        return digest(["hub", self.name, self._commit(), self.config, self.split, self.eval_split])

    def _commit(self) -> str:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        if re.fullmatch(r"[0-9a-f]{40}", self.revision):
            return self.revision
        try:
            return str(HfApi().dataset_info(self.name, revision=self.revision, timeout=20).sha)
        except (HfHubHTTPError, OSError) as error:
            raise SourceError(f"{self.named()}: {_hub_remedy(error)}") from error

    def records(self) -> Iterator[tuple[str, Record | None]]:
        """Every record of the split, then of the source's own test split where one is named; of the very commit."""
        import datasets

        commit = self._commit()
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
        "a local copy works with dataset=file dataset.path=..."
    )
