"""Folders are renamed, clocks jump: what is finished stays so, and can be compared and replayed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from sft_lab.cli.main import main
from sft_lab.core.io import read_json
from sft_lab.core.store import Store

YEARS = 365 * 86400.0
FEW = ["trainer.max_steps=3", "trainer.eval_steps=1", "evaluation.prompts=[]",
       "evaluation.outputs=0", "evaluation.general=null", "evaluation.baseline.examples=0",
       "evaluation.baseline.system_prompt=null"]  # fmt: skip


@pytest.mark.slow
def test_a_moved_sweep_is_compared_replayed_and_gone_on_with(
    here: Path, tiny: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", *tiny, *FEW, "trainer.learning_rate=1e-3,2e-3"]
    assert main([*words, "hydra.sweep.dir=first"]) == 0
    (here / "elsewhere").mkdir()
    Path("first").rename("elsewhere/second")
    assert main(["compare", "elsewhere/second"]) == 0
    assert "elsewhere/second/compare.html" in capfd.readouterr().out
    job = next(Path("elsewhere/second").glob("*_0.001-*"))
    assert main(["replay", str(job)]) == 0
    capfd.readouterr()
    status = (job / "status.json").read_bytes()
    assert main([*words, "hydra.sweep.dir=elsewhere/second"]) == 0
    assert capfd.readouterr().err.count("already finished") == 2
    assert (job / "status.json").read_bytes() == status


@pytest.mark.slow
@pytest.mark.parametrize("years", [-50, 50])
def test_a_clock_that_jumped_makes_nothing_anew(here: Path, tiny: list[str], years: int) -> None:
    store = here / "store"
    words = [*tiny, *FEW, f"store.path={store}"]
    assert main([*words, "hydra.run.dir=one"]) == 0
    for path in here.rglob("*"):
        os.utime(path, (time.time() + years * YEARS,) * 2)
    assert main([*words, "hydra.run.dir=one"]) == 0  # finished
    assert main([*words, "hydra.run.dir=two"]) == 0
    assert all(stage["hit"] for stage in read_json(Path("two/manifest.json"))["stages"])
    one, two = (read_json(Path(run, "summary.json")) for run in ("one", "two"))
    assert one["eval/loss"] == two["eval/loss"]
    assert two["seconds"] > 0
    assert Store(store).prune(86400) == []  # used just now, whatever the clock was when they were made
