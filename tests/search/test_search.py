"""``sft-lab search`` through the command line: trials are jobs of a sweep folder, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from patience import wait_until
from spans import went_out_together

from sft_lab.cli.main import main
from sft_lab.core.io import read_json
from sft_lab.core.run_dir import RunDir
from sft_lab.jobs.list_runs import list_runs

QUICK = ["dataset.limit=60", "evaluation.outputs=0", "evaluation.prompts=[]", "evaluation.general=null",
         "evaluation.baseline.examples=0", "split.max_eval_rows=8"]  # fmt: skip
RATES = ["--over", "trainer.learning_rate=tag(log, interval(1e-4,1e-1))"]
SWEEP = "hydra.sweep.dir=search"


def record() -> dict[str, Any]:
    return read_json(Path("search") / "search.json")


def trials() -> list[dict[str, Any]]:
    return list(record()["trials"])


def folder_of(trial: dict[str, Any]) -> RunDir:
    return RunDir(Path("search") / trial["job"])


@pytest.mark.slow
def test_trials_are_jobs_of_a_sweep_and_the_same_command_goes_on(
    here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["search", SWEEP, *tiny, *QUICK, *RATES, "--trials"]
    assert main([*command, "2"]) == 0
    first = trials()
    assert [trial["outcome"] for trial in first] == ["finished"] * 2
    for trial in first:
        folder = folder_of(trial)
        assert folder.sweep
        assert read_json(folder.summary)["eval/loss"] == trial["loss"]
        assert read_json(folder.trial)["number"] == trial["number"]
        assert trial["values"]["trainer.learning_rate"] in trial["job"]

    capsys.readouterr()
    assert main([*command, "3"]) == 0
    assert trials()[:2] == first
    assert len(trials()) == 3
    output = capsys.readouterr()
    best = min(trials(), key=lambda trial: trial["loss"])
    assert f"Best: {here / 'search' / best['job']}" in output.out
    assert "Next: sft-lab compare search" in output.out
    assert output.err.count("trial ") == 1

    written = {path: path.stat().st_mtime_ns for path in Path("search").glob("*/*")}
    assert main([*command, "3"]) == 0  # nothing is left to do
    assert {path: path.stat().st_mtime_ns for path in Path("search").glob("*/*")} == written
    assert [line.state for line in list_runs(Path("search"))] == ["finished"] * 3


def test_the_objective_is_the_loss_of_a_trial_and_is_named(
    here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", SWEEP, *tiny, *QUICK, *RATES, "--trials", "1", "evaluation.objective=train/loss"]) == 0
    (trial,) = trials()
    summary = read_json(folder_of(trial).summary)
    assert trial["loss"] == summary["train/loss"] != summary["eval/loss"]
    assert record()["measure"] == "train/loss"
    assert read_json(folder_of(trial).trial)["measure"] == "eval/loss"  # which a pruner can follow
    assert "Trials (loss: train/loss)" in capsys.readouterr().out


@pytest.mark.slow
def test_failed_trials_stop_nothing(here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"What is {number}?", "response": f"It is the number {number}."} for number in range(80)]
    Path("good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("bad.jsonl").write_text('{"nothing": 1}\n' * 80)
    grid = ["--over", "dataset.path=bad.jsonl,good.jsonl", "--sampler", "grid"]
    assert main(["search", SWEEP, *tiny, *QUICK[1:], "dataset=file", *grid]) == 0
    failed, finished = trials()
    assert (failed["outcome"], finished["outcome"]) == ("failed", "finished")
    assert "match no known format" in failed["reason"]
    assert read_json(folder_of(failed).status)["state"] == "failed"
    assert "1 failed: dataset.format=auto" in capsys.readouterr().out


@pytest.mark.slow
def test_input_that_fails_every_trial_ends_the_search(
    here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.jsonl").write_text('{"nothing": 1}\n' * 80)
    command = ["search", SWEEP, *tiny, "dataset=file", "dataset.path=bad.jsonl", *RATES, "--trials", "9"]
    assert main(command) == 2
    assert "the first 3 trials all failed with the same error" in capsys.readouterr().err
    assert len(trials()) == 3


@pytest.mark.slow
def test_other_held_out_rows_end_the_search(here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["--over", "split.max_eval_rows=8,9", "--sampler", "grid"]
    assert main(["search", SWEEP, *tiny, *QUICK[:-1], *grid]) == 2
    assert "different held-out rows" in capsys.readouterr().err


@pytest.mark.slow
def test_a_hopeless_job_is_pruned(here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    steps = ["trainer.max_steps=8", "trainer.eval_steps=2", "trainer.save_steps=2", "trainer.logging_steps=1"]
    grid = ["--over", "trainer.learning_rate=5e-2,1e-5,2e-5", "--sampler", "grid", "--pruner", "halving"]
    command = ["search", SWEEP, *tiny, *QUICK, *steps, *grid, "--at-once", "2"]
    assert main(command) == 0
    best, *hopeless = trials()
    output = capsys.readouterr().err
    assert f"[1/2] {best['job']}: finished" in output
    assert f"[2/2] {hopeless[0]['job']}: finished" not in output
    assert best["outcome"] == "finished"
    for trial in hopeless:
        folder = folder_of(trial)
        assert trial["outcome"] == "pruned"
        status = read_json(folder.status)
        assert status["state"] == "pruned"
        assert status["reason"].startswith("at 25% of the training, with a held-out loss of 8.")
        events = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        assert max(event["step"] for event in events) == 2
        assert not folder.checkpoints.exists()
        assert not folder.summary.exists()
    assert [line.state for line in list_runs(Path("search"))] == ["finished", "pruned", "pruned"]

    assert main(command) == 0  # and stays so
    assert trials() == [best, *hopeless]
    capsys.readouterr()
    assert main(["exec", str(folder_of(hopeless[0]).path)]) == 0  # unless it is wanted by name
    assert folder_of(hopeless[0]).state() == "finished"


@pytest.mark.slow
def test_the_best_are_trained_with_other_seeds(here: Path, tiny: list[str]) -> None:
    command = ["search", SWEEP, *tiny, *QUICK, *RATES, "--trials", "2", "--confirm", "2"]
    assert main(command) == 0
    seeds = {path.parent.name for path in Path("search").glob("*seed_43*/summary.json")}
    assert len(seeds) == 2
    assert len(trials()) == 2
    assert main(["compare", "search"]) == 0
    settings = read_json(Path("search") / "compare.json")["settings"]
    assert [len(setting["jobs"]) for setting in settings] == [2, 2]
    assert main(command) == 0
    assert len(list(Path("search").glob("*/summary.json"))) == 4


@pytest.mark.slow
def test_several_trials_at_once(here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["search", SWEEP, *tiny, *QUICK, *RATES, "--trials", "3", "launch=processes", "launch.at_once=2"]
    assert main(command) == 0
    assert [trial["outcome"] for trial in trials()] == ["finished"] * 3
    first_two, _ = capsys.readouterr().err.split("trial 3 of 3")
    assert went_out_together(first_two, 2)


def trains_after(finished: int) -> bool:
    """Return whether so many trials have finished and the next is in the middle of its training."""
    training = list(Path("search").glob("*/checkpoints/checkpoint-*/trainer_state.json"))
    return len(list(Path("search").glob("*/summary.json"))) >= finished and bool(training)


@pytest.mark.slow
def test_a_search_that_is_killed_twice_goes_on_with_its_trials(here: Path, tiny: list[str]) -> None:
    steps = ["trainer.max_steps=60", "trainer.save_steps=5", "trainer.eval_steps=60"]
    words = ["search", SWEEP, *tiny, *QUICK, *steps, *RATES, "--trials", "4", "--sampler", "random"]
    for finished_before in (1, 2):
        process = subprocess.Popen([sys.executable, "-m", "sft_lab", *words], stderr=subprocess.DEVNULL)
        wait_until(lambda least=finished_before: trains_after(least), process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert main(words) == 0
    assert [trial["outcome"] for trial in trials()] == ["finished"] * 4
    jobs = [path.parent.name for path in Path("search").glob("*/config.yaml")]
    assert sorted(jobs) == sorted(trial["job"] for trial in trials())  # no trial was begun in vain
    logs = "".join((Path("search") / job / "run.log").read_text() for job in jobs)
    assert logs.count("resuming from checkpoint-") >= 2


def test_two_commands_do_not_search_one_folder(here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from sft_lab.core.locks import file_lock

    Path("search").mkdir()
    with file_lock(Path("search") / ".search.lock"):
        assert main(["search", SWEEP, *tiny, *RATES]) == 2
    assert f"process {os.getpid()}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_diverged_trial_stops_nothing(here: Path, tiny: list[str]) -> None:
    grid = ["--over", "trainer.learning_rate=1e38,1e-3", "--sampler", "grid", "--pruner", "halving"]
    steps = ["trainer.max_grad_norm=0", "trainer.warmup_steps=0", "trainer.logging_steps=1"]
    assert main(["search", SWEEP, *tiny, *QUICK, *steps, *grid]) == 0
    assert [trial["outcome"] for trial in trials()] == ["diverged", "finished"]
    assert folder_of(trials()[0]).state() == "finished"


@pytest.mark.slow
def test_values_that_do_not_go_together_are_a_failed_trial(here: Path, tiny: list[str]) -> None:
    """Each passes with the first of the other axis, so that only the trial itself shows it."""
    axes = ["trainer.save_steps=4,8", "trainer.eval_steps=4,8", "trainer.load_best_model_at_end=false,true"]
    command = ["search", SWEEP, *tiny, *QUICK, "trainer.max_steps=8", "--over", *axes, "--sampler", "grid"]
    assert main([*command, "--trials", "4"]) == 0
    assert [trial["outcome"] for trial in trials()] == ["finished", "finished", "finished", "failed"]
    assert "must be a multiple of eval_steps" in trials()[3]["reason"]
    assert trials()[3]["job"] == ""


@pytest.mark.slow
def test_a_job_in_a_process_of_its_own_is_pruned(here: Path, tiny: list[str]) -> None:
    steps = ["trainer.max_steps=8", "trainer.eval_steps=2"]
    grid = ["--over", "trainer.learning_rate=5e-2,2e-2,1e-5,2e-5", "--sampler", "grid", "--pruner", "halving"]
    command = ["search", SWEEP, *tiny, *QUICK, *steps, *grid, "launch=processes", "launch.at_once=2"]
    assert main(command) == 0
    assert [trial["outcome"] for trial in trials()[2:]] == ["pruned"] * 2
    assert {folder_of(trial).state() for trial in trials()} == {"finished", "pruned"}


@pytest.mark.slow
def test_a_kill_between_a_job_and_its_report_loses_nothing(here: Path, tiny: list[str]) -> None:
    steps = ["trainer.max_steps=8", "trainer.eval_steps=2"]
    grid = ["--over", "trainer.learning_rate=5e-2,1e-5", "--sampler", "grid", "--pruner", "halving"]
    command = ["search", SWEEP, *tiny, *QUICK, *steps, *grid]
    assert main(command) == 0
    before = trials()
    assert [trial["outcome"] for trial in before] == ["finished", "pruned"]
    journal = Path("search") / "search.journal"
    lines = journal.read_text().splitlines(keepends=True)
    ends = [index for index, line in enumerate(lines) if '"outcome"' in line]
    for end in reversed(ends):  # the journal as it was when each of the two had ended and was not reported
        journal.write_text("".join(lines[:end]))
        written = {path: path.stat().st_mtime_ns for path in Path("search").glob("*/metrics.jsonl")}
        assert main(command) == 0
        assert [trial["outcome"] for trial in trials()] == ["finished", "pruned"]
        assert trials()[0] == before[0]
        assert trials()[1] == before[1] or end == ends[0]  # whose measurement came later
        assert {path: path.stat().st_mtime_ns for path in Path("search").glob("*/metrics.jsonl")} == written
