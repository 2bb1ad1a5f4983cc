"""sft-lab plan: what would run, from what is stored; nothing is computed or written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from sft_lab import compose, config
from sft_lab.cli.main import main
from sft_lab.core.context import StageContext
from sft_lab.core.io import read_json
from sft_lab.jobs import plan
from sft_lab.jobs.plan import Outlook


def looked(tiny: list[str], *words: str, sweep: bool = False) -> list[Outlook]:
    return plan.look(config.compose_jobs([*tiny, *words], multirun=sweep))


def everything(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


@pytest.fixture
def mine(here: Path, tiny: list[str]) -> list[str]:
    """A store of the test's own."""
    return [*tiny, f"store.path={here / 'store'}"]


def test_before_anything_is_stored_nothing_is_known_and_nothing_is_written(here: Path, mine: list[str]) -> None:
    (one,) = looked(mine)
    assert (one.rows, one.tokens, one.stages) == (None, None, [])
    assert one.missing is not None
    assert one.missing[0] == "load"
    assert one.steps == 4  # trainer=smoke says so itself
    assert list(here.iterdir()) == []


def test_what_is_stored_is_known_to_the_row(here: Path, mine: list[str]) -> None:
    run = compose(mine)
    context = StageContext(run.store.open(), lambda: run.model.tokenizer(context))
    work = run.preparation(context)
    data = run.prepare(context, work)
    before = everything(here)
    (one,) = looked(mine, "trainer.max_steps=-1", "trainer.num_train_epochs=3")
    assert one.missing is None
    assert one.stages == work.stages
    assert one.rows == len(data.train.rows)
    assert one.epochs == pytest.approx(3, abs=0.1)
    trainer = run.trainer
    batch = trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps
    assert one.steps == math.ceil(one.rows / batch) * 3
    (other,) = looked(mine, "dedup.keep=longest")  # all stages before dedup are the same
    assert other.missing is not None
    assert other.missing[0] == "dedup.exact"
    assert [stage["stage"] for stage in other.stages][-1] == "decontaminate"
    assert everything(here) == before


def test_what_the_jobs_of_a_sweep_share(here: Path, mine: list[str]) -> None:
    run = compose([*mine, "dedup.keep=first"])
    context = StageContext(run.store.open(), lambda: run.model.tokenizer(context))
    run.prepare(context)
    found = looked(mine, "dedup.keep=first,longest", "trainer.learning_rate=1e-3,2e-3", sweep=True)
    assert [one.missing is None for one in found] == [True, True, False, False]
    assert plan.shared(found) == [("dedup.exact", 2)]


def test_choices_that_keep_the_same_rows_are_named(
    here: Path, mine: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The same filters in another order: two jobs, whose rows and training are one."""
    grid = ["filter=[answered,length],[length,answered]"]
    found = looked(mine, *grid, sweep=True)
    assert plan.same_rows(found) == []  # nothing is known yet
    for one in found:
        run = one.placed.job.run
        run.prepare(run.context())
    both = "filter=[answered,length]; filter=[length,answered]"
    assert plan.same_rows(looked(mine, *grid, sweep=True)) == [both]
    assert plan.same_rows(looked(mine, *grid, "seed=1,2", sweep=True)) == [
        both.replace(";", f", seed={seed};") + f", seed={seed}" for seed in (1, 2)
    ]
    assert plan.same_rows(looked(mine, "dataset.limit=60,80", sweep=True)) == []
    capsys.readouterr()
    assert main(["plan", "-m", *mine, *grid]) == 0
    told = capsys.readouterr().out
    assert f"Same training rows: {both}; one of them would do" in told
    assert " [answered,length] " in told  # brackets are no markup


def test_what_a_cluster_is_asked_for(here: Path, mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "launch=slurm",
        "launch.cluster=local",
        "launch.partition=gpu",
        "launch.num_processes=4",
        "launch.mem_gb=64",
    ]
    assert main(["plan", *mine, *asked]) == 0
    told = capsys.readouterr().out
    assert "nodes=1, gpus-per-node=4, cpus-per-task=4, mem=64GB, time=240 min, partition=gpu" in told
    assert main(["plan", *mine]) == 0
    assert "Asked of the cluster" not in capsys.readouterr().out


@pytest.mark.slow
def test_finished_jobs_and_times_like_theirs(here: Path, mine: list[str]) -> None:
    grid = [*mine, "trainer.learning_rate=1e-3,2e-3"]
    assert main(["-m", *grid, "hydra.sweep.dir=sweep"]) == 0
    words = ("trainer.learning_rate=1e-3,2e-3,3e-3", "hydra.sweep.dir=sweep")
    found = looked(mine, *words, sweep=True)
    assert [one.placed.standing.name for one in found] == ["finished", "finished", "new"]
    assert found[2].seconds is not None
    summary = read_json(Path(str(found[2].like)) / "summary.json")
    assert found[2].seconds == pytest.approx(summary["seconds"])  # as many steps
    assert found[0].other_versions == {}
    manifest = found[0].placed.folder.manifest
    content = json.loads(manifest.read_text())
    content["packages"]["trl"] = "0.1"
    manifest.write_text(json.dumps(content))
    assert looked(mine, *words, sweep=True)[0].other_versions == {"trl": "0.1"}
    longer = looked(mine, "trainer.max_steps=40", "hydra.run.dir=other")[0]
    assert longer.seconds is not None
    assert longer.seconds > found[2].seconds
    assert looked(mine, "trainer.per_device_train_batch_size=7", "hydra.run.dir=other")[0].seconds is None


def test_the_command_tells_it(here: Path, mine: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-m", *mine, "seed=1,2"]) == 0
    told = capsys.readouterr().out
    assert "from load on to be computed" in told
    assert "computed once for 2 jobs" in told
    assert main(["plan", *mine, "dedup=nope"]) == 2
    assert list(here.iterdir()) == []


def test_the_memory_of_a_training_is_reckoned_from_shapes(here: Path, mine: list[str]) -> None:
    from sft_lab.training.memory import Footprint

    words = [word for word in mine if not word.startswith("trainer=")]
    full, lora = (looked(words, trainer)[0].memory for trainer in ("trainer=full", "trainer=lora"))
    assert isinstance(full, Footprint)
    assert isinstance(lora, Footprint)
    run = compose([*words, "trainer=full"])
    context = StageContext(run.store.open(), lambda: run.model.tokenizer(context))
    model = run.model.load(context, seed=1)
    size = sum(one.numel() for one in model.parameters())
    assert (full.parameters, full.trained, full.weights) == (size, size, 4 * size)
    assert (full.gradients, full.optimizer) == (4 * size, 8 * size)
    assert 0 < lora.trained < full.trained / 2
    assert lora.parameters == full.parameters + lora.trained


def test_a_trainer_that_misfits_the_model_is_refused_as_the_job_would_be(
    here: Path, mine: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in mine if not word.startswith("trainer=")]
    assert main(["plan", *words, "trainer=lora", "trainer.peft.target_modules=[q_proj,v_porj]"]) == 2
    assert "did you mean v_proj" in capsys.readouterr().err
    assert list(here.iterdir()) == []
