"""What a user types: the default tracking, W&B offline, through the life of one run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_publish import StandIn, hub  # noqa: F401 - a fixture

from sft_lab.cli import main
from sft_lab.folder import FINISHED, RunFolder

WORDS = ["model=tiny_random", "trainer=smoke", "dedup=exact", "decontaminate.method=exact", "threads=1",
         "evaluation.outputs=0", "evaluation.max_new_tokens=4"]  # fmt: skip


def kill_while_training(folder: RunFolder) -> None:
    """Start the run as a user does and kill it behind its second checkpoint."""
    command = [sys.executable, "-m", "sft_lab", *WORDS, "trainer.save_steps=1", "trainer.max_steps=500"]
    process = subprocess.Popen([*command, f"hydra.run.dir={folder.path}"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while not (folder.checkpoints / "checkpoint-2" / "trainer_state.json").exists():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("entrance", ["command", "exec"])
def test_a_killed_run_goes_on_and_all_else_follows(
    entrance: str,
    here: Path,
    hub: StandIn,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = RunFolder(here / "run")
    kill_while_training(folder)
    config = folder.config.read_text()
    folder.config.write_text(config.replace("max_steps: 500", "max_steps: 6"))  # enough; the same run otherwise
    words = [*WORDS, "trainer.save_steps=1", "trainer.max_steps=6", f"hydra.run.dir={folder.path}"]
    assert main(words if entrance == "command" else ["exec", str(folder.path)]) == 0
    assert folder.state() == FINISHED
    assert len(list(folder.wandb.glob("offline-run-*"))) == 2
    assert any(path.is_symlink() for path in folder.wandb.rglob("debug-core.log"))  # what was once in the way
    steps = [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines() if "train/loss" in line]
    assert steps == sorted(set(steps))
    for command in (["runs"], ["compare"], ["merge"], ["generate", "hello"], ["push", "me/mine"]):
        name, *more = command
        options = ["--max-new-tokens", "2"] if name == "generate" else []
        assert main([name, str(folder.path), *more, *options]) == 0, (name, capsys.readouterr().err)
    assert "adapter_model.safetensors" in hub.files
    assert main(["promote", str(folder.path), "kept"]) == 0
    assert main(["replay", str(folder.path), "--out", str(here / "again")]) in (0, 1)
    assert RunFolder(here / "again").state() == FINISHED
