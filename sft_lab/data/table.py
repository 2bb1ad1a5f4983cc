"""Raw records become one immutable table, block by block.

A record is turned into messages, a prompt and an answer; one that cannot be used is dropped with a reason. The right
reader and the rule for groups depend on all records. Both are guessed from the first ones, so that a source is usually
read only once, and the work is repeated if the guess was wrong.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sft_lab.core.blocks import Block, notes_of, run_blocks, with_notes
from sft_lab.core.columns import BATCH, message_array, message_type
from sft_lab.core.errors import SourceError
from sft_lab.core.io import digest, write_array, write_json
from sft_lab.core.params import result_params
from sft_lab.core.plugins import version_of
from sft_lab.core.rows import RowIds, TableWriter, load_table
from sft_lab.core.selection import Selection, shared_strings
from sft_lab.core.text import content_group, count_of
from sft_lab.core.types import TEMPLATE_INPUTS
from sft_lab.data.conversation import Cutter, texts_of
from sft_lab.data.formats import TEXT, Reader, describe_reader, find_reader, read_record
from sft_lab.data.load import HELD_OUT, BadAnswers, Dataset, Record, describe_unread
from sft_lab.data.messages import Message, Unreadable, Watched, without_surrogates
from sft_lab.data.waterfall import commonest_causes, none_usable

if TYPE_CHECKING:
    from sft_lab.core.context import StageContext

Batch = list[tuple[str, Record | None]]  # split and record; None: a record that cannot be read
COLUMNS = (
    "id", "source_id", "system", "prompt", "answer", "messages", *TEMPLATE_INPUTS, "group", "source", "source_split",
)  # fmt: skip
SCHEMA = pa.schema([(name, message_type() if name == "messages" else pa.string()) for name in COLUMNS])
BLOCK_SCHEMA = pa.schema([*SCHEMA, *((name, pa.string()) for name in ("reason", "cause", "group_value"))])
_NUMBERED = re.compile(r"^(.+)_\d+$", re.DOTALL)


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
    """

    ids: list[pa.Array] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    groups: list[np.ndarray] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)


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
            raise _no_record(self._part)
        columns, rule = self._guess(context, beginning)
        blocks = self._convert(context, folder, columns, rule, itertools.chain([beginning], batches))
        every_column = _union(columns, *(block.notes["columns"] for block in blocks))
        if self._reader(every_column) != self._reader(columns):
            blocks = self._convert(context, folder, every_column, rule, self._batches(context))
        if self._group not in ("auto", "id_prefix", "content", *every_column):
            raise SourceError(
                f"dataset.group={self._group}: must be auto, id_prefix, content or a column of the source, one of "
                f"{every_column}"
            )
        right_rule = self._rule(blocks)
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
                groups = pa.array(_groups(table, right_rule, self._name), pa.string())
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
        columns = _union(*(record for _, record in beginning if record))
        try:
            self._reader(columns)
        except SourceError:  # later records may have the missing columns
            count = 0
            for batch in self._batches(context):
                count += len(batch)
                columns = _union(columns, *(record for _, record in batch if record))
            if not columns:
                raise _no_columns(self._part, count) from None
            self._reader(columns)
        if self._group not in ("auto", "id_prefix"):
            return columns, self._group
        ids = [_as_text(record.get("id")) for _, record in beginning if record]
        return columns, "id_prefix" if ids and all(map(_NUMBERED.match, ids)) else "content"

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
        converter = _Converter(self._reader(columns), self._mixture, self._name, self._split, self._group, rule)
        choices = [self._part.format.name, self._part.columns, columns, rule, self._name, self._split, self._group]
        version = digest([*choices, result_params(self._mixture), version_of(self._mixture)])

        def payloads() -> Iterator[tuple[int, Any]]:
            start = self._first
            for batch in batches:
                yield len(batch), (version, start, batch)
                start += len(batch)

        return list(run_blocks(converter, payloads(), folder, "load", context.engine))

    def _rule(self, blocks: list[Block]) -> str:
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
                if not (match := _NUMBERED.match(source_id)):
                    return self._not_numbered()
                prefixes.append(match.group(1))
        if not prefixes:
            return self._not_numbered()
        _, counts = np.unique(hashes(prefixes), return_counts=True)
        if self._group == "id_prefix" or counts.max() <= len(prefixes) / 10:
            return "id_prefix"
        return "content"

    def _not_numbered(self) -> str:
        if self._group == "id_prefix":
            raise SourceError("dataset.group=id_prefix: not every id of the source ends in _<number>; use content")
        return "content"


