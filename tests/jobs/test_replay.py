"""replay: the same world gives the same digits, and whatever differs is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from sft_lab import compose, config
from sft_lab.core.errors import ConfigError, FolderError, UserError
from sft_lab.core.io import flat, read_json
from sft_lab.core.run_dir import RunDir
from sft_lab.jobs import replay as replays
from sft_lab.jobs.environment import Difference, current, differences
from sft_lab.jobs.replay import lines, replay
from sft_lab.jobs.result_numbers import compare_results, read_result
from sft_lab.tracking import manifest

pytestmark = pytest.mark.slow

WORDS = ["model=tiny_random", "trainer=smoke", "dedup=exact", "decontaminate.method=exact", "threads=1",
         "tracking=local", "evaluation.prompts=[]"]  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder with a finished run and its rows."""
    here = tmp_path_factory.mktemp("replay")
    rows = [
        {"prompt": f"Say {n}, number {n}.", "completion": f"{n}, and {n * 7} is seven times it."} for n in range(150)
    ]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        compose([*WORDS, "dataset=file", "dataset.path=rows.jsonl"]).execute("run")
        same_tree(here / "run")
    return here


@pytest.fixture(scope="module")
def first(workspace: Path) -> replays.Replay:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        return replay(Path("run"), out=Path("again"))


@pytest.fixture
def copy(workspace: Path, first: replays.Replay, tmp_path: Path, monkeypatch) -> Path:
    """A copy of run and replay to change, in a new working folder."""
    for name in ("run", "again"):
        shutil.copytree(workspace / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(read_json(file) | changes))


def same_tree(folder: Path) -> None:
    """Note no commit, so that work on this repository while the tests run is no difference."""
    change(folder / "manifest.json", git={})


def rendered(done: replays.Replay) -> str:
    return "\n".join(lines(done))


# --- the same world --------------------------------------------------------------------------------------------------


def test_the_same_world_gives_the_same_digits(workspace: Path, first: replays.Replay) -> None:
    assert (first.environment, first.result, first.exact, first.changed, first.exit_code) == ([], [], True, False, 0)
    assert first.folder.path == workspace / "again"
    assert first.folder.state() == "finished"
    assert first.compared > 100
    assert read_json(workspace / "again" / "replay.json") == {
        "format": 1, "of": str(workspace / "run"), "overrides": [], "world": [], "result": [], "equal": True,
    }  # fmt: skip
    text = rendered(first)
    assert "Environment: the same" in text
    assert "Result: equal, to the last digit (" in text
    assert "stage results came from the store" in text


def test_a_new_store_computes_everything_anew(copy: Path) -> None:
    done = replay(Path("run"), ["store.path=fresh", "threads=1"])
    assert (done.environment, done.result, done.changed, done.exit_code) == ([], [], False, 0)
    stages = read_json(done.folder.manifest)["stages"]
    met = [stage["key"] for stage in stages if not stage["hit"]]
    assert set(met) == {stage["key"] for stage in stages}  # each was computed once


def test_a_job_inside_a_sweep(copy: Path) -> None:
    Path("sweep").mkdir()
    Path("run").rename("sweep/seed=42-0123456789ab")
    Path("sweep/sweep.json").write_text("{}")
    assert replay(Path("sweep/seed=42-0123456789ab"), out=Path("again")).result == []
    with pytest.raises(FolderError, match="a sweep of several runs"):
        replay(Path("sweep"))


def test_a_finished_replay_is_only_compared_again(copy: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in Path("again").rglob("*")}
    assert replay(Path("run"), out=Path("again")).result == []
    assert {file: file.stat().st_mtime_ns for file in Path("again").rglob("*")} == before


def test_the_last_digit_counts_in_the_same_world(copy: Path) -> None:
    """Stands in for a run that does not reproduce: the old result is another by one part in a million."""
    loss = read_json(Path("run/summary.json"))["eval/loss"]
    change(Path("run/summary.json"), **{"eval/loss": loss * (1 + 1e-6), "seconds": 1e9, "tokens_per_second": 7.0})
    done = replay(Path("run"), out=Path("again"))
    assert done.result == [Difference("summary.json eval/loss", loss * (1 + 1e-6), loss)]
    assert (done.environment, done.exit_code) == ([], 1)
    assert "this run does not reproduce" in rendered(done)


