"""The one rule for folders: new, run; begun, go on; finished, leave; another config or other data, refuse."""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path

import pytest

from sft_lab import config
from sft_lab.core.errors import FolderError
from sft_lab.core.run_dir import FAILED, FINISHED, INTERRUPTED, RUNNING, SWEEP
from sft_lab.jobs.layout import Placed, Standing, place, sweep_name

SMALL = ["model=tiny_random", "dedup=exact", "decontaminate.method=exact", "tracking=local"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFT_LAB_STORE", str(tmp_path / "store"))
    Path("rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')


def plan(*words: str, sweep: bool = False) -> config.Plan:
    """Compose; a plan without files of the test's own is the same for every test."""
    own = any(word.startswith(("dataset=file", "experiment=")) for word in words)
    return (_compose if own else _compose_once)(words, sweep=sweep)


def _compose(words: tuple[str, ...], *, sweep: bool) -> config.Plan:
    return config.compose_jobs([*SMALL, *words], multirun=sweep)


_compose_once = functools.cache(_compose)


def placed(*words: str) -> Placed:
    """Place one run, and let go of its folder, as a command's end does."""
    (found,) = place(plan(*words, "hydra.run.dir=run"))
    found.folder.release()
    return found


def swept(*words: str) -> list[Placed]:
    return place(plan(*words, sweep=True))


def mark(one: Placed, state: str) -> None:
    """Write by hand what a run leaves: its state, and the data it read."""
    one.folder.status.write_text(json.dumps({"format": 1, "state": state}))
    fingerprint = one.job.run.data_fingerprint(one.job.run.store.open())
    one.folder.manifest.write_text(json.dumps({"format": 1, "dataset_fingerprint": fingerprint}))


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- one run ---------------------------------------------------------------------------------------------------


def test_a_new_folder_gets_the_config():
    one = placed()
    assert (one.standing, bool(one.made)) == (Standing.new, True)
    assert one.folder.path == Path.cwd() / "run"
    assert config.load(one.folder.config).hash == one.job.run.hash


def test_an_empty_folder_is_a_new_one():
    Path("run").mkdir()
    one = placed()
    assert (one.standing, bool(one.made)) == (Standing.new, False)


@pytest.mark.parametrize("state", [None, RUNNING, FAILED, INTERRUPTED])
def test_an_unfinished_run_goes_on(state):
    first = placed()
    if state:
        mark(first, state)
    again = placed()
    assert (again.standing, bool(again.made)) == (Standing.unfinished, False)


def test_a_finished_run_is_left_untouched():
    mark(placed(), FINISHED)
    before = content(Path("run"))
    assert placed().standing is Standing.finished
    assert content(Path("run")) == before


def test_what_changes_no_result_is_no_other_config():
    mark(placed(), FINISHED)
    assert placed("threads=3", "tracking=wandb", "store.path=elsewhere").standing is Standing.finished


def test_another_config_is_refused_with_the_first_differences():
    mark(placed(), FINISHED)
    before = content(Path("run"))
    with pytest.raises(FolderError) as caught:
        placed("seed=7", "trainer.learning_rate=1e-5", "dedup.keep=longest", "trainer.max_steps=3")
    message = str(caught.value)
    assert "another config" in message
    assert "dedup.keep was first, is longest; seed was 42, is 7; trainer.learning_rate was" in message
    assert "and 1 more" in message
    assert "rerun=true" in message
    assert content(Path("run")) == before


def test_changed_data_are_refused():
    mark(placed("dataset=file", "dataset.path=rows.jsonl"), FINISHED)
    Path("rows.jsonl").write_text('{"prompt": "a", "answer": "c"}\n')
    with pytest.raises(FolderError, match=r"the data has changed .* rerun=true"):
        placed("dataset=file", "dataset.path=rows.jsonl")


def test_changed_data_of_an_unfinished_run_are_refused_too():
    mark(placed("dataset=file", "dataset.path=rows.jsonl"), INTERRUPTED)
    Path("rows.jsonl").write_text('{"prompt": "a", "answer": "c"}\n')
    with pytest.raises(FolderError, match="the data has changed"):
        placed("dataset=file", "dataset.path=rows.jsonl")


@pytest.mark.parametrize("other", [[], ["seed=7"]])
def test_rerun_keeps_the_old_folder_beside(other):
    mark(placed(), FINISHED)
    before = content(Path("run"))
    one = placed("rerun=true", *other)
    assert (one.standing, bool(one.made)) == (Standing.new, True)
    (old,) = Path.cwd().glob("run.old-*")
    assert re.fullmatch(r"run\.old-\d{8}-\d{6}", old.name)
    assert content(old) == before
    assert sorted(content(Path("run"))) == ["config.yaml"]


def test_two_reruns_in_one_second_keep_both():
    for _ in range(3):
        mark(placed("rerun=true"), FINISHED)
    assert len(list(Path.cwd().glob("run.old-*"))) == 2


def test_rerun_in_a_new_folder_is_a_new_run():
    one = placed("rerun=true")
    assert (one.standing, bool(one.made)) == (Standing.new, True)
    assert [path.name for path in Path.cwd().glob("run*")] == ["run"]


@pytest.mark.parametrize("words", [[], ["rerun=true"]])
def test_a_strangers_folder_is_refused(words):
    Path("run").mkdir()
    Path("run/thesis.tex").write_text("mine")
    with pytest.raises(FolderError, match=r"not empty and no run folder \(it holds thesis.tex\).*hydra.run.dir"):
        placed(*words)
    assert content(Path("run")) == {"thesis.tex": b"mine"}


@pytest.mark.parametrize("place_", ["file", "file/below"])
def test_a_file_in_the_way(place_):
    Path("file").write_text("mine")
    with pytest.raises(FolderError, match="file"):
        place(plan(f"hydra.run.dir={place_}"))
    assert Path("file").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "text"),
    [("config.yaml", "format: 9\n"), ("status.json", "{"), ("status.json", "{}"), ("manifest.json", "[]")],
)
def test_a_broken_file_of_the_folder_is_named_and_rerun_helps(name, text):
    mark(placed(), FINISHED)
    Path("run", name).write_text(text)
    with pytest.raises(FolderError, match=rf"{re.escape(name)}.* (cannot be read|must hold an object).*rerun=true"):
        placed()
    assert placed("rerun=true").standing is Standing.new


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written():
    Path("locked").mkdir(mode=0o500)
    with pytest.raises(FolderError, match=r"cannot be written .* choose another"):
        place(plan("hydra.run.dir=locked/run"))


