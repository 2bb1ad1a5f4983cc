"""A sweep whose jobs are taken away in the middle of training, and what it comes to undisturbed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from patience import PATIENCE, wait_until

from sft_lab.cli.main import main
from sft_lab.core.io import read_json
from sft_lab.core.run_dir import RunDir
from sft_lab.training.checkpoints import last_checkpoint

# Long enough to be caught in the middle, with a checkpoint every second.
LONG = ["trainer.max_steps=80", "trainer.save_steps=10", "trainer.eval_steps=80", "trainer.logging_steps=20"]
STEPS = [20, 40, 60, 80]  # that are logged
SWEEP = "hydra.sweep.dir=sweep"
OUTPUT = Path("sweep_output")  # in the working folder


def run_undisturbed(tiny: list[str], seeds: str) -> dict[str, float]:
    """Return the final loss of each job, by the name of its folder, of the same sweep one job after another."""
    assert main(["-m", *tiny, *LONG, f"seed={seeds}", "hydra.sweep.dir=whole"]) == 0
    return losses(Path("whole"))


def losses(sweep: Path) -> dict[str, float]:
    return {file.parent.name: read_json(file)["eval/loss"] for file in sweep.glob("*/summary.json")}


def start(words: list[str], on: Callable[..., list[str]] = lambda *words: list(words)) -> subprocess.Popen[bytes]:
    """Start the sweep; its output goes into a file, since a pipe would be held open by its jobs too.

    Args:
        words: of the command line.
        on: makes a command one that is given on another machine.
    """
    command = on(sys.executable, "-m", "sft_lab", "-m", *words, *LONG, SWEEP)
    with OUTPUT.open("wb") as output:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=output)


def wait_for_output(sweep: subprocess.Popen[bytes], code: int | None) -> str:
    """Wait for the command's end with an exit code, None for any but 0, and return what it printed."""
    ended = sweep.wait(PATIENCE)
    text = read_output()
    assert ended == code if code is not None else ended, text
    return text


def read_output() -> str:
    return OUTPUT.read_text()


def wait_for_training(pattern: str, but: int | None = None) -> RunDir:
    """Return the job's folder once it trains and has a complete checkpoint, from which another can go on.

    Args:
        pattern: of the folder's name.
        but: a process that is not meant: the one that trained there before.
    """
    folders: list[RunDir] = []

    def trains() -> bool:
        folders[:] = [
            RunDir(path.parent) for path in Path("sweep").glob(f"{pattern}/checkpoints") if last_checkpoint(path)
        ]
        return bool(folders) and state(folders[0]) == "running" and process_id(folders[0]) != but

    wait_until(trains)
    return RunDir(folders[0].path.absolute())


def process_id(folder: RunDir) -> int:
    return int(read_json(folder.status)["pid"])


def find_ranks(folder: RunDir) -> dict[int, int]:
    """Process ids of those that execute a folder, by rank."""
    processes = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode().split("\0")
            variables = (process / "environ").read_bytes().decode().split("\0")
            environment = dict(variable.split("=", 1) for variable in variables if variable)
        except (OSError, UnicodeDecodeError, ValueError):
            continue
        executes = str(folder.path) in command and "exec" in command and "RANK" in environment
        if executes and "accelerate.commands.launch" not in command:
            processes[int(environment["RANK"])] = int(process.name)
    return processes


def state(folder: RunDir) -> str:
    return str(read_json(folder.status)["state"])


def count_resumes(folder: RunDir) -> int:
    """Count how often training went on from a checkpoint."""
    return folder.log.read_text().count("train: resuming from checkpoint-")


def steps(folder: RunDir) -> list[int]:
    """Return the steps at which the training loss was logged."""
    events = map(json.loads, folder.metrics.read_text().splitlines())
    return [event["step"] for event in events if "train/loss" in event]
