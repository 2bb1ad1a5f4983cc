"""What a user types, with the defaults (W&B offline, semantic dedup), one command after another in one folder.

Each chain is killed by SIGKILL while it trains. The tiny random model stands in for the bundled one where only training
would take long; the last chain has no stand-in.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_recorder import TOKEN, StandIn

from sft_lab.files import read_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
# Of the default: fewer rows, shorter answers, a random model. Everything else is as `sft-lab` alone has it.
SMALL = ["model=tiny_random", "dataset.limit=80", "evaluation.max_new_tokens=4", "trainer.save_steps=1"]
BUNDLED = ["trainer.max_steps=4", "dataset.limit=60", "split.max_eval_rows=8", "evaluation.max_new_tokens=4",
           "evaluation.general=null", "trainer.save_steps=1"]  # fmt: skip


@pytest.fixture
def hub() -> Iterator[StandIn]:
    server = StandIn()
    server.start()
    yield server
    server.end()


def environment(**more: str) -> dict[str, str]:
    """As a user's who is logged in nowhere: W&B is offline because nothing says otherwise."""
    unset = ("WANDB_MODE", "WANDB_SILENT", "WANDB_API_KEY", "HF_TOKEN")
    return {**{name: value for name, value in os.environ.items() if name not in unset}, "NETRC": "/dev/null", **more}


def sft_lab(*words: str, **more: str) -> str:
    """Run a command that has to end well, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "sft_lab", *words], env=environment(**more), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"sft-lab {' '.join(words)}: {done.returncode}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr
    return done.stdout


def kill_in_training(folder: Path, *words: str) -> None:
    """Start a command, and kill it and its children once a checkpoint of a job below the folder is whole."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sft_lab", *words], env=environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not list(folder.rglob("checkpoint-*/trainer_state.json")):
            assert process.poll() is None, "ended before it was killed"
            assert time.monotonic() < deadline, "no checkpoint in five minutes"
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def use(run: Path, hub: StandIn) -> None:
    """What is done with a finished run."""
    assert read_json(run / "status.json")["state"] == "finished"
    assert list(run.glob("wandb/offline-run-*/*.wandb"))
    sft_lab("runs")
    sft_lab("doctor", str(run))
    assert sft_lab("generate", str(run), "Name a color.", "--max-new-tokens", "4", "--base").startswith("base")
    assert Path(sft_lab("merge", str(run)).strip()).is_dir()
    assert "Result: equal" in sft_lab("replay", str(run), "--out", "replayed")
    sft_lab("compare", str(run), "replayed", "--out", "comparison")
    assert Path("comparison/compare.html").is_file()
    sft_lab("promote", str(run), "kept")
    assert sft_lab("--cfg", "job", "+experiment=kept")
    login = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    sft_lab("push", str(run), "me/adapter", **login)
    assert {"README.md", "adapter_model.safetensors"} <= hub.files.keys()
    sft_lab("push", str(run), "me/merged", "--merged", **login)
    assert hub.commits == 2


@pytest.mark.parametrize("again", ["the same command", "exec"])
def test_a_run_is_killed_goes_on_and_is_used(again: str, here: Path, hub: StandIn) -> None:
    words = [*SMALL, "hydra.run.dir=run"]
    kill_in_training(here, *words)
    assert read_json(here / "run" / "status.json")["state"] == "running"
    sft_lab(*words) if again == "the same command" else sft_lab("exec", "run")
    assert "goes on from checkpoint-" in (here / "run" / "run.log").read_text(encoding="utf-8")
    use(here / "run", hub)


def test_a_sweep_is_killed_goes_on_and_is_compared(here: Path) -> None:
    words = ["-m", *SMALL, "seed=1,2"]
    kill_in_training(here, *words)
    sft_lab(*words)
    (sweep,) = (here / "multirun").iterdir()
    states = [read_json(file)["state"] for file in sweep.glob("*/status.json")]
    assert states == ["finished", "finished"]
    sft_lab("compare", str(sweep))
    assert (sweep / "compare.html").is_file()
    job = next(sweep.glob("*/status.json")).parent
    assert Path(sft_lab("merge", str(job)).strip()).is_dir()
    sft_lab("promote", str(job), "best")


@pytest.mark.parametrize("more", [[], ["split.eval_share=0"]])
def test_prepared_rows_are_published(more: list[str], here: Path, hub: StandIn) -> None:
    words = ["prepare", "model=tiny_random", "dataset.limit=80", "hydra.run.dir=data", *more]
    sft_lab(*words)
    sft_lab(*words, "rerun=true")
    login = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    sft_lab("push", "data", "me/rows", "--what", "dataset", **login)
    assert "data/train.parquet" in hub.files


def test_the_bundled_model_is_killed_goes_on_and_is_used(here: Path, hub: StandIn) -> None:
    words = [*BUNDLED, "hydra.run.dir=run"]
    sft_lab("plan", *BUNDLED)
    kill_in_training(here, *words)
    sft_lab("exec", "run")
    use(here / "run", hub)
