"""A stage context with its own store."""

from __future__ import annotations

from pathlib import Path

import pytest

from sft_lab.core.context import StageContext
from sft_lab.core.store import Store


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    return StageContext(Store(tmp_path / "store"))
