"""Trackio's database, read back with Trackio in a process of its own: it reads TRACKIO_DIR when it is imported."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_recorder import StandIn
from test_tensorboard import SHORT, read_events, scalars

from sft_lab.cli.main import main
from sft_lab.core.run_dir import RunDir
from sft_lab.tracking import trackio_mirror
from sft_lab.tracking.config import FileMirror, Mirror, Tracking
from sft_lab.tracking.tracked_run import TrackedRun

pytest.importorskip("trackio")

READ = """
import json
from trackio import Api
from trackio.sqlite_storage import SQLiteStorage
runs = [{"id": run.id, "name": run.name, "config": run.config,
         "logs": SQLiteStorage.get_logs("sft_lab", run.name, run_id=run.id)} for run in Api().runs("sft_lab")]
print(json.dumps(runs, default=str))
"""


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """Return id, name, config and logs of each run in a database."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRACKIO_")}
    environment |= {"TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", READ], env=environment, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def logged(run: dict[str, Any], name: str) -> list[tuple[int, Any]]:
    return [(line["step"], line[name]) for line in run["logs"] if name in line]


def start(folder: RunDir, first_step: int = 0) -> Mirror:
    return Tracking({"trackio": FileMirror()}).start(TrackedRun(folder, "id", {"seed": 1}, first_step=first_step))


def check_run(job: RunDir, run: dict[str, Any]) -> None:
    """Hold a run beside the record in its folder."""
    lines = [json.loads(line) for line in job.metrics.read_text().splitlines()]
    for name in {name for line in lines for name in line} - {"step", "epoch"}:
        assert logged(run, name) == [(line["step"], line[name]) for line in lines if name in line], name
    summary = json.loads(job.summary.read_text())
    assert logged(run, "objective") == [(4, summary["objective"])]
    ((_, table),) = logged(run, "summary")
    assert {"key": "verdict", "value": summary["verdict"]} in table["_value"]
    assert logged(run, "waterfall")
    assert run["config"]["dedup.kind"] == "exact"
    assert run["id"] == json.loads(job.manifest.read_text())["tracking_id"]


@pytest.mark.slow
def test_a_run_is_mirrored_without_any_network(
    here: Path, tiny: list[str], hub: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_BUCKET_ID", "TRACKIO_DATASET_ID", "SPACE_REPO_NAME"):
        monkeypatch.setenv(name, "me/mine")
    monkeypatch.setenv("TRACKIO_SERVER_URL", hub.url)
    assert main([*tiny, *SHORT, "tracking=trackio", "hydra.run.dir=run"]) == 0
    assert hub.requests == []

    folder = Path("run/trackio").absolute()
    assert f"Trackio: TRACKIO_DIR={folder} trackio show --project sft_lab" in capsys.readouterr().err
    (run,) = read_runs(folder)
    assert run["name"] == "run"
    check_run(RunDir(Path("run")), run)


@pytest.mark.slow
def test_a_sweep_beside_another_mirror_in_a_folder_of_the_user(
    here: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", "mine")
    axis = ["trainer.learning_rate=1e-3,2e-3", "launch=processes", "launch.at_once=2"]
    assert main(["-m", *tiny, *SHORT, "tracking=[tensorboard,trackio]", *axis, "hydra.sweep.dir=sweep"]) == 0
    jobs = [RunDir(path.parent) for path in sorted(Path("sweep").glob("*/summary.json"))]
    runs = sorted(read_runs(Path("mine")), key=lambda run: str(run["name"]))
    assert [run["name"] for run in runs] == ["learning_rate_0.001", "learning_rate_0.002"]
    for job, run in zip(jobs, runs, strict=True):
        check_run(job, run)
        assert run["config"]["_Group"] == "sweep"
        assert scalars(read_events(job.tensorboard), "objective") == [
            (4, pytest.approx(logged(run, "objective")[0][1]))
        ]
    assert not Path("sweep/trackio").exists()


@pytest.mark.slow
def test_a_run_that_goes_on_has_each_step_once(tmp_path: Path) -> None:
    """What an earlier attempt logged is replaced by its events up to the checkpoint; others of its name stay."""
    folder = RunDir(tmp_path / "run")

    def train(first_step: int, last_step: int, loss: float, kept: list[dict[str, float]]) -> list[tuple[int, float]]:
        mirror = start(folder, first_step)
        mirror.restore(kept)
        for step in range(first_step + 1, last_step + 1):
            mirror.log({"step": step, "epoch": 0.0, "train/loss": loss})
        assert mirror.finish(None)
        (run,) = [run for run in read_runs(folder.path / "trackio") if run["id"] == "id"]
        return logged(run, "train/loss")

    first = {"step": 1, "epoch": 0.0, "train/loss": 4.0}
    assert train(0, 3, 4.0, []) == [(1, 4.0), (2, 4.0), (3, 4.0)]
    other = Tracking({"trackio": FileMirror()}).start(TrackedRun(folder, "other", {}))
    other.log(first)
    other.finish(None)
    assert train(1, 3, 5.0, [first]) == [(1, 4.0), (2, 5.0), (3, 5.0)]
    assert len(read_runs(folder.path / "trackio")) == 2


def test_a_folder_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "file" / "trackio"))
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        mirror = start(RunDir(tmp_path / "run"))
        mirror.log({"step": 1, "train/loss": 4.0})
        mirror.finish({"verdict": "healthy"})
    assert "Trackio failed (" in caplog.text
    assert "Not a directory" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_gone_or_stuck_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: signal.Signals
) -> None:
    monkeypatch.setattr(trackio_mirror, "PATIENCE", 0.5)
    mirror = trackio_mirror.TrackioMirror(TrackedRun(RunDir(tmp_path / "run"), "id", {}))
    os.kill(mirror._process.pid, number)
    with caplog.at_level(logging.WARNING):
        mirror.table("outputs", ["answer"], [["a" * 200_000]])  # more than a pipe holds
        mirror.log({"step": 1, "train/loss": 4.0})
        assert mirror.finish({"verdict": "healthy"})
    assert caplog.text.count("Trackio failed (") == 1
    assert mirror._process.poll() is not None


def test_an_unknown_mirror_is_named() -> None:
    (problem,) = Tracking({"mine": FileMirror()}).check()
    assert problem == "tracking.mirrors.mine: no such mirror; available: tensorboard, trackio"
