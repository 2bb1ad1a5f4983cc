"""The one rule for folders: new, run; begun, go on; finished, leave; another config or other data, refuse."""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path

import pytest

from sft_lab import config
from sft_lab.config.overrides import parse
from sft_lab.config.search_path import hydra_session
from sft_lab.core.errors import ConfigError, FolderError
from sft_lab.core.run_dir import SWEEP
from sft_lab.core.types import RunState
from sft_lab.jobs.layout import JobFolder, JobProgress, create_job_folders
from sft_lab.jobs.sweep_folder import sweep_name

SMALL = ["model=tiny_random", "dedup=exact", "decontaminate.method=exact", "tracking=local"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFT_LAB_STORE", str(tmp_path / "store"))
    Path("rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')


def plan(*overrides: str, sweep: bool = False) -> config.Plan:
    """Compose; a plan without files of the test's own is the same for every test."""
    has_own_files = any(word.startswith(("dataset=file", "experiment=")) for word in overrides)
    return (_compose if has_own_files else _compose_once)(overrides, sweep=sweep)


def _compose(overrides: tuple[str, ...], *, sweep: bool) -> config.Plan:
    return config.compose_jobs([*SMALL, *overrides], multirun=sweep)


_compose_once = functools.cache(_compose)


def create(*overrides: str) -> JobFolder:
    """Create the folder of one run, and let go of its folder, as a command's end does."""
    (job_folder,) = create_job_folders(plan(*overrides, "hydra.run.dir=run"))
    job_folder.folder.release()
    return job_folder


def create_sweep(*overrides: str) -> list[JobFolder]:
    return create_job_folders(plan(*overrides, sweep=True))


def mark(job_folder: JobFolder, state: str) -> None:
    """Write by hand what a run leaves: its state, and the data it read."""
    job_folder.folder.status.write_text(json.dumps({"format": 1, "state": state}))
    fingerprint = job_folder.job.run.data_fingerprint(job_folder.job.run.store.open())
    job_folder.folder.manifest.write_text(json.dumps({"format": 1, "dataset_fingerprint": fingerprint}))


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- one run ---------------------------------------------------------------------------------------------------


def test_a_new_folder_gets_the_config():
    job_folder = create()
    assert (job_folder.progress, bool(job_folder.created)) == (JobProgress.NEW, True)
    assert job_folder.folder.path == Path.cwd() / "run"
    assert config.load(job_folder.folder.config).hash == job_folder.job.run.hash


def test_an_empty_folder_is_a_new_one():
    Path("run").mkdir()
    job_folder = create()
    assert (job_folder.progress, bool(job_folder.created)) == (JobProgress.NEW, False)


@pytest.mark.parametrize("state", [None, RunState.RUNNING, RunState.FAILED, RunState.INTERRUPTED])
def test_an_unfinished_run_goes_on(state):
    first = create()
    if state:
        mark(first, state)
    again = create()
    assert (again.progress, bool(again.created)) == (JobProgress.UNFINISHED, False)


def test_a_finished_run_is_left_untouched():
    mark(create(), RunState.FINISHED)
    before = content(Path("run"))
    assert create().progress is JobProgress.FINISHED
    assert content(Path("run")) == before


def test_what_changes_no_result_is_no_other_config():
    mark(create(), RunState.FINISHED)
    assert create("threads=3", "tracking=wandb", "store.path=elsewhere").progress is JobProgress.FINISHED


def test_another_config_is_refused_with_the_first_differences():
    mark(create(), RunState.FINISHED)
    before = content(Path("run"))
    with pytest.raises(FolderError) as caught:
        create("seed=7", "trainer.learning_rate=1e-5", "dedup.keep=longest", "trainer.max_steps=3")
    message = str(caught.value)
    assert "another config" in message
    assert "dedup.keep was first, is longest; seed was 42, is 7; trainer.learning_rate was" in message
    assert "and 1 more" in message
    assert "rerun=true" in message
    assert content(Path("run")) == before


def test_changed_data_are_refused():
    mark(create("dataset=file", "dataset.path=rows.jsonl"), RunState.FINISHED)
    Path("rows.jsonl").write_text('{"prompt": "a", "answer": "c"}\n')
    with pytest.raises(FolderError, match=r"the data has changed .* rerun=true"):
        create("dataset=file", "dataset.path=rows.jsonl")


def test_changed_data_of_an_unfinished_run_are_refused_too():
    mark(create("dataset=file", "dataset.path=rows.jsonl"), RunState.INTERRUPTED)
    Path("rows.jsonl").write_text('{"prompt": "a", "answer": "c"}\n')
    with pytest.raises(FolderError, match="the data has changed"):
        create("dataset=file", "dataset.path=rows.jsonl")


@pytest.mark.parametrize("other", [[], ["seed=7"]])
def test_rerun_keeps_the_old_folder_beside(other):
    mark(create(), RunState.FINISHED)
    before = content(Path("run"))
    job_folder = create("rerun=true", *other)
    assert (job_folder.progress, bool(job_folder.created)) == (JobProgress.NEW, True)
    (old,) = Path.cwd().glob("run.old-*")
    assert re.fullmatch(r"run\.old-\d{8}-\d{6}", old.name)
    assert content(old) == before
    assert sorted(content(Path("run"))) == [".hydra/config.yaml", ".hydra/overrides.yaml", "config.yaml"]


def test_two_reruns_in_one_second_keep_both():
    for _ in range(3):
        mark(create("rerun=true"), RunState.FINISHED)
    assert len(list(Path.cwd().glob("run.old-*"))) == 2


def test_rerun_in_a_new_folder_is_a_new_run():
    job_folder = create("rerun=true")
    assert (job_folder.progress, bool(job_folder.created)) == (JobProgress.NEW, True)
    assert [path.name for path in Path.cwd().glob("run*")] == ["run"]


@pytest.mark.parametrize("overrides", [[], ["rerun=true"]])
def test_a_strangers_folder_is_refused(overrides):
    Path("run").mkdir()
    Path("run/thesis.tex").write_text("mine")
    with pytest.raises(FolderError, match=r"not empty and not a run folder \(it contains thesis.tex\).*hydra.run.dir"):
        create(*overrides)
    assert content(Path("run")) == {"thesis.tex": b"mine"}


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_file_in_the_way(path):
    Path("file").write_text("mine")
    with pytest.raises(FolderError, match="file"):
        create_job_folders(plan(f"hydra.run.dir={path}"))
    assert Path("file").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "text"),
    [("config.yaml", "format: 9\n"), ("status.json", "{"), ("status.json", "{}"), ("manifest.json", "[]")],
)
def test_a_broken_file_of_the_folder_is_named_and_rerun_helps(name, text):
    mark(create(), RunState.FINISHED)
    Path("run", name).write_text(text)
    with pytest.raises(FolderError, match=rf"{re.escape(name)}.* (cannot be read|must be an object).*rerun=true"):
        create()
    assert create("rerun=true").progress is JobProgress.NEW


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written():
    Path("locked").mkdir(mode=0o500)
    with pytest.raises(FolderError, match=r"cannot be written .* choose another"):
        create_job_folders(plan("hydra.run.dir=locked/run"))


