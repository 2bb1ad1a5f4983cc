"""The Parquet files of runs and the store, each with a fixed schema, even without rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sft_lab.core.io import open_file

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

Schema = Mapping[str, str]  # name of a column to its Arrow type

_DECISION = {"reason": "string", "score": "float32", "nearest": "string", "cause": "string"}
SELECTION = {"id": "string", **_DECISION}
DROPPED = {"id": "string", "stage": "string", **_DECISION}
ADDED = {"cause"}  # columns that older versions did not write
LANGUAGES = {"language": "string", "confidence": "float32"}
_SCORES = {"nll": "float64", "tokens": "int64", "bytes": "int64"}  # of a held-out row
EVAL = {"id": "string"} | {f"{model}/{part}": kind for model in ("base", "tuned") for part, kind in _SCORES.items()}


def write(path: Path, columns: Mapping[str, Any] | pa.Table, schema: Schema) -> None:
    """Write columns with the schema's types, which values alone would not give where a column is empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns), schema=arrow_schema(schema))
    pq.write_table(table, path)


def read(path: Path, schema: Schema) -> pa.Table:
    """Return the schema's columns, cast to its types: older versions wrote empty columns without a type.

    Raises:
        pyarrow.ArrowException, OSError: if the file is damaged, or a column is missing or of another type.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_file(path) as file:
        written = pq.ParquetFile(file)
        names = [name for name in schema if name not in ADDED or name in written.schema_arrow.names]
        table = written.read(columns=names)
    for name in schema.keys() - set(names):
        table = table.append_column(name, pa.array([""] * len(table), pa.string()))
    return table.select(list(schema)).cast(arrow_schema(schema))


def arrow_schema(schema: Schema) -> pa.Schema:
    """Return the Arrow schema of a file's columns."""
    import pyarrow as pa

    return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in schema.items()])


def count_rows(path: Path) -> int:
    """Return the number of rows of a file with any columns; only the file's footer is read."""
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)
