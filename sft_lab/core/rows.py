"""Rows and selections: what the data stages take and return.

The table is loaded once and never changes. A stage gets ``Rows``, a view of it, and returns a ``Selection``: for
every row whether it is kept, or the reason why it is dropped. Only template and tokenize make new columns.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_lab.core import parquet
from sft_lab.core.errors import SourceError
from sft_lab.core.text import On, content_group

if TYPE_CHECKING:
    from datasets import Dataset

BATCH = 1024  # rows whose texts are in memory at once
COLUMNS = ("id", "prompt", "answer", "messages", "group")


@dataclass(frozen=True)
class Rows:
    """A view of some rows of an immutable table.

    Attributes:
        table: a ``datasets.Dataset`` with at least the columns ``id``, ``prompt`` and ``answer`` (texts).
        positions: int64, shape (rows,): the table's rows in view, in source order.
        table_key: the key of the recipe that made the table.
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

    @property
    def key(self) -> str:
        """A hash of table and positions: equal views have equal keys, however they came about."""
        return hashlib.sha256(self.table_key.encode() + self.positions.astype("<i8").tobytes()).hexdigest()

    def column(self, name: str) -> list[Any]:
        """Return one column's values for the rows in view."""
        import pyarrow as pa

        # Not by datasets' select, whose fingerprint of the selection takes longer than the values.
        values: list[Any] = self.table.data.column(name).take(pa.array(self.positions)).to_pylist()
        return values

    def texts(self, on: On) -> list[str]:
        """Return the text of each row that is judged or compared."""
        if on is On.both:
            return [f"{a}\n{b}" for a, b in zip(self.column("prompt"), self.column("answer"), strict=True)]
        return self.column(on.name)

    def batches(self, *names: str, size: int = BATCH) -> Iterator[tuple[list[Any], ...]]:
        """Yield the values of some columns, ``size`` rows at a time, for texts that do not fit into memory together."""
        columns = [self.table.data.column(name) for name in names]
        for start in range(0, len(self), size):
            positions = self.positions[start : start + size].tolist()
            # Value by value: ``take`` from a column of many chunks joins all of them first (pyarrow 26).
            yield tuple([column[position].as_py() for position in positions] for column in columns)

    def text_batches(self, on: On, size: int = BATCH) -> Iterator[list[str]]:
        """Yield the text of each row that is judged or compared, ``size`` rows at a time."""
        if on is On.both:
            for prompts, answers in self.batches("prompt", "answer", size=size):
                yield [f"{prompt}\n{answer}" for prompt, answer in zip(prompts, answers, strict=True)]
        else:
            for (texts,) in self.batches(on.name, size=size):
                yield texts

    @property
    def is_text(self) -> list[bool]:
        """For each row whether it is plain text and no conversation."""
        return [not messages for messages in self.column("messages")]

    def take(self, kept: np.ndarray) -> Rows:
        """Return the view of the rows for which ``kept`` (bool, shape (rows,)) is true."""
        return Rows(self.table, self.positions[kept], self.table_key)


def _completed(source: Dataset) -> Dataset:
    """Return a plain set with the columns that load makes: texts without a None, ids as text, messages, groups.

    Raises:
        SourceError: if prompt or answer is missing, or holds a value that is not text.
    """
    if missing := [name for name in ("prompt", "answer") if name not in source.column_names]:
        raise SourceError(f"columns {source.column_names}: a stage needs prompt and answer; missing {missing}")
    columns = {
        name: source[name][:] for name in source.column_names if name in (*COLUMNS, "system", "source", "source_split")
    }
    for name in {"prompt", "answer", "system"} & columns.keys():
        if odd := [value for value in columns[name] if not isinstance(value, str | None)]:
            raise SourceError(f"column {name}: holds {odd[0]!r}; a stage needs text")
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

    # Copied, since a set that was shuffled or filtered keeps its table and an index of the rows.
    return datasets.Dataset(source.with_format("arrow")[:])