def test_runs_that_start_in_one_second_get_folders_of_their_own():
    paths = {create_job_folders(plan())[0].folder.path for _ in range(2)}
    assert len(paths) == 2
    assert all(path.parent.parent == Path.cwd() / "outputs" for path in paths)


# --- sweeps ----------------------------------------------------------------------------------------------------


def names(jobs: list[JobFolder]) -> dict[str, str]:
    """Folder of each job, by its axes."""
    return {
        " ".join(f"{key}={value}" for key, value in sorted(job_folder.job.axes.items())): str(job_folder.folder.path)
        for job_folder in jobs
    }


def test_a_sweeps_folders_say_what_differs():
    jobs = create_sweep("seed=1,2", "trainer.learning_rate=1e-4,1e-3")
    (folder,) = {job_folder.folder.path.parent for job_folder in jobs}
    assert re.fullmatch(r"sweep-[0-9a-f]{8}", folder.name)
    assert folder.parent == Path.cwd() / "multirun"
    assert re.fullmatch(r"seed_1-learning_rate_0\.0001-[0-9a-f]{12}", jobs[0].folder.path.name)
    assert jobs[0].folder.path.name.endswith(jobs[0].job.run.hash)
    assert jobs[0].folder.sweep == folder
    assert all(job_folder.progress is JobProgress.NEW for job_folder in jobs)


def test_an_experiment_gives_its_name_to_the_sweep():
    Path("experiments").mkdir()
    Path("experiments/rates.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 1,2\n"
    )
    jobs = create_job_folders(plan("experiment=rates"))
    assert jobs[0].folder.path.parent.name.startswith("rates-")


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.learning_rate=1e-3,1e-4", "seed=2,1"],  # reordered
        ["seed=3,1,2", "trainer.learning_rate=1e-4,1e-3"],  # grown
        ["seed=1,2", "trainer.learning_rate=1e-4,1e-3", "tracking=wandb"],  # told elsewhere
    ],
)
def test_the_same_jobs_find_their_folders_in_another_grid(overrides):
    first = create_sweep("seed=1,2", "trainer.learning_rate=1e-4,1e-3")
    for job_folder in first:
        mark(job_folder, RunState.FINISHED)
    again = create_sweep(*overrides)
    assert names(first).items() <= names(again).items()
    finished = {job_folder.job.run.hash for job_folder in again if job_folder.progress is JobProgress.FINISHED}
    assert finished == {job_folder.job.run.hash for job_folder in first}


