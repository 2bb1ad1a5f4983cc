"""What commands print of folders: a file that a kill or a stranger damaged costs its own lines, not the command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sft_lab.cli.output import show_sweep
from sft_lab.core.run_dir import RunDir
from sft_lab.jobs.slurm import QueuedJob
from sft_lab.jobs.supervise import SupervisedJob


def job(path: Path) -> RunDir:
    path.mkdir()
    (path / "status.json").write_text('{"state": "finished", "work": "run"}')
    return RunDir(path)


def test_a_sweep_is_shown_beside_a_damaged_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, broken, misfit = (job(tmp_path / name) for name in ("good", "broken", "misfit"))
    good.summary.write_text('{"eval/loss": 2.5, "verdict": "healthy"}')
    broken.summary.write_text('{"eval/loss": 2.')
    misfit.summary.write_text('{"eval/loss": "low", "verdict": "healthy"}')
    show_sweep([(folder, {"seed": str(number)}) for number, folder in enumerate((good, broken, misfit))])
    lines = [line for line in capsys.readouterr().out.splitlines() if "finished" in line]
    assert [("2.5000" in line, "healthy" in line) for line in lines] == [(True, True), (False, False), (False, True)]


def test_a_supervised_job_is_followed_past_what_cannot_be_read(tmp_path: Path) -> None:
    folder = job(tmp_path / "job")
    folder.status.unlink()
    os.mkfifo(folder.status)
    assert SupervisedJob("", folder).last_status == {}
    (tmp_path / "12_0_failure.json").write_text('{"message": "no spa')
    queued = QueuedJob("", folder, {}, "12_0", tmp_path)
    assert queued.ending("FAILED").message is None