def test_runs_that_start_in_one_second_get_folders_of_their_own():
    paths = {place(plan())[0].folder.path for _ in range(2)}
    assert len(paths) == 2
    assert all(path.parent.parent == Path.cwd() / "outputs" for path in paths)


# --- sweeps ----------------------------------------------------------------------------------------------------


def names(jobs: list[Placed]) -> dict[str, str]:
    """Folder of each job, by its axes."""
    return {
        " ".join(f"{key}={value}" for key, value in sorted(one.job.axes.items())): str(one.folder.path) for one in jobs
    }


def test_a_sweeps_folders_say_what_differs():
    jobs = swept("seed=1,2", "trainer.learning_rate=1e-4,1e-3")
    (folder,) = {one.folder.path.parent for one in jobs}
    assert re.fullmatch(r"sweep-[0-9a-f]{8}", folder.name)
    assert folder.parent == Path.cwd() / "multirun"
    assert re.fullmatch(r"seed=1-learning_rate=0\.0001-[0-9a-f]{12}", jobs[0].folder.path.name)
    assert jobs[0].folder.path.name.endswith(jobs[0].job.run.hash)
    assert jobs[0].folder.sweep == folder
    assert all(one.standing is Standing.new for one in jobs)


def test_an_experiment_gives_its_name_to_the_sweep():
    Path("experiments").mkdir()
    Path("experiments/rates.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 1,2\n"
    )
    jobs = place(plan("experiment=rates"))
    assert jobs[0].folder.path.parent.name.startswith("rates-")


@pytest.mark.parametrize(
    "words",
    [
        ["trainer.learning_rate=1e-3,1e-4", "seed=2,1"],  # reordered
        ["seed=3,1,2", "trainer.learning_rate=1e-4,1e-3"],  # grown
        ["seed=1,2", "trainer.learning_rate=1e-4,1e-3", "tracking=wandb"],  # told elsewhere
    ],
)
def test_the_same_jobs_find_their_folders_in_another_grid(words):
    first = swept("seed=1,2", "trainer.learning_rate=1e-4,1e-3")
    for one in first:
        mark(one, FINISHED)
    again = swept(*words)
    assert names(first).items() <= names(again).items()
    finished = {one.job.run.hash for one in again if one.standing is Standing.finished}
    assert finished == {one.job.run.hash for one in first}