@pytest.mark.slow
def test_the_sweeps_name_does_not_hang_on_the_order_of_options_that_bring_their_own_split():
    job_folder = sweep_name(plan("dataset=smoltalk,sharegpt_english", sweep=True))
    assert sweep_name(plan("dataset=sharegpt_english,smoltalk", sweep=True)) == job_folder
    assert sweep_name(plan("dataset=sharegpt_english,smoltalk,starter", sweep=True)) == job_folder


def test_another_base_config_is_another_sweep():
    assert sweep_name(plan("seed=1,2", sweep=True)) != sweep_name(plan("seed=1,2", "dedup=none", sweep=True))
    assert sweep_name(plan("seed=1,2", sweep=True)) == sweep_name(plan("seed=3,4", "threads=1", sweep=True))


def test_a_job_is_found_by_its_hash_alone():
    first = create_sweep("seed=1,2", "hydra.sweep.dir=sweep")
    mark(first[0], RunState.FINISHED)
    renamed = first[0].folder.path.rename(Path("sweep").absolute() / f"the-good-one-{first[0].job.run.hash}")
    again = create_sweep("seed=1,2", "hydra.sweep.dir=sweep")
    assert again[0].folder.path == renamed
    assert [job_folder.progress for job_folder in again] == [JobProgress.FINISHED, JobProgress.UNFINISHED]


