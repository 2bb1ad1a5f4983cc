"""A sweeper or launcher of Hydra's that the user chose drives the sweep; its tasks are our job folders."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from spans import went_out_together

from sft_lab.cli.main import main
from sft_lab.core.io import read_json

pytestmark = pytest.mark.slow

SWEEPER = '''
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper



@dataclass
class Small:
    _target_: str = "hydra_plugins.small_sweeper.SmallSweeper"
    rates: str = "1e-3,5e-3"


ConfigStore.instance().store(group="hydra/sweeper", name="small", node=Small)


class SmallSweeper(Sweeper):
    """Tries two rates and then the better one's double, as only the objective can tell it."""

    def __init__(self, rates):
        self.rates = [float(rate) for rate in rates.split(",")]

    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments):
        jobs = [[*arguments, f"trainer.learning_rate={rate}"] for rate in self.rates]
        values = [result.return_value for result in self.launcher.launch(jobs, initial_job_idx=0)]
        best = self.rates[values.index(min(values))]
        self.launcher.launch([[*arguments, f"trainer.learning_rate={best * 2}"]], initial_job_idx=2)
        print("OBJECTIVES", values, "BEST", best)
'''


def test_a_sweeper_of_the_users_own_gets_the_objective(tmp_path: Path, tiny: list[str]) -> None:
    plugins = tmp_path / "hydra_plugins"
    plugins.mkdir()
    (plugins / "small_sweeper.py").write_text(SWEEPER)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{root}"}
    command = [sys.executable, "-m", "sft_lab", "-m", "hydra/sweeper=small", *tiny]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    jobs = {path.parent.name: read_json(path) for path in tmp_path.glob("multirun/sweep-*/*/summary.json")}
    assert len(jobs) == 3
    told = next(line for line in done.stdout.splitlines() if line.startswith("OBJECTIVES"))
    for name in ("learning_rate_0.001-", "learning_rate_0.005-"):
        (summary,) = (found for job, found in jobs.items() if job.startswith(name))
        assert str(summary["objective"]) in told
        assert summary["objective"] == summary["eval/bits_per_byte"]


# Its three proposals go out together; with a rule for failures as Hydra's plugins for Optuna and Nevergrad have it.
BATCHES = """
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper


@dataclass
class Plain:
    _target_: str = "hydra_plugins.batches.Batches"
    values: str = ""


@dataclass
class Ruled(Plain):
    max_failure_rate: float = 0.0


ConfigStore.instance().store(group="hydra/sweeper", name="plain", node=Plain)
ConfigStore.instance().store(group="hydra/sweeper", name="ruled", node=Ruled)


class Batches(Sweeper):
    def __init__(self, values, max_failure_rate=None):
        self.values, self.rate = values.split(), max_failure_rate

    def setup(self, *, hydra_context, task_function, config):
        self.folder = config.hydra.sweep.dir
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments):
        results, failures = [], []
        for result in self.launcher.launch([[*arguments, value] for value in self.values], initial_job_idx=0):
            try:
                results.append(result.return_value)
            except Exception as error:
                if self.rate is None:
                    raise
                failures.append(error)
        if self.rate is not None and len(failures) > self.rate * len(self.values):
            raise failures[0]
        print("RESULTS", results, "FAILED", len(failures))
        with open(f"{self.folder}/results.txt", "w") as file:  # as others write optimization_results.yaml
            file.write(str(results))
"""


def _drive(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    plugins = folder / "hydra_plugins"
    plugins.mkdir(exist_ok=True)
    (plugins / "batches.py").write_text(BATCHES)
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{Path(__file__).parents[2]}"}
    command = [sys.executable, "-m", "sft_lab", "-m", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("sweeper", "results"),
    [
        (["plain"], r"RESULTS \[\d\.\d+, nan, nan\] FAILED 0"),
        (["ruled"], r"RESULTS \[\d\.\d+\] FAILED 2"),
        (["ruled", "hydra.sweeper.max_failure_rate=0.1"], ""),
    ],
    ids=["NaN", "own rule", "own limit"],
)
def test_a_failed_job_reaches_the_sweeper_as_it_can_take_it(
    tmp_path: Path, tiny: list[str], sweeper: list[str], results: str
) -> None:
    proposals = "trainer.max_steps=2 filter.length.min_tokens=100000 trainer.learning_rate=-1"
    done = _drive(tmp_path, f"hydra/sweeper={sweeper[0]}", f"hydra.sweeper.values='{proposals}'", *sweeper[1:], *tiny)
    assert bool(results) == ("RESULTS" in done.stdout)
    assert re.search(results, done.stdout)
    assert done.returncode == 2
    assert "learning_rate=-1" in done.stderr
    assert "min_tokens" in done.stderr
    assert len([*tmp_path.glob("multirun/sweep-*/*/summary.json")]) == 1


@pytest.mark.parametrize(
    "launch",
    [["launch=processes", "launch.at_once=2"], ["hydra/launcher=submitit_local"]],
    ids=["processes", "slurm"],
)
def test_jobs_proposed_together_run_at_once(tmp_path: Path, tiny: list[str], launch: list[str]) -> None:
    words = ["hydra/sweeper=plain", "hydra.sweeper.values='seed=1 seed=2 seed=1'", *launch]
    done = _drive(tmp_path, *words, *tiny)
    assert (done.returncode, "RESULTS" in done.stdout) == (0, True), done.stderr
    assert len([*tmp_path.glob("multirun/sweep-*/*/manifest.json")]) == 2
    assert went_out_together(done.stderr, 2)


def test_hydras_own_launcher_may_be_chosen(here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-m", "hydra/launcher=basic", *tiny, "seed=1,2"]
    assert main([*words, "hydra.sweep.subdir=seed_${seed}_of_${hydra.job.num}"]) == 0
    assert sorted(path.parent.name[:-13] for path in here.glob("multirun/sweep-*/*/summary.json")) == [
        "seed_1_of_0",
        "seed_2_of_1",
    ]
    jobs = sorted(here.glob("multirun/sweep-*/seed_*/summary.json"))
    assert len(jobs) == 2
    when = [job.stat().st_mtime_ns for job in jobs]
    assert main(words) == 0  # finished ones are left alone here too
    assert [job.stat().st_mtime_ns for job in jobs] == when
    assert main([word for word in words if not word.startswith("hydra")]) == 0  # and are the same folders
    assert [job.stat().st_mtime_ns for job in jobs] == when


def test_a_plugin_that_cannot_be_imported_is_named(tmp_path: Path, tiny: list[str]) -> None:
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "broken.py").write_text("raise ValueError('mutable default')\n")
    done = _drive(tmp_path, *tiny, "seed=1,2")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"sft-lab: \S+broken\.py: this Hydra plugin .*\(mutable default\).*\n", done.stderr)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["hydra/launcher=basic"], "put -m before"),
        (["-m", "hydra/launcher=foo", "seed=1,2"], "hydra/launcher=foo"),
        (["-m", "hydra/launcher=basic", "trainer.learning_rate=-1,1"], "learning_rate=-1"),
    ],
)
def test_mistakes_are_told(
    here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main([*words, *tiny]) in (1, 2)
    assert told in capsys.readouterr().err


def test_a_launcher_chosen_in_a_file_is_not_silently_left_out(
    here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "experiments").mkdir()
    (here / "experiments" / "far.yaml").write_text("defaults:\n  - override /hydra/launcher: joblib\nseed: 3\n")
    (here / "conf" / "hydra" / "launcher").mkdir(parents=True)
    (here / "conf" / "hydra" / "launcher" / "joblib.yaml").write_text("_target_: nowhere.Launcher\n")
    assert main(["-m", "+experiment=far", *tiny, "trainer.max_steps=1,2"]) == 2
    assert "hydra/launcher=joblib" in capsys.readouterr().err
