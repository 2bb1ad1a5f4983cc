"""A canary that hostile files try to make, a file outside that they try to change, a secret they try to read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from outside import SECRET, TINY, Outside

from sft_lab.cli.main import main


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outside]:
    """Give the world outside; afterwards it must be as it was."""
    monkeypatch.setenv("SFT_LAB_TEST_VALUE", SECRET)
    made = Outside(tmp_path / "outside")
    yield made
    assert made.is_untouched()
    assert "SFT_LAB_EVIL" not in os.environ


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main([*TINY, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture
def finished(_finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, for a stranger to change."""
    return Path(shutil.copytree(_finished, tmp_path / "strange-run"))
