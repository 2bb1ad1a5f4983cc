"""The axes of a search in Hydra's sweep grammar, and what is said of a mistake before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sft_lab.cli.main import main
from sft_lab.config import read_space
from sft_lab.core.errors import ConfigError
from sft_lab.search import read_command


def test_each_form_of_the_grammar_is_an_axis(tiny: list[str]) -> None:
    texts = {
        "trainer.learning_rate": "tag(log, interval(1e-5,1e-3))",
        "trainer.max_steps": "int(interval(4,8))",
        "trainer.weight_decay": "range(0.0,0.5,0.1)",
        "trainer.gradient_accumulation_steps": "range(1,9,2)",
        "dedup": "none,exact",
    }
    space = read_space(tiny, [f"{key}={text}" for key, text in texts.items()])
    assert {axis.key: axis.text for axis in space.axes} == texts
    rate, steps, decay, accumulation, dedup = space.axes
    assert (rate.low, rate.high, rate.is_log, rate.step, rate.points()) == (1e-5, 1e-3, True, None, [])
    assert rate.probes() == ["1e-05", "0.001", "0.0001"]
    assert (steps.is_whole, steps.points()) == (True, [4, 5, 6, 7, 8])
    assert [decay.format(value) for value in decay.points()] == ["0", "0.1", "0.2", "0.3", "0.4"]
    assert accumulation.points() == [1, 3, 5, 7]
    assert dedup.choices == ["none", "exact"]
    assert "dedup=exact" not in space.fixed


def test_a_value_is_short_but_never_outside() -> None:
    (axis,) = read_space([], ["trainer.learning_rate=interval(0.000123444,0.5)"]).axes
    assert axis.format(0.0012345678) == "0.001235"
    assert axis.format(0.000123444) == "0.000123444"  # rounded, it would lie below


def test_values_on_the_command_line_and_in_an_experiment_are_axes_too(here: Path, tiny: list[str]) -> None:
    (here / "experiments").mkdir()
    content = "hydra: {sweeper: {params: {trainer.max_steps: 'range(2,5)', seed: '1,2', threads: 1}}}\n"
    (here / "experiments" / "mine.yaml").write_text(f"# @package _global_\n{content}")
    space = read_space([*tiny[:-2], "+experiment=mine", "seed=4,5", "dedup=exact"], [])
    assert {axis.key: axis.text for axis in space.axes} == {"trainer.max_steps": "range(2,5)", "seed": "4,5"}
    assert "threads=1" in space.fixed
    assert space.name == "mine"


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (["trainer.learning_rate=1e-4"], "has only one value, so it is not an axis"),
        (["trainer.learning_rate=interval(1e-3,1e-5)"], "the lower end must come first"),
        (["trainer.learning_rate=tag(log, interval(0,1))"], "both ends must be above 0"),
        (["trainer.learning_rate=tag(lin, interval(1,2))"], "the only tag is log"),
        (["trainer.max_steps=tag(log, range(1,5))"], "works only on an interval"),
        (["trainer.max_steps=range(5,5)"], "has no values"),
        (
            ["trainer.max_steps=interval(2,9)"],
            r"must be a whole number, not '5.5'; for whole numbers write int\(interval",
        ),
        (["trainer.learning_rate=interval(-1,1)"], "learning_rate=-1.0: must be above 0"),
        (["trainer.learning_rat=interval(1,2)"], "did you mean trainer.learning_rate"),
        (["seed=1,2", "seed=3,4"], "seed: given twice"),
        (["threads=1,2"], "are the same job"),
        (["split.filter=choice(answered,length)"], "cannot be swept"),
        (["experiment=a,b"], "cannot be searched over"),
    ],
)
def test_a_mistake_is_refused_before_anything_starts(tiny: list[str], axes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_space([text for text in tiny if not text.startswith("threads")], axes).probe()


def test_all_mistakes_come_at_once(tiny: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_space(tiny, ["seed=range(1,1)", "trainer.learning_rate=interval(2,1)"])
    assert "2 problems" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "--trials 0"),
        ({"at_once": 0}, "--at-once 0"),
        ({"confirm": 1}, "at least 2 seeds"),
        ({"sampler": "grid"}, "--sampler grid needs a list of values"),
        ({"sampler": "cmaes"}, "needs at least two numeric axes, not 1 axis"),
    ],
)
def test_wrong_options_are_refused(tiny: list[str], options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_command(tiny, ["trainer.learning_rate=interval(1e-4,1e-3)"], **options)  # type: ignore[arg-type]


def test_a_wide_linear_interval_is_pointed_out(tiny: list[str], caplog: pytest.LogCaptureFixture) -> None:
    read_command(tiny, ["trainer.learning_rate=interval(1e-5,1e-3)"])
    assert "half of the values lie above 0.000505; tag(log, interval(1e-5,1e-3))" in caplog.text
    caplog.clear()
    read_command(tiny, ["trainer.learning_rate=interval(1e-4,1e-3)"])
    assert not caplog.text


def test_a_refused_search_leaves_nothing_behind(
    here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", *tiny]) == 2
    assert "nothing to search" in capsys.readouterr().err
    assert main(["search", *tiny, "--over", "trainer.learning_rate=interval(1,2)", "rerun=true"]) == 2
    assert "is not an axis" in capsys.readouterr().err  # what follows --over belongs to it
    assert main(["search", "rerun=true", *tiny, "--over", "trainer.learning_rate=interval(1,2)"]) == 2
    assert "rerun=true" in capsys.readouterr().err
    assert main(["search", "hydra/sweeper=optuna", *tiny]) == 2
    assert "--sampler" in capsys.readouterr().err
    assert not list(here.iterdir())


HPARAMS = """\
# @package _global_
defaults:
  - override /hydra/sweeper: optuna
