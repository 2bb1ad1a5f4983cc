"""Two sweeps at once in one folder: each job is done once, by one of the two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sft_lab.cli.main import main
from sft_lab.core.io import read_json


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_same_sweep_twice_at_once(here: Path, tiny: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    words = ["-m", *tiny, "trainer.max_steps=4", "evaluation.prompts=[]", "evaluation.outputs=0",
             "evaluation.general=null", "trainer.learning_rate=1e-3,2e-3,3e-3", "hydra.sweep.dir=sweep"]  # fmt: skip
    command = [sys.executable, "-m", "sft_lab", *words]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [one.communicate()[1] for one in both]
    for one, said in zip(both, told, strict=True):
        assert "Traceback" not in said
        assert one.returncode == (2 if "another process is working here" in said else 0), said
    assert main(words) == 0  # whatever one could not do beside the other, is done now
    jobs = sorted(Path("sweep").glob("*/summary.json"))
    assert len(jobs) == 3
    for summary in jobs:
        assert read_json(summary.with_name("status.json"))["state"] == "finished"
        steps = [line for line in summary.with_name("metrics.jsonl").read_text().splitlines() if '"train/loss"' in line]
        assert len({line.partition(",")[0] for line in steps}) == len(steps)  # no step is told twice
