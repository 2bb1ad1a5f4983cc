"""Several processes that train one job: gloo on the processor, the same numbers as one process, one run folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import interrupted_sweep
import pytest
from patience import PATIENCE, wait_until

from sft_lab import compose
from sft_lab.cli.main import main
from sft_lab.core.errors import ConfigError, UserError
from sft_lab.core.io import read_json
from sft_lab.core.run_dir import RunDir
from sft_lab.jobs import accelerate_launch
from sft_lab.run.launch_config import Serial
from sft_lab.training.checkpoints import last_checkpoint

# Two processes with a batch each take the rows that one process takes in two. More steps than are looked at, so that a
# process is still at work when it is killed.
STEPS = ["trainer.max_steps=32", "trainer.per_device_train_batch_size=2", "trainer.logging_steps=1",
         "trainer.eval_steps=16", "trainer.save_steps=4", "trainer.precision=fp32"]  # fmt: skip
ONE = [*STEPS, "trainer.gradient_accumulation_steps=2"]
TWO = [*STEPS, "launch.num_processes=2"]


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curve(folder: Path, name: str) -> list[float]:
    return [event[name] for event in events(folder) if name in event]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """A run in one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    assert main([*tiny, *ONE, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_and_leave_one_run_folder(one: Path, here: Path, tiny: list[str]) -> None:
    two = here / "two"
    assert main([*tiny, *TWO, f"hydra.run.dir={two}"]) == 0
    told = (two / "run.log").read_text()
    assert told.count("INFO load ") == told.count("INFO tokenize  ") == 1  # the processes find all stored
    assert curve(two, "train/loss") == pytest.approx(curve(one, "train/loss"), abs=1e-5)
    assert curve(two, "eval/loss") == pytest.approx(curve(one, "eval/loss"), abs=1e-5)
    assert curve(two, "train/num_tokens") == curve(one, "train/num_tokens")
    assert files(two) == files(one) | {accelerate_launch.OUTPUT}
    assert read_json(two / "status.json")["state"] == "finished"
    assert interrupted_sweep.find_ranks(RunDir(two)) == {}


@pytest.mark.slow
def test_two_such_jobs_in_a_sweep(here: Path, tiny: list[str]) -> None:
    assert main(["-m", *tiny, *TWO, "seed=1,2", "hydra.sweep.dir=sweep"]) == 0
    jobs = sorted((here / "sweep").glob("seed_*"))
    assert [read_json(job / "status.json")["state"] for job in jobs] == ["finished", "finished"]
    assert [len(curve(job, "train/loss")) for job in jobs] == [32, 32]


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_a_killed_process_ends_the_job_and_the_same_command_goes_on(
    one: Path, here: Path, tiny: list[str], dies: int
) -> None:
    two = here / "two"
    words = [*tiny, *TWO, f"hydra.run.dir={two}"]
    command = subprocess.Popen([sys.executable, "-m", "sft_lab", *words], stderr=subprocess.PIPE, text=True)
    ranks = wait_until(lambda: len(found := interrupted_sweep.find_ranks(RunDir(two))) == 2 and found, command)
    wait_until(lambda: last_checkpoint(two / "checkpoints"), command)
    os.kill(ranks[dies], signal.SIGKILL)
    _, said = command.communicate(timeout=PATIENCE)
    assert command.returncode == 1
    assert f"training process {dies} was killed by SIGKILL" in said, (two / accelerate_launch.OUTPUT).read_text()
    assert "Traceback" not in said
    assert RunDir(two).state() == "failed"
    assert interrupted_sweep.find_ranks(RunDir(two)) == {}
    assert main(words) == 0
    assert "resuming from checkpoint-" in (two / "run.log").read_text()
    assert curve(two, "train/loss") == pytest.approx(curve(one, "train/loss"), abs=1e-5)


@pytest.mark.slow
def test_a_signal_stops_all_processes_at_one_step_with_a_checkpoint(one: Path, here: Path, tiny: list[str]) -> None:
    two = here / "two"
    words = [*tiny, *TWO, f"hydra.run.dir={two}"]
    command = subprocess.Popen([sys.executable, "-m", "sft_lab", *words], stderr=subprocess.PIPE, text=True)
    wait_until((two / "metrics.jsonl").exists, command)
    command.send_signal(signal.SIGTERM)
    _, text = command.communicate(timeout=PATIENCE)
    assert command.returncode == 143, text
    assert "Traceback" not in text
    assert RunDir(two).state() == "interrupted"
    assert interrupted_sweep.find_ranks(RunDir(two)) == {}
    assert main(words) == 0
    assert curve(two, "train/loss") == pytest.approx(curve(one, "train/loss"), abs=1e-5)


@pytest.mark.slow
def test_two_machines_on_loopback(one: Path, here: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each machine executes the same folder; the environment says which it is."""
    two = here / "two"
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29617")
    run = compose([*tiny, *TWO, "launch.num_machines=2"])
    two.mkdir()
    (two / "config.yaml").write_text(run.to_yaml())
    machines = [
        subprocess.Popen(
            [sys.executable, "-m", "sft_lab", "exec", str(two)],
            env={**os.environ, "NODE_RANK": str(number)},
        )
        for number in range(2)
    ]
    assert [machine.wait(PATIENCE) for machine in machines] == [0, 0]
    assert curve(two, "train/loss") == pytest.approx(curve(one, "train/loss"), abs=1e-5)


def test_the_command_is_accelerates(here: Path, tiny: list[str]) -> None:
    run = compose(tiny)
    run.launch = Serial(num_processes=8, num_machines=2, config_file="fsdp")
    words = accelerate_launch.command(run, RunDir(here / "job"), accelerate_launch.Machine(1, "10.0.0.1", 29500))
    assert words[2:4] == ["-m", "accelerate.commands.launch"]
    told = dict(zip(words[4::2], words[5::2], strict=False))
    assert told["--num_processes"] == "8"
    assert told["--num_machines"] == "2"
    assert told["--machine_rank"] == "1"
    assert told["--main_process_ip"] == "10.0.0.1"
    assert Path(told["--config_file"]).name == "fsdp.yaml"
    assert words[-4:] == ["-m", "sft_lab", "exec", str(here / "job")]


def test_the_number_of_processes_is_part_of_what_a_job_is(tiny: list[str]) -> None:
    run = compose(tiny)
    alone = run.hash
    run.launch = Serial(num_processes=2)
    two = run.hash
    run.launch = Serial(num_processes=2, config_file="ddp")
    assert run.hash == two != alone
    run.launch = Serial(num_processes=2, config_file="fsdp")
    assert run.hash not in (alone, two)  # its arithmetic is a little different


def test_in_this_process_a_job_of_two_is_refused(here: Path, tiny: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"launch\.num_processes=2.*is 1.*sft-lab exec"):
        compose([*tiny, "launch.num_processes=2"]).execute("run")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["launch.num_processes=0"], "num_processes=0: must be at least 1"),
        (["launch.num_processes=3", "launch.num_machines=2"], "num_processes=3: must be a multiple of num_machines=2"),
        (
            ["launch.config_file=zero9"],
            "launch.config_file=zero9: no such file; available: ddp, deepspeed_zero3, fsdp",
        ),
    ],
)
def test_what_cannot_be_is_refused(tiny: list[str], words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        compose([*tiny, *words])
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["NODE_RANK", "MASTER_PORT"])
def test_a_variable_of_torchrun_that_is_no_number_is_named(
    name: str, here: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "first")
    assert main([*tiny, "launch.num_processes=2", "hydra.run.dir=run"]) == 2
    assert f"{name}=first: must be a whole number; correct it, or unset it" in capsys.readouterr().err


def test_shipped_configs_are_read_by_accelerate() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    from sft_lab.run.launch_config import ACCELERATE_CONFIGS

    found = {file.stem: load_config_from_file(str(file)) for file in ACCELERATE_CONFIGS.glob("*.yaml")}
    assert {name: one.distributed_type.value for name, one in found.items()} == {
        "ddp": "MULTI_GPU", "fsdp": "FSDP", "deepspeed_zero3": "DEEPSPEED"
    }  # fmt: skip
