"""A loss that is no number: training stops within one logging step, and the verdict says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sft_lab.cli.main import main


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 3])
def test_training_stops_within_one_logging_step(
    here: Path, tiny: list[str], every: int, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["trainer.learning_rate=1e38", "trainer.max_grad_norm=0", "trainer.max_steps=40", "trainer.warmup_steps=0",
             f"trainer.logging_steps={every}", "trainer.eval_steps=0.5", "evaluation.prompts=[]",
             "evaluation.outputs=0", "evaluation.general=null"]  # fmt: skip
    assert main([*tiny, *words, "hydra.run.dir=run"]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["verdict"] == "diverged"
    events = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    broken = [event["step"] for event in events if event.get("train/loss", 0.0) is None]
    assert broken == [summary["steps"]]  # the first log that shows it is the last
    assert "base -> not a number" in capsys.readouterr().out
    assert summary["steps"] <= 3 * every
