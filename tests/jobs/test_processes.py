"""Several jobs at once: devices, threads, killed jobs, one computation of each stage."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from patience import PATIENCE, halted, wait_until

from sft_lab.cli.main import main
from sft_lab.core.errors import FolderError
from sft_lab.core.gpus import installed_gpus, visible_gpus
from sft_lab.core.io import read_json
from sft_lab.core.run_dir import RunDir
from sft_lab.core.types import Work
from sft_lab.jobs import processes
from sft_lab.run.launch_config import Processes

TWO = ["launch=processes", "launch.at_once=2"]
# Long enough to be met at work, with checkpoints, and halted there.
LONG = ["trainer.max_steps=100", "trainer.save_steps=10", "trainer.eval_steps=1000", "evaluation.prompts=[]",
        "evaluation.outputs=0", "evaluation.general=null"]  # fmt: skip


@pytest.mark.parametrize(
    ("visible", "at_once", "expected"),
    [
        ("0,1,2", None, ["0", "1", "2"]),
        ("0,1,2", 2, ["0", "1"]),
        ("3, GPU-5a", None, ["3", "GPU-5a"]),
        ("0,-1,2", None, ["0"]),
        ("0", 4, ["0"]),  # more jobs than devices wait
        ("", 3, ["", "", ""]),
        ("-1", 1, [""]),
    ],
)
def test_a_job_has_a_device_of_its_own(
    monkeypatch: pytest.MonkeyPatch, visible: str, at_once: int | None, expected: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert Processes(at_once=at_once).device_groups() == expected


def test_devices_are_what_the_driver_lists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: GPU-1)'\necho 'GPU 1: A (UUID: GPU-2)'\n")
    listing.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    installed_gpus.cache_clear()
    assert visible_gpus() == ["0", "1"]
    installed_gpus.cache_clear()
    listing.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert visible_gpus() == []


@pytest.mark.slow
def test_parallel_jobs_compute_each_stage_once_and_equal_serial_ones(
    here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    grid = [*tiny, "trainer.learning_rate=1e-3,2e-3", "seed=1,2"]
    assert main(["-m", *grid, "store.path=one", "hydra.sweep.dir=serial"]) == 0
    assert main(["-m", *grid, *TWO, "store.path=two", "hydra.sweep.dir=parallel"]) == 0
    jobs = sorted(path.parent for path in Path("parallel").glob("*/summary.json"))
    assert len(jobs) == 4
    for job in jobs:
        one, other = (read_json(path / "summary.json") for path in (job, Path("serial") / job.name))
        assert one["eval/loss"] == other["eval/loss"]
    computed = [
        (stage["stage"], stage["key"])
        for job in jobs
        for stage in read_json(job / "manifest.json")["stages"]
        if not stage["hit"]
    ]
    assert len(computed) == len(set(computed))
    told = capsys.readouterr().err
    assert told.count("started, ") == 4
    assert main(["-m", *grid, *TWO, "store.path=two", "hydra.sweep.dir=parallel"]) == 0
    assert capsys.readouterr().err.count("already finished") == 4


@pytest.mark.slow
def test_a_job_killed_by_the_system_is_one_failed_job(here: Path, tiny: list[str]) -> None:
    long = [word for word in tiny if not word.startswith("trainer=")]
    words = [*long, "trainer=full", "trainer.max_steps=100000", "trainer.save_steps=5", *TWO,
             "hydra.sweep.dir=sweep"]  # fmt: skip
    command = [sys.executable, "-m", "sft_lab", "-m", *words, "seed=1,2"]
    told = Path("told")
    with told.open("wb") as output:
        sweep = subprocess.Popen(command, stderr=output)
    first, second = (_training(here / "sweep", f"seed_{seed}-*") for seed in (1, 2))
    os.kill(read_json(first.status)["pid"], signal.SIGKILL)
    wait_until(lambda: "killed by SIGKILL" in told.read_text(), sweep)
    assert read_json(first.status)["state"] == "failed"
    assert "SIGKILL" in read_json(first.status)["error"]
    assert read_json(second.status)["state"] == "running"
    sweep.send_signal(signal.SIGTERM)  # reaches the other job
    assert sweep.wait(PATIENCE) != 0
    assert read_json(second.status)["state"] == "interrupted"
    assert not second.is_held()


@pytest.mark.slow
def test_jobs_that_outlive_their_sweep_are_waited_for(here: Path, tiny: list[str]) -> None:
    """The parent is killed; the same command at once neither fails the jobs at work nor touches what they print."""
    words = [*tiny, *LONG, *TWO, "hydra.sweep.dir=sweep", "seed=1,2,3"]
    command = [sys.executable, "-m", "sft_lab", "-m", *words]
    sweep = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    told = Path("told")
    with ExitStack() as until_waited_for, told.open("wb") as output:
        jobs, at_work = [], []
        for seed in (1, 2):
            jobs.append(_training(here / "sweep", f"seed_{seed}-*"))
            at_work.append(read_json(jobs[-1].status)["pid"])
            until_waited_for.enter_context(halted(at_work[-1]))
        os.kill(sweep.pid, signal.SIGKILL)
        sweep.wait()
        printed = [job.output.read_text() for job in jobs]
        again = subprocess.Popen(command, stderr=output)
        wait_until(lambda: told.read_text().count("is working on it; waiting") == 2, again)
    assert again.wait(PATIENCE) == 0, told.read_text()
    assert "failed" not in told.read_text()
    for job, pid, before in zip(jobs, at_work, printed, strict=True):
        assert f"{job.path.name}: process {pid} on {socket.gethostname()} is working on it; waiting" in told.read_text()
        assert job.output.read_text().startswith(before)
        assert "train: resuming" not in job.log.read_text()  # nobody else has trained here
        assert read_json(job.status)["pid"] == pid
    states = [read_json(file)["state"] for file in (here / "sweep").glob("*/status.json")]
    assert states == ["finished"] * 3


@pytest.mark.slow
def test_a_job_that_another_command_gives_up_is_taken_over(here: Path, tiny: list[str]) -> None:
    words = [*tiny, *LONG, "hydra.sweep.dir=sweep", "seed=1,2"]
    command = [sys.executable, "-m", "sft_lab", "-m", *words]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    job = _training(here / "sweep", "seed_1-*")
    told = Path("told")
    with halted(first.pid), told.open("wb") as output:
        second = subprocess.Popen(command, stderr=output)
        wait_until(
            lambda: f"process {first.pid} on {socket.gethostname()} is working on it" in told.read_text(), second
        )
        first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE) == 143
    assert second.wait(PATIENCE) == 0
    assert "train: resuming from checkpoint-" in job.log.read_text()


def test_the_device_of_a_job_at_work_is_the_one_its_process_has(tmp_path: Path) -> None:
    code = ("import sys; from pathlib import Path\n"
            "from sft_lab.core.run_dir import RunDir\n"
            "folder = RunDir(Path(sys.argv[1]))\n"
            "folder.claim(); print('held', flush=True); sys.stdin.read()")  # fmt: skip
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "CUDA_VISIBLE_DEVICES": "3"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    free = ["2", "3", "4"]
    assert processes.take_device(free, RunDir(tmp_path)) == "3"
    assert free == ["2", "4"]
    holder.communicate()
    assert processes.take_device(free, RunDir(tmp_path)) == "2"


def _training(sweep: Path, pattern: str) -> RunDir:
    """Give the job's folder once it trains."""
    found: list[Path] = []

    def trains() -> bool:
        found[:] = [path.parent for path in sweep.glob(f"{pattern}/checkpoints") if any(path.iterdir())]
        return bool(found)

    wait_until(trains)
    return RunDir(found[0])


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    with folder.running():
        assert folder.is_held()
        with pytest.raises(FolderError, match="another process is working here"), RunDir(tmp_path).running():
            pass
        assert read_json(folder.status)["state"] == "running"
    assert read_json(folder.status)["state"] == "finished"
    assert not folder.is_held()
    assert {path.name for path in tmp_path.iterdir()} == {"status.json"}


def test_a_job_that_leaves_no_status_is_told_by_its_last_line(here: Path) -> None:
    """Its config is no config, so that it ends before its folder is worked on."""
    job = RunDir(here / "sweep" / "seed=1-0123")
    job.path.mkdir(parents=True)
    job.config.write_text("format: 99\n")
    (failure,) = processes.launch([("job", job)], Processes(at_once=1), Work.RUN)
    assert failure.by_input
    assert failure.message.startswith(f"{job.config}: ")  # the whole sentence
    assert not job.status.exists()


@pytest.mark.parametrize(("number", "name"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGRTMIN + 1, "signal 35")])
def test_the_signal_that_ended_a_job_is_named(number: int, name: str, tmp_path: Path) -> None:
    ending = processes.ProcessJob("job", RunDir(tmp_path)).ending(-number)
    assert ending.reason == f"killed by {name} after 0 s"
