"""Raw records become one immutable table, block by block.

A record is turned into messages, a prompt and an answer; one that cannot be used is dropped with a reason. The right
reader and the rule for groups depend on all records. Both are guessed from the first ones, so that a source is usually
read only once, and the work is repeated if the guess was wrong.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sft_lab.core.blocks import Block, run_blocks
from sft_lab.core.columns import BATCH
from sft_lab.core.errors import SourceError
from sft_lab.core.io import digest, write_array, write_json
from sft_lab.core.params import result_params
from sft_lab.core.plugins import version_of
from sft_lab.core.rows import RowIds, TableWriter, load_table
from sft_lab.core.selection import Selection, shared_strings
from sft_lab.data.beginning import no_columns, no_record
from sft_lab.data.formats import Reader, find_reader
from sft_lab.data.load import HELD_OUT, Dataset
from sft_lab.data.record_converter import NUMBERED, SCHEMA, Batch, Converter, as_text, groups_of, union

if TYPE_CHECKING:
    from sft_lab.core.context import StageContext

FEW_PIECES = 10  # rows per prefix of numbered ids, up to which the numbers probably count pieces of conversations


def write_table(dataset: Dataset, held_out: Dataset | None, context: StageContext, folder: Path) -> None:
    """Read every part of a source and write the table, the selection and their statistics.

    Args:
        dataset: the source.
        held_out: another source whose rows are all held out; they are appended.
        context: for the store and the workers.
        folder: of the result.
    """
    writer = TableWriter(folder, SCHEMA)
    loaded = _Loaded()
    parts: list[tuple[str, Dataset, str | None]] = [(name, part, None) for name, part in dataset.parts().items()]
    if held_out is not None:
        parts.append(("", held_out, HELD_OUT))
    rules = [_Part(name, part, dataset, split, len(loaded.reasons)).write(context, folder, writer, loaded)
             for name, part, split in parts]  # fmt: skip
    writer.close()
    record_of_row = np.flatnonzero(np.fromiter((not reason for reason in loaded.reasons), bool, len(loaded.reasons)))
    if dataset.shuffle_seed is not None:
        order = np.random.default_rng(dataset.shuffle_seed).permutation(len(record_of_row))
        record_of_row = record_of_row[order]
        _reorder(folder, order)
    write_array(folder / "records.npy", record_of_row)
    size = len(loaded.reasons)
    ids = RowIds(pa.chunked_array(loaded.ids, pa.string()))
    Selection(ids, loaded.reasons, np.full(size, np.nan, np.float32), [""] * size, loaded.causes).save(folder)
    content = {
        "grouped_by": "+".join(dict.fromkeys(rule for rule in rules if rule)),
        "groups": len(np.unique(np.concatenate(loaded.groups))) if loaded.groups else 0,
        "unread": dict(loaded.unread),
        "turns": dict(loaded.turns),
        "notices": loaded.notices,
    }
    write_json(folder / "load.json", content)


def _reorder(folder: Path, order: np.ndarray) -> None:
    """Write the table again in another order."""
    table = load_table(folder).data.table
    reordered = folder / "reordered"
    reordered.mkdir()
    writer = TableWriter(reordered, SCHEMA)
    for start in range(0, len(order), BATCH):
        writer.write(table.take(pa.array(order[start : start + BATCH])))
    writer.close()
    (reordered / "table.arrow").replace(folder / "table.arrow")
    reordered.rmdir()


@dataclass
class _Loaded:
    """The data on all records that is kept in memory.

    Attributes:
        ids: of the records, in order.
        reasons: why each record is dropped; empty if it became a row.
        causes: details of the reasons.
        groups: a hash of each row's group: uint64.
        unread: the number of rows with content in a field that is not read, by field.
        turns: the number of turns read, and by reason of those that are not used as they are.
        notices: for everyone who uses the table.
    """

    ids: list[pa.Array] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    groups: list[np.ndarray] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)
    notices: list[str] = field(default_factory=list)


class _Part:
    """One source's records on their way to rows.

    Args:
        name: of the source in a mixture; ``""`` outside a mixture.
        part: whose records are read.
        mixture: the options that all parts have in common.
        split: of every row, whatever the source says; None: the source's.
        first: the position of its first record among those of all parts.
    """

    def __init__(self, name: str, part: Dataset, mixture: Dataset, split: str | None, first: int) -> None:
        self._name, self._part, self._mixture, self._split, self._first = name, part, mixture, split, first
        self._group = mixture.group if split is None else "content"

    def write(self, context: StageContext, folder: Path, writer: TableWriter, loaded: _Loaded) -> str:
        """Append the rows to the table and return the rule that made their groups; empty without rows."""
        batches = self._batches(context)
        beginning = next(batches, None)
        if beginning is None:
            raise no_record(self._part)
        columns, rule = self._guess(context, beginning)
        blocks = self._convert(context, folder, columns, rule, itertools.chain([beginning], batches))
        every_column = union(columns, *(block.notes["columns"] for block in blocks))
        if self._reader(every_column) != self._reader(columns):
            blocks = self._convert(context, folder, every_column, rule, self._batches(context))
        if self._group not in ("auto", "id_prefix", "content", *every_column):
            raise SourceError(
                f"dataset.group={self._group}: must be auto, id_prefix, content or a column of the source, one of "
                f"{every_column}"
            )
        right_rule = self._rule(blocks, loaded)
        rows = 0
        for block in blocks:
            table = block.read()
            loaded.unread.update(block.notes["unread"])
            loaded.turns.update(block.notes["turns"])
            loaded.ids.append(pa.concat_arrays(table["id"].chunks))  # a copy, since the block's file is removed
            loaded.reasons += shared_strings(table["reason"])
            loaded.causes += shared_strings(table["cause"])
            table = table.filter(pc.equal(table["reason"], ""))
            if right_rule != rule:
                groups = pa.array(groups_of(table, right_rule, self._name), pa.string())
                table = table.set_column(table.schema.get_field_index("group"), "group", groups)
            loaded.groups.append(hashes(table["group"].to_pylist()))
            rows += table.num_rows
            writer.write(table)
        return right_rule if rows else ""

    def _guess(self, context: StageContext, beginning: Batch) -> tuple[list[str], str]:
        """Return the columns that determine the reader, and the most likely rule for groups.

        Raises:
            SourceError: if no format fits the columns.
        """
        columns = union(*(record for _, record in beginning if record))
        try:
            self._reader(columns)
        except SourceError:  # later records may have the missing columns
            count = 0
            for batch in self._batches(context):
                count += len(batch)
                columns = union(columns, *(record for _, record in batch if record))
            if not columns:
                raise no_columns(self._part, count) from None
            self._reader(columns)
        if self._group not in ("auto", "id_prefix"):
            return columns, self._group
        ids = [as_text(record.get("id")) for _, record in beginning if record]
        return columns, "id_prefix" if ids and all(map(NUMBERED.match, ids)) else "content"

    def _batches(self, context: StageContext) -> Iterator[Batch]:
        records = self._part.records(context.store)
        while batch := list(itertools.islice(records, context.engine.block)):
            yield batch

    def _reader(self, columns: list[str]) -> Reader:
        return find_reader(self._part.format, self._part.columns, columns, needs_answers=self._mixture.needs_answers)

    def _convert(
        self, context: StageContext, folder: Path, columns: list[str], rule: str, batches: Iterable[Batch]
    ) -> list[Block]:
        """Turn all records into rows, and return their blocks."""
        converter = Converter(self._reader(columns), self._mixture, self._name, self._split, self._group, rule)
        choices = [self._part.format.name, self._part.columns, columns, rule, self._name, self._split, self._group]
        version = digest([*choices, result_params(self._mixture), version_of(self._mixture)])

        def payloads() -> Iterator[tuple[int, Any]]:
            start = self._first
            for batch in batches:
                yield len(batch), (version, start, batch)
                start += len(batch)

        return list(run_blocks(converter, payloads(), folder, "load", context.engine))

    def _rule(self, blocks: list[Block], loaded: _Loaded) -> str:
        """Return the rule that makes groups, each of which stays on one side of the split.

        ``auto`` uses numbered ids only if every row has one and no conversation has more than a tenth of the rows:
        ``identity_0`` to ``identity_999`` are a thousand conversations, not one.
        """
        if self._group not in ("auto", "id_prefix"):
            return self._group
        prefixes = []
        for block in blocks:
            table = block.read()
            for source_id in table["source_id"].filter(pc.equal(table["reason"], "")).to_pylist():
                if not (match := NUMBERED.match(source_id)):
                    return self._not_numbered()
                prefixes.append(match.group(1))
        if not prefixes:
            return self._not_numbered()
        _, first, counts = np.unique(hashes(prefixes), return_index=True, return_counts=True)
        if self._group == "id_prefix" or counts.max() <= len(prefixes) / 10:
            return "id_prefix"
        if len(prefixes) <= FEW_PIECES * len(counts):
            loaded.notices.append(
                f"load: rows are grouped by content, since more than a tenth of them, {counts.max():,} of "
                f"{len(prefixes):,}, have ids that begin with {prefixes[first[counts.argmax()]]}_; if the number at "
                "the end of an id counts the pieces of a conversation, set dataset.group=id_prefix, or pieces of one "
                "conversation are both trained on and held out"
            )
        return "content"

    def _not_numbered(self) -> str:
        if self._group == "id_prefix":
            raise SourceError("dataset.group=id_prefix: not every id of the source ends in _<number>; use content")
        return "content"


def hashes(texts: Iterable[str]) -> np.ndarray:
    """Return a hash of each text: uint64, shape (texts,); a million texts collide with a probability of 3e-8."""
    import xxhash

    return np.fromiter((xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) for text in texts), np.uint64)