def test_in_another_world_losses_have_a_tolerance_and_differences_are_no_error(copy: Path) -> None:
    summary = read_json(Path("run/summary.json"))
    change(Path("run/manifest.json"), packages=manifest.versions() | {"torch": "1.0"}, threads=7)
    change(Path("run/summary.json"), **{"eval/loss": summary["eval/loss"] * 1.0009, "gap": 99.0})
    done = replay(Path("run"), out=Path("again"))
    assert [str(difference) for difference in done.environment or []] == [
        f"torch: was 1.0, is {manifest.versions()['torch']}", "threads: was 7, is 1",
    ]  # fmt: skip
    assert (done.result, done.exact, done.exit_code) == ([], False, 0)
    assert "losses within 0.1%, held-out rows within 1% or 0.05 nats, counts alike" in rendered(done)
    change(Path("run/summary.json"), **{"eval/loss": summary["eval/loss"] * 1.002, "train_rows": 3})
    done = replay(Path("run"), out=Path("again"))
    assert [difference.name for difference in done.result or []] == [
        "summary.json eval/loss",
        "summary.json train_rows",
    ]
    assert done.exit_code == 0
    assert "The environment changed too" in rendered(done)


def test_a_renamed_folder_and_a_replay_that_was_cut_off(copy: Path) -> None:
    """What SIGKILL leaves: status says running, half of the files, and replay.json from the beginning."""
    Path("run").rename("renamed [old]")
    for name in ("summary.json", "eval.parquet", "waterfall.json", "samples.jsonl"):
        Path("again", name).unlink()
    change(Path("again/status.json"), state="running")
    change(Path("again/replay.json"), result=None, equal=None)
    done = replay(Path("renamed [old]"), out=Path("again"))
    assert (done.environment, done.result, done.exit_code) == ([], [], 0)
    assert read_json(Path("again/replay.json"))["equal"] is True
    assert read_json(Path("again/replay.json"))["of"].endswith("renamed [old]")
    assert "equal" in rendered(done)


def test_an_edited_config_is_told(copy: Path) -> None:
    """What ran is not what stands in the folder now; so a new folder is needed, and differences are no surprise."""
    change(Path("run/manifest.json"), job="0123456789ab")
    done = replay(Path("run"), out=Path("again"))
    assert [difference.old for difference in done.environment or []] == ["0123456789ab"]
    assert done.exit_code == 0


# --- overrides, prepare, configs alone -------------------------------------------------------------------------------


