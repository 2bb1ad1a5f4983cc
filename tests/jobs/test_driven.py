"""A sweeper or launcher of Hydra's that the user chose drives the sweep; its tasks are our job folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
