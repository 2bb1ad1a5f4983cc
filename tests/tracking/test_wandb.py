"""W&B is really used: offline runs written by its client and read back with its own tool."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sft_lab.cli.main import main
from sft_lab.core.io import flat
from sft_lab.tracking.config import Mode, Wandb


def inspect(run: Path, *options: str) -> list[dict[str, Any]]:
    wandb = Path(sys.executable).with_name("wandb")
    done = subprocess.run(
        [str(wandb), "leet", "inspect", "--json", *options, str(run)], capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wandb") / "my_sweep"
    words = ["model=tiny_random", "trainer=smoke", "dedup=exact", "decontaminate.method=exact", "threads=1"]
    more = ["trainer.max_steps=4", "evaluation.prompts=[Hello]", "tracking.tags=[one,two]", "tracking.project=mine"]
    assert main(["-m", *words, *more, "trainer.learning_rate=1e-3,2e-3", f"hydra.sweep.dir={folder}"]) == 0
    return folder


@pytest.mark.slow
def test_jobs_of_one_process_do_not_mix(sweep: Path) -> None:
    runs = sorted((sweep / "wandb").glob("offline-run-*"))
    jobs = sorted(path.parent for path in sweep.glob("*/summary.json"))
    assert len(runs) == len(jobs) == 2
    hashes = {job.name.rpartition("-")[2] for job in jobs}
    assert {run.name.rpartition("-")[2] for run in runs} == hashes
    for run in runs:
        job = next(job for job in jobs if job.name.endswith(run.name.rpartition("-")[2]))
        text = json.dumps(inspect(run))
        rate = "0.001" if "0.001" in job.name or "1e-3" in job.name else "0.002"
        assert f'"trainer.learning_rate": {rate}' in text or f'"trainer.learning_rate", "value_json": "{rate}"' in text
        assert "my_sweep" in text
        for part in ("train/global_step", "eval/loss", "train/loss", "waterfall", "samples", "outputs", "verdict",
                     "two", "mine", "figures/tokens", "figures/waterfall", "languages", "longest"):  # fmt: skip
            assert part in text, part


def test_flat_config_has_dotted_keys() -> None:
    config = {"trainer": {"peft": {"r": 8}, "tags": [1]}, "seed": 1, "empty": {}}
    assert flat(config) == {"trainer.peft.r": 8, "trainer.tags": [1], "seed": 1, "empty": {}}


@pytest.mark.parametrize(
    ("config", "environment", "mode"),
    [
        (Mode.auto, {}, "offline"),
        (Mode.auto, {"WANDB_MODE": "disabled"}, "disabled"),
        (Mode.auto, {"WANDB_API_KEY": "x" * 40}, "online"),
        (Mode.auto, {"WANDB_API_KEY": "x" * 40, "WANDB_MODE": "offline"}, "offline"),
        (Mode.offline, {"WANDB_MODE": "online"}, "offline"),
        (Mode.online, {"WANDB_MODE": "offline"}, "online"),
    ],
)
def test_config_beats_environment_beats_login(
    config: Mode, environment: dict[str, str], mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Wandb(mode=config).resolved_mode() == mode


def test_a_netrc_is_a_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    assert Wandb().resolved_mode() == "online"
