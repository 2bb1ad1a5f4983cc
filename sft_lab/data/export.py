"""Export: the prepared rows as a ``DatasetDict`` that other trainers read, in Arrow and in Parquet."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sft_lab.core.mapped import kept_small, release
from sft_lab.core.rows import BATCH, TableWriter, gather, load_table

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
    folder.mkdir()
    with tempfile.TemporaryDirectory(dir=folder) as written:
        tables = {name: _table(ready, Path(written) / name) for name, ready in splits.items() if len(ready.rows)}
        (folder / "parquet").mkdir()
        with kept_small([column for table in tables.values() for column in table.data.columns]):
            datasets.DatasetDict(tables).save_to_disk(folder)
            for name, table in tables.items():
                table.to_parquet(folder / "parquet" / f"{name}.parquet")


def _table(ready: Ready, folder: Path) -> datasets.Dataset:
    """Write the rows some at a time, and return them memory-mapped."""
    import pyarrow as pa

    columns = ready.rows.table.data
    texts = ready.encoded.table.data.column("text")
    positions, indices = ready.rows.positions, ready.encoded.indices(ready.rows)
    names = ["id", *(["source"] if any(ready.rows.arrow("source").unique().to_pylist()) else [])]
    if not ready.rows.is_plain_text:
        names.append("messages")
    schema = pa.schema([*(pa.field(name, columns.column(name).type) for name in names), ("text", pa.string())])
    folder.mkdir()
    writer = TableWriter(folder, schema)
    for start in range(0, len(positions), BATCH):
        part = slice(start, start + BATCH)
        values = [*(gather(columns.column(name), positions[part]) for name in names), gather(texts, indices[part])]
        writer.write(pa.table(values, schema=schema))
        release(values)
    writer.close()
    return load_table(folder)
