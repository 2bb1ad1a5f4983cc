"""Slurm by submitit: the batch script, submitit's local executor, and a real Slurm of one machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import interrupted_sweep
import machines
import psutil
import pytest
import slurm_cluster
from patience import wait_until

from sft_lab import compose, config
from sft_lab.cli.main import main
from sft_lab.core.errors import ConfigError
from sft_lab.core.io import read_json, write_json
from sft_lab.core.run_dir import RunDir
from sft_lab.jobs import slurm
from sft_lab.jobs.layout import create_job_folders
from sft_lab.run.launch_config import JOB_VARIABLE, Slurm

LOCAL = ["launch=slurm", "launch.cluster=local"]
FULL = ["launch.partition=gpu", "launch.account=lab", "launch.qos=long", "launch.constraint=a100",
        "launch.timeout_min=90", "launch.num_machines=2", "launch.num_processes=8", "launch.cpus_per_task=16",
        "launch.mem_gb=64", "launch.array_parallelism=2", "launch.setup=[module load cuda]",
        "launch.additional_parameters={exclude: node7}", 'launch.srun_args=["--container-image=a.sqsh"]']  # fmt: skip


ABSENT = slurm_cluster.missing()
CPU = ["launch=slurm", "launch.gpus_per_node=0", "launch.cpus_per_task=1", "launch.timeout_min=20"]


def command(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def stand_ins(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Commands in place of Slurm's: sbatch keeps the script and answers, squeue says what ``queue`` holds."""
    folder = here / "bin"
    folder.mkdir()
    command(folder, "srun", "exit 1")
    command(folder, "sbatch", f'cp "$1" {here}/script; echo x >> {here}/submitted; echo Submitted batch job 12')
    command(
        folder,
        "squeue",
        f'echo "$@" >> {here}/asked; cat {here}/queue 2>/dev/null; [ -f {here}/then ] && . {here}/then; exit 0',
    )
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0.02)
    yield here
    signal.signal(signal.SIGINT, before)


def options(script: Path) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script.read_text(), re.MULTILINE))


def test_the_batch_script_asks_for_what_the_config_says(
    stand_ins: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["-m", *tiny, "launch=slurm", *FULL, "seed=1,2,3", interrupted_sweep.SWEEP]) == 1
    )  # nothing starts these jobs
    asked = options(stand_ins / "script")
    said = {"partition": "gpu", "account": "lab", "qos": "long", "constraint": "a100", "time": "90", "nodes": "2",
            "ntasks-per-node": "1", "gpus-per-node": "4", "cpus-per-task": "16", "mem": "64GB", "array": "0-2%2",
            "exclude": "node7", "signal": "USR2@90", "job-name": "sweep"}  # fmt: skip
    assert {key: asked.get(key) for key in said} == said
    text = (stand_ins / "script").read_text()
    assert "\nmodule load cuda\n" in text
    assert re.search(
        r"\nsrun .* --container-image=a.sqsh .* -P -u -m submitit.core._submit \S+/sweep/.submitit\n", text
    )
    told = capsys.readouterr().err
    assert "submitted as job 12_2" in told
    assert re.search(
        r"seed_1-\w+: job 12_0 ended before its work began \(no longer in the queue\); see \S+12_0_0_log.out", told
    )
    assert not list(stand_ins.glob("sweep/*/queued.json"))


def test_an_additional_parameter_replaces_ours_however_it_is_spelled(
    stand_ins: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"cpus-per-task": "8", "gpus_per_node": "2", "job-name": "mine", "open-mode": "truncate", "time": "30"}
    given = ", ".join(f"{name}: {value}" for name, value in own.items())
    words = [*tiny, "launch=slurm", f"launch.additional_parameters={{{given}}}", "hydra.run.dir=runs/one"]
    assert main(["plan", *words]) == 0
    shown = capsys.readouterr().out
    (requested,) = re.findall("^.*cpus-per-task=.*nodes=.*$|^.*nodes=.*cpus-per-task=.*$", shown, re.MULTILINE)
    for name, value in own.items():
        assert re.findall(rf"--{name.replace('_', '-')}=(.*)", shown) == [value]
        assert re.findall(rf"\b{name.replace('_', '-')}=([\w ]+)", requested) == [value]


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        ("", ["--requeue"]),
        ("requeue: false", []),
        ("no-requeue: true", ["--no-requeue"]),
        ("requeue: true", ["--requeue"]),
    ],
)
def test_jobs_ask_to_be_requeued(given: str, lines: list[str], here: Path, tiny: list[str]) -> None:
    launcher = compose([*tiny, "launch=slurm", f"launch.additional_parameters={{{given}}}"]).launch
    assert isinstance(launcher, Slurm)
    assert re.findall("--(?:no-)?requeue.*", slurm.batch_script([RunDir(here / "one")], launcher)) == lines


