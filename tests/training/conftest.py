"""The tiny run, its bench and its rows."""

from __future__ import annotations

import datasets
import pytest

from sft_lab import compose
from sft_lab.bench import Bench
from sft_lab.run import Run


@pytest.fixture(scope="module")
def run() -> Run:
    return compose(["model=tiny_random", "dedup=exact", "decontaminate.method=exact"])


@pytest.fixture(scope="module")
def bench(run: Run) -> Bench:
    return Bench(load_tokenizer=lambda: run.model.tokenizer(Bench()))


@pytest.fixture(scope="module")
def rows(run: Run, bench: Bench) -> datasets.Dataset:
    """Short rows: a step is a blink."""
    short = [row for row in run.prepare(bench).train.tokens if len(row["input_ids"]) < 128]
    return datasets.Dataset.from_list(short[:40])
