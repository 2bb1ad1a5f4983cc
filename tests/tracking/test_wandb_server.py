"""What W&B's own commands, `wandb sync` and `wandb agent`, make of our runs, against a server on loopback."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from patience import PATIENCE
from wandb_stand_in import StandIn

from sft_lab.core.run_dir import RunDir
from sft_lab.tracking.config import Mode, Wandb
from sft_lab.tracking.record import Record
from sft_lab.tracking.tracked_run import TrackedRun

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def server() -> Iterator[StandIn]:
    server = StandIn()
    yield server
    server.end()


def run_wandb(server: StandIn, *arguments: str) -> str:
    """Run a command of W&B's, logged in, and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": server.url}
    # The agent starts `sft-lab` by its name.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [sys.executable, "-m", "wandb", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE, env=environment)
    return done.stdout + done.stderr


def attempt(path: Path, first_step: int, last_step: int, loss: float, *, finishes: bool = True) -> None:
    """Track a training from behind its checkpoint to a step."""
    folder = RunDir(path)
    path.mkdir(exist_ok=True)
    mirror = Wandb(mode=Mode.offline).start(TrackedRun(folder, "0123456789ab-1a2b3c4d", {"seed": 1}, "run", first_step))
    record = Record(folder.metrics, mirror, from_step=first_step)
    for step in range(first_step + 1, last_step + 1):
        record({"step": step, "epoch": 0.0, "train/loss": loss})
    if finishes:
        mirror.finish({"verdict": "healthy"})


def killed_attempt(path: Path) -> None:
    """Track steps in a process of its own, and die."""
    attempt(path, 0, 4, 4.0, finishes=False)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_run_that_went_on_is_sent_as_one(tmp_path: Path, server: StandIn, *, is_killed: bool) -> None:
    """Each step once, though `wandb sync` writes the second folder over the first; a killed attempt is no obstacle."""
    path = tmp_path / "run"
    if is_killed:
        process = multiprocessing.get_context("spawn").Process(target=killed_attempt, args=(path,))
        process.start()
        process.join(PATIENCE)
        assert process.exitcode == -signal.SIGKILL
    else:
        attempt(path, 0, 4, 4.0)
        time.sleep(1)  # W&B names the folders by the second
    attempt(path, 2, 6, 5.0)

    folders = sorted((path / "wandb").glob("offline-run-*"))
    assert len(folders) == (1 if is_killed else 2)
    output = run_wandb(server, "sync", *map(str, folders))
    assert "ERROR" not in output
    (history,) = server.history.values()
    losses = [(line["train/global_step"], line["train/loss"]) for line in history if "train/loss" in line]
    assert losses == [(1, 4.0), (2, 4.0), (3, 5.0), (4, 5.0), (5, 5.0), (6, 5.0)]
    assert {body["name"] for body in server.upserts} == {"0123456789ab-1a2b3c4d"}


def sweep_yaml() -> str:
    """Return the sweep.yaml of docs/wandb.md."""
    text = (REPOSITORY / "docs" / "wandb.md").read_text(encoding="utf-8")
    (content,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    return str(content)


def test_runs_of_an_agent_join_its_sweep(here: Path, server: StandIn, tiny: list[str]) -> None:
    """By the documented sweep.yaml, with small stages put into its command."""
    sweep = yaml.safe_load(sweep_yaml())
    assert sweep["command"] == ["sft-lab", "${args_no_hyphens}"]
    short = ["trainer.max_steps=2", "evaluation.prompts=[]", "evaluation.general=null", "evaluation.outputs=0"]
    sweep["command"] += [*tiny, "tracking=wandb", *short]
    server.sweep_config = yaml.safe_dump(sweep)
    rates = [1e-05, 0.001]
    for number, rate in enumerate(rates):
        arguments = {name: {"value": values["values"][0]} for name, values in sweep["parameters"].items()}
        arguments["trainer.learning_rate"] = {"value": rate}
        run = {"type": "run", "run_id": f"run{number}", "args": arguments, "program": None}
        server.agent_commands.append(run)
    output = run_wandb(server, "agent", "--count", "2", "me/mine/sweep1")

    runs: dict[str, dict[str, Any]] = {}
    for body in server.upserts:
        runs.setdefault(body["name"], body)  # the first of each run has all
    assert list(runs) == ["run0", "run1"], output
    assert len(list(here.glob("outputs/*/*/summary.json"))) == 2
    for body, rate in zip(runs.values(), rates, strict=True):
        assert body["sweep"] == "sweep1"
        assert body["displayName"] is None  # which W&B fills: balmy-sweep-1
        config = json.loads(body["config"])
        assert config["trainer"]["value"]["learning_rate"] == rate
        assert config["trainer.learning_rate"]["value"] == rate  # the sweep's own, by which W&B draws it
    for name in runs:
        assert any("eval/loss" in line for line in server.history[name])
