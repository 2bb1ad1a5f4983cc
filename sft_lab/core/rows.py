"""Rows: the input of the data stages.

The table is loaded once and never changes. A stage gets ``Rows``, a view of it, and returns a ``Selection``: for
every row, whether it is kept or why it is dropped. Only template and tokenize make new columns.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from sft_lab.core.columns import BATCH, gather, value_batches, values_of
from sft_lab.core.errors import SourceError
from sft_lab.core.text import On, content_group

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

COLUMNS = ("id", "prompt", "answer", "messages", "group")


@dataclass(frozen=True)
class Rows:
    """A view of some rows of an immutable table.

    Attributes:
        table: a ``datasets.Dataset`` with at least the columns ``id``, ``prompt`` and ``answer`` (texts).
        positions: the table's rows in view, in source order: int64, shape (rows,).
        table_key: the key of the table's recipe.
    """

    table: Dataset
    positions: np.ndarray
    table_key: str

    @classmethod
    def of(cls, source: Rows | Dataset) -> Rows:
        """Return rows of a plain ``datasets.Dataset``, so that a stage can be called by itself."""
        if isinstance(source, Rows):
            return source
        source = _completed(source)
        content = hashlib.sha256()
        for name in sorted(source.column_names):
            content.update(repr((name, source[name][:])).encode("utf-8", "surrogatepass"))
        return cls(source, np.arange(len(source)), content.hexdigest())

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        return f"Rows({len(self):,} of {len(self.table):,} rows; columns {', '.join(self.table.column_names)})"

    @property
    def key(self) -> str:
        """A hash of table and positions: equal views have equal keys, however they were made."""
        return hashlib.sha256(self.table_key.encode() + self.positions.astype("<i8").tobytes()).hexdigest()

    @property
    def ids(self) -> RowIds:
        """The rows' ids."""
        return RowIds(self.table.data.column("id"), self.positions)

    def column(self, name: str) -> list[Any]:
        """Return one column's values for the rows in view."""
        # Not by datasets' select, whose fingerprint of the selection takes longer than the values.
        return values_of(self.arrow(name))

    def arrow(self, name: str) -> pa.ChunkedArray:
        """Return one column's values for the rows in view, in Arrow."""
        return gather(self.table.data.column(name), self.positions)

    def texts(self, on: On) -> list[str]:
        """Return the text of each row that is judged or compared."""
        return [text for batch in self.text_batches(on) for text in batch]

    def batches(self, *names: str) -> Iterator[tuple[list[Any], ...]]:
        """Yield the values of some columns, ``BATCH`` rows at a time: all texts together may exceed memory."""
        yield from value_batches([self.table.data.column(name) for name in names], self.positions, BATCH)

    def text_batches(self, on: On) -> Iterator[list[str]]:
        """Yield the text of each row that is judged or compared, ``BATCH`` rows at a time."""
        if on is On.both:
            for prompts, answers in self.batches("prompt", "answer"):
                yield [f"{prompt}\n{answer}" for prompt, answer in zip(prompts, answers, strict=True)]
        else:
            for (texts,) in self.batches(on.name):
                yield texts

    @property
    def is_text(self) -> list[bool]:
        """For each row, whether it is plain text and not a conversation."""
        import pyarrow as pa
        import pyarrow.compute as pc

        messages = self.table.data.column("messages")
        if pa.types.is_null(messages.type):  # no row has a message
            return [True] * len(self)
        # Computed for the whole table, which reads only the lengths; taking rows would copy every text.
        lengths = pc.fill_null(pc.list_value_length(messages), 0).to_numpy()
        is_text: list[bool] = (lengths[self.positions] == 0).tolist()
        return is_text

    def take(self, kept: np.ndarray) -> Rows:
        """Return the view of some of the rows; ``kept``: bool, shape (rows,), or indices."""
        return Rows(self.table, self.positions[kept], self.table_key)


