"""Two commands at the same moment: a folder is one command's, and only that one may remove it."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from patience import PATIENCE

from sft_lab import compose, config
from sft_lab.cli.main import main
from sft_lab.core import run_dir
from sft_lab.core.errors import FolderError
from sft_lab.core.io import read_json
from sft_lab.core.run_dir import FolderInUse, RunDir, make_folders
from sft_lab.jobs.layout import create_job_folders

ROUNDS = 20


@pytest.fixture
def words(here: Path, tiny: list[str]) -> list[str]:
    Path("rows.jsonl").write_text("".join(f'{{"prompt": "Say {n}", "completion": "{n}"}}\n' for n in range(300)))
    return [*tiny, "dataset=file", "dataset.path=rows.jsonl", "trainer.max_steps=1", "evaluation.prompts=[]",
            "evaluation.outputs=0", "evaluation.general=null"]  # fmt: skip


def _race(start: Barrier, tried: Barrier, words: list[str], number: int) -> None:
    """Take the same folders as another process; in the rounds that this one wins, its mark stays in the folder."""
    run_dir.PATIENCE = 0.0  # forked: in this process alone
    plan = config.compose_jobs(words, multirun=False)
    for round_ in range(ROUNDS):
        start.wait()
        try:
            (job_folder,) = create_job_folders(replace(plan, run_dir=f"runs/{round_}/run"))
        except FolderInUse:
            tried.wait()
            continue
        (job_folder.folder.path / f"won-{number}").touch()
        tried.wait()
        if round_ % 2:  # as after wrong input
            job_folder.folder.discard(job_folder.created)
        job_folder.folder.release()


def test_of_two_commands_one_gets_the_folder_and_the_other_takes_nothing_away(words: list[str]) -> None:
    fork = multiprocessing.get_context("fork")
    barriers = fork.Barrier(2, timeout=PATIENCE), fork.Barrier(2, timeout=PATIENCE)
    racers = [fork.Process(target=_race, args=(*barriers, words, number)) for number in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(PATIENCE)
        assert racer.exitcode == 0
    for round_ in range(ROUNDS):
        path = Path("runs", str(round_), "run")
        if round_ % 2:
            # Where the refused command was the one that made the folder, nobody may remove it: it stays, empty.
            assert not path.exists() or not any(path.iterdir())
        else:
            assert sorted(path.name.partition("-")[0] for path in path.iterdir()) == [".hydra", "config.yaml", "won"]


@pytest.mark.slow
def test_the_same_command_twice_at_once(words: list[str]) -> None:
    command = [sys.executable, "-m", "sft_lab", *words, "hydra.run.dir=run"]
    for _ in range(3):
        both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        texts = [process.communicate(timeout=PATIENCE)[1] for process in both]
        for process, text in zip(both, texts, strict=True):
            assert "Traceback" not in text
            assert process.returncode == (2 if "another process is working here" in text else 0), text
        run = RunDir(Path("run"))
        assert run.state() == "finished"
        assert run.summary.exists()
        assert list(run.model.glob("adapter*"))
        subprocess.run(["rm", "-r", "run"], check=True)


@pytest.mark.slow
def test_four_runs_of_one_second_have_four_folders(words: list[str]) -> None:
    command = [sys.executable, "-m", "sft_lab", *words]
    four = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(4)]
    assert [process.wait(PATIENCE) for process in four] == [0] * 4
    states = [read_json(file)["state"] for file in Path("outputs").glob("*/*/status.json")]
    assert states == ["finished"] * 4


def test_runs_from_python_in_one_second_have_folders_of_their_own(here: Path) -> None:
    folders = [RunDir.new() for _ in range(4)]
    assert len({run.path for run, _ in folders}) == 4
    assert [made[0] for _, made in folders] == [run.path for run, _ in folders]
    assert folders[0][1] == [folders[0][0].path, folders[0][0].path.parent, here / "outputs"]
    assert folders[1][1] == [folders[1][0].path]


@pytest.mark.slow
def test_from_python_a_folder_of_another_config_is_refused(words: list[str]) -> None:
    compose(words).execute("run")
    before = Path("run/config.yaml").read_bytes()
    with pytest.raises(FolderError, match=r"run: has a run with another config \(job [0-9a-f]{12}, not"):
        compose([*words, "seed=7"]).execute("run")
    assert Path("run/config.yaml").read_bytes() == before


# --- what wrong input leaves -------------------------------------------------------------------------------------


@pytest.fixture
def wrong(words: list[str]) -> list[str]:
    """Input that turns out wrong when it is read, in the folder."""
    Path("rows.jsonl").write_text('{"instruction_": "a"}\n')
    return words


@pytest.mark.parametrize("work", [[], ["prepare"]])
def test_a_users_empty_folders_stay(wrong: list[str], work: list[str]) -> None:
    Path("mine/run").mkdir(parents=True)
    assert main([*work, *wrong, "hydra.run.dir=mine/run"]) == 2
    assert list(Path("mine").iterdir()) == [Path("mine/run")]
    assert list(Path("mine/run").iterdir()) == []
    Path("mine/run").rmdir()
    assert main([*work, *wrong, "hydra.run.dir=mine/run"]) == 2
    assert list(Path("mine").iterdir()) == []


def test_what_the_command_made_goes_with_it(wrong: list[str]) -> None:
    assert main([*wrong, "hydra.run.dir=a/b/run"]) == 2
    assert not Path("a").exists()
    assert main(wrong) == 2
    assert not Path("outputs").exists()
    Path("outputs").mkdir()
    assert main(wrong) == 2
    assert list(Path("outputs").iterdir()) == []


def test_a_folder_where_another_process_works_is_not_removed(here: Path) -> None:
    made = make_folders(here / "runs" / "run")
    other = RunDir(here / "runs" / "run")
    with other.claimed(), pytest.raises(FolderInUse):
        RunDir(here / "runs" / "run").discard(made)
    assert (here / "runs" / "run").is_dir()
