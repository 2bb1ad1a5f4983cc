"""The straight line, end to end, with real small parts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from patience import wait_until

from sft_lab import compose
from sft_lab.cli.main import main
from sft_lab.core.io import read_json

FILES = {
    "config.yaml", "manifest.json", "status.json", "waterfall.json", "dropped.parquet", "data.json", "metrics.jsonl",
    "eval.parquet", "summary.json", "samples.jsonl", "outputs.jsonl", "figures", "report.html", "model", "run.log",
    ".hydra",
}  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def computed(folder: Path) -> list[str]:
    """The stages that this run computed rather than found."""
    return [entry["stage"] for entry in read_json(folder / "manifest.json")["stages"] if not entry["hit"]]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run, shared by the tests that only look at it."""
    folder = tmp_path_factory.mktemp("done") / "run"
    words = ["model=tiny_random", "trainer=smoke", "dedup=exact", "decontaminate.method=exact", "threads=1"]
    assert main([*words, "tracking=local", f"hydra.run.dir={folder}"]) == 0
    return folder


def test_the_run_folder_is_whole(done: Path) -> None:
    assert {path.name for path in done.iterdir()} == FILES
    assert read_json(done / "status.json")["state"] == "finished"
    for name in ("manifest.json", "status.json", "waterfall.json", "summary.json"):
        assert read_json(done / name)["format"] == 1
    assert (done / "model" / "adapter_model.safetensors").exists()
    assert (done / "model" / "README.md").exists()


def test_the_waterfall_adds_up(done: Path) -> None:
    flow = read_json(done / "waterfall.json")
    assert [stage["stage"] for stage in flow["stages"]] == [
        "load", "split", "filter.answered", "filter.length", "decontaminate", "dedup.exact", "template", "tokenize",
    ]  # fmt: skip
    for side in ("stages", "held_out"):
        for before, after in zip(flow[side], flow[side][1:], strict=False):
            assert after["rows_in"] == before["rows_kept"]
            assert after["tokens_in"] == before["tokens_kept"]
        for stage in flow[side]:
            assert stage["rows_kept"] + sum(stage["dropped"].values()) == stage["rows_in"]
    held_out = next(stage for stage in flow["stages"] if stage["stage"] == "split")["dropped"]["held_out"]
    assert flow["held_out"][0]["rows_in"] == held_out
    rows = sum(sum(stage["dropped"].values()) for side in ("stages", "held_out") for stage in flow[side])
    assert pq.read_table(done / "dropped.parquet").num_rows == rows


def test_the_numbers_are_one_measure(done: Path) -> None:
    summary, events = read_json(done / "summary.json"), lines(done / "metrics.jsonl")
    evaluations = [event for event in events if "eval/loss" in event]
    table = pq.read_table(done / "eval.parquet").to_pydict()
    assert summary["eval/loss"] == pytest.approx(sum(table["tuned/nll"]) / sum(table["tuned/tokens"]))
    assert summary["base/eval_loss"] == pytest.approx(sum(table["base/nll"]) / sum(table["base/tokens"]))
    assert evaluations[0]["step"] == 0
    assert evaluations[0]["eval/loss"] == pytest.approx(summary["base/eval_loss"])
    assert evaluations[-1]["step"] == summary["steps"] == 4
    assert evaluations[-1]["eval/loss"] == summary["eval/loss"]
    assert summary["gap"] == pytest.approx(summary["eval/loss"] - summary["train/probe_loss"])
    assert summary["objective"] == summary["eval/bits_per_byte"]
    assert len({event["step"] for event in evaluations}) == len(evaluations)


def test_saved_weights_have_the_reported_loss(done: Path) -> None:
    """Load model/ from disk and measure it anew."""
    import peft

    from sft_lab.config import load
    from sft_lab.core.context import StageContext
    from sft_lab.evaluation.heldout import score

    run = load(done / "config.yaml")
    context = StageContext(load_tokenizer=lambda: run.model.load_tokenizer(StageContext()))
    prepared = run.prepare(context)
    model = peft.PeftModel.from_pretrained(run.model.load(context, run.seed), done / "model")
    measured = score(model, prepared.held_out.tokens, prepared.held_out.answer_bytes)
    assert measured.loss == pytest.approx(read_json(done / "summary.json")["eval/loss"], abs=1e-5)


