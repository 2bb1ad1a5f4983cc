"""Selections: a stage's decision on each row it saw, kept or dropped for a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_lab.core import parquet
from sft_lab.core.columns import BATCH
from sft_lab.core.errors import SourceError
from sft_lab.core.notebook import html_table
from sft_lab.core.rows import RowIds, Rows

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


@dataclass(frozen=True)
class Selection:
    """A stage's decisions on the rows it saw, in their order.

    Attributes:
        ids: row ids.
        reason: why a row is dropped, ``""`` if it is kept; equal reasons are one string in memory.
        score: the number behind the decision (tokens, cosine), NaN without one: float32, shape (rows,).
        nearest: the id of the nearest kept row, ``""`` without one.
        cause: details of the reason, such as the template's own error; ``""`` without any.
        source: the rows that were seen; None for decisions read from the store alone.
    """

    ids: RowIds
    reason: list[str]
    score: np.ndarray
    nearest: list[str]
    cause: list[str] = field(default_factory=list)
    source: Rows | Dataset | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Accept a plain list of ids, and no causes."""
        object.__setattr__(self, "ids", RowIds.of(self.ids))
        object.__setattr__(self, "cause", self.cause or [""] * len(self.reason))

    @classmethod
    def of(
        cls,
        rows: Rows,
        reason: list[str],
        score: np.ndarray | Sequence[float] | None = None,
        nearest: list[str] | None = None,
        cause: list[str] | None = None,
    ) -> Selection:
        """Return a selection of ``rows``; score, nearest and cause may be left out."""
        size = len(rows)
        values = np.full(size, np.nan, np.float32) if score is None else np.asarray(score, np.float32)
        return cls(rows.ids, reason, values, nearest or [""] * size, cause or [], rows)

    def __repr__(self) -> str:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
        return f"Selection({self.kept.sum():,} of {len(self.ids):,} rows kept{dropped and f'; dropped: {dropped}'})"

    def _repr_html_(self) -> str:
        kept = int(self.kept.sum())
        rows = [("kept", f"{kept:,}"), *((reason, f"{count:,}") for reason, count in self.dropped.items())]
        return html_table(("reason", "rows"), rows, f"{kept:,} of {len(self.ids):,} rows kept")

    @property
    def kept(self) -> np.ndarray:
        """Whether each row is kept: bool, shape (rows,)."""
        return np.fromiter((not reason for reason in self.reason), bool, len(self.reason))

    @property
    def dropped(self) -> dict[str, int]:
        """The number of rows dropped for each reason, largest first."""
        return dict(Counter(reason for reason in self.reason if reason).most_common())

    def drop_rows(self, rows: Rows) -> Rows:
        """Return the rows that are kept, of those that were decided on."""
        return rows.take(self.kept)

    def dataset(self) -> Dataset:
        """Return the kept rows as a ``datasets.Dataset``, with the columns of the stage's input.

        Raises:
            SourceError: if ``source`` is None.
        """
        kept = np.flatnonzero(self.kept)
        if self.source is None:
            raise SourceError("this selection has no rows; call the stage on a datasets.Dataset or on Rows")
        if isinstance(self.source, Rows):
            return self.source.table.select(self.source.positions[kept])
        return self.source.select(kept)

    def take(self, indices: np.ndarray) -> Selection:
        """Return the decisions on some of the rows; ``indices``: int64."""
        return Selection(
            self.ids.select(indices),
            [self.reason[index] for index in indices],
            self.score[indices],
            [self.nearest[index] for index in indices],
            [self.cause[index] for index in indices],
            self.source.take(indices) if isinstance(self.source, Rows) else None,
        )

    def bring_back(self, ids: set[str]) -> Selection:
        """Return the selection with these rows kept, whatever was decided; their scores and nearest rows stay."""
        if not ids:
            return self
        reasons = ["" if row_id in ids else reason for row_id, reason in zip(self.ids, self.reason, strict=True)]
        return replace(self, reason=reasons)

    def examples(self, reason: str, n: int = 3) -> list[dict[str, Any]]:
        """Return the first ``n`` rows dropped for ``reason``: id, score and nearest kept id."""
        dropped = [index for index, row_reason in enumerate(self.reason) if row_reason == reason][:n]
        return [{"id": self.ids[i], "score": float(self.score[i]), "nearest": self.nearest[i]} for i in dropped]

    def save(self, folder: Path) -> None:
        """Write ``selection.parquet``."""
        decisions = {name: getattr(self, name) for name in parquet.SELECTION if name != "id"}
        parquet.write(folder / "selection.parquet", {"id": self.ids.array()} | decisions, parquet.SELECTION)

    @classmethod
    def load(cls, folder: Path, ids: RowIds | None = None) -> Selection:
        """Return the selection that ``save`` wrote.

        Args:
            folder: of the stored result.
            ids: of the rows, if they are in memory; None: they are read.
        """
        names = [name for name in parquet.SELECTION if name != "id" or ids is None]
        table = parquet.read(folder / "selection.parquet", {name: parquet.SELECTION[name] for name in names})
        ids = RowIds(table["id"]) if ids is None else ids
        texts = {name: shared_strings(table[name]) for name in ("reason", "nearest", "cause")}
        return cls(ids, score=table["score"].to_numpy(), **texts)


def shared_strings(column: pa.ChunkedArray) -> list[str]:
    """Return a column's strings as a list in which equal strings are one object."""
    values: dict[str, str] = {}
    return [values.setdefault(text, text) for chunk in column.chunks for start in range(0, len(chunk), BATCH)
            for text in chunk.slice(start, BATCH).to_pylist()]  # fmt: skip
