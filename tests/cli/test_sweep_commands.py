"""From a sweep to a decision: compare, score on test rows, runs, promote, replay, by their commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sft_lab.cli.main import main
from sft_lab.core.io import read_json

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two jobs that keep a third side."""
    root = tmp_path_factory.mktemp("sweep")
    words = ["model=tiny_random", "trainer=smoke", "dedup=exact", "decontaminate.method=exact", "threads=1",
             "tracking=local", "split.test_share=0.2", "trainer.learning_rate=1e-3,5e-3"]  # fmt: skip
    assert main(["-m", *words, f"hydra.sweep.dir={root / 'multirun' / 'rates'}"]) == 0
    return root / "multirun" / "rates"


def test_compare_and_the_test_rows(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(sweep), "--test"]) == 0
    told = capsys.readouterr().out
    found = read_json(sweep / "compare.json")
    assert {job["axes"]["trainer.learning_rate"] for job in found["jobs"]} == {0.001, 0.005}
    assert all(job["state"] == "finished" for job in found["jobs"])
    assert (sweep / "compare.html").exists()
    (scored,) = sweep.glob("*/test.json")
    assert scored.parent.name == found["best"]["job"]
    numbers = read_json(scored)
    stages = read_json(scored.parent / "waterfall.json")["stages"]
    assert 0 < numbers["test_rows"] <= next(one for one in stages if one["stage"] == "split")["dropped"]["test"]
    assert numbers["test/loss"] < numbers["base/test_loss"]
    assert f"{numbers['test/loss']:.4f}" in told
    assert "which no job was compared on" in told


def test_the_command_that_compare_prints_trains_the_missing_seeds(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(sweep.parents[1])
    assert main(["compare", "multirun/rates"]) == 0
    output = capsys.readouterr().out
    match = re.search(r"To settle it, train 3 seeds of each \(finished jobs are kept\):\nsft-lab (.+)", output)
    assert match, output
    assert main(["plan", *shlex.split(match[1])[1:], "-m"]) == 0
    states = capsys.readouterr().out
    assert (states.count(" finished "), states.count(" new ")) == (2, 4)


def test_lines_that_every_job_logs_are_shown_once(here: Path, tiny: list[str]) -> None:
    command = [sys.executable, "-m", "sft_lab", "-m", *tiny, "seed=1,2", "hydra.sweep.dir=sweep"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for stage in ("load  ", "split  ", "dedup.exact  ", "tokenize  "):
        assert sum(line.startswith(stage) for line in done.stderr.splitlines()) == 1, stage
        assert all(stage in log.read_text() for log in here.glob("sweep/*/run.log"))  # each keeps its own
    assert done.stderr.count("train: 4 steps") == 2
    assert len(re.findall(r"\[\d/2\] seed\S+: finished in \d+ s  held-out loss \d", done.stderr)) == 2
    assert done.stdout.rstrip().endswith("Next: sft-lab compare sweep")
    assert f"Folder: {here / 'sweep'}" in done.stdout


def test_hydra_tools_find_config_and_overrides(sweep: Path) -> None:
    for job in (file.parent for file in sweep.glob("*/config.yaml")):
        assert (job / ".hydra" / "config.yaml").read_text() == (job / "config.yaml").read_text()
        config, overrides = (OmegaConf.load(job / ".hydra" / f"{name}.yaml") for name in ("config", "overrides"))
        assert "trainer=smoke" in overrides
        (rate,) = [float(text.partition("=")[2]) for text in overrides if text.startswith("trainer.learning_rate=")]
        assert config.trainer.learning_rate == rate
        assert not any(text.startswith("hydra.") for text in overrides)


def test_a_sweep_without_test_rows_says_how_to_have_some(
    here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, "hydra.run.dir=run"]) == 0
    assert main(["compare", "run", "--test"]) == 2
    assert "split.test_share=0.1" in capsys.readouterr().err


def test_runs_promote_and_replay(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(sweep.parents[1])
    job = next(path.parent for path in sorted(sweep.glob("*/summary.json")))
    assert main(["runs"]) == 0
    assert capsys.readouterr().out.count("finished") == 2
    assert main(["promote", str(job), "chosen"]) == 0
    assert "sft-lab +experiment=chosen" in capsys.readouterr().out
    assert main(["promote", str(job), "chosen"]) == 2
    assert main(["--cfg", "job", "+experiment=chosen", "-p", "trainer.learning_rate"]) == 0
    assert main(["replay", str(job), "--out", "again"]) == 0
    assert read_json(Path("again/summary.json"))["eval/loss"] == read_json(job / "summary.json")["eval/loss"]
    assert read_json(Path("again/replay.json"))["equal"] is True
