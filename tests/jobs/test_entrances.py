"""Every way into a run folder asks the same: is the data still what the folder's work began with?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from patience import wait_until

from sft_lab import compose, config
from sft_lab.cli.main import main
from sft_lab.core.errors import FolderError
from sft_lab.core.io import read_json
from sft_lab.core.run_dir import RunDir
from sft_lab.core.types import Work
from sft_lab.jobs import processes
from sft_lab.jobs.replay import replay
from sft_lab.jobs.worker import execute, execute_on_cluster
from sft_lab.run.launch_config import Processes
from sft_lab.run.session import Session
from sft_lab.training.checkpoints import last_checkpoint

pytestmark = pytest.mark.slow

SMALL = ["dataset=file", "dataset.path=rows.jsonl", "evaluation.prompts=[]", "evaluation.outputs=0",
         "evaluation.general=null", "trainer.save_steps=2", "trainer.eval_steps=1000"]  # fmt: skip


def write_rows(times: int) -> None:
    Path("rows.jsonl").write_text(
        "".join(f'{{"prompt": "Say {n}", "completion": "{n * times}"}}\n' for n in range(300))
    )


@pytest.fixture
def words(here: Path, tiny: list[str]) -> list[str]:
    write_rows(7)
    return [*tiny, *SMALL]


def killed(words: list[str], folder: RunDir) -> RunDir:
    """Kill a run in training, with a checkpoint there."""
    command = [sys.executable, "-m", "sft_lab", *words, f"hydra.run.dir={folder.path}", "trainer.max_steps=100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: last_checkpoint(folder.checkpoints), process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return folder


REMEDY = ("the data has changed since this run", "restore the old data", "sft-lab replay", "rerun=true")


def test_a_killed_run_whose_data_changed_goes_on_nowhere(
    words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = killed(words, RunDir(here / "run"))
    status, fingerprint = folder.status.read_bytes(), read_json(folder.manifest)["dataset_fingerprint"]
    write_rows(8)
    assert main([*words, "trainer.max_steps=100000", "hydra.run.dir=run"]) == 2
    assert main(["exec", "run"]) == 2
    text = capsys.readouterr().err
    assert all(text.count(remedy) == 2 for remedy in REMEDY), text
    # What processes, Slurm and Ray start.
    (failure,) = processes.launch([("one", folder)], Processes(at_once=1), Work.RUN)
    assert failure.by_input
    assert all(remedy in failure.message for remedy in REMEDY)
    for work in (Work.RUN, Work.PREPARE):
        record = execute_on_cluster(str(folder.path), work, {"SFT_LAB_STORE": os.environ["SFT_LAB_STORE"]})
        assert record is not None
        assert record["by_input"]
        assert all(remedy in record["message"] for remedy in REMEDY)
    with pytest.raises(FolderError, match="the data has changed"):
        config.load(folder.config).execute(folder.path)
    # Nothing was done there: with the old data back it goes on from its checkpoint.
    assert folder.status.read_bytes() == status
    assert read_json(folder.manifest)["dataset_fingerprint"] == fingerprint
    assert last_checkpoint(folder.checkpoints) is not None
    write_rows(7)
    assert folder.config.read_text().count("max_steps: 100000") == 1
    folder.config.write_text(folder.config.read_text().replace("max_steps: 100000", "max_steps: 30"))
    assert execute(folder) is None
    assert "resuming from checkpoint-" in folder.log.read_text()


def test_a_replay_cut_off_goes_on_with_the_old_data_alone(words: list[str], here: Path) -> None:
    compose([*words, "trainer.max_steps=2"]).execute("run")
    again = RunDir(here / "again")
    replay(Path("run"), out=again.path)
    again.status.write_text(json.dumps({**read_json(again.status), "state": "interrupted"}))
    write_rows(8)
    with pytest.raises(FolderError, match="the data has changed"):
        replay(Path("run"), out=again.path)


def test_who_dies_before_its_data_is_read_forgets_nothing(words: list[str], here: Path) -> None:
    """A session begins with a new manifest; until it has read its data, that holds the old fingerprint."""
    folder = killed(words, RunDir(here / "run"))
    before = read_json(folder.manifest)["dataset_fingerprint"]
    run = config.load(folder.config)
    with Session(run, folder):
        assert read_json(folder.manifest)["dataset_fingerprint"] == before
