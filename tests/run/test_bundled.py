"""The bundled model, for real: slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sft_lab.cli.main import main
from sft_lab.core.io import sha256_file

pytestmark = pytest.mark.slow


def test_a_few_real_steps(here: Path) -> None:
    """Four steps on the real model with the real embedder: held-out loss goes down, and the run is itself again."""
    small = ["trainer.max_steps=4", "dataset.limit=60", "split.max_eval_rows=8", "trainer.learning_rate=5e-4"]
    words = [*small, "evaluation.max_new_tokens=8", "evaluation.prompts=[Name a color.]", "tracking=local", "threads=2"]
    words += ["evaluation.general=null", "evaluation.outputs=2"]  # a minute less
    assert main([*words, "hydra.run.dir=one"]) == 0
    one = json.loads(Path("one/summary.json").read_text())
    assert one["eval/loss"] < one["base/eval_loss"]
    assert 1.5 < one["base/eval_loss"] < 4.5
    assert main([*words, "hydra.run.dir=two"]) == 0
    two = json.loads(Path("two/summary.json").read_text())
    for key in ("eval/loss", "train/loss", "train/probe_loss", "base/eval_loss"):
        assert one[key] == two[key]
    samples = [Path(name, "samples.jsonl").read_text() for name in ("one", "two")]
    assert samples[0] == samples[1]


def test_another_file_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("model.gguf").write_bytes(b"not the file")
    found = sha256_file(Path("model.gguf"))
    assert main(["model.path=model.gguf", "tracking=local", f"store.path={here / 'store'}"]) == 2
    said = capsys.readouterr().err
    assert found in said
    assert "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53" in said
