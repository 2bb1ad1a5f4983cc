"""What commands print of folders: a file that a kill or a stranger damaged costs its own lines, not the command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sft_lab.cli.output import result_lines, show_next, show_prepared, show_sweep
from sft_lab.core.io import write_json
from sft_lab.core.run_dir import RunDir
from sft_lab.jobs.slurm import QueuedJob
from sft_lab.jobs.supervise import Failure, SupervisedJob


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


@pytest.mark.parametrize(
    ("speed", "words"),
    [
        (150.0, "300 tokens read, 150 tokens/s; 3 s in all"),
        (100.0, "300 tokens read, 100 tokens/s; 3 s since it resumed"),  # in two seconds 200 of the 300
        (None, "300 tokens read; 3 s since it resumed"),  # after its last step
    ],
)
def test_the_times_of_a_run_that_resumed_are_said_to_be_of_a_part(speed: float | None, words: str) -> None:
    summary = {
        "verdict": "not_judged", "evidence": [], "base/eval_loss": None, "eval/loss": None, "steps": 4,
        "train_rows": 20, "train_tokens": 300, "tokens_per_second": speed, "seconds": 3.0, "train_seconds": 2.0,
    }  # fmt: skip
    assert result_lines(summary)[-1] == f"Training: 4 steps on 20 rows, {words}"


@pytest.mark.parametrize(
    ("by_input", "lines"),
    [
        ([], []),
        ([False], ["Run the same command again to retry 1 failed job"]),
        ([True, True], ["Wrong input in 2 failed jobs: correct it before you run the command again"]),
        ([True, False], ["Wrong input in 1 failed job: correct it before you run the command again",
                         "Run the same command again to retry 1 failed job"]),
    ],
)  # fmt: skip
def test_a_retry_is_not_recommended_for_wrong_input(
    by_input: list[bool], lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_next(tmp_path, [Failure(RunDir(tmp_path / "job"), "", by_input=is_wrong) for is_wrong in by_input])
    assert capsys.readouterr().out.splitlines()[1:-1] == lines


@pytest.mark.parametrize(("dropped", "ending"), [({"over_limit": 7}, "; before dataset.limit"), ({"empty": 7}, "")])
def test_turns_counted_before_the_limit_say_so(
    dropped: dict[str, int], ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunDir(tmp_path)
    rows = {"rows_in": 20, "rows_kept": 13, "tokens_in": 200, "tokens_kept": 130}
    stages = [
        {"stage": "load", **rows, "dropped": dropped},
        {"stage": "load.turns", **rows, "dropped": {}, "turns": {"read": 40, "used": 20, "last_turn_only": 20}},
        {"stage": "split", **rows, "dropped": {"held_out": 3}},
    ]
    write_json(folder.waterfall, {"stages": stages})
    folder.report.write_text("")
    show_prepared(folder)
    shown = " ".join(capsys.readouterr().out.split())  # long details are wrapped
    assert f"load.turns 13 130 40 read, 20 used, 20 last_turn_only{ending} split 13 130 3 held_out" in shown


def test_a_supervised_job_is_followed_past_what_cannot_be_read(tmp_path: Path) -> None:
    folder = job(tmp_path / "job")
    folder.status.unlink()
    os.mkfifo(folder.status)
    assert SupervisedJob("", folder).last_status == {}
    (tmp_path / "12_0_failure.json").write_text('{"message": "no spa')
    queued = QueuedJob("", folder, {}, "12_0", tmp_path)
    assert queued.ending("FAILED").message is None
