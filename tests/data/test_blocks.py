"""Blocks: any number of workers and any block size give the same bytes, and a kill costs one block."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from patience import PATIENCE, wait_until

from sft_lab import compose
from sft_lab.core.blocks import run_blocks
from sft_lab.core.engine import Engine, LocalEngine, RayEngine
from sft_lab.core.errors import JobError, SourceError
from sft_lab.core.io import read_json
from sft_lab.data.load import OnError
from sft_lab.data.sources import File
from sft_lab.dedup import embed, shingles, vector_search

ROWS = 300
TALK = ["What is {}?", "It is {}, which is a number.", "And then?", "After it comes the next one.\n\nYes."]


def write_rows(path: Path) -> Path:
    """Write conversations of one to three exchanges, some of them of no use."""
    records: list[Any] = []
    for number in range(ROWS):
        turns = [text.format(number) for text in TALK * 2][: 2 * (number % 3 + 1)]
        roles = ["gpt", "human"] if number % 17 == 5 else ["human", "gpt"]
        turns = [] if number % 23 == 7 else turns
        messages = [{"from": roles[place % 2], "value": text} for place, text in enumerate(turns)]
        records.append({"id": f"talk{number // 2}_{number % 2}", "conversations": messages})
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


OVERRIDES = ["model=tiny_random", "dataset=file", "dataset.turns=all", "dedup=exact", "decontaminate.method=exact",
             "filter=[answered,length,language]", "filter.language.keep=[en]", "tracking=local"]  # fmt: skip


def prepare(rows: Path, folder: Path, *overrides: str) -> dict[str, str]:
    """Prepare in a folder with a store of its own; return a hash of each stored file and of each file of the result."""
    run = compose([*OVERRIDES, f"dataset.path={rows}", f"store.path={folder / 'store'}", *overrides])
    run.prepare_only(folder / "run")
    files = [*(folder / "store").rglob("*.arrow"), *(folder / "store").rglob("*.npy"),
             *(folder / "store").rglob("*.parquet"), *(folder / "run" / "dataset").rglob("*"),
             *((folder / "run" / name) for name in ("waterfall.json", "dropped.parquet", "data.json"))]  # fmt: skip
    # state.json holds a random name that datasets gives each set.
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file() and file.name != "state.json"
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """What one worker makes of the rows in one block."""
    folder = tmp_path_factory.mktemp("alone")
    path = write_rows(folder / "rows.jsonl")
    return path, prepare(path, folder / "one", "engine.workers=1")


@pytest.mark.slow
@pytest.mark.parametrize("engine", [("1", "7"), ("2", "7"), ("5", "64"), ("2", "8192")], ids="-".join)
def test_workers_and_blocks_change_no_byte(
    alone: tuple[Path, dict[str, str]], tmp_path: Path, engine: tuple[str, str]
) -> None:
    path, expected = alone
    workers, block = engine
    found = prepare(path, tmp_path, f"engine.workers={workers}", f"engine.block={block}")
    assert found == expected
    assert len([name for name in expected if name.startswith("store/")]) >= 6


def double(numbers: range) -> pa.Table:
    with suppress(FileNotFoundError):  # two workers may look at once; the one that removes the file dies
        Path("kill_me").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    with Path("computed").open("a") as log:
        log.write(f"{numbers.start}\n")
    return pa.table({"value": [2 * number for number in numbers]})


def values(folder: Path, engine: Engine) -> list[int]:
    folder.mkdir(exist_ok=True)
    blocks = run_blocks(double, engine.ranges(100), folder, "double", engine)
    return [value for block in blocks for value in block.read()["value"].to_pylist()]


def test_a_killed_worker_is_told_and_its_block_alone_is_lost(here: Path) -> None:
    engine = LocalEngine(workers=2, block=10)
    Path("kill_me").touch()
    with pytest.raises(JobError, match="a worker process was killed"):
        values(here / "result", engine)
    done = len(list((here / "result.blocks").glob("*.arrow")))
    Path("computed").write_text("")
    assert values(here / "result", engine) == [2 * number for number in range(100)]
    assert len(Path("computed").read_text().split()) == 10 - done


def test_an_error_of_a_worker_is_that_error(here: Path) -> None:
    def fail(numbers: range) -> pa.Table:
        raise SourceError(f"row {numbers.start} is wrong")

    engine = LocalEngine(workers=2, block=10)
    with pytest.raises(SourceError, match="row 0 is wrong"):
        list(run_blocks(fail, engine.ranges(30), here / "result", "fail", engine))


@pytest.mark.slow
def test_a_killed_prepare_goes_on_with_the_blocks_it_lacks(here: Path) -> None:
    rows = write_rows(here / "rows.jsonl")
    # Slow enough to be killed on its way: 300 rows, 60 blocks of five, and a wait in each.
    slow = (
        "import sys, time\n"
        "from sft_lab.data import tokens_and_labels as encoding\n"
        "encode = encoding._Encoder.__call__\n"
        "def slowly(self, block):\n"
        "    time.sleep(0.2)\n"
        "    open('encoded', 'a').write(f'{block.start}\\n')\n"
        "    return encode(self, block)\n"
        "encoding._Encoder.__call__ = slowly\n"
        "from sft_lab.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = [*OVERRIDES, f"dataset.path={rows}", "store.path=store", "engine.workers=2", "engine.block=5",
             "hydra.run.dir=run"]  # fmt: skip
    command = [sys.executable, "-c", slow, "prepare", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_until(lambda: len(list(Path("store").glob("encode/.*.blocks/*.arrow"))) >= 10, process)
    process.kill()
    process.communicate(timeout=PATIENCE)  # workers die with their parent, which closes the pipe
    before = Path("encoded").read_text().split()
    left = {path.name for path in Path("store").glob("encode/.*.blocks/*.arrow")}
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    after = Path("encoded").read_text().split()[len(before) :]
    total = -(-sum(1 for _ in rows.open()) // 5)
    assert len(after) <= total - len(left)
    assert not list(Path("store").glob("encode/.*.blocks"))
    assert read_json(Path("run/status.json"))["state"] == "finished"


@pytest.mark.slow
def test_ray_makes_the_same_bytes_though_a_worker_is_killed(here: Path) -> None:
    pytest.importorskip("ray")
    engine = RayEngine(workers=2, block=10)
    marker = here / "kill_me"

    def work(numbers: range) -> pa.Table:
        with suppress(FileNotFoundError):
            marker.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return pa.table({"value": [2 * number for number in numbers]})

    marker.touch()
    (here / "result").mkdir()
    blocks = run_blocks(work, engine.ranges(100), here / "result", "double", engine)
    assert [value for block in blocks for value in block.read()["value"].to_pylist()] == [2 * n for n in range(100)]
    assert not marker.exists()


@pytest.mark.slow
def test_ray_prepares_the_same_bytes(alone: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    path, expected = alone
    assert prepare(path, tmp_path, "engine=ray", "engine.block=16") == expected


@pytest.mark.slow
@pytest.mark.parametrize("dedup", ["minhash", "semantic"])
def test_ray_finds_the_same_duplicates(
    alone: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dedup: str
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(embed, "BLOCK", 64)
    monkeypatch.setattr(shingles, "BLOCK", 64)
    monkeypatch.setattr(vector_search, "EXACT_ROWS", 64)
    path, _ = alone
    overrides = [f"dedup={dedup}", "dataset.turns=first"]
    expected = prepare(path, tmp_path / "local", "engine.workers=1", *overrides)
    assert len([name for name in expected if "/neighbors/" in name]) == 3
    assert prepare(path, tmp_path / "forked", "engine.workers=2", *overrides) == expected
    assert prepare(path, tmp_path / "ray", "engine=ray", "engine.workers=3", *overrides) == expected


# --- what may stand at a block's border -------------------------------------------------------------------------------


def load(path: Path, block: int, tmp_path: Path, **settings: Any) -> Any:
    from sft_lab.core.context import StageContext
    from sft_lab.core.store import Store

    context = StageContext(Store(tmp_path / f"store{block}"), engine=LocalEngine(workers=2, block=block))
    return File(path=str(path), **settings)(context)


def pair(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"Say {number}.", "completion": f"{number}!", **more}


@pytest.mark.parametrize("position", [6, 7, 8, 13, 14])
def test_a_broken_line_is_named_by_its_number(tmp_path: Path, position: int) -> None:
    lines = [json.dumps(pair(number)) for number in range(30)]
    lines[position] = '{"prompt": '
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(SourceError, match=f"line {position + 1}:"):
        load(path, 7, tmp_path)
    loaded = load(path, 7, tmp_path, on_error=OnError.skip)
    assert [i for i, reason in enumerate(loaded.selection.reason) if reason] == [position]


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_the_columns_may_come_late(tmp_path: Path, block: int) -> None:
    """The first rows fit one format, and all of them another; numbered ids stop being numbered."""
    path = tmp_path / "rows.jsonl"
    early = [{"prompt": f"Say {number}.", "completion": f"{number}!", "id": f"a_{number}"} for number in range(10)]
    late = [{"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Ho."}], "id": "b"}]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in [*early, *late]))
    loaded = load(path, block, tmp_path)
    expected = load(path, 4096, tmp_path)
    assert loaded.selection.reason == expected.selection.reason
    assert loaded.rows.column("group") == expected.rows.column("group")
    assert (loaded.grouped_by, loaded.groups) == (expected.grouped_by, expected.groups)


def test_a_block_whose_rows_are_all_dropped_and_a_row_of_ten_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    records = [*map(pair, range(7)), *[{"prompt": 1, "completion": 2}] * 7, pair(1, note="x" * 10 * 2**20), pair(2)]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    loaded = load(path, 7, tmp_path)
    assert loaded.selection.dropped == {"unreadable": 7}
    assert len(loaded.rows) == 9
    assert loaded.record_of_row.tolist() == [*range(7), 14, 15]


@pytest.mark.parametrize("count", [0, 1])
def test_no_row_and_one_row(tmp_path: Path, count: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(pair(number))}\n" for number in range(count)))
    if count:
        assert len(load(path, 7, tmp_path).rows) == 1
    else:
        with pytest.raises(SourceError, match="has no records"):
            load(path, 7, tmp_path)
