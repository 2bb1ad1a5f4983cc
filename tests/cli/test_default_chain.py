"""What a user types, with the defaults (W&B offline, semantic dedup), one command after another in one folder.

Each chain is killed by SIGKILL while it trains, or interrupted as by Ctrl-C. The tiny random model stands in for the
bundled one where only training would take long; the last chain has no stand-in.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_recorder import TOKEN, StandIn
from patience import PATIENCE, wait_until

from sft_lab.core.io import read_json
from sft_lab.core.run_dir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("foreground")]
# Of the default: fewer rows, shorter answers, a random model. Everything else is as `sft-lab` alone has it.
SMALL = ["model=tiny_random", "dataset.limit=80", "evaluation.max_new_tokens=4", "trainer.save_steps=1"]
BUNDLED = ["trainer.max_steps=4", "dataset.limit=60", "split.max_eval_rows=8", "evaluation.max_new_tokens=4",
           "evaluation.general=null", "trainer.save_steps=1"]  # fmt: skip
# What the tests set for themselves or a developer may have set, and a user who is logged in nowhere has not.
UNSET = ("WANDB_MODE", "WANDB_SILENT", "WANDB_API_KEY", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY",
         "HF_DATASETS_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM")  # fmt: skip
NOBODY = "http://127.0.0.1:9"  # nobody answers there: a default run asks no Hub


@pytest.fixture
def hub() -> Iterator[StandIn]:
    server = StandIn()
    server.start()
    yield server
    server.end()


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    return kept | {"NETRC": "/dev/null", "HF_ENDPOINT": NOBODY} | more


def sft_lab(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command that has to end well."""
    done = subprocess.run(
        [sys.executable, "-m", "sft_lab", *words], env=environment(**more), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"sft-lab {' '.join(words)}: {done.returncode}\n{done.stderr[-3000:]}"
    for noise in ("Traceback", "Warning", "not read"):
        assert noise not in done.stderr, done.stderr
    return done


def push(hub: StandIn, *words: str) -> None:
    sft_lab("push", *words, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="1")


def losses(folder: RunDir) -> list[tuple[int, float]]:
    events = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    return [(event["step"], event[name]) for event in events for name in ("train/loss", "eval/loss") if name in event]


def signal_in_training(
    number: signal.Signals, *words: str, until: str = "checkpoint-*/trainer_state.json", holds: str = ""
) -> str:
    """Start a command, send its process a signal in the middle, and return what it printed of it.

    Args:
        number: the signal.
        words: of the command.
        until: the file that has to be there first; by default, of a complete checkpoint.
        holds: what that file has to hold.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "sft_lab", *words], env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_until(
            lambda: any(not holds or holds in file.read_text(encoding="utf-8") for file in Path.cwd().rglob(until)),
            process,
        )
        process.send_signal(number)
        return process.communicate(timeout=PATIENCE)[1]
    finally:
        process.kill()
        process.wait()


def only_run() -> RunDir:
    """Return the one run folder here."""
    (status,) = Path.cwd().rglob("status.json")
    return RunDir(status.parent)


def went_on(folder: RunDir) -> None:
    """Check that a run was finished from its checkpoint, and that W&B's record of it holds something each time."""
    assert read_json(folder.status)["state"] == "finished"
    assert "resuming from checkpoint-" in folder.log.read_text(encoding="utf-8")
    sizes = [file.stat().st_size for file in folder.wandb.glob("offline-run-*/*.wandb")]
    assert sizes  # one, where the killed attempt left no record
    assert min(sizes) > 1000
    assert any(path.is_symlink() for path in folder.wandb.rglob("debug-core.log"))  # out of the folder, W&B's own


def use(folder: RunDir, hub: StandIn) -> None:
    """What is done with a finished run."""
    run = str(folder.path)
    assert "finished" in sft_lab("runs", ".").stdout
    assert sft_lab("doctor", run).stdout.startswith("Environment: ")
    assert "dedup.semantic" in sft_lab("store", "list").stdout
    assert sft_lab("generate", run, "Name a color.", "--max-new-tokens", "4", "--base").stdout.startswith("base")
    assert Path(sft_lab("merge", run).stdout.strip()).is_dir()
    assert "Result: equal" in sft_lab("replay", run, "--out", "replayed").stdout  # and that one was not cut off
    sft_lab("compare", run, "replayed", "--out", "comparison")
    assert Path("comparison/compare.html").is_file()
    sft_lab("promote", run, "kept")
    assert "stored" in sft_lab("plan", "+experiment=kept").stdout
    push(hub, run, "me/adapter")
    assert {"README.md", "adapter_model.safetensors"} <= hub.files.keys()
    push(hub, run, "me/merged", "--merged")
    assert hub.commits == 2


@pytest.mark.parametrize("name", [["hydra.run.dir=run"], []], ids=["named", "dated"])
def test_a_run_is_killed_goes_on_and_is_used(name: list[str], here: Path, hub: StandIn) -> None:
    words = [*SMALL, *name]
    signal_in_training(signal.SIGKILL, *words)
    folder = only_run()
    assert read_json(folder.status)["state"] == "running"
    sft_lab(*words) if name else sft_lab("exec", str(folder.path))
    went_on(folder)
    use(folder, hub)


@pytest.mark.parametrize("name", [["hydra.run.dir=run"], []], ids=["named", "dated"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_that_an_interrupted_run_names_finishes_it(
    number: signal.Signals, name: list[str], here: Path
) -> None:
    """With nothing but the model changed: the checkpoint is the one that the signal made, and no loss differs."""
    words = ["model=tiny_random", *name]
    text = signal_in_training(number, *words, until="metrics.jsonl", holds='"train/loss"')
    match = re.search(r"interrupted; (.+) resumes from the checkpoint of step (\d+)", text)
    assert match, text
    sft_lab(*(words if match[1] == "the same command" else shlex.split(match[1])[1:]))
    folder = only_run()
    went_on(folder)
    assert f"resuming from checkpoint-{match[2]}" in folder.log.read_text(encoding="utf-8")
    sft_lab("model=tiny_random", "hydra.run.dir=undisturbed")
    undisturbed = RunDir(Path("undisturbed"))
    assert 0 < int(match[2]) < read_json(undisturbed.summary)["steps"]
    assert losses(folder) == losses(undisturbed)
    assert read_json(folder.summary)["eval/loss"] == read_json(undisturbed.summary)["eval/loss"]
    assert "already finished" in sft_lab("exec", str(folder.path)).stderr


def test_a_sweep_is_killed_goes_on_and_is_compared(here: Path) -> None:
    words = ["-m", *SMALL, "dedup.threshold=0.8,0.95"]
    signal_in_training(signal.SIGKILL, *words)
    assert "cut off" in sft_lab("runs").stdout
    sft_lab(*words)
    assert sft_lab("runs").stdout.count("finished") == 2
    assert sft_lab(*words).stderr.count("already finished") == 2
    (sweep,) = (here / "multirun").iterdir()
    logs = [file.read_text(encoding="utf-8") for file in sweep.glob("*/run.log")]
    assert sum("resuming from checkpoint-" in log for log in logs) == 1
    sft_lab("compare", str(sweep))
    assert (sweep / "compare.html").is_file()
    job = str(next(sweep.glob("*/status.json")).parent)
    assert Path(sft_lab("merge", job).stdout.strip()).is_dir()
    sft_lab("promote", job, "best")


@pytest.mark.parametrize("more", [[], ["split.eval_share=0"]])
def test_prepared_rows_are_published(more: list[str], here: Path, hub: StandIn) -> None:
    words = ["prepare", "model=tiny_random", "dataset.limit=80", "hydra.run.dir=data", *more]
    sft_lab(*words)
    assert "already finished" in sft_lab(*words).stderr
    sft_lab(*words, "rerun=true")
    push(hub, "data", "me/rows", "--what", "dataset")
    assert "data/train.parquet" in hub.files


def test_the_bundled_model_is_killed_goes_on_and_is_used(here: Path, hub: StandIn) -> None:
    sft_lab("plan", *BUNDLED)
    signal_in_training(signal.SIGKILL, *BUNDLED)
    folder = only_run()
    sft_lab("exec", str(folder.path))
    went_on(folder)
    use(folder, hub)
