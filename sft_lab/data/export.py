"""Export: the prepared rows as a ``DatasetDict`` that other trainers read, in Arrow and in Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sft_lab.core.rows import load_table

if TYPE_CHECKING:
    import datasets

    from sft_lab.data.preparation import Prepared, Ready


def write(data: Prepared, folder: Path) -> None:
    """Write ``train`` and, if there are held-out rows, ``test``.

    Each row has its ``id``, its ``source`` in a mixture, the rendered ``text``, and its ``messages`` unless the set is
    plain text: TRL takes ``messages`` where there are some, and ``text`` where not.

    Args:
        data: what the data stages left.
        folder: made anew; ``datasets.load_from_disk`` reads it, and ``parquet/<split>.parquet`` in it stands alone.
    """
    import datasets

    splits = {"train": data.train, "test": data.held_out}
    tables = {name: _table(ready) for name, ready in splits.items() if len(ready.rows)}
    datasets.DatasetDict(tables).save_to_disk(folder)
    (folder / "parquet").mkdir()
    for name, table in tables.items():
        table.to_parquet(folder / "parquet" / f"{name}.parquet")


def _table(ready: Ready) -> datasets.Dataset:
    import datasets
    import pyarrow as pa

    rendered = load_table(ready.rendered)
    text_of = dict(zip(rendered["id"][:], rendered["text"][:], strict=True))
    rows = ready.rows
    labels = ["source"] if any(rows.column("source")) else []
    wanted = ["id", *labels, *([] if all(rows.is_text) else ["messages"])]
    # Not by datasets' select: to write what it selected takes time with the square of the rows.
    found = rows.table.data.table.select(wanted).take(pa.array(rows.positions))
    return datasets.Dataset(found).add_column("text", [text_of[row_id] for row_id in rows.column("id")])