class _Converter:
    """Turns a block of records into a table with a row for each record; for a dropped one, the reason."""

    def __init__(self, reader: Reader, mixture: Dataset, source: str, split: str | None, group: str, rule: str) -> None:
        self._reader, self._drops_bad = reader, mixture.bad_answers is BadAnswers.drop
        self._cutter = Cutter(mixture.turns, mixture.leading_assistant, mixture.consecutive)
        self._source, self._split, self._group, self._rule = source, split, group, rule

    def __call__(self, payload: tuple[str, int, Batch]) -> pa.Table:
        _, first, batch = payload
        unread, turns = Counter[str](), Counter[str]()
        rows = []
        for position, (split, record) in enumerate(batch, start=first):
            name = ""
            try:
                if not record:
                    raise Unreadable("not a record: a broken line, or a value that is not an object")  # noqa: TRY301
                watched = Watched(record)
                messages, fields = read_record(self._reader, watched, drops_bad_answers=self._drops_bad)
                # A hash of what was read, not of the record, so that the same rows in CSV and JSON have the same ids.
                name = _digest(messages, fields)
                unread.update(watched.unread() - {"id", self._group})
                system, messages = self._cutter(messages, turns)
            except Unreadable as error:
                rows.append({"id": f"{position}-{name or error.reason}", "reason": error.reason, "cause": error.cause})
                continue
            value = _as_text(record.get(self._group)) if self._group not in _RULES else ""
            sources = {"source": self._source, "source_split": self._split or split, "group_value": value}
            rows.append(_row(f"{position}-{name}", record, system, messages) | fields | sources)
        table = _table(rows)
        groups = pa.array(_groups(table, self._rule, self._source), pa.string())
        table = table.set_column(BLOCK_SCHEMA.get_field_index("group"), "group", groups)
        columns = _union(*(record for _, record in batch if record))
        notes = {"columns": columns, "unread": dict(unread), "turns": dict(turns)}
        return with_notes(table, notes)


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
    columns = _union(*(record for record in records if record))
    try:
        if not records:
            raise _no_record(part)
        if not columns:
            raise _no_columns(part, len(records))
        reader = find_reader(part.format, part.columns, columns, needs_answers=mixture.needs_answers)
    except SourceError as error:
        return Beginning("", 0, "", "", error)
    table = _Converter(reader, mixture, "", None, mixture.group, "content")(
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


def _no_record(part: Dataset) -> SourceError:
    return SourceError(f"{part.named()}: has no records; give a source with rows")


def _no_columns(part: Dataset, count: int) -> SourceError:
    return SourceError(
        f"{part.named()}: no columns in any record ({count_of(count, 'record')} read); a record must be a JSON object, "
        "or a line of a table with as many fields as the header; name a file with one list of records .json"
    )


_RULES = ("auto", "id_prefix", "content")


def _groups(table: pa.Table, rule: str, source: str) -> list[str | None]:
    """Return each row's group, which must stay on one side of the split; None for a dropped record."""
    within = f"{source}:" if source else ""
    names = ("reason", "source_id", "prompt", "answer", "group_value")
    groups: list[str | None] = []
    for reason, source_id, prompt, answer, value in zip(*(table[name].to_pylist() for name in names), strict=True):
        if reason:
            groups.append(None)
        elif rule == "id_prefix" and (match := _NUMBERED.match(source_id)):
            groups.append(f"id_prefix:{within}{match.group(1)}")
        elif rule not in _RULES and value:
            groups.append(f"{rule}:{within}{value}")
        else:  # rows whose group column is empty do not belong together: each is grouped by its content
            groups.append(content_group(prompt, answer))
    return groups


def hashes(texts: Iterable[str]) -> np.ndarray:
    """Return a hash of each text: uint64, shape (texts,); a million texts collide with a probability of 3e-8."""
    import xxhash

    return np.fromiter((xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) for text in texts), np.uint64)


def _union(*columns: Iterable[str]) -> list[str]:
    """Return every name once, in order of first occurrence."""
    return list(dict.fromkeys(itertools.chain.from_iterable(columns)))


def _digest(messages: list[Message], fields: dict[str, str]) -> str:
    """Return a hash of what was read; for messages with role and content alone, the one that ids have always had."""
    content: Any = [[*message.values()] if len(message) == 2 else message for message in messages]
    return digest([content, fields] if fields else content)[:12]


def _row(row_id: str, record: Record, system: list[Message], messages: list[Message]) -> Record:
    """Return a table's row without group and source; plain text has neither prompt nor messages."""
    texts = texts_of(messages)
    return {
        "id": row_id,
        "source_id": _as_text(record.get("id")),
        "system": system[0]["content"] if system else "",
        "prompt": texts["user"],
        "answer": texts["assistant"] or texts[TEXT],
        "messages": [] if texts[TEXT] else [*system, *messages],
        "reason": "",
        "cause": "",
    }


def _table(rows: list[Record]) -> pa.Table:
    columns = {name: [row.get(name) for row in rows] for name in BLOCK_SCHEMA.names}
    columns["messages"] = message_array([messages or [] for messages in columns["messages"]])
    return pa.table(columns, BLOCK_SCHEMA)


def _as_text(value: Any) -> str:
    return "" if value is None else without_surrogates(str(value))
