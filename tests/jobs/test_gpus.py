"""GPUs as the launchers see them. No GPU is needed: their number comes from CUDA_VISIBLE_DEVICES, or is made up."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import transformers
import trl
from patience import PATIENCE

from sft_lab import compose
from sft_lab.cli.main import main
from sft_lab.core import gpus
from sft_lab.core.errors import UserError
from sft_lab.core.io import read_json
from sft_lab.core.run_dir import RunDir
from sft_lab.jobs import accelerate_launch
from sft_lab.run.launch_config import Processes, Serial


def test_a_process_that_trains_alone_keeps_the_first_gpu(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 3,5")
    with caplog.at_level(logging.INFO, "sft_lab"):
        gpus.use_one_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    assert "GPU 2, one of 3" in caplog.text
    assert "CUDA_VISIBLE_DEVICES=3" in caplog.text
    gpus.use_one_gpu()
    assert caplog.text.count("device: GPU") == 1


RUN_ON_BOTH = (
    "1 of 2 GPUs is used: launch.num_processes=2 would train the job on all of them, with 2 times the rows in each step"
)
SWEEP_ON_BOTH = "1 of 2 GPUs is used: launch=processes would train 2 jobs at once"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], RUN_ON_BOTH),
        (["launch=processes"], RUN_ON_BOTH),
        (["-m", "seed=1,2"], SWEEP_ON_BOTH),
        (["-m", "seed=1,2", "launch=processes"], ""),
        (["launch.num_processes=2"], ""),
        (["launch=slurm"], ""),
        (["launch=slurm", "launch.gpus_per_node=2"], RUN_ON_BOTH),
        (["launch=ray"], ""),
    ],
)
def test_the_plan_names_what_would_use_all_gpus(
    words: list[str], line: str, here: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert main(["plan", *tiny, *words]) == 0
    assert re.findall(r".* GPUs? (?:is|are) used.*", capsys.readouterr().out) == [line] * bool(line)


@pytest.mark.slow
@pytest.mark.parametrize(("words", "line"), [([], RUN_ON_BOTH), (["-m", "seed=1,2"], SWEEP_ON_BOTH)])
def test_a_run_names_what_would_use_all_gpus_once(
    words: list[str], line: str, here: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert main([*tiny, *words, "evaluation.outputs=0"]) == 0
    lines = [shown for shown in capsys.readouterr().err.splitlines() if "GPU" in shown]
    assert lines == [f"device: GPU 4, one of 2; CUDA_VISIBLE_DEVICES=7 chooses another. {line}"]


@pytest.mark.parametrize(
    ("gpus", "processes", "in_sweep", "line"),
    [
        ("0,1,2", 2, True, "2 of 3 GPUs are used: launch.num_processes=3 would train the job on all of them, with 1.5"),
        ("0,1,2,3", 2, True, "2 of 4 GPUs are used: launch=processes would train 2 jobs at once"),
        ("", 1, False, ""),
        ("0", 1, True, ""),
    ],
)
def test_gpus_that_are_left_unused(
    gpus: str, processes: int, in_sweep: bool, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    shown = Serial(num_processes=processes).unused_gpus(in_sweep=in_sweep)
    assert shown.startswith(line)
    assert bool(shown) is bool(line)


def test_a_process_of_a_distributed_job_keeps_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    gpus.use_one_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_the_gpu_is_chosen_before_torch_is_imported(here: Path, tiny: list[str]) -> None:
    """In a process of its own, torch is told of one GPU; the data stages have no part in it."""
    script = """
import os, sys
from sft_lab import compose
from sft_lab.core import heavy_imports
def imports():
    print(os.environ["CUDA_VISIBLE_DEVICES"], "torch" in sys.modules)
    sys.exit()
heavy_imports.imports = imports
compose(sys.argv[1:]).execute()
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "1,0"}
    command = [sys.executable, "-c", script, *tiny]
    output = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=PATIENCE
    ).stdout
    assert output.split() == ["1", "False"]


