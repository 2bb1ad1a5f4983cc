"""Export of the prepared rows as a ``DatasetDict`` for other trainers, in Arrow and Parquet."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core.columns import BATCH, gather, kept_small, message_fields, release, stretches, values_of
from sft_lab.core.rows import TableWriter, load_table
from sft_lab.core.types import TEMPLATE_INPUTS

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

    from sft_lab.data.preparation import Prepared, Ready


def write(data: Prepared, folder: Path, *, with_tokens: bool = False) -> None:
    """Write ``train`` and, if there are held-out rows, ``test``.

    Each row has its ``id``, in a mixture its ``source``, the rendered ``text`` and, unless all rows are plain text, its
    ``messages`` with tools and other inputs. TRL takes ``messages`` if there are any, and otherwise ``text``.

    Args:
        data: the result of the data stages.
        folder: to make; ``datasets.load_from_disk`` reads it, and each ``parquet/<split>.parquet`` is complete as well.
        with_tokens: add ``input_ids`` and ``labels``, with which another trainer trains exactly what this run would; a
            row of several examples is then repeated for each.
    """
    import datasets

    splits = {"train": data.train, "test": data.held_out}
    folder.mkdir()
    with tempfile.TemporaryDirectory(dir=folder) as written:
        tables = {
            name: _table(ready, Path(written) / name, with_tokens=with_tokens)
            for name, ready in splits.items()
            if len(ready.rows)
        }
        (folder / "parquet").mkdir()
        with kept_small([column for table in tables.values() for column in table.data.columns]):
            datasets.DatasetDict(tables).save_to_disk(folder)
            for name, table in tables.items():
                table.to_parquet(folder / "parquet" / f"{name}.parquet")


def _table(ready: Ready, folder: Path, *, with_tokens: bool) -> datasets.Dataset:
    """Write the rows some at a time and return them memory-mapped."""
    import pyarrow as pa

    columns = ready.rows.table.data
    texts = ready.encoded.table.data.column("text")
    positions, indices = ready.rows.positions, ready.encoded.indices(ready.rows)
    tokens = ready.tokens.remove_columns("id").with_format("arrow") if with_tokens else None
    if with_tokens:
        positions, indices = (
            positions[ready.encoded.row_of_example(ready.rows)],
            ready.encoded.example_indices(ready.rows),
        )
    names = ["id", *(["source"] if any(ready.rows.arrow("source").unique().to_pylist()) else [])]
    if not all(ready.rows.is_text):
        names += ["messages", *(name for name in JSON_COLUMNS if _has_values(columns, name))]
    json_columns = {name for name in names if name in JSON_COLUMNS}
    if "messages" in names and message_fields(columns.column("messages")) - {"role", "content"}:
        json_columns.add("messages")
    types = {name: _exported_type(columns, name, is_json=name in json_columns) for name in names}
    schema = pa.schema([
        *((JSON_COLUMNS.get(name, name), kind) for name, kind in types.items()), ("text", pa.string()),
        *(tokens.features.arrow_schema if tokens else []),
    ])  # fmt: skip
    folder.mkdir()
    writer = TableWriter(folder, schema)
    sources = [*map(columns.column, names), texts]
    for part in stretches(sources, len(positions), BATCH):
        gathered = [gather(columns.column(name), positions[part]) for name in names]
        values = [
            _exported(values, kind, is_json=name in json_columns)
            for values, (name, kind) in zip(gathered, types.items(), strict=True)
        ]
        values.append(gather(texts, indices[part]))
        values += tokens[part].columns if tokens else []
        writer.write(pa.table(values, schema=schema))
    release(sources)
    writer.close()
    return load_table(folder)


# The inputs of templates, and their names in TRL. They, and messages with more than text, are exported as JSON objects:
# in an Arrow struct, every tool would get the fields of all others.
JSON_COLUMNS = {name: "chat_template_kwargs" if name == "template_kwargs" else name for name in TEMPLATE_INPUTS}


def _has_values(columns: Any, name: str) -> bool:
    return name in columns.column_names and columns.column(name).null_count < columns.num_rows


def _exported_type(columns: Any, name: str, *, is_json: bool) -> pa.DataType:
    import pyarrow as pa

    if name == "messages":
        text = pa.struct([("role", pa.string()), ("content", pa.string())])
        return pa.list_(pa.json_() if is_json else text)
    if is_json:
        return pa.json_() if name == "template_kwargs" else pa.list_(pa.json_())
    return columns.column(name).type


def _exported(values: pa.ChunkedArray, kind: pa.DataType, *, is_json: bool) -> pa.ChunkedArray | pa.Array:
    import pyarrow as pa

    if not is_json:
        return values.cast(kind)
    rows = values_of(values)
    if pa.types.is_list(values.type):
        texts = [[json.dumps(_parsed(message), ensure_ascii=False) for message in messages] for messages in rows]
        return pa.array(texts, pa.list_(pa.string())).cast(kind)
    if not pa.types.is_list(kind):  # TRL unpacks the value, which must not be None
        return pa.array([row or "{}" for row in rows], pa.string()).cast(kind)
    items = [row and [json.dumps(item, ensure_ascii=False) for item in json.loads(row)] for row in rows]
    return pa.array(items, pa.list_(pa.string())).cast(kind)


def _parsed(message: dict[str, Any]) -> dict[str, Any]:
    calls = {"tool_calls": json.loads(message["tool_calls"])} if "tool_calls" in message else {}
    return message | calls
