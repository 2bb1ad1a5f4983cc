"""Jobs of a sweep that would train on the same rows in the same way: one trains, the others take its result."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import interrupted_sweep
import pytest
import yaml
from patience import wait_until

from sft_lab.cli.main import main
from sft_lab.core.io import read_json
from sft_lab.core.run_dir import RunDir

# The same filters in another order keep the same rows: two jobs, one training.
TWINS = "filter=[answered,length],[length,answered]"


def jobs_of(sweep: str = "sweep") -> list[RunDir]:
    return [RunDir(path.parent.absolute()) for path in sorted(Path(sweep).glob("*/config.yaml"))]


def has_trained(folder: RunDir) -> bool:
    return ", loss_head=" in folder.log.read_text()


@pytest.mark.slow
def test_one_trains_and_the_other_takes_its_result(
    here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-m", *tiny, TWINS, "hydra.sweep.dir=sweep"]) == 0
    output = capsys.readouterr()
    jobs = jobs_of()
    trained = [job for job in jobs if has_trained(job)]
    assert (len(jobs), len(trained)) == (2, 1)
    for job in jobs:
        summary, manifest = read_json(job.summary), read_json(job.manifest)
        assert read_json(job.status)["state"] == "finished"
        if job.path in [other.path for other in trained]:
            assert "same_as" not in summary | manifest
            continue
        original = RunDir(job.path.with_name(summary["same_as"]))
        assert original.path in [other.path for other in trained]
        assert manifest["same_as"] == summary["same_as"]
        assert summary == read_json(original.summary) | {"same_as": original.path.name}
        assert manifest["job"] != read_json(original.manifest)["job"]
        for name in ("metrics", "eval", "samples", "outputs"):
            assert getattr(job, name).read_bytes() == getattr(original, name).read_bytes()
        assert {file.name for file in job.model.iterdir()} == {file.name for file in original.model.iterdir()}
        assert read_json(job.waterfall)["stages"] != read_json(original.waterfall)["stages"]  # its own way there
        assert f"train: skipped, since {original.path.name} trained" in output.err
    (comers,) = Path("sweep/.locks").glob("*.jobs")  # the only jobs that a further one would read
    assert sorted(comers.read_text().splitlines()) == [job.path.name for job in jobs]
    assert "not_judged (same training as filter=[answered,length])" in output.out


@pytest.mark.slow
def test_a_job_without_training_of_its_own_is_used_like_any_other(here: Path, tiny: list[str]) -> None:
    words = [*tiny, TWINS, "hydra.sweep.dir=sweep"]
    assert main(["-m", *words]) == 0
    (original,) = [job for job in jobs_of() if has_trained(job)]
    (other,) = [job for job in jobs_of() if not has_trained(job)]
    # A replay trains, though it lies in the sweep and its twins have finished.
    assert main(["replay", str(other.path), "--out", "sweep/replayed"]) == 0
    replayed = RunDir(Path("sweep/replayed"))
    assert has_trained(replayed)
    assert read_json(replayed.replay)["equal"] is True
    shutil.rmtree(replayed.path)

    assert main(["-m", *words]) == 0  # finished, both
    assert main(["compare", "sweep"]) == 0
    shutil.rmtree(original.path)
    assert main(["generate", str(other.path), "Hello", "--max-new-tokens", "2"]) == 0
    assert main(["promote", str(other.path), "kept"]) == 0
    assert main(["-m", *words]) == 0  # now the other is the one that has trained
    assert read_json(original.summary)["same_as"] == original.path.name

    assert main(["-m", *words, "rerun=true"]) == 0
    assert [has_trained(job) for job in jobs_of() if ".old-" not in job.path.name] == [True, True]


@pytest.mark.slow
def test_each_has_a_wandb_run_with_its_own_config(here: Path, tiny: list[str]) -> None:
    words = [word.replace("tracking=local", "tracking=wandb") for word in tiny]
    assert main(["-m", *words, TWINS, "hydra.sweep.dir=sweep"]) == 0
    runs = list(Path("sweep/wandb").glob("offline-run-*/*.wandb"))
    assert len(runs) == 2
    for job in jobs_of():
        (run,) = [run for run in runs if job.path.name.rpartition("-")[2] in run.name]
        content = run.read_bytes()
        filters = list(yaml.safe_load(job.config.read_text())["filter"])
        assert content.find(filters[0].encode()) < content.find(filters[1].encode())
        assert b"train/loss" in content
        assert b"eval/loss" in content
        assert (b"same_as" in content) == (not has_trained(job))


@pytest.mark.slow
@pytest.mark.timeout(900)  # Ray's four processes took 48 s alone and 208 s beside another test on two cores
@pytest.mark.parametrize(
    "launch",
    [
        ["launch=processes", "launch.at_once=2"],
        ["launch=slurm", "launch.cluster=local"],
        ["launch=ray", "launch.num_cpus=1"],
        ["launch.num_processes=2"],
    ],
    ids=["processes", "slurm", "ray", "accelerate"],
)
def test_on_every_launcher(launch: list[str], here: Path, tiny: list[str]) -> None:
    assert main(["-m", *tiny, *launch, TWINS, "seed=1,2", "hydra.sweep.dir=sweep"]) == 0
    jobs = jobs_of()
    assert [read_json(job.status)["state"] for job in jobs] == ["finished"] * 4
    assert sum(has_trained(job) for job in jobs) == 2
    assert len({read_json(job.summary)["eval/loss"] for job in jobs}) == 2


@pytest.mark.slow
def test_a_killed_training_is_done_by_the_one_that_waited(here: Path, tiny: list[str]) -> None:
    sweep = interrupted_sweep.start([*tiny, "launch=processes", "launch.at_once=2", TWINS])
    trains = interrupted_sweep.wait_for_training("filter_*")
    trainer = interrupted_sweep.process_id(trains)
    os.kill(trainer, signal.SIGSTOP)  # until the other waits for it
    wait_until(lambda: len(list(Path("sweep").glob("*/run.log"))) == 2)
    os.kill(trainer, signal.SIGKILL)
    assert "killed by SIGKILL" in interrupted_sweep.wait_for_output(sweep, 1)
    (other,) = [job for job in jobs_of() if job.path != trains.path]
    assert read_json(other.status)["state"] == "finished"
    assert has_trained(other)
    # The same command: the job that was killed takes the result of the one that has trained.
    assert main(["-m", *tiny, *interrupted_sweep.LONG, TWINS, interrupted_sweep.SWEEP]) == 0
    assert read_json(trains.summary)["same_as"] == other.path.name
    assert json.loads(trains.metrics.read_text().splitlines()[-1])["step"] == 80
    assert not trains.checkpoints.exists()
    keys = {read_json(job.manifest)["training_key"] for job in (trains, other)}
    assert len(keys) == 1
