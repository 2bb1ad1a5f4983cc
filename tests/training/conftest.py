"""The tiny run, its context and its rows."""

from __future__ import annotations

import datasets
import pytest

from sft_lab import compose
from sft_lab.core.context import StageContext
from sft_lab.run.config import Run


@pytest.fixture(scope="module")
def run() -> Run:
    return compose(["model=tiny_random", "dedup=exact", "decontaminate.method=exact"])


@pytest.fixture(scope="module")
def context(run: Run) -> StageContext:
    return StageContext(load_tokenizer=lambda: run.model.tokenizer(StageContext()))


@pytest.fixture(scope="module")
def rows(run: Run, context: StageContext) -> datasets.Dataset:
    """Short rows: a step is a blink."""
    short = [row for row in run.prepare(context).train.tokens if len(row["input_ids"]) < 128]
    return datasets.Dataset.from_list(short[:40])
