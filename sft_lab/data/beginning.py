"""How the first records of a source would be read: its format, and what would become of them. Nothing is written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sft_lab.core.blocks import notes_of
from sft_lab.core.errors import SourceError
from sft_lab.core.rows import RowIds
from sft_lab.core.selection import Selection, shared_strings
from sft_lab.core.text import count_of
from sft_lab.data.formats import describe_reader, find_reader
from sft_lab.data.load import Dataset, Record, describe_unread
from sft_lab.data.record_converter import Converter, union
from sft_lab.data.waterfall import commonest_causes, none_usable


@dataclass(frozen=True)
class Beginning:
    """How the first records of a source would be read.

    Attributes:
        format: its name, and the columns that decided; empty if it is not recognized.
        usable: how many become rows.
        causes: why the others are dropped.
        unread: what in the records is not read.
        problem: why loading would fail if there were no other records; None if it would not.
    """

    format: str
    usable: int
    causes: str
    unread: str
    problem: SourceError | None


def read_beginning(part: Dataset, mixture: Dataset, records: list[Record | None]) -> Beginning:
    """Read the first records of a source as ``write_table`` would, and write nothing.

    Args:
        part: the source.
        mixture: the options that all parts have in common.
        records: of the source.
    """
    columns = union(*(record for record in records if record))
    try:
        if not records:
            raise no_record(part)
        if not columns:
            raise no_columns(part, len(records))
        reader = find_reader(part.format, part.columns, columns, needs_answers=mixture.needs_answers)
    except SourceError as error:
        return Beginning("", 0, "", "", error)
    table = Converter(reader, mixture, "", None, mixture.group, "content")(
        ("", 0, [("", record) for record in records])
    )
    reasons, causes = (shared_strings(table[name]) for name in ("reason", "cause"))
    size = len(reasons)
    selection = Selection(RowIds(table["id"]), reasons, np.full(size, np.nan, np.float32), [""] * size, causes)
    usable = int(selection.kept.sum())
    problem = None if usable else none_usable(selection)
    unread = notes_of(table.schema)["unread"]
    return Beginning(
        describe_reader(reader, columns),
        usable,
        commonest_causes(selection),
        describe_unread(unread) if unread else "",
        problem,
    )


def no_record(part: Dataset) -> SourceError:
    """Return the error of a source without records."""
    return SourceError(f"{part.named()}: has no records; give a source with rows")


def no_columns(part: Dataset, count: int) -> SourceError:
    """Return the error of a source of whose records, so many, none has columns."""
    return SourceError(
        f"{part.named()}: no columns in any record ({count_of(count, 'record')} read); a record must be a JSON object, "
        "or a line of a table with as many fields as the header; name a file with one list of records .json"
    )
