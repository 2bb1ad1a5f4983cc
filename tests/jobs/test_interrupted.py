"""Ctrl-C and SIGTERM in a run: a checkpoint at the step's end, the command that goes on, no traceback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from patience import PATIENCE, wait_until

from sft_lab.cli.main import main
from sft_lab.core.io import read_json
from sft_lab.core.run_dir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("foreground")]

# No checkpoint of its own before the end: the one that is there was made by the signal.
LONG = ["trainer.max_steps=150", "trainer.save_steps=1000", "trainer.eval_steps=1000", "trainer.logging_steps=1",
        "evaluation.prompts=[]", "evaluation.outputs=0", "evaluation.general=null"]  # fmt: skip


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sft_lab", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> str:
    _, text = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in text
    return text


def processor_seconds(process: subprocess.Popen[str]) -> float:
    """Return the time that a process has worked, however busy the machine is."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def trains(pattern: str, events: int = 6) -> Callable[[], RunDir | None]:
    """Return a question for the folder that matches, once there are log entries in it."""

    def look() -> RunDir | None:
        folders = [path.parent for path in Path.cwd().glob(f"{pattern}/metrics.jsonl")]
        return RunDir(folders[0]) if folders and len(losses(folders[0])) >= events else None

    return look


def losses(folder: Path) -> dict[int, float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    return {event["step"]: event["train/loss"] for event in events if "train/loss" in event}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_training_saves_a_checkpoint_and_names_the_command_that_goes_on(
    here: Path, tiny: list[str], number: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(*tiny, *LONG)
    folder = wait_until(trains("outputs/*/*"), process)
    process.send_signal(number)
    text = ended(process)
    assert ("Ctrl-C again ends at once" in text) == (number == signal.SIGINT)
    assert process.returncode == code, text
    assert read_json(folder.status)["state"] == "interrupted"
    assert not (folder.path / ".lock").exists()
    command = f"sft-lab exec {folder.path}"
    match = re.search(rf"interrupted; {re.escape(command)} resumes from the checkpoint of step (\d+)", text)
    assert match, text
    step = int(match[1])
    assert (folder.checkpoints / f"checkpoint-{step}" / "trainer_state.json").exists()
    assert step == max(losses(folder.path)) > 5
    assert main(command.split()[1:]) == 0
    assert f"resuming from checkpoint-{step}" in folder.log.read_text()
    summary, output = read_json(folder.summary), capsys.readouterr().out
    assert f"-> {summary['eval/loss']:.4f} tuned" in output
    assert f"Report: {folder.report}" in output
    assert f"{summary['train_tokens']} tokens" in folder.log.read_text().rpartition("train: ")[2]
    assert main([*tiny, *LONG, "hydra.run.dir=whole"]) == 0
    assert losses(folder.path) == losses(Path("whole"))
    assert read_json(folder.summary)["eval/loss"] == read_json(Path("whole/summary.json"))["eval/loss"]


def test_a_run_interrupted_between_two_log_entries_reproduces(
    here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(*tiny, *LONG, "trainer.logging_steps=7", "trainer.max_steps=90")
    folder = wait_until(trains("outputs/*/*", events=2), process)
    process.send_signal(signal.SIGINT)
    ended(process)
    (checkpoint,) = folder.checkpoints.glob("checkpoint-*")
    assert main(["exec", str(folder.path)]) == 0
    assert f"resuming from {checkpoint.name}" in folder.log.read_text()
    assert main(["replay", str(folder.path), "--out", "again"]) == 0
    assert "Result: equal" in capsys.readouterr().out
    assert losses(Path("again")) == losses(folder.path)
    numbers = [read_json(summary) for summary in (Path("again/summary.json"), folder.summary)]
    assert numbers[0]["train_tokens"] == numbers[1]["train_tokens"]


@pytest.mark.parametrize("tracking", ["local", "wandb"])
def test_a_named_folder_goes_on_by_the_same_command(here: Path, tiny: list[str], tracking: str) -> None:
    words = [*(word.replace("tracking=local", f"tracking={tracking}") for word in tiny), *LONG, "hydra.run.dir=run"]
    process = start(*words)
    folder = wait_until(trains("run"), process)
    process.send_signal(signal.SIGINT)
    assert "interrupted; the same command resumes from the checkpoint of step" in ended(process)
    assert main(words) == 0
    assert "resuming from checkpoint-" in folder.log.read_text()


def test_a_run_stopped_before_training_says_so(here: Path, tiny: list[str]) -> None:
    process = start(*tiny, *LONG)
    wait_until(lambda: list(Path("outputs").glob("*/*/run.log")), process)
    process.send_signal(signal.SIGINT)
    text = ended(process)
    assert process.returncode == 130
    (folder,) = Path("outputs").absolute().glob("*/*")
    command = f"sft-lab exec {folder}"
    assert f"interrupted before the first training step; {command} keeps the finished data stages" in text
    assert main(command.split()[1:]) == 0


@pytest.mark.parametrize("command", [[], ["prepare"]])
def test_a_sweep_stopped_before_training_promises_no_checkpoint(
    here: Path, tiny: list[str], command: list[str]
) -> None:
    rows = [{"prompt": f"Say {n}.", "completion": f"{n}, and {n * 7} is seven times it."} for n in range(20_000)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))  # enough to be caught in the middle
    process = start(*command, "-m", *tiny, *LONG, "dataset=rows.jsonl", "seed=1,2", "hydra.sweep.dir=sweep")
    wait_until(lambda: list(Path("sweep").glob("*/run.log")), process)
    process.send_signal(signal.SIGINT)
    text = ended(process)
    assert process.returncode == 130
    assert "interrupted; the same command resumes: finished jobs and data stages are kept\n" in text


def test_a_sweep_stopped_in_training_resumes_the_job_at_work(here: Path, tiny: list[str]) -> None:
    process = start("-m", *tiny, *LONG, "seed=1,2", "hydra.sweep.dir=sweep")
    wait_until(trains("sweep/seed_1-*"), process)
    process.send_signal(signal.SIGINT)
    assert "finished jobs are kept, and 1 unfinished job resumes from its checkpoint\n" in ended(process)


def test_a_killed_training_without_a_checkpoint_says_that_it_begins_anew(here: Path, tiny: list[str]) -> None:
    process = start(*tiny, *LONG)
    folder = wait_until(trains("outputs/*/*"), process)
    process.kill()
    process.wait()
    assert main(["exec", str(folder.path)]) == 0
    assert "an earlier attempt saved no checkpoint; training starts over" in folder.log.read_text()


def test_a_second_ctrl_c_ends_at_once(here: Path, tiny: list[str]) -> None:
    """While the first is being obeyed: a step that has no end in sight."""
    rows = [{"prompt": f"Say {n}.", "completion": f"{n}, and {n * 7} is seven times it."} for n in range(5000)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["dataset=file", "dataset.path=rows.jsonl", "trainer.per_device_train_batch_size=1",
             "trainer.gradient_accumulation_steps=5000", "split.eval_share=0.002"]  # fmt: skip
    process = start(*tiny, *LONG, *words)
    wait_until(
        lambda: "optimizer steps" in "".join(path.read_text() for path in Path("outputs").glob("*/*/run.log")), process
    )
    planned = processor_seconds(process)
    wait_until(lambda: processor_seconds(process) > planned + 2, process)  # it is in its first step by then
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    first = "sft-lab: stopping after this step, with a checkpoint; Ctrl-C again ends at once\n"
    assert first in iter(process.stderr.readline, "")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert ended(process) == "sft-lab: ended at once\n"
    assert process.returncode == 130
    (folder,) = Path("outputs").glob("*/*")
    assert not list(folder.glob("checkpoints/*"))  # the step had not come to its end
    assert main(["exec", str(folder), "--work", "prepare"]) == 0  # nobody holds the folder


def test_a_sweep_of_processes_saves_a_checkpoint_of_each_job(here: Path, tiny: list[str]) -> None:
    endless = "trainer.max_steps=100000"  # or one might have ended before the other has begun
    process = start(
        "-m", *tiny, *LONG, endless, "seed=1,2", "launch=processes", "launch.at_once=2", "hydra.sweep.dir=sweep"
    )
    folders = [wait_until(trains(f"sweep/seed_{seed}-*"), process) for seed in (1, 2)]
    process.send_signal(signal.SIGINT)
    text = ended(process)
    assert process.returncode == 130
    assert "interrupted; the same command resumes: finished jobs are kept, " in text
    assert ", and 2 unfinished jobs resume from their checkpoints\n" in text
    for folder in folders:
        assert read_json(folder.status)["state"] == "interrupted"
        assert list(folder.checkpoints.glob("checkpoint-*/trainer_state.json"))
        with pytest.raises(ProcessLookupError):
            os.kill(read_json(folder.status)["pid"], 0)
