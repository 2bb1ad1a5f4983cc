"""Clean data and nothing held out: tables without a row, each written with its columns and read by every command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from hub_recorder import StandIn

from sft_lab import compose
from sft_lab.cli.main import main
from sft_lab.core import parquet
from sft_lab.core.io import read_json
from sft_lab.core.run_dir import RunDir

CITIES = ("Oslo", "Lima", "Cairo", "Quito", "Accra", "Hanoi", "Perth", "Turin")
THINGS = ("bridge", "market", "library", "harbor", "garden", "tower", "station", "theater")


@pytest.fixture
def clean(here: Path) -> list[str]:
    """Overrides of a run on 64 conversations, of which nothing is dropped or held out."""
    lines = [
        {"prompt": f"What is the {thing} of {city} known for?", "completion": f"The {thing} of {city} is {7 * n} feet."}
        for n, (city, thing) in enumerate((city, thing) for city in CITIES for thing in THINGS)
    ]
    (here / "clean.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return ["dataset=file", "dataset.path=clean.jsonl", "split.eval_share=0"]


def types(path: Path) -> dict[str, str]:
    return {column.name: str(column.type) for column in pq.read_schema(path)}


@pytest.mark.parametrize("schema", [parquet.SELECTION, parquet.DROPPED, parquet.LANGUAGES, parquet.EVAL])
def test_a_table_without_rows_has_its_columns_and_types(tmp_path: Path, schema: parquet.Schema) -> None:
    path = tmp_path / "empty.parquet"
    parquet.write(path, {name: [] for name in schema}, schema)
    kinds = {"string": "string", "float32": "float", "float64": "double", "int64": "int64"}
    assert types(path) == {name: kinds[kind] for name, kind in schema.items()}
    assert parquet.read(path, schema).to_pylist() == []


def test_a_column_that_an_older_version_wrote_without_a_type_is_read(tmp_path: Path) -> None:
    import pyarrow as pa

    pq.write_table(pa.table({name: pa.nulls(0) for name in parquet.DROPPED}), tmp_path / "old.parquet")
    table = parquet.read(tmp_path / "old.parquet", parquet.DROPPED)
    assert table.slice(0, 0).schema.field("id").type == pa.string()


@pytest.mark.slow
def test_prepare_on_clean_data(clean: list[str], tiny: list[str], hub: StandIn) -> None:
    place = ["hydra.run.dir=prepared", "dedup=minhash", "dedup.threshold=1"]
    assert main(["prepare", *tiny, *clean, *place]) == 0
    folder = RunDir(Path("prepared"))
    assert pq.read_table(folder.dropped).num_rows == 0
    assert list(datasets.load_from_disk(folder.dataset)) == ["train"]
    assert len(datasets.load_dataset("parquet", data_dir=str(folder.dataset / "parquet"))["train"]) == 64
    card = (folder.dataset / "README.md").read_text(encoding="utf-8")
    files = yaml.safe_load(card.split("---")[1])["configs"][0]["data_files"]
    assert files == [{"split": "train", "path": "data/train.parquet"}]
    assert main(["push", "prepared", "me/rows", "--what", "dataset"]) == 0
    assert set(hub.files) == {"README.md", "data/train.parquet"}
    # what a person is asked to decide: nothing, and the file is one that the filter reads
    with folder.review.open(encoding="utf-8-sig", newline="") as file:
        assert [row for row in csv.DictReader(file) if row["was"] == "dropped"] == []
    folder.review.write_text(folder.review.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    reviewed = ["filter=[answered,length,reviewed]", f"filter.reviewed.path={folder.review}"]
    assert compose([*tiny, *clean, *reviewed]).prepare_only("reviewed")["train_rows"] == 64


def test_review_without_any_pair_has_its_columns(
    here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"prompt": f"Say it {n} times.", "completion": word * 9} for n, word in enumerate(CITIES)]
    (here / "few.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    few = ["dataset=file", "dataset.path=few.jsonl", "split.eval_share=0", "dedup=minhash"]
    assert main(["prepare", *tiny, *few, "hydra.run.dir=few"]) == 0
    assert "pairs to decide" not in capsys.readouterr().out
    assert (here / "few" / "review.csv").read_text(encoding="utf-8-sig").split() == [
        "id,decision,was,score,nearest,text,nearest_text"
    ]


# With W&B and the embedder, as a user meets it, and with neither.
DEFAULTS = ["model=tiny_random", "trainer=smoke", "threads=1", "dedup.threshold=1", "decontaminate.threshold=1"]


@pytest.mark.slow
@pytest.mark.parametrize("defaults", [False, True])
def test_a_run_on_clean_data_and_every_reader_of_it(
    clean: list[str], tiny: list[str], hub: StandIn, capsys: pytest.CaptureFixture[str], defaults: bool
) -> None:
    quick = DEFAULTS if defaults else tiny
    assert main([*quick, *clean, "hydra.run.dir=run"]) == 0
    folder = RunDir(Path("run"))
    assert read_json(folder.summary)["verdict"] == "not_judged"
    assert pq.read_table(folder.dropped).num_rows == pq.read_table(folder.eval).num_rows == 0
    for path, schema in ((folder.dropped, parquet.DROPPED), (folder.eval, parquet.EVAL)):
        assert parquet.read(path, schema).schema == pq.read_schema(path).remove_metadata()
    assert folder.outputs.read_text(encoding="utf-8") == ""
    assert folder.report.exists()
    for command in (["compare", "run"], ["runs", "."], ["replay", "run", "--out", "again"],
                    ["generate", "run", "Hello?", "--max-new-tokens", "4"], ["push", "run", "me/model"],
                    ["promote", "run", "mine"]):  # fmt: skip
        capsys.readouterr()
        assert main(command) == 0, (command, capsys.readouterr())
    assert read_json(Path("again") / "replay.json")["equal"] is True
    assert "README.md" in hub.files