def test_a_sweep_of_an_older_version_goes_on_in_its_folders():
    first = create_sweep("seed=1,2", "hydra.sweep.dir=sweep")
    for job_folder in first:
        mark(job_folder, RunState.FINISHED)
        old = f"seed={job_folder.job.run.seed}-{job_folder.job.run.hash}"
        job_folder.folder.path.rename(Path("sweep", old))
    again = create_sweep("seed=1,2,3", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=other")
    assert [job_folder.folder.path.name.rpartition("-")[0] for job_folder in again] == ["seed=1", "seed=2", "other"]
    assert [job_folder.progress for job_folder in again[:2]] == [JobProgress.FINISHED] * 2


def test_a_renamed_job_is_found_by_the_hash_in_its_manifest():
    first = create_sweep("seed=1,2", "hydra.sweep.dir=sweep")
    mark(first[0], RunState.FINISHED)
    manifest = json.loads(first[0].folder.manifest.read_text())
    first[0].folder.manifest.write_text(json.dumps({**manifest, "job": first[0].job.run.hash}))
    renamed = first[0].folder.path.rename(Path("sweep").absolute() / "the good one")
    again = create_sweep("seed=1,2", "hydra.sweep.dir=sweep")
    assert again[0].folder.path == renamed
    assert [job_folder.progress for job_folder in again] == [JobProgress.FINISHED, JobProgress.UNFINISHED]


@pytest.mark.slow
def test_a_job_added_to_a_sweep_shows_the_one_value_that_its_command_gives():
    create_sweep("trainer.learning_rate=1e-5,1e-4", "dedup=exact,none", "hydra.sweep.dir=sweep")
    added = create_sweep("trainer.learning_rate=2e-5", "dedup=none", "seed=3,4", "hydra.sweep.dir=sweep")
    readable = [job_folder.folder.path.name.rpartition("-")[0] for job_folder in added]
    assert readable == [f"dedup_none-learning_rate_2e-5-seed_{seed}" for seed in (3, 4)]


@pytest.mark.parametrize(
    ("subdir", "expected"),
    [
        ("${hydra.job.num}", ["0", "1"]),
        ("lr_${trainer.learning_rate}/${seed}", ["lr_0.0002_1", "lr_0.0002_2"]),
        ("${hydra.job.override_dirname}", ["filter_answered-length-seed_1", "filter_answered-length-seed_2"]),
        (
            "'${hydra.job.override_dirname}' hydra.job.config.override_dirname.exclude_keys=[filter]",
            ["seed_1", "seed_2"],
        ),
        ("same", ["same", "same"]),
    ],
)
def test_the_readable_part_of_a_jobs_name_is_hydras_subdir(subdir, expected):
    overrides = ["filter=choice([answered,length])", "seed=1,2", *f"hydra.sweep.subdir={subdir}".split()]
    jobs = create_sweep(*overrides)
    assert [job_folder.folder.path.name for job_folder in jobs] == [
        f"{name}-{job_folder.job.run.hash}" for name, job_folder in zip(expected, jobs, strict=True)
    ]
    plain = create_sweep("seed=2,1", "filter=choice([answered,length])")
    assert names(plain) == names(jobs)


def test_the_path_of_a_job_goes_into_an_override_without_quotes():
    jobs = create_sweep("trainer.learning_rate=1e-05,2e-4", "filter=[answered],[answered,length]", "template=auto")
    for job_folder in jobs:
        Path(job_folder.folder.path, "model").mkdir()
        override = f"model.name_or_path={job_folder.folder.path.relative_to(Path.cwd())}/model"
        with hydra_session():
            (parsed,) = parse([override])
        assert parsed.value() == override.partition("=")[2]


@pytest.mark.parametrize("subdir", ["${nowhere}", "${oc.env:HOME}"])
def test_a_subdir_that_cannot_be_read_is_named(subdir):
    with pytest.raises(ConfigError, match=r"hydra\.sweep\.subdir=\$\{"):
        create_sweep("seed=1,2", f"hydra.sweep.subdir={subdir}")


def test_rerun_of_a_sweep_keeps_the_old_jobs_and_does_not_find_them():
    for job_folder in create_sweep("seed=1,2", "hydra.sweep.dir=sweep"):
        mark(job_folder, RunState.FINISHED)
    again = create_sweep("seed=1,2", "hydra.sweep.dir=sweep", "rerun=true")
    assert [job_folder.progress for job_folder in again] == [JobProgress.NEW, JobProgress.NEW]
    assert len(list(Path("sweep").glob("*.old-*"))) == 2
    later = create_sweep("seed=1,2", "hydra.sweep.dir=sweep")
    assert [job_folder.progress for job_folder in later] == [JobProgress.UNFINISHED, JobProgress.UNFINISHED]


@pytest.mark.parametrize("turned", [False, True])
def test_two_sweeps_with_different_axes_share_a_folder_of_one_base(turned):
    sweeps = [["dedup=none,exact"], ["dedup=semantic", "dedup.threshold=0.8,0.9"]]
    first, second = reversed(sweeps) if turned else sweeps
    create_sweep(*first, "hydra.sweep.dir=sweep")
    create_sweep(*second, "hydra.sweep.dir=sweep")
    marker = json.loads(Path("sweep", SWEEP).read_text())
    assert marker["axes"] == ["dedup", "dedup.threshold"]
    assert len([path for path in Path("sweep").iterdir() if path.is_dir()]) == 4


def test_a_sweep_with_another_base_is_refused_and_leaves_nothing():
    create_sweep("seed=1,2", "hydra.sweep.dir=sweep")
    before = content(Path("sweep"))
    with pytest.raises(FolderError) as caught:
        create_sweep("trainer.learning_rate=1e-4,1e-3", "dedup.keep=longest", "hydra.sweep.dir=sweep")
    assert "dedup.keep was first, is longest" in str(caught.value)
    assert "hydra.sweep.dir" in str(caught.value)
    assert content(Path("sweep")) == before


def test_one_refused_job_stops_the_sweep_before_anything_is_written():
    first = create_sweep("seed=1,2", "hydra.sweep.dir=sweep")
    first[0].folder.status.write_text("{")
    before = content(Path("sweep"))
    with pytest.raises(FolderError, match=r"status\.json"):
        create_sweep("seed=1,2,3", "hydra.sweep.dir=sweep")
    assert content(Path("sweep")) == before


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"axes": 1, "base": {}}'])
def test_a_broken_marker_is_named(text):
    create_sweep("seed=1,2", "hydra.sweep.dir=sweep")
    Path("sweep", SWEEP).write_text(text)
    with pytest.raises(FolderError, match=rf"{SWEEP}: cannot be read.*hydra.sweep.dir"):
        create_sweep("seed=1,2", "hydra.sweep.dir=sweep")


def test_a_file_where_the_sweep_should_be():
    Path("file").write_text("mine")
    for path in ("file", "file/below"):
        with pytest.raises(FolderError, match=r"hydra\.sweep\.dir=.*file"):
            create_sweep("seed=1,2", f"hydra.sweep.dir={path}")
    assert Path("file").read_text() == "mine"


def test_folders_named_by_the_clock_are_resumed_by_name():
    """The same command would name another folder a second later."""
    sweep = create_job_folders(_compose(("seed=1,2", "hydra.sweep.dir=s/${now:%Y}"), sweep=True))
    folder = sweep[0].folder.path.parent
    assert {job.resume_command for job in sweep} == {f"the same command with hydra.sweep.dir={folder}"}
    (single,) = create_job_folders(_compose(("hydra.run.dir=r/${now:%Y}",), sweep=False))
    assert single.resume_command == f"sft-lab exec {single.folder.path}"
    (named,) = create_job_folders(_compose(("hydra.run.dir=named",), sweep=False))
    assert named.resume_command == "the same command"