@pytest.mark.parametrize(("given", "seconds"), [("", 60), ("signal: USR2@300", 270), ('signal: "B:USR2@40"', 10)])
def test_an_earlier_signal_leaves_more_time_for_a_safe_point(
    given: str, seconds: int, stand_ins: Path, tiny: list[str]
) -> None:
    main([*tiny, "launch=slurm", f"launch.additional_parameters={{{given}}}", "hydra.run.dir=runs/one"])
    from submitit.core.utils import DelayedSubmission

    (pickled,) = stand_ins.glob("runs/.submitit/*_submitted.pkl")
    assert DelayedSubmission.load(pickled).function.requeue_seconds == seconds


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "seed=1,2,3", interrupted_sweep.SWEEP],
        ["-m", "seed=1", interrupted_sweep.SWEEP],
        ["hydra.run.dir=runs/one"],
    ],
    ids=["array", "a sweep of one", "one job"],
)
def test_the_plan_shows_the_script_that_is_submitted(
    words: list[str], stand_ins: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """To the letter, on a machine without Slurm; nothing is written."""
    name = "sweep" if "-m" in words else "sft_lab-one"
    words, before = [*tiny, "launch=slurm", *FULL, *words], sorted(stand_ins.rglob("*"))
    with monkeypatch.context() as without_slurm:
        without_slurm.setenv("PATH", "/nowhere")
        assert main(["plan", *words]) == 0
    assert sorted(stand_ins.rglob("*")) == before
    shown = capsys.readouterr().out
    assert main(words) == 1  # nothing starts these jobs
    assert shown.endswith(f"\n\n{(stand_ins / 'script').read_text()}\n")
    assert options(stand_ins / "script")["job-name"] == name


@pytest.mark.slow
def test_the_plan_shows_a_script_for_the_jobs_that_are_left(
    stand_ins: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", *tiny, "launch=slurm", interrupted_sweep.SWEEP]
    (stand_ins / "queue").write_text("12_0 PENDING\n12_1 PENDING\n")
    (stand_ins / "then").write_text("kill -INT $PPID\n")
    assert main([*words, "seed=1,2"]) == 130
    (stand_ins / "then").unlink()
    capsys.readouterr()
    for seeds, array in {"1,2": None, "1,2,3": "", "1,2,3,4": "--array=0-1%2"}.items():
        assert main(["plan", *words, f"seed={seeds}"]) == 0
        shown = capsys.readouterr().out
        assert ("#SBATCH" in shown) is (array is not None)
        assert re.findall(r"--array=\S+", shown) == ([array] if array else [])
    (stand_ins / "queue").write_text("12_0 CANCELLED\n12_1 PENDING\n")
    assert main(["plan", *words, "seed=1,2,3"]) == 0
    assert "--array=0-1%2" in capsys.readouterr().out
    assert main(["plan", *words, "seed=1,2,3", "launch.cluster=local"]) == 0
    assert "#SBATCH" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_batch_script_of_ones_own_executes_prepared_folders(
    stand_ins: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's own script, which Slurm would start once for each number of its array."""
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text("utf-8")
    (script,) = re.findall(r"^```\n(#!/bin/bash\n#SBATCH.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (stand_ins / "job.sh").write_text(script)
    command(stand_ins / "bin", "srun", 'exec "$@"')
    command(stand_ins / "bin", "sft-lab", f'exec {sys.executable} -m sft_lab "$@"')
    words = ["-m", *tiny, "seed=1,2", "hydra.sweep.dir=sweep"]
    assert main(["prepare", *words]) == 0
    for number in "01":
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": number}
        subprocess.run(["bash", "job.sh"], env=environment, check=True, capture_output=True, timeout=120)
    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().err.count("already finished") == 2


@pytest.mark.slow
def test_a_job_in_the_queue_is_not_submitted_again(
    stand_ins: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", *tiny, "launch=slurm", "seed=1,2", interrupted_sweep.SWEEP]
    (stand_ins / "queue").write_text("12_0 PENDING\n12_1 PENDING\n")
    (stand_ins / "then").write_text("kill -INT $PPID\n")  # Ctrl-C while the command waits
    assert main(words) == 130
    assert "the jobs stay in Slurm's queue: squeue --jobs=12_0,12_1" in capsys.readouterr().err
    (stand_ins / "queue").write_text("12_0 PENDING\n12_1 CANCELLED\n")
    (stand_ins / "then").write_text(f"[ $(wc -l < {stand_ins}/submitted) = 2 ] && kill -TERM $PPID\n")
    with pytest.raises(SystemExit):
        main(words)
    told = capsys.readouterr().err
    assert re.search(r"seed_1-\w+: job 12_0 is queued or running; waiting for it", told)
    assert re.search(r"seed_2-\w+: submitted as job 12\n", told)  # one alone is no array
    assert (stand_ins / "submitted").read_text() == "x\nx\n"
    assert "--jobs=12" in (stand_ins / "asked").read_text()
    (stand_ins / "then").unlink()
    assert main(["prepare", *words]) == 2
    assert "is queued here for other work (run)" in capsys.readouterr().err


def test_why_jobs_wait_is_told_once(stand_ins: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    down = "Nodes required for job are DOWN"
    (stand_ins / "queue").write_text(
        f"12_0 PENDING PartitionTimeLimit\n12_1 PENDING {down}\n12_2 PENDING PartitionTimeLimit\n12_3 PENDING None\n"
    )
    (stand_ins / "then").write_text(f"[ $(wc -l < {stand_ins}/asked) -gt 3 ] && kill -INT $PPID\n")
    assert main(["-m", *tiny, "launch=slurm", "seed=1,2,3,4", interrupted_sweep.SWEEP]) == 130
    told = [line for line in capsys.readouterr().err.splitlines() if "in Slurm's queue" in line and "wait" in line]
    assert told == [
        "2 jobs wait in Slurm's queue: PartitionTimeLimit",
        f"1 job waits in Slurm's queue: {down}",
    ]


def test_what_the_cluster_refuses_is_told_and_leaves_no_folder(
    stand_ins: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command(stand_ins / "bin", "sbatch", "echo sbatch: error: invalid partition specified: gpu >&2; exit 1")
    assert main([*tiny, "launch=slurm", "launch.partition=gpu", "hydra.run.dir=runs/one"]) == 2
    assert "the cluster rejected the jobs (sbatch: error: invalid partition specified: gpu)" in capsys.readouterr().err
    assert not (stand_ins / "runs" / "one").exists()


@pytest.mark.slow
def test_a_note_of_a_stranger_starts_nothing(stand_ins: Path, tiny: list[str]) -> None:
    plan = config.compose_jobs([*tiny, "launch=slurm", "seed=1,2", interrupted_sweep.SWEEP], multirun=True)
    (one, _) = create_job_folders(plan)
    write_json(one.folder.queued, {"cluster": "slurm", "job_id": "12; touch harm", "work": "run", "logs": "/"})
    slurm.launch([("", one.folder)], one.job.run.launch, "run")
    assert not (stand_ins / "asked").read_text().count("touch")
    assert (stand_ins / "submitted").read_text() == "x\n"


def test_what_is_missing_is_told(
    here: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(here))
    assert main([*tiny, "launch=slurm"]) == 2
    assert "launch=slurm: sbatch is not on PATH" in capsys.readouterr().err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["launch.timeout_min=2"], "launch.timeout_min=2: must be at least 3"),
        (
            ["launch.timeout_min=5", "launch.additional_parameters={signal: USR2@300}"],
            "launch.timeout_min=5: must be more than the 360 s before its end",
        ),
        (["launch.additional_parameters={array: 0-5}"], "must be without array, which numbers the jobs of a sweep"),
        (["launch.gpus_per_node=1", "launch.num_processes=2"], "launch.gpus_per_node=1: must be at least 2"),
        (["launch.cluster=local", "launch.num_machines=2", "launch.num_processes=2"], "must be 1 with cluster=local"),
        (["launch.cluster=pbs"], "slurm"),
        (["hydra.launcher.partition=x"], "hydra.launcher.partition: belongs to hydra/launcher=submitit_slurm"),
    ],
)
def test_what_cannot_be_is_refused(tiny: list[str], words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose([*tiny, "launch=slurm", *words])
    assert said in str(error.value)


def test_the_spelling_of_hydras_plugin_is_understood(tiny: list[str]) -> None:
    words = [*tiny, "hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "+hydra.launcher.nodes=2",
             "launch.num_processes=2", "+hydra.launcher.additional_parameters.reservation=foo"]  # fmt: skip
    assert not config.is_driven_by_hydra(words)
    launch = compose(words).launch
    assert isinstance(launch, Slurm)
    assert (launch.partition, launch.num_machines, launch.cluster.name) == ("gpu", 2, "slurm")
    assert launch.additional_parameters == {"reservation": "foo"}
    local = compose([*tiny, "hydra/launcher=submitit_local"]).launch
    assert isinstance(local, Slurm)
    assert local.cluster.name == "local"
    assert config.is_driven_by_hydra(["hydra/launcher=submitit_slurm", "hydra/sweeper=optuna"])
    with pytest.raises(ConfigError, match=r"slurm_partition: belongs to hydra/launcher=.* launch\.partition=\.\.\."):
        compose([*tiny, "hydra.launcher.slurm_partition=gpu"])
    for key, message in {
        "tasks_per_node": r"tasks_per_node: write launch=slurm launch\.num_processes=",
        "name": r"name: write launch=slurm launch\.additional_parameters=\{job_name: \.\.\.\}$",
        "signal_delay_s": r"signal_delay_s: write launch=slurm launch\.additional_parameters=\{signal: USR2@\.\.\.\}",
        "stderr_to_stdout": r"stderr_to_stdout: leave it out",
        "n_jobs": r"n_jobs: write launch=processes launch\.at_once$",
        "frobnicate": r"frobnicate: launch=slurm has no such key; it has .*partition",
    }.items():
        with pytest.raises(ConfigError, match=message):
            compose([*tiny, "hydra/launcher=submitit_slurm", f"hydra.launcher.{key}=2"])


def test_hydras_plugin_in_a_file_is_answered_with_ours(here: Path) -> None:
    file = here / "experiments" / "mine.yaml"
    file.parent.mkdir()
    file.write_text("# @package _global_\ndefaults:\n  - override /hydra/launcher: submitit_slurm\n")
    with pytest.raises(ConfigError, match=r"hydra/launcher=submitit_slurm: .*`- override /launch: slurm`.*`launch:`"):
        compose(["experiment=mine"])


def test_a_login_node_needs_no_gpu_and_a_job_there_does(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run = compose([*tiny, "launch=slurm", "launch.num_machines=2", "launch.num_processes=8", "launch.config_file=fsdp"])
    assert run.check() == []
    monkeypatch.setenv(JOB_VARIABLE, "12_0")
    assert [problem.partition(": ")[2][:20] for problem in run.check()] == [
        "each machine must kn",
        "FSDP needs GPUs, and",
    ]


@pytest.mark.slow
def test_a_job_of_two_processes_that_is_taken_away_goes_on(here: Path, tiny: list[str]) -> None:
    """All its processes save one checkpoint, and only then submitit is told to start the job again."""
    words = [*tiny, *LOCAL, "launch.timeout_min=9", "launch.num_processes=2"]
    sweep = interrupted_sweep.start([*words, "seed=1,2"])
    one = interrupted_sweep.wait_for_training("seed_1-*")
    first = interrupted_sweep.process_id(one)
    task = psutil.Process(first).parent().parent()  # of accelerate, the parent of the process that trains
    task.send_signal(signal.SIGUSR2)
    interrupted_sweep.wait_for_training("seed_1-*", but=first)
    saved = re.search(r"interrupted; checkpoint saved at step (\d+)", one.log.read_text())
    assert saved
    interrupted_sweep.wait_for_output(sweep, 0)
    assert f"resuming from checkpoint-{saved[1]}" in one.log.read_text()
    assert interrupted_sweep.steps(one) == interrupted_sweep.STEPS
    whole = [*tiny, "launch.num_processes=2", *interrupted_sweep.LONG, "seed=1", "hydra.run.dir=whole"]
    assert main(whole) == 0
    undisturbed = read_json(RunDir(Path("whole")).summary)["eval/loss"]
    assert read_json(one.summary)["eval/loss"] == pytest.approx(undisturbed, abs=1e-5)


@pytest.mark.slow
def test_jobs_that_are_taken_away_go_on(here: Path, tiny: list[str]) -> None:
    """One is pre-empted, one killed, the command itself ended: the same command comes to what nothing disturbs."""
    # To submitit a job of less than ten minutes has always run out of time, which it grants only where it may go on.
    words = [*tiny, *LOCAL, "launch.timeout_min=9", "seed=1,2"]
    sweep = interrupted_sweep.start(words)
    one = interrupted_sweep.wait_for_training("seed_1-*")
    first = interrupted_sweep.process_id(one)
    os.kill(first, signal.SIGUSR2)  # as Slurm does before it takes the machine away, or time is over
    two = interrupted_sweep.wait_for_training("seed_2-*")
    os.kill(interrupted_sweep.process_id(two), signal.SIGKILL)
    wait_until(lambda: interrupted_sweep.state(two) == "failed")
    assert re.search(r"job \d+ ended \(no longer in the queue\); see .*log.out", read_json(two.status)["error"])
    interrupted_sweep.wait_for_training("seed_1-*", but=first)  # started again by submitit, after the signal
    assert "interrupted; checkpoint saved at step" in one.log.read_text()
    sweep.terminate()
    told = interrupted_sweep.wait_for_output(sweep, None)
    assert "interrupted\n" in told
    assert "the same command waits for them and submits none again" in told
    assert "the jobs continue, unless Ctrl-C reached them too" in told
    assert interrupted_sweep.state(one) == "running"

    sweep = interrupted_sweep.start(words)
    told = interrupted_sweep.wait_for_output(sweep, 0)
    assert re.search(r"seed_1-\w+: job \d+ is queued or running; waiting for it", told)
    assert re.search(r"seed_2-\w+: submitted as job", told)
    assert len(list(here.glob("sweep/.submitit/*_submitted.pkl"))) == 3
    assert (interrupted_sweep.count_resumes(one), interrupted_sweep.count_resumes(two)) == (1, 1)
    assert interrupted_sweep.steps(one) == interrupted_sweep.steps(two) == interrupted_sweep.STEPS
    assert interrupted_sweep.losses(here / "sweep") == interrupted_sweep.run_undisturbed(tiny, "1,2")
    assert main(["-m", *words, *interrupted_sweep.LONG, interrupted_sweep.SWEEP]) == 0
    assert len(list(here.glob("sweep/.submitit/*_submitted.pkl"))) == 3


@pytest.mark.slow
def test_wrong_input_found_in_a_job_ends_with_2(
    here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": \n')
    words = ["dataset=file", "dataset.path=rows.jsonl", "hydra.run.dir=runs/one"]
    assert main([*tiny, *LOCAL, *words]) == 2
    assert "rows.jsonl" in capsys.readouterr().err
    assert not (here / "runs" / "one").exists()


@pytest.mark.faults
@pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}")
def test_on_a_real_slurm(
    here: Path, tmp_path_factory: pytest.TempPathFactory, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One job is queued again by its administrator, one by the signal of pre-emption, and one is cancelled."""
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm")) as environment:
        for key in ("PATH", "SLURM_CONF"):
            monkeypatch.setenv(key, environment[key])
        words = [*tiny, *CPU]
        sweep = interrupted_sweep.start([*words, "seed=1,2"])
        one = interrupted_sweep.wait_for_training("seed_1-*")
        assert read_json(one.queued)["job_id"] == "1_0"
        subprocess.check_call(["scontrol", "requeue", "1_0"])
        two = interrupted_sweep.wait_for_training("seed_2-*")
        subprocess.check_call(["scancel", "--signal=USR2", "1_1"])
        told = interrupted_sweep.wait_for_output(sweep, 0)
        assert told.count(": interrupted\n") == 2
        assert told.count(": started on ") == 4
        assert (interrupted_sweep.count_resumes(one), interrupted_sweep.count_resumes(two)) == (1, 1)

        sweep = interrupted_sweep.start([*words, "seed=3"])
        three = interrupted_sweep.wait_for_training(
            "[!s]*"
        )  # named by its hash alone, since nothing else differs in this sweep
        subprocess.check_call(["scancel", read_json(three.queued)["job_id"]])
        told = interrupted_sweep.wait_for_output(sweep, 1)
        assert re.search(r"failed: job 3 ended \(CANCELLED\)", told)
        assert not RunDir(three.path).is_held()
    assert interrupted_sweep.losses(here / "sweep") == interrupted_sweep.run_undisturbed(tiny, "1,2")


@pytest.mark.faults
@pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}")
@pytest.mark.skipif(bool(machines.impossible()), reason=machines.impossible())
def test_on_a_slurm_of_two_machines(
    here: Path, tmp_path_factory: pytest.TempPathFactory, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job on each; then one job of both, whose second machine loses its network, and later one of its processes."""
    root = tmp_path_factory.mktemp("slurm")
    with machines.two(root) as (first, second), slurm_cluster.running(root, (first, second)) as environment:
        for key in ("PATH", "SLURM_CONF"):
            monkeypatch.setenv(key, environment[key])
        assert "finished" in interrupted_sweep.wait_for_output(
            interrupted_sweep.start([*tiny, *CPU, "seed=1,2"], first.on), 0
        )
        assert {read_json(status)["host"] for status in here.glob("sweep/*/status.json")} == {"node1", "node2"}

        two = [*tiny, *CPU, "launch.num_machines=2", "launch.num_processes=2"]
        sweep = interrupted_sweep.start([*two, "seed=3"], first.on)
        job = interrupted_sweep.wait_for_training("[!s]*")
        second.unplug()
        wait_until(
            lambda: "1 job waits in Slurm's queue: Nodes required for job are DOWN" in interrupted_sweep.read_output()
        )
        second.plug_in()
        assert "preparing its data on node1" in interrupted_sweep.wait_for_output(sweep, 0)
        assert interrupted_sweep.count_resumes(job) == 1
        assert interrupted_sweep.steps(job) == interrupted_sweep.STEPS

        sweep = interrupted_sweep.start([*two, "seed=4"], first.on)
        job = interrupted_sweep.wait_for_training("[!s]*")
        os.kill(interrupted_sweep.find_ranks(job)[1], signal.SIGKILL)
        assert "failed: lost the connection to the other training processes" in interrupted_sweep.wait_for_output(
            sweep, 1
        )
        assert interrupted_sweep.state(job) == "failed"
        interrupted_sweep.wait_for_output(interrupted_sweep.start([*two, "seed=4"], first.on), 0)
        assert interrupted_sweep.count_resumes(job) == 1
    found = interrupted_sweep.losses(here / "sweep")
    alone = interrupted_sweep.run_undisturbed(tiny, "1,2")
    assert {name: found.pop(name) for name in alone} == alone
    # Two processes of this machine do the same steps.
    assert (
        main(["-m", *tiny, *interrupted_sweep.LONG, "launch.num_processes=2", "seed=3,4", "hydra.sweep.dir=both"]) == 0
    )
    assert sorted(found.values()) == pytest.approx(sorted(interrupted_sweep.losses(here / "both").values()), abs=1e-5)
