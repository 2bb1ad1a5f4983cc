"""The Hub cannot be reached: what is cached is used, else an error in seconds says so."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_stand_in import HubStandIn

from sft_lab import compose
from sft_lab.core.context import StageContext

pytestmark = pytest.mark.slow
FEW = ["trainer.max_steps=1", "evaluation.prompts=[]", "evaluation.outputs=0", "evaluation.general=null",
       "evaluation.baseline.examples=0", "evaluation.baseline.system_prompt=null"]  # fmt: skip


@pytest.fixture
def repository(tmp_path: Path, tiny: list[str]) -> Path:
    """The tiny model as files of a repository."""
    run = compose(tiny)
    context = StageContext(run.store.open(), lambda: run.model.tokenizer(StageContext()))
    run.model.load(context, 1).save_pretrained(tmp_path / "repository")
    context.tokenizer.save_pretrained(tmp_path / "repository")
    return tmp_path / "repository"


def train(url: str, cache: Path, tiny: list[str], folder: str) -> tuple[int, str, float]:
    words = [word for word in tiny if not word.startswith("model=")]
    command = [sys.executable, "-m", "sft_lab", *words, *FEW, "model=smollm2_135m", "model.name_or_path=me/tiny",
               f"hydra.run.dir={folder}"]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": url, "HF_HOME": str(cache)}
    began = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr, time.monotonic() - began


@pytest.mark.timeout(600)
@pytest.mark.parametrize("hangs", [False, pytest.param(True, marks=pytest.mark.faults)])
def test_cached_or_an_error_in_seconds(here: Path, tiny: list[str], repository: Path, hangs: bool) -> None:
    hub = HubStandIn(repository)
    try:
        code, said, _ = train(hub.url, here / "cache", tiny, "online")
        assert code == 0, said
        if hangs:
            hub.hangs = True
        else:
            hub.end()
        code, said, _ = train(hub.url, here / "cache", tiny, "cached")
        assert code == 0, said
        code, said, seconds = train(hub.url, here / "empty", tiny, "none")
        assert code == 2
        assert "model.name_or_path=me/tiny" in said
        assert "check the network" in said
        assert "Traceback" not in said
        assert seconds < 60
        print(f"without cache or Hub ({'hangs' if hangs else 'nobody there'}): refused after {seconds:.0f} s")
    finally:
        hub.over.set()
        hub.server_close()