def test_the_sweeps_name_does_not_hang_on_the_order_of_options_that_bring_their_own_split():
    one = sweep_name(plan("dataset=smoltalk,sharegpt_english", sweep=True))
    assert sweep_name(plan("dataset=sharegpt_english,smoltalk", sweep=True)) == one
    assert sweep_name(plan("dataset=sharegpt_english,smoltalk,starter", sweep=True)) == one


def test_another_base_config_is_another_sweep():
    assert sweep_name(plan("seed=1,2", sweep=True)) != sweep_name(plan("seed=1,2", "dedup=none", sweep=True))
    assert sweep_name(plan("seed=1,2", sweep=True)) == sweep_name(plan("seed=3,4", "threads=1", sweep=True))


def test_a_job_is_found_by_its_hash_alone():
    first = swept("seed=1,2", "hydra.sweep.dir=place")
    mark(first[0], FINISHED)
    renamed = first[0].folder.path.rename(Path("place").absolute() / f"the-good-one-{first[0].job.run.hash}")
    again = swept("seed=1,2", "hydra.sweep.dir=place")
    assert again[0].folder.path == renamed
    assert [one.standing for one in again] == [Standing.finished, Standing.unfinished]


def test_rerun_of_a_sweep_keeps_the_old_jobs_and_does_not_find_them():
    for one in swept("seed=1,2", "hydra.sweep.dir=place"):
        mark(one, FINISHED)
    again = swept("seed=1,2", "hydra.sweep.dir=place", "rerun=true")
    assert [one.standing for one in again] == [Standing.new, Standing.new]
    assert len(list(Path("place").glob("*.old-*"))) == 2
    later = swept("seed=1,2", "hydra.sweep.dir=place")
    assert [one.standing for one in later] == [Standing.unfinished, Standing.unfinished]


@pytest.mark.parametrize("turned", [False, True])
def test_two_sweeps_with_different_axes_share_a_folder_of_one_base(turned):
    sweeps = [["dedup=none,exact"], ["dedup=semantic", "dedup.threshold=0.8,0.9"]]
    first, second = reversed(sweeps) if turned else sweeps
    swept(*first, "hydra.sweep.dir=place")
    swept(*second, "hydra.sweep.dir=place")
    marker = json.loads(Path("place", SWEEP).read_text())
    assert marker["axes"] == ["dedup", "dedup.threshold"]
    assert len([path for path in Path("place").iterdir() if path.is_dir()]) == 4


def test_a_sweep_with_another_base_is_refused_and_leaves_nothing():
    swept("seed=1,2", "hydra.sweep.dir=place")
    before = content(Path("place"))
    with pytest.raises(FolderError) as caught:
        swept("trainer.learning_rate=1e-4,1e-3", "dedup.keep=longest", "hydra.sweep.dir=place")
    assert "dedup.keep was first, is longest" in str(caught.value)
    assert "hydra.sweep.dir" in str(caught.value)
    assert content(Path("place")) == before


def test_one_refused_job_stops_the_sweep_before_anything_is_written():
    first = swept("seed=1,2", "hydra.sweep.dir=place")
    first[0].folder.status.write_text("{")
    before = content(Path("place"))
    with pytest.raises(FolderError, match=r"status\.json"):
        swept("seed=1,2,3", "hydra.sweep.dir=place")
    assert content(Path("place")) == before


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"axes": 1, "base": {}}'])
def test_a_broken_marker_is_named(text):
    swept("seed=1,2", "hydra.sweep.dir=place")
    Path("place", SWEEP).write_text(text)
    with pytest.raises(FolderError, match=rf"{SWEEP}: cannot be read.*hydra.sweep.dir"):
        swept("seed=1,2", "hydra.sweep.dir=place")


def test_a_file_where_the_sweep_should_be():
    Path("file").write_text("mine")
    for place_ in ("file", "file/below"):
        with pytest.raises(FolderError, match=r"hydra\.sweep\.dir=.*file"):
            swept("seed=1,2", f"hydra.sweep.dir={place_}")
    assert Path("file").read_text() == "mine"
