"""Ray: a cluster of this machine made for the sweep; a worker that is killed is started again and goes on."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import interrupted_sweep
import machines
import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from patience import wait_until

from sft_lab import compose, config
from sft_lab.cli.main import main
from sft_lab.core.errors import ConfigError
from sft_lab.core.io import read_json
from sft_lab.run.launch_config import Ray

RAY = ["launch=ray", "launch.num_cpus=1"]


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a cluster of one core has one worker")
def test_a_killed_worker_is_started_again_and_goes_on(here: Path, tiny: list[str]) -> None:
    sweep = interrupted_sweep.start([*tiny, *RAY, "seed=1,2,3"])
    one = interrupted_sweep.wait_for_training("seed_*")
    first = interrupted_sweep.process_id(one)
    assert Path(f"/proc/{first}/cmdline").read_bytes().startswith(b"ray::")  # the job is Ray's worker itself
    os.kill(first, signal.SIGKILL)
    told = interrupted_sweep.wait_for_output(sweep, 0)
    assert interrupted_sweep.count_resumes(one) == 1
    assert interrupted_sweep.steps(one) == interrupted_sweep.STEPS
    assert told.count(f"{one.path.name}: started on ") == 2
    assert told.count(": started on ") == 4
    assert len(re.findall(r": finished in \d+ s", told)) == 3
    found = interrupted_sweep.losses(here / "sweep")
    assert len(found) == 3
    for name, loss in interrupted_sweep.run_undisturbed(tiny, "1,2").items():
        assert found[name] == loss
    others = [folder.parent for folder in here.glob("sweep/*/summary.json") if folder.parent != one.path]
    assert all("resuming from" not in (folder / "run.log").read_text() for folder in others)


@pytest.mark.faults
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a cluster of one core has one worker")
def test_a_sweep_that_loses_a_worker_for_good_and_is_stopped(here: Path, tiny: list[str]) -> None:
    sweep = interrupted_sweep.start([*tiny, *RAY, "launch.max_retries=0", "seed=1,2"])
    one = interrupted_sweep.wait_for_training("seed_1-*")
    os.kill(interrupted_sweep.process_id(one), signal.SIGKILL)
    wait_until(lambda: re.search(r"seed_1-\w+: failed: its process died", interrupted_sweep.read_output()), sweep)
    assert interrupted_sweep.state(one) == "failed"
    assert "its process died, and Ray did not restart it (WorkerCrashedError" in read_json(one.status)["error"]
    two = interrupted_sweep.wait_for_training("seed_2-*")
    worker = interrupted_sweep.process_id(two)
    sweep.terminate()
    interrupted_sweep.wait_for_output(sweep, None)
    assert interrupted_sweep.state(two) == "interrupted"
    wait_until(lambda: not Path(f"/proc/{worker}").exists())


@pytest.mark.slow
def test_what_the_cluster_cannot_hold_is_refused(
    here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, "launch=ray", "launch.num_cpus=4000", "hydra.run.dir=runs/one"]) == 2
    told = capsys.readouterr().err
    assert re.search(
        r"launch.num_cpus=4000, num_gpus=0: no machine in the cluster has that many \(they have \d+ cores and \d+ GPUs",
        told,
    )
    assert not (here / "runs").exists()


@pytest.mark.faults
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "auto"])
def test_a_cluster_that_does_not_answer_is_told_soon(
    here: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    began = time.monotonic()
    assert main([*tiny, "launch=ray", f"launch.address='{address}'", "hydra.run.dir=runs/one"]) == 2
    assert f"launch.address={address}: no Ray cluster answers at this address (" in capsys.readouterr().err
    assert time.monotonic() - began < 30
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["launch.num_cpus=0"], "launch.num_cpus=0: must be at least 1"),
        (["launch.num_gpus=-1"], "launch.num_gpus=-1: must be at least 0, or null"),
        (["launch.num_machines=2", "launch.num_processes=2"], "must be 1: a Ray task runs on one machine"),
    ],
)
def test_what_cannot_be_is_refused(tiny: list[str], words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose([*tiny, "launch=ray", *words])
    assert said in str(error.value)


def test_a_cluster_of_others_shares_folders(tiny: list[str]) -> None:
    launch = compose([*tiny, "launch=ray", "launch.address=head:6379"]).launch
    assert isinstance(launch, Ray)
    assert launch.several_machines
    assert not compose([*tiny, "launch=ray"]).launch.several_machines


def test_ray_hydra_and_submitit_want_one_cloudpickle() -> None:
    """What is installed together agrees: a second cloudpickle would not read what the first one wrote."""
    if not all(importlib.util.find_spec(name) for name in ("ray", "submitit")):
        pytest.skip("ray and submitit are extras")
    has = Version(importlib.metadata.version("cloudpickle"))
    asked = {
        found.metadata["Name"]: requirement
        for found in importlib.metadata.distributions()
        for requirement in map(Requirement, found.requires or [])
        if requirement.name == "cloudpickle" and (requirement.marker is None or requirement.marker.evaluate())
    }
    assert "submitit" in asked
    assert {name: str(one) for name, one in asked.items() if has not in one.specifier} == {}
    # Ray brings one of its own, inside its package, and asks for none.
    assert "ray" not in asked
    assert config.is_driven_by_hydra(["hydra/launcher=ray"])  # Hydra's plugin of that name is not ours


@pytest.mark.faults
@pytest.mark.skipif(bool(machines.impossible()), reason=machines.impossible())
def test_on_a_ray_of_two_machines(
    here: Path, tmp_path_factory: pytest.TempPathFactory, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job on each; the second machine is lost, and its job goes on at the first."""
    root = tmp_path_factory.mktemp("ray")
    for name, value in (("AUTH_MODE", "token"), ("AUTH_TOKEN", "of-this-test"), ("USAGE_STATS_ENABLED", "0")):
        monkeypatch.setenv(f"RAY_{name}", value)
    head = f"{machines.ADDRESSES['node1']}:6379"
    words = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--num-cpus=1",
        f"--object-store-memory={80 * 2**20}",
        "--disable-usage-stats",
    ]
    begin = [*words, "--head", "--port=6379", "--include-dashboard=false"]
    with machines.two(root) as (first, second), tempfile.TemporaryDirectory() as short:
        first.do(*begin, f"--node-ip-address={first.address}", f"--temp-dir={short}/1")
        second.do(*words, f"--address={head}", f"--node-ip-address={second.address}")
        sweep = interrupted_sweep.start([*tiny, *RAY, f"launch.address={head}", "seed=1,2"], first.on)
        jobs = [interrupted_sweep.wait_for_training(f"seed_{seed}-*") for seed in (1, 2)]
        (lost,) = [job for job in jobs if read_json(job.status)["host"] == second.name]
        second.end()
        told = interrupted_sweep.wait_for_output(sweep, 0)
        assert f"{lost.path.name}: started on {first.name}" in told
        assert f"{lost.path.name}: started on {second.name}" in told
        assert interrupted_sweep.count_resumes(lost) == 1
    assert interrupted_sweep.losses(here / "sweep") == interrupted_sweep.run_undisturbed(tiny, "1,2")