optimized_metric: val/acc
hydra:
  mode: "MULTIRUN"
  sweeper:
    _target_: hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper
    storage: null
    study_name: null
    n_jobs: 2
    direction: minimize
    n_trials: 7
    sampler:
      _target_: optuna.samplers.RandomSampler
      seed: 1234
      n_startup_trials: 10
    params:
      trainer.learning_rate: tag(log, interval(0.0001, 0.1))
      trainer.max_steps: choice(2, 4)
      trainer.weight_decay: 0.1
"""


def test_a_file_of_lightning_hydra_template_is_understood(
    here: Path, tiny: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (here / "hparams_search").mkdir()
    (here / "hparams_search" / "mine.yaml").write_text(HPARAMS)
    space, options = read_command(["hparams_search=mine", *tiny], [])
    assert [axis.key for axis in space.axes] == ["trainer.learning_rate", "trainer.max_steps"]
    assert "trainer.weight_decay=0.1" in space.fixed
    assert (options.trials, options.sampler, options.at_once, options.seed) == (7, "random", 2, 1234)
    assert "ignored: optimized_metric, hydra.sweeper.sampler.n_startup_trials" in caplog.text
    assert "storage" not in caplog.text

    space, options = read_command(["hparams_search=mine", *tiny], ["trainer.max_steps=2,3"], trials=3, sampler="tpe")
    assert {axis.key: axis.text for axis in space.axes}["trainer.max_steps"] == "2,3"
    assert (options.trials, options.sampler) == (3, "tpe")
    for wrong in ({"trials": 0}, {"at_once": 0}):
        with pytest.raises(ConfigError, match="0: must be"):
            read_command(["hparams_search=mine", *tiny], [], **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("direction: minimize", "direction: maximize", "a search minimizes held-out loss"),
        ("RandomSampler", "NSGAIISampler", "not supported; available: tpe, random, grid, cmaes"),
        ("n_trials: 7", "n_trials: many", "must be a whole number"),
        ("hydra:\n", "hydra: [\n", "is not YAML"),
        ("    params:\n", "    params: 3\n    other:\n", "must contain keys and values"),
    ],
)
def test_what_such_a_file_cannot_have_is_named(here: Path, tiny: list[str], old: str, new: str, message: str) -> None:
    (here / "hparams_search").mkdir()
    (here / "hparams_search" / "mine.yaml").write_text(HPARAMS.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        read_command(["hparams_search=mine", *tiny], [])


def test_a_missing_file_is_named_with_those_there_are(here: Path, tiny: list[str]) -> None:
    (here / "hparams_search").mkdir()
    (here / "hparams_search" / "mine.yaml").write_text(HPARAMS)
    with pytest.raises(ConfigError, match=r"hparams_search=yours: no such file.*available: mine"):
        read_command(["hparams_search=yours", *tiny], [])


def test_a_missing_package_is_one_line(
    here: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    axes = ["--over", "trainer.learning_rate=interval(1e-4,1e-3)", "trainer.weight_decay=interval(0,1)"]
    monkeypatch.setitem(sys.modules, "cmaes", None)
    assert main(["search", *tiny, "--sampler", "cmaes", *axes]) == 2
    message = "sft-lab: --sampler cmaes: the package cmaes is not installed; run: pip install cmaes\n"
    assert capsys.readouterr().err == message
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["search", *tiny, *axes]) == 2
    message = "sft-lab: search: the package optuna is not installed; run: pip install 'sft_lab[search]'\n"
    assert capsys.readouterr().err == message
    assert not list(here.iterdir())
