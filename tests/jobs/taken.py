"""A sweep whose jobs are taken away in the middle of training, and what it comes to undisturbed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sft_lab.cli.main import main
from sft_lab.core.io import read_json
from sft_lab.core.run_dir import RunDir
from sft_lab.training.checkpoints import last_checkpoint

# Long enough to be caught in the middle, with a checkpoint every second.
LONG = ["trainer.max_steps=80", "trainer.save_steps=10", "trainer.eval_steps=80", "trainer.logging_steps=20"]
STEPS = [20, 40, 60, 80]  # that are logged
SWEEP = "hydra.sweep.dir=sweep"


def undisturbed(tiny: list[str], seeds: str) -> dict[str, float]:
    """Give the final loss of each job, by the name of its folder, of the same sweep one job after another."""
    assert main(["-m", *tiny, *LONG, f"seed={seeds}", "hydra.sweep.dir=whole"]) == 0
    return losses(Path("whole"))


def losses(sweep: Path) -> dict[str, float]:
    return {file.parent.name: read_json(file)["eval/loss"] for file in sweep.glob("*/summary.json")}


def start(words: list[str], on: Callable[..., list[str]] = lambda *words: list(words)) -> subprocess.Popen[bytes]:
    """Start the sweep; what it tells goes into a file, since a pipe would be held open by its jobs too.

    Args:
        words: of the command line.
        on: makes a command one that is given on another machine.
    """
    command = on(sys.executable, "-m", "sft_lab", "-m", *words, *LONG, SWEEP)
    with Path("told").open("wb") as told:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told)


def told(sweep: subprocess.Popen[bytes], code: int | None, seconds: float = 240) -> str:
    """Wait for the command's end with an exit code, None for any but 0, and give what it told."""
    ended = sweep.wait(seconds)
    text = so_far()
    assert ended == code if code is not None else ended, text
    return text


def so_far() -> str:
    return Path("told").read_text()


def training(pattern: str, but: int | None = None) -> RunDir:
    """Give the job's folder once it trains and has a whole checkpoint, from which another can go on.

    Args:
        pattern: of the folder's name.
        but: a process that is not meant: the one that trained there before.
    """
    found: list[Path] = []

    def trains() -> bool:
        found[:] = [path.parent for path in Path("sweep").glob(f"{pattern}/checkpoints") if last_checkpoint(path)]
        return bool(found) and state(RunDir(found[0])) == "running" and process(RunDir(found[0])) != but

    wait(trains)
    return RunDir(found[0].absolute())


def process(folder: RunDir) -> int:
    return int(read_json(folder.status)["pid"])


def ranks(folder: RunDir) -> dict[int, int]:
    """Process ids of those that execute a folder, by rank."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
            told = dict(one.split("=", 1) for one in (process / "environ").read_bytes().decode().split("\0") if one)
        except (OSError, UnicodeDecodeError, ValueError):
            continue
        if (
            str(folder.path) in words
            and "exec" in words
            and "RANK" in told
            and "accelerate.commands.launch" not in words
        ):
            found[int(told["RANK"])] = int(process.name)
    return found


def state(folder: RunDir) -> str:
    return str(read_json(folder.status)["state"])


def goes_on(folder: RunDir) -> int:
    """Count how often training went on from a checkpoint."""
    return folder.log.read_text().count("train: goes on from checkpoint-")


def steps(folder: RunDir) -> list[int]:
    """Give the steps at which the training loss was logged."""
    events = map(json.loads, folder.metrics.read_text().splitlines())
    return [event["step"] for event in events if "train/loss" in event]


def wait(holds: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
