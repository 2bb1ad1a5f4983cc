"""What is known of data that no stage has read: records by counting lines, tokens and format by a sample."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core import parquet
from sft_lab.core.errors import SftLabError, SourceError
from sft_lab.core.io import parse_json
from sft_lab.core.store_view import NotStored, StoreView
from sft_lab.core.text import count_of
from sft_lab.data.readers import kind_of, unpacked
from sft_lab.data.sources import File

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sft_lab.data.beginning import Beginning
    from sft_lab.run.config import Run

SAMPLED_RECORDS = 100  # at the start of a source, by which its format is recognized
SAMPLED_LINES = 200  # at the start of a file, by which the tokens of all are estimated
MAX_LINE = 2**20  # characters of a sampled line; a longer one ends the sample
MAX_PACKED = 2**25  # bytes of a compressed file, which takes about a second to decompress
_BLOCK = 2**24  # bytes that are searched for line ends at a time


@dataclass(frozen=True)
class RawData:
    """Data as it lies in its files.

    Attributes:
        records: lines of JSON Lines files, compressed or not, rows of Parquet files.
        tokens: of all texts in the records, by a sample of each file; None where that is not known.
    """

    records: int
    tokens: int | None


def count_raw_data(run: Run) -> RawData | None:
    """Return what the files of a run's data hold; None for a source that cannot be counted without being read."""
    view = StoreView(run.store.open().root)
    try:
        sources = [source for source in run.dataset.parts().values() if isinstance(source, File)]
        files = [file for source in sources for file in source.local_files(view, view)]
        counts = [_count_records(file) for file in files]
    except (SftLabError, NotStored, OSError, ValueError):
        return None
    known = [count for count in counts if count is not None]
    if len(sources) < len(run.dataset.parts()) or not known or len(known) < len(counts):
        return None
    return RawData(sum(known), _estimate_tokens(run, dict(zip(files, known, strict=True))))


@dataclass(frozen=True)
class FirstRecords:
    """What the load stage would make of the first records of a run's files.

    Attributes:
        lines: the format and the usable records of each source, for a reader.
        refusal: the error with which loading will end; None where these records do not decide that.
    """

    lines: list[str]
    refusal: SourceError | None


def read_first_records(run: Run) -> FirstRecords:
    """Read the first records of a run's files; of the remote ones, only those that are in the store already."""
    from sft_lab.data.beginning import read_beginning

    sources = {f" of {name}" if name else "": part for name, part in run.dataset.parts().items()}
    if held_out := run.split.source():
        sources[" of split.path"] = held_out
    lines: list[str] = []
    refusals: list[SourceError] = []
    for name, source in sources.items():
        if not isinstance(source, File):
            continue
        view = StoreView(run.store.open().root)
        try:
            records, are_all = source.beginning(view, SAMPLED_RECORDS)
        except NotStored:
            continue
        except SourceError as error:
            refusals.append(error)
            continue
        beginning = read_beginning(source, run.dataset, records)
        if are_all and beginning.problem and (len(sources) == 1 or not beginning.format):
            refusals.append(beginning.problem)
        else:
            lines.append(f"Format{name}: {_describe(beginning, len(records), are_all=are_all)}")
    return FirstRecords(lines, refusals[0] if refusals else None)


def _describe(beginning: Beginning, count: int, *, are_all: bool) -> str:
    records = count_of(count, "record") if are_all else f"the first {count_of(count, 'record')}"
    if not beginning.format:
        return f"not recognized from {records}: {beginning.problem}"
    dropped = f"; dropped: {beginning.causes}" if beginning.causes else ""
    unread = f"; {beginning.unread}" if beginning.unread else ""
    return f"{beginning.format}; {beginning.usable:,} of {records} can be read{dropped}{unread}"


def _count_records(file: Path) -> int | None:
    if not file.is_file():  # a pipe would hang
        return None
    kind, packing = kind_of(file.name)
    if kind == ".parquet" and not packing:
        return parquet.count_rows(file)
    if kind != ".jsonl" or (packing and file.stat().st_size > MAX_PACKED):
        return None
    count, last = 0, b"\n"
    with unpacked(file) as content:
        while block := content.read(_BLOCK):
            count += block.count(b"\n")
            last = block
    return count + (not last.endswith(b"\n"))


def _estimate_tokens(run: Run, records: dict[Path, int]) -> int | None:
    if any(kind_of(file.name)[0] != ".jsonl" for file in records):
        return None
    try:
        tokenizer = run.context(StoreView(run.store.open().root)).tokenizer
        return sum(round(count * _tokens_per_record(file, tokenizer)) for file, count in records.items())
    except (SftLabError, NotStored, OSError, ValueError):  # the model is not here yet
        return None


def _tokens_per_record(file: Path, tokenizer: PreTrainedTokenizerBase) -> float:
    """Return the mean number of tokens in the texts of a file's first records."""
    counts = []
    with unpacked(file) as content, io.TextIOWrapper(content, encoding="utf-8", errors="replace") as lines:
        for _ in range(SAMPLED_LINES):
            line = lines.readline(MAX_LINE)
            if not line.endswith("\n"):
                break
            try:
                texts = list(_texts(parse_json(line)))
            except (ValueError, RecursionError):
                continue
            counts.append(sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])) if texts else 0)
    return sum(counts) / max(len(counts), 1)


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a record, the names of its fields left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