def test_overrides_are_listed_and_change_what_is_expected(copy: Path) -> None:
    done = replay(Path("run"), ["trainer.learning_rate=0.05"])
    assert done.folder.path.parent.parent == copy / "outputs"
    assert done.environment == []
    assert {"summary.json eval/loss", "summary.json train/probe_loss"} <= {
        difference.name for difference in done.result or []
    }
    assert (done.changed, done.exit_code) == (True, 0)
    text = rendered(done)
    assert "Overrides: trainer.learning_rate=0.05" in text
    assert "a difference is expected" in text
    record = read_json(done.folder.path / "replay.json")
    assert (record["overrides"][0], record["equal"]) == ("trainer.learning_rate=0.05", False)
    rows = next(difference for difference in done.result or [] if difference.name.startswith("eval.parquet tuned/nll"))
    assert "11 of 11 differ, most at" in rows.name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "key=value"),
        ("=3", "key=value"),
        ("+seed=3", "key=value"),
        ("trainer.lr=3", "trainer"),
        ("sed=3", "did you mean seed?"),
        ("seed=x", "seed=x"),
        ("format=2", "reads format 1"),
        ("dedup=none", r"no other option.* keys of config.yaml.* promote RUN_DIR NAME.* dedup=none"),
        ("trainer.kind=lora", "sft-lab .experiment=NAME trainer=lora"),
        ("launch.kind=processes", "write launch=processes"),
        ("launch=serial,processes", "give one"),
        ("launch=nope", "no such option; available: processes, ray, serial, slurm"),
        ("trainer.learning_rate=-1", "above 0"),
        ("store.path=${oc.env:HOME}", "interpolation"),
    ],
)
def test_wrong_overrides(copy: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        replay(Path("run"), [override])
    assert not Path("outputs").exists()


def test_another_launcher_is_no_other_job(copy: Path) -> None:
    """The run of a cluster is replayed on this machine, with as many processes."""
    saved = OmegaConf.load("run/config.yaml")
    saved.launch = {"kind": "slurm", "partition": "gpu", "num_processes": 1, "num_machines": 1, "config_file": "ddp"}
    OmegaConf.save(saved, "run/config.yaml")
    done = replay(Path("run"), ["launch=processes", "launch.at_once=1"])
    new = config.load(done.folder.config).launch
    assert (type(new).__name__, new.config_file) == ("Processes", "ddp")
    assert (done.changed, done.environment, done.result) == (False, [], [])


def test_a_prepared_folder_is_prepared_again(copy: Path) -> None:
    config.load(Path("run/config.yaml")).prepare_only("data")
    same_tree(Path("data"))
    done = replay(Path("data"))
    assert (done.environment, done.result, done.exact, done.exit_code) == ([], [], True, 0)
    assert (done.folder.work(), done.folder.summary.exists(), done.folder.dataset.is_dir()) == ("prepare", False, True)
    flow = read_json(Path("data/waterfall.json"))
    flow["stages"][-1]["rows_kept"] += 1
    Path("data/waterfall.json").write_text(json.dumps(flow))
    again = replay(Path("data"), out=done.folder.path)
    assert [difference.name for difference in again.result or []] == [
        "waterfall.json tokenize, 1 of 5 differ, most at rows_kept"
    ]
    assert again.exit_code == 1


def test_a_config_alone_and_a_run_that_never_finished(copy: Path) -> None:
    """One replay for both: a finished folder is not run again."""
    Path("kept.yaml").write_text(Path("run/config.yaml").read_text())
    done = replay(Path("kept.yaml"), out=Path("again"))
    assert (done.environment, done.result, done.exit_code) == (None, None, 0)
    assert "This is only a config" in rendered(done)
    change(Path("run/status.json"), state="failed")
    done = replay(Path("run"), out=Path("again"))
    assert (done.environment, done.result, done.exit_code) == ([], None, 0)
    assert "The old run is not finished (failed)" in rendered(done)
    for file in ("status.json", "manifest.json"):
        Path("run", file).unlink()
    done = replay(Path("run"), out=Path("again"))
    assert (done.environment, done.result, done.exit_code) == (None, None, 0)
    assert "(not started)" in rendered(done)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_data_that_are_gone(copy: Path, workspace: Path) -> None:
    rows = workspace / "rows.jsonl"
    rows.rename(workspace / "away.jsonl")
    try:
        with pytest.raises(UserError, match=r"dataset\.path=.*rows\.jsonl"):
            replay(Path("run"))
        assert not Path("outputs").exists()
        (gone,) = differences(read_json(Path("run/manifest.json")), current(config.load(Path("run/config.yaml"))))
        assert gone.name == f"dataset.path={rows}"
        assert "cannot be read" in gone.new
    finally:
        (workspace / "away.jsonl").rename(rows)


def test_data_that_have_changed_are_a_difference_of_the_world(copy: Path, workspace: Path) -> None:
    rows = workspace / "rows.jsonl"
    before = rows.read_text()
    rows.write_text(before.replace("number 7", "number seven"))
    try:
        run = config.load(Path("run/config.yaml"))
        (difference,) = differences(read_json(Path("run/manifest.json")), current(run))
        assert difference.name == f"dataset.path={rows}"
        assert len(str(difference)) < 70 + len(difference.name)  # hashes are shortened
        with pytest.raises(FolderError, match="the data has changed"):
            replay(Path("run"), out=Path("again"))  # finished on the old rows
    finally:
        rows.write_text(before)


def test_folders_that_cannot_be_the_new_one(copy: Path) -> None:
    with pytest.raises(FolderError, match="is the run being replayed"):
        replay(Path("run"), out=Path("../" + copy.name + "/run"))
    shutil.copytree("run", "other")
    with pytest.raises(FolderError, match="has a run that is not a replay"):
        replay(Path("run"), out=Path("other"))
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("x")
    with pytest.raises(FolderError, match="choose another with --out"):
        replay(Path("run"), out=Path("mine"))
    with pytest.raises(FolderError, match="another config: seed was 42, is 7"):
        replay(Path("run"), ["seed=7"], out=Path("again"))


@pytest.mark.parametrize("name", ["status.json", "manifest.json", "summary.json", "eval.parquet", "metrics.jsonl"])
def test_a_broken_old_folder_is_told_before_anything_runs(copy: Path, name: str) -> None:
    Path("run", name).write_text("[{")
    with pytest.raises(FolderError, match="cannot be read"):
        replay(Path("run"))
    assert not Path("outputs").exists()


def test_sources_that_are_none(here: Path) -> None:
    Path("sweep").mkdir()
    Path("sweep/sweep.json").write_text("{}")
    Path("other.yaml").write_text("format: 2\n")
    for source, message in (
        ("nowhere", "no such folder"),
        (".", "no config.yaml"),
        ("sweep", "a sweep of several runs"),
        ("other.yaml", "reads format 1"),
    ):
        with pytest.raises(UserError, match=message):
            replay(Path(source))


def test_a_replay_that_fails_says_so(copy: Path) -> None:
    """Wrong input that only reading finds leaves nothing; the exit code is that of wrong input."""
    Path("broken.jsonl").write_text("{")
    done = replay(Path("run"), [f"dataset.path={copy}/broken.jsonl"])
    assert (done.exit_code, done.result, done.failure is not None) == (2, None, True)
    assert "the replay failed" in rendered(done)
    assert not Path("outputs").exists()


# --- the comparisons by themselves -----------------------------------------------------------------------------------


def test_manifests_side_by_side() -> None:
    old = {
        "git": {"commit": "a" * 40, "dirty": False},
        "packages": {"torch": "2", "gone": "1"},
        "hardware": {"cores": 2, "gpus": []},
        "threads": 2,
        "precision": "bf16",
    }
    assert differences(old, old) == []
    new = {
        "git": {"commit": "b" * 40, "dirty": True},
        "packages": {"torch": "3", "more": "1"},
        "hardware": {"cores": 4, "gpus": []},
        "threads": 4,
        "precision": "fp32",
    }
    assert [str(difference) for difference in differences(old, new)] == [
        "git commit: was aaaaaaaaaaaa, is bbbbbbbbbbbb",
        "uncommitted changes: was no, is yes",
        "torch: was 2, is 3",
        "gone: was 1, is absent",
        "hardware cores: was 2, is 4",
        "threads: was 2, is 4",
        "precision: was bf16, is fp32",
    ]
    assert differences({}, new) == []  # nothing noted, nothing to compare
    assert differences({"git": None, "packages": [], "hardware": "x"}, new) == []


def test_two_dirty_trees_are_not_known_to_be_one() -> None:
    dirty = {"git": {"commit": "a" * 40, "dirty": True}}
    assert [difference.name for difference in differences(dirty, dirty)] == ["uncommitted changes"]


def test_tolerances() -> None:
    old = {
        "summary.json eval/loss": {"": 2.0},
        "summary.json best_step": {"": 4},
        "summary.json steps": {"": 4},
        "eval.parquet tuned/nll": {"a": 10.0, "b": 0.001},
        "eval.parquet tuned/tokens": {"a": 5, "b": 1},
        "summary.json verdict": {"": "healthy"},
    }
    new = {
        "summary.json eval/loss": {"": 2.0019},
        "summary.json best_step": {"": 2},
        "summary.json steps": {"": 4},
        "eval.parquet tuned/nll": {"a": 10.09, "b": 0.04},
        "eval.parquet tuned/tokens": {"a": 5, "b": 1},
        "summary.json verdict": {"": "healthy"},
        "summary.json new": {"": 1},  # a later sft_lab tells more
    }
    assert compare_results(old, new, exact=False) == []
    assert [difference.name for difference in compare_results(old, new, exact=True)] == [
        "summary.json eval/loss", "summary.json best_step", "eval.parquet tuned/nll, 2 of 2 differ, most at a",
    ]  # fmt: skip
    for name, part, value in (
        ("summary.json eval/loss", "", 2.003),
        ("summary.json eval/loss", "", None),
        ("summary.json steps", "", 5),
        ("summary.json verdict", "", "overfitting"),
        ("eval.parquet tuned/nll", "a", 10.2),
        ("eval.parquet tuned/tokens", "b", 2),
    ):
        worse = {key: dict(group) for key, group in old.items()}
        worse[name][part] = value
        assert [difference.name.partition(",")[0] for difference in compare_results(old, worse, exact=False)] == [name]
    fewer = {key: group for key, group in old.items() if key != "summary.json steps"}
    assert compare_results(old, fewer, exact=False) == [Difference("summary.json steps", 4, None)]


def test_every_number_is_read(workspace: Path) -> None:
    """Times and nothing else are left out of the summary; losses, counts and rows are all there."""
    numbers = read_result(RunDir(workspace / "run"), "run")
    summary = {name.removeprefix("summary.json ") for name in numbers if name.startswith("summary.json ")}
    written = set(flat(read_json(workspace / "run/summary.json")))
    assert written - summary - {"advice.says"} == {
        "format", "tokens_per_second", "watching_share", "train_seconds", "measuring_seconds", "seconds",
    }  # fmt: skip
    rules = numbers["summary.json evidence"][""]
    assert rules
    assert all(rule.keys() == {"rule", "value", "limit"} for rule in rules)  # sentences may be worded anew
    assert len(numbers["eval.parquet tuned/nll"]) == len(numbers["eval.parquet base/nll"]) == 11
    assert {"metrics.jsonl train/loss", "metrics.jsonl eval/loss", "waterfall.json dedup.exact",
            "waterfall.json held-out template", "dropped.parquet", "held-out fingerprint"} <= set(numbers)  # fmt: skip