@pytest.mark.slow
def test_a_notebook_with_several_gpus_at_work_trains_on_one(
    here: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA reads CUDA_VISIBLE_DEVICES once; TRL refuses to train where Transformers counts two GPUs."""
    monkeypatch.setattr(trl.SFTConfig, "n_gpu", property(lambda args: getattr(args, "_n_gpu", 0) or 2), raising=False)
    assert compose(tiny).execute(here / "run")["steps"] == 4


@pytest.mark.parametrize("launcher", [Serial(num_processes=4), Processes(num_processes=4), Serial(config_file="fsdp")])
def test_as_many_gpus_as_processes(monkeypatch: pytest.MonkeyPatch, launcher: Serial) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    refused = (
        "launch.num_processes=4: must be at most 2, one per GPU that this process can use; set 2, and raise "
        "trainer.gradient_accumulation_steps for as many rows in a step"
    )
    assert launcher.missing_devices() == ([refused] if launcher.num_processes == 4 else [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert launcher.missing_devices() == []


def test_a_copy_of_the_model_in_one_process_is_a_plain_training() -> None:
    assert not Serial(config_file="ddp").distributed
    assert Serial(config_file="fsdp").distributed
    assert Serial(num_processes=2).distributed


@pytest.mark.slow
def test_sharded_training_is_another_job(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It computes in bfloat16 where a copy in each process has autocast; how copies are launched changes nothing."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")

    def job(*overrides: str) -> str:
        return compose([*tiny, *overrides]).hash

    two = job("launch.num_processes=2")
    assert job("launch.num_processes=2", "launch.config_file=ddp") == two
    assert job("launch.config_file=ddp") == job()
    sharded = [job("launch.config_file=fsdp"), job("launch.num_processes=2", "launch.config_file=fsdp")]
    assert len({job(), two, *sharded}) == 4


@pytest.mark.slow
def test_a_sweep_holds_one_model_at_a_time(here: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """When a job makes its model, nothing is left of the last job's: a trainer's parts refer to one another."""
    models: list[weakref.ref] = []
    alive: list[int] = []
    from_config = transformers.AutoModelForCausalLM.from_config

    def count(*args: object, **kwargs: object) -> torch.nn.Module:
        alive.append(sum(model() is not None for model in models))
        model = from_config(*args, **kwargs)
        if next(model.parameters()).device.type != "meta":
            models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_config", count)
    assert (
        main(
            [
                "-m",
                *tiny,
                "trainer.max_steps=1,2",
                "evaluation.outputs=0",
                "evaluation.prompts=[]",
                "evaluation.general=null",
            ]
        )
        == 0
    )
    assert len(models) >= 2
    assert max(alive) == 0


@pytest.mark.slow
def test_the_data_stages_of_a_distributed_job_run_in_a_child(here: Path, tiny: list[str]) -> None:
    """What a parent holds of a GPU's memory, its training processes lack."""
    run, folder = compose([*tiny, "launch.num_processes=2"]), RunDir(here / "run")
    folder.claim()
    folder.config.write_text(run.to_yaml())
    accelerate_launch.prepare_data_in_child(folder, accelerate_launch.Machine.from_environment())
    status = read_json(folder.status)
    assert (status["state"], status["work"]) == ("finished", "prepare")
    assert status["pid"] != os.getpid()
    assert "INFO tokenize" in folder.log.read_text()


@pytest.mark.slow
def test_wrong_input_is_said_by_the_child(here: Path, tiny: list[str]) -> None:
    rows = here / "rows.jsonl"
    rows.write_text('{"nothing": "known"}\n')
    overrides = ["dataset=file", f"dataset.path={rows}", "launch.num_processes=2"]
    run, folder = compose([*tiny, *overrides]), RunDir(here / "run")
    folder.claim()
    folder.config.write_text(run.to_yaml())
    with pytest.raises(UserError, match="match no known format"):
        accelerate_launch.prepare_data_in_child(folder, accelerate_launch.Machine.from_environment())


@pytest.mark.parametrize(
    ("visible", "device", "expected"), [(None, True, True), ("0", True, True), ("", True, False), ("0", False, False)]
)
def test_a_gpu_is_a_device_that_the_process_may_use(
    visible: str | None, device: bool, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container may have no nvidia-smi; and a number in the environment is no device."""
    monkeypatch.setattr(gpus, "DEVICE_FILES", (str(tmp_path if device else tmp_path / "none"),))
    monkeypatch.setattr(gpus.shutil, "which", lambda _: None)
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(gpus.VISIBLE, visible)
    assert gpus.has_gpu() is expected
