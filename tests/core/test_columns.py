"""The memory of a mapped table is released after reading, and columns in memory keep their values."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sft_lab.core import columns
from sft_lab.core.rows import Rows, TableWriter, load_table

ROWS = 60_000


def resident() -> int:
    """Bytes of the process, of files too."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="MADV_PAGEOUT is Linux's")
def test_a_pass_keeps_little_of_a_table_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [f"{number} " + "x" * 2000 for number in range(ROWS)]
    table = pa.table({"id": [str(number) for number in range(ROWS)], "answer": answers})
    writer = TableWriter(tmp_path, table.schema)
    writer.write(table)
    writer.close()
    size = sum(map(len, answers))
    rows = Rows(load_table(tmp_path), np.arange(ROWS), "key")
    monkeypatch.setattr(columns, "RESIDENT", size // 10)
    before = resident()
    most, read = 0, []
    for (batch,) in rows.batches("answer"):
        read += [len(answer) for answer in batch]
        most = max(most, resident() - before)
    assert read == list(map(len, answers))
    assert most < size / 2
    assert rows.column("answer") == answers


def test_what_lies_in_memory_is_kept() -> None:
    column = pa.chunked_array([[f"{number} " * 1000 for number in range(500)], ["one"]])
    copy = column.to_pylist()
    columns.release([column])
    assert column.to_pylist() == copy


@pytest.mark.parametrize("count", [0, 1, 7, 8, 501])
def test_stretches_are_all_rows_once(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "RESIDENT", 20_000)
    column = pa.chunked_array([[f"{number} " * 100 for number in range(501)]])
    covered = [row for part in columns.stretches([column], count, 7) for row in range(count)[part]]
    assert covered == list(range(count))
    assert [*columns.stretches([], count, 7)] == [*columns.stretches([column], count, 7)]
