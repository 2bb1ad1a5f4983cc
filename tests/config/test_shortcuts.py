"""What people type in the place of an option: a file, a name of the Hub, values parted by a space."""

from __future__ import annotations

from pathlib import Path

import pytest

from sft_lab import compose
from sft_lab.config.compose import compose_jobs
from sft_lab.config.shortcuts import expand
from sft_lab.core.errors import ConfigError


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("dataset=rows.jsonl", ["dataset=file", "dataset.path=rows.jsonl"]),
        ("dataset=my rows.csv.gz", ["dataset=file", "dataset.path=my rows.csv.gz"]),
        ("dataset=s3://bucket/rows", ["dataset=file", "dataset.path=s3://bucket/rows"]),
        ("dataset=./saved", ["dataset=file", "dataset.path=./saved"]),
        ("dataset=a.jsonl,b.parquet", ["dataset=file", "dataset.path=a.jsonl,b.parquet"]),
        ("dataset=tatsu-lab/alpaca", ["dataset=hub", "dataset.name=tatsu-lab/alpaca"]),
        ("model=mistralai/Mistral-7B-v0.3", ["model=hub", "model.name_or_path=mistralai/Mistral-7B-v0.3"]),
        ("model=./mine", ["model=hub", "model.name_or_path=./mine"]),
        ("dataset=starter", ["dataset=starter"]),
        ("dataset=starter,rows.jsonl", ["dataset=starter,rows.jsonl"]),
        ("model=opt_350m", ["model=opt_350m"]),
        ("dataset.path=rows.jsonl", ["dataset.path=rows.jsonl"]),
    ],
)
def test_what_a_shortcut_stands_for(typed: str, meant: list[str]) -> None:
    assert expand(typed) == meant


def test_a_folder_with_a_slash_is_a_folder(here: Path) -> None:
    (here / "saved" / "rows").mkdir(parents=True)
    assert expand("dataset=saved/rows") == ["dataset=file", "dataset.path=saved/rows"]


def test_a_file_is_a_dataset(here: Path, tiny: list[str]) -> None:
    Path("my rows.jsonl").write_text('{"prompt": "Say 1.", "completion": "1!"}\n')
    short = compose([*tiny, "dataset=my rows.jsonl"])
    assert short.hash == compose([*tiny, "dataset=file", "dataset.path=my rows.jsonl"]).hash


def test_a_file_without_its_key_is_answered_with_the_key(here: Path) -> None:
    Path("rows.jsonl").touch()
    with pytest.raises(ConfigError, match=r"rows\.jsonl: has no key; write dataset=rows\.jsonl"):
        compose(["rows.jsonl"])


def test_values_with_a_space_between_them(tiny: list[str]) -> None:
    plan = compose_jobs([*tiny, "trainer.learning_rate=1e-4,", "2e-4"], multirun=True)
    assert [job.run.trainer.learning_rate for job in plan.jobs] == [1e-4, 2e-4]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["dedup.threshold", "0.9"], ["dedup.threshold: has no value; write dedup", "0.9: has no key; write"]),
        (["dedup.threshold=0.8,"], ["0.8,: cannot be read as key=value; a value is missing after the last comma"]),
        (["tracking.project='mine"], ["tracking.project='mine: cannot be read as key=value; quote it"]),
    ],
)  # fmt: skip
def test_slips_are_answered_without_a_parsers_words(typed: list[str], message: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        compose_jobs(typed, multirun=True)
    for part in message:
        assert part in str(error.value)
    assert "expecting" not in str(error.value)
