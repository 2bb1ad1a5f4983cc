"""A bench with a store of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from sft_lab.bench import Bench
from sft_lab.store import Store


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Store(tmp_path / "store"))