def test_the_report_asks_nobody_for_anything(done: Path) -> None:
    page = (done / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", page)
    assert "filter.answered" in page


def test_finished_means_untouched(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    words = ["model=tiny_random", "trainer=smoke", "dedup=exact", "decontaminate.method=exact", "threads=1"]
    assert main([*words, "tracking=local", f"hydra.run.dir={done}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*")} == before


@pytest.mark.slow
def test_a_second_run_computes_no_data_stage(here: Path, tiny: list[str]) -> None:
    words = [*tiny, "trainer.max_steps=1", f"store.path={here / 'store'}"]
    assert main([*words, "hydra.run.dir=a"]) == 0
    assert main([*words, "hydra.run.dir=b"]) == 0
    assert {"load", "encode", "filter.answered", "dedup.exact", "base"} <= set(computed(Path("a")))
    assert computed(Path("b")) == []
    one, two = (read_json(Path(name) / "summary.json") for name in "ab")
    for key in ("eval/loss", "train/loss", "base/eval_loss", "train/probe_loss", "eval/bits_per_byte"):
        assert one[key] == two[key]
    assert (
        read_json(Path("a/manifest.json"))["held_out_fingerprint"]
        == read_json(Path("b/manifest.json"))["held_out_fingerprint"]
    )


def test_exec_runs_a_saved_config_to_the_same_numbers(done: Path, here: Path) -> None:
    again = here / "again"
    again.mkdir()
    (again / "config.yaml").write_text((done / "config.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    assert main(["exec", str(again)]) == 0
    assert read_json(again / "summary.json")["eval/loss"] == read_json(done / "summary.json")["eval/loss"]


@pytest.mark.slow
def test_from_python_it_is_the_same_run(done: Path, here: Path, tiny: list[str]) -> None:
    summary = compose(tiny).execute("run")
    assert summary["eval/loss"] == read_json(done / "summary.json")["eval/loss"]
    assert {path.name for path in Path("run").iterdir()} == FILES - {".hydra"}  # no command line
    before = Path("run/summary.json").stat().st_mtime_ns
    assert main(["exec", "run"]) == 0
    assert Path("run/summary.json").stat().st_mtime_ns == before  # finished: left as it is


def test_held_out_rows_do_not_move_with_the_limit(here: Path, tiny: list[str]) -> None:
    fingerprints = set()
    for limit in (60, 120):
        run = compose([*tiny, f"dataset.limit={limit}"])
        from sft_lab.core.context import StageContext

        context = StageContext(load_tokenizer=lambda run=run: run.model.load_tokenizer(StageContext()))
        prepared = run.prepare(context)
        fingerprints.add(prepared.sides.fingerprint)
        assert prepared.train_flow.stages[1]["rows_kept"] == limit
        assert prepared.train_flow.stages[0]["dropped"]["over_limit"] > 0
    assert len(fingerprints) == 1


def test_without_held_out_rows_nothing_is_judged(here: Path, tiny: list[str]) -> None:
    words = [*tiny, "split.eval_share=0", "evaluation.prompts=[]", "trainer.max_steps=2", "hydra.run.dir=run"]
    assert main(words) == 0
    summary = read_json(Path("run/summary.json"))
    assert summary["verdict"] == "not_judged"
    assert summary["eval/loss"] is None
    assert summary["gap"] is None


@pytest.mark.slow
def test_a_run_too_short_to_log_anything(here: Path, tiny: list[str]) -> None:
    words = [*tiny, "split.eval_share=0", "evaluation.prompts=[]", "trainer.max_steps=2", "trainer.logging_steps=9"]
    assert main([*words, "hydra.run.dir=run"]) == 0
    summary = read_json(Path("run/summary.json"))
    assert summary["train/loss"] is None
    assert summary["train_tokens"] > 0


def test_every_row_gone_is_a_failed_job_that_says_so(
    here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, "filter=length", "filter.length.min_tokens=1000", "hydra.run.dir=run"]) == 1
    assert "no training rows are left" in capsys.readouterr().err
    status = read_json(Path("run/status.json"))
    assert status["state"] == "failed"
    assert "no training rows are left" in status["error"]
    assert "JobError" in status["traceback"]


def test_an_unreadable_source_leaves_nothing_behind(
    here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("rows.jsonl").write_text('{"conversations": []}\n{"conversations": [\n')
    words = [*tiny, "dataset=file", "dataset.path=rows.jsonl", "hydra.run.dir=run"]
    assert main(words) == 2
    assert "rows.jsonl, line 2" in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.slow
def test_a_sweep_runs_each_job_once_and_names_every_failure(
    here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["-m", *tiny, "trainer.max_steps=1", "evaluation.prompts=[]", "filter=length", "hydra.sweep.dir=sweep"]
    grid = "filter.length.min_tokens=0,10,900,1000"
    assert main([*sweep, grid]) == 1
    said = capsys.readouterr().err
    assert said.count("no training rows are left") >= 2
    states = {path.parent.name: read_json(path)["state"] for path in Path("sweep").glob("*/status.json")}
    assert sorted(states.values()) == ["failed", "failed", "finished", "finished"]
    finished = [Path("sweep") / name for name, state in states.items() if state == "finished"]
    before = [(folder / "summary.json").stat().st_mtime_ns for folder in finished]
    # Grown and reordered: what is finished stays as it is.
    assert main([*sweep, "filter.length.min_tokens=10,5,0"]) == 0
    assert [(folder / "summary.json").stat().st_mtime_ns for folder in finished] == before
    assert len(list(Path("sweep").glob("*/status.json"))) == 5


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(here: Path, tiny: list[str]) -> None:
    """SIGKILL in the middle of training; the same command goes on from the checkpoint to the undisturbed numbers."""
    words = [*tiny, "trainer.max_steps=48", "trainer.save_steps=4", "trainer.eval_steps=8", "evaluation.prompts=[]"]
    assert main([*words, "hydra.run.dir=whole"]) == 0
    command = [sys.executable, "-m", "sft_lab", *words, "hydra.run.dir=cut"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    metrics = Path("cut/metrics.jsonl")
    wait_until(lambda: metrics.exists() and any(event["step"] >= 10 for event in lines_so_far(metrics)), process)
    process.kill()
    process.wait()
    assert read_json(Path("cut/status.json"))["state"] == "running"
    assert main([*words, "hydra.run.dir=cut"]) == 0
    assert "resuming from checkpoint-" in Path("cut/run.log").read_text()
    whole, cut = (read_json(Path(name) / "summary.json") for name in ("whole", "cut"))
    for key in ("eval/loss", "train/loss", "train/probe_loss", "best_step", "steps", "train_tokens", "verdict"):
        assert cut[key] == whole[key], key
    timed = "tokens_per_second"
    events = [[{**event, timed: 0} for event in lines(Path(name) / "metrics.jsonl")] for name in ("cut", "whole")]
    assert events[0] == events[1]


def lines_so_far(path: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
    ]


@pytest.mark.slow
def test_packing_trains_and_is_measured_the_same_way(here: Path, tiny: list[str]) -> None:
    words = [*tiny, "trainer.packing=true", "trainer.max_length=1280", "trainer.max_steps=2", "evaluation.prompts=[]"]
    assert main([*words, "store.path=store", "hydra.run.dir=packed"]) == 0
    assert list((here / "store").glob("encode/*/table.arrow"))
    assert not list((here / "store").glob("*/*/cache*"))  # blocks are this run's, and the store everybody's
    assert main([*words, "trainer.packing=false", "hydra.run.dir=apart"]) == 0
    packed, apart = (read_json(Path(name) / "summary.json") for name in ("packed", "apart"))
    assert packed["base/eval_loss"] == apart["base/eval_loss"]
    assert packed["eval_rows"] == apart["eval_rows"]
    assert packed["train_tokens"] > apart["train_tokens"]  # two blocks against four rows


@pytest.mark.slow
def test_python_m_works_in_a_process_of_its_own(here: Path, tiny: list[str]) -> None:
    words = [*tiny, "trainer.max_steps=1", "evaluation.prompts=[]", "hydra.run.dir=run"]
    done = subprocess.run(
        [sys.executable, "-m", "sft_lab", *words], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Verdict: " in done.stdout
    assert "Warning" not in done.stderr
    assert "Report: " in done.stdout