def _completed(source: Dataset) -> Dataset:
    """Return a plain data set with the columns that load makes: texts without None, ids as text, messages, groups.

    Raises:
        SourceError: if prompt or answer is missing or has a value that is not text.
    """
    if missing := [name for name in ("prompt", "answer") if name not in source.column_names]:
        raise SourceError(f"columns {source.column_names}: a stage needs prompt and answer; missing {missing}")
    columns = {
        name: source[name][:] for name in source.column_names if name in (*COLUMNS, "system", "source", "source_split")
    }
    for name in {"prompt", "answer", "system"} & columns.keys():
        if odd := [value for value in columns[name] if not isinstance(value, str | None)]:
            raise SourceError(f"column {name}: contains {odd[0]!r}; a stage needs text")
        columns[name] = [value or "" for value in columns[name]]

    prompts, answers = columns["prompt"], columns["answer"]
    systems = columns.get("system", [""] * len(prompts))
    completed = {
        "prompt": prompts,
        "answer": answers,
        "id": [str(value) for value in columns.get("id", range(len(prompts)))],
        "messages": columns.get("messages") or [*map(_messages, systems, prompts, answers)],
        "group": columns.get("group") or [*map(content_group, prompts, answers)],
        **{name: columns.get(name) or [""] * len(prompts) for name in ("source", "source_split")},
    }
    for name, values in completed.items():
        if name not in source.column_names:
            source = source.add_column(name, values)
        elif values != source[name][:]:
            source = source.remove_columns(name).add_column(name, values)

    import datasets

    # Copied, since a data set that was shuffled or filtered keeps its old table and an index into it.
    return datasets.Dataset(source.with_format("arrow")[:])


def _messages(system: str, prompt: str, answer: str) -> list[dict[str, str]]:
    head = [{"role": "system", "content": system}] if system.strip() else []
    return [*head, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


class TableWriter:
    """Writes ``table.arrow``, one memory-mappable file, some rows at a time; without rows it is valid too.

    Rows are regrouped into batches of one size, so that the bytes do not depend on how many are written at once.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        import pyarrow as pa

        self._schema = schema
        self._sink = pa.OSFile(str(folder / "table.arrow"), "wb")
        self._writer = pa.ipc.new_stream(self._sink, schema)
        self._pending: list[pa.RecordBatch] = []
        self._rows = 0

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        for batch in table.select(self._schema.names).cast(self._schema).to_batches():
            self._pending.append(batch)
            self._rows += batch.num_rows
        while self._rows >= BATCH:
            self._flush(BATCH)

    def _flush(self, rows: int) -> None:
        import pyarrow as pa

        table = pa.Table.from_batches(self._pending, self._schema)
        for batch in table.slice(0, rows).combine_chunks().to_batches():
            self._writer.write_batch(_compact(batch))
        self._pending = table.slice(rows).to_batches()
        self._rows -= rows

    def close(self) -> None:
        """Write the remaining rows."""
        if self._rows:
            self._flush(self._rows)
        self._writer.close()
        self._sink.close()


def _compact(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch whose buffers begin at its first row, so that equal rows are equal bytes."""
    import pyarrow as pa

    return pa.RecordBatch.from_arrays([pa.concat_arrays([column]) for column in batch.columns], schema=batch.schema)


def load_table(folder: Path) -> Dataset:
    """Return the table that ``TableWriter`` wrote, memory-mapped."""
    import datasets
    from datasets.table import MemoryMappedTable

    # The store's key serves as fingerprint; without one, datasets would pickle and hash the table's state.
    return datasets.Dataset(MemoryMappedTable.from_file(str(folder / "table.arrow")), fingerprint=folder.name[:64])


class RowIds(Sequence[str]):
    """Ids of rows, read from their column on access: there may be millions."""

    def __init__(self, column: pa.ChunkedArray, positions: np.ndarray | None = None) -> None:
        self._column = column
        self._positions = np.arange(len(column)) if positions is None else positions

    @classmethod
    def of(cls, ids: Sequence[str]) -> RowIds:
        """Return ids that are in memory already."""
        import pyarrow as pa

        return ids if isinstance(ids, cls) else cls(pa.chunked_array([pa.array(ids, pa.string())]))

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            ids: list[str] = gather(self._column, self._positions[index]).to_pylist()
            return ids
        return str(self._column[int(self._positions[index])].as_py())

    def __repr__(self) -> str:
        return f"RowIds({len(self):,}: {', '.join([*self[:3], '...'] if len(self) > 3 else self)})"

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BATCH):
            yield from self[start : start + BATCH]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    def __hash__(self) -> int:
        return hash((len(self), id(self._column)))

    def select(self, indices: np.ndarray) -> RowIds:
        """Return some of the ids: int64 or bool, shape (those rows,)."""
        return RowIds(self._column, self._positions[indices])

    def array(self) -> pa.ChunkedArray:
        """Return all ids as Arrow strings."""
        return gather(self._column, self._positions)


def __getattr__(name: str) -> Any:
    """Return ``Selection``, which used to be defined here: plug-ins may import it from this module."""
    if name != "Selection":
        raise AttributeError(name)
    from sft_lab.core.selection import Selection

    return Selection