def _messages(system: str, prompt: str, answer: str) -> list[dict[str, str]]:
    head = [{"role": "system", "content": system}] if system.strip() else []
    return [*head, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def save_table(columns: dict[str, list[Any]], features: Any, folder: Path) -> None:
    """Write columns as ``table.arrow``, a file that can be memory-mapped; it may hold no rows."""
    import datasets
    import pyarrow as pa

    table = datasets.Dataset.from_dict(columns, features=features).data.table
    with pa.OSFile(str(folder / "table.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def load_table(folder: Path) -> Dataset:
    """Read what ``save_table`` wrote, memory-mapped."""
    import datasets
    from datasets.table import MemoryMappedTable

    # The key in the store serves as fingerprint: for one of its own, datasets would pickle and hash the table's state.
    return datasets.Dataset(MemoryMappedTable.from_file(str(folder / "table.arrow")), fingerprint=folder.name[:64])


@dataclass(frozen=True)
class Selection:
    """What a stage decided about the rows it saw, in their order.

    Attributes:
        ids: row ids.
        reason: ``""`` for a kept row, else why it was dropped.
        score: float32, shape (rows,): what the decision rests on (tokens, cosine), NaN where it rests on no number.
        nearest: the id of the nearest kept row, ``""`` where there is none.
    """

    ids: list[str]
    reason: list[str]
    score: np.ndarray
    nearest: list[str]

    @classmethod
    def of(
        cls,
        rows: Rows,
        reason: list[str],
        score: np.ndarray | Sequence[float] | None = None,
        nearest: list[str] | None = None,
    ) -> Selection:
        """Return a selection of ``rows``; score and nearest may be left out."""
        size = len(rows)
        values = np.full(size, np.nan, np.float32) if score is None else np.asarray(score, np.float32)
        return cls(rows.column("id"), reason, values, nearest or [""] * size)

    @property
    def kept(self) -> np.ndarray:
        """True for each kept row: bool, shape (rows,)."""
        return np.fromiter((not reason for reason in self.reason), bool, len(self.reason))

    @property
    def dropped(self) -> dict[str, int]:
        """Rows dropped by reason, most first."""
        return dict(Counter(reason for reason in self.reason if reason).most_common())

    def take(self, indices: np.ndarray) -> Selection:
        """Return the decisions about the rows at ``indices``: int64, shape (rows taken,)."""
        return Selection(
            [self.ids[index] for index in indices],
            [self.reason[index] for index in indices],
            self.score[indices],
            [self.nearest[index] for index in indices],
        )

    def bring_back(self, ids: set[str]) -> Selection:
        """Return the selection with these rows kept whatever was decided; score and nearest stay."""
        reasons = ["" if name in ids else reason for name, reason in zip(self.ids, self.reason, strict=True)]
        return Selection(self.ids, reasons, self.score, self.nearest)

    def examples(self, reason: str, n: int = 3) -> list[dict[str, Any]]:
        """Return the first ``n`` rows dropped for ``reason``: id, score and nearest kept id."""
        indices = [index for index, other in enumerate(self.reason) if other == reason][:n]
        return [{"id": self.ids[i], "score": float(self.score[i]), "nearest": self.nearest[i]} for i in indices]

    def save(self, folder: Path) -> None:
        """Write ``selection.parquet``."""
        columns = {"id": self.ids, "reason": self.reason, "score": self.score, "nearest": self.nearest}
        parquet.write(folder / "selection.parquet", columns, parquet.SELECTION)

    @classmethod
    def load(cls, folder: Path) -> Selection:
        """Read what ``save`` wrote."""
        table = parquet.read(folder / "selection.parquet", parquet.SELECTION)
        lists = {name: table[name].to_pylist() for name in ("id", "reason", "nearest")}
        return cls(lists["id"], lists["reason"], table["score"].to_numpy(), lists["nearest"])
