"""Tasks of lm-evaluation-harness on base and tuned model: a task of our own over a local file, without a network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tracking.test_wandb import inspect
from training.test_new_tokens import base_model

from sft_lab.cli.main import main
from sft_lab.core.tolerant_readers import read

TASK = """\
task: signs
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture
def task(here: Path) -> Path:
    """A task in the working folder: which of two letters comes first, twenty times."""
    rows = [{"question": f"a or {chr(98 + n)}?", "choices": ["a", chr(98 + n)], "answer": n % 2} for n in range(20)]
    (here / "signs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (here / "signs.yaml").write_text(TASK.format(file=here / "signs.jsonl"))
    return here / "signs.yaml"


def scored(folder: Path, prefix: str = "") -> dict[str, Any]:
    return {key: value for key, value in read(folder / "summary.json").items() if key.startswith(f"{prefix}tasks.")}


@pytest.mark.slow
def test_both_models_are_scored_and_compared(
    task: Path, tiny: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from sft_lab.tools.finished_run import open_run

    assert main(["-m", *tiny[:-1], "tracking=wandb", "trainer=smoke,lora", "trainer.learning_rate=3e-2",
                 "hydra.sweep.dir=s", "trainer.max_steps=4"]) == 0  # fmt: skip
    whole, adapter = sorted((path.parent for path in Path("s").glob("*/config.yaml")),
                            key=lambda job: (job / "model/adapter_config.json").exists())  # fmt: skip
    before = read(whole / "summary.json")
    capsys.readouterr()
    for job in (whole, adapter):
        assert main(["evaluate", str(job), "--tasks", "signs.yaml"]) == 0
        shown = capsys.readouterr()
        assert "signs   acc_norm" in shown.out
        assert "git repository" not in shown.err
        assert "evaluate: signs.yaml on the base model" in shown.err
        assert scored(job).keys() == {"tasks.signs.acc", "tasks.signs.acc_norm"}
        assert scored(job, "base/").keys() == {"base/tasks.signs.acc", "base/tasks.signs.acc_norm"}
        assert "<td>signs.acc_norm</td>" in (job / "report.html").read_text()

        finished = open_run(job)  # the harness by hand on the same weights
        for model, prefix in ((finished.load_base(four_bit=False).eval(), "base/"), (finished.load_tuned(), "")):
            results = lm_eval.simple_evaluate(
                HFLM(pretrained=model, tokenizer=finished.tokenizer, batch_size=3), tasks=[str(task)],
                task_manager=TaskManager(include_defaults=False), bootstrap_iters=0,
            )["results"]["signs"]  # fmt: skip
            assert scored(job, prefix)[f"{prefix}tasks.signs.acc"] == results["acc,none"]
    assert {key: value for key, value in read(whole / "summary.json").items() if "tasks." not in key} == before
    kept = read(whole / "tasks.json")["signs"]
    assert kept["tuned"]["questions"] == 20
    assert 0 < kept["base"]["metrics"]["acc"]["stderr"] < 1

    assert main(["compare", "s", "--rank-by", "tasks.signs.acc"]) == 0
    record = json.loads(Path("s/compare.json").read_text())
    values = [job["summary"]["tasks.signs.acc"] for job in record["jobs"]]
    assert values == sorted(values, reverse=True)
    assert "signs.acc_norm" in capsys.readouterr().out

    tracking_id = read(whole / "manifest.json")["tracking_id"]
    (mirrored,) = Path("s/wandb").glob(f"offline-run-*-{tracking_id}-eval")
    records = inspect(mirrored)
    assert next(record["run"] for record in records if record["type"] == "run")["job_type"] == "evaluate"
    assert "tasks.signs.acc" in json.dumps(records)

    # What was added afterwards is no part of the run: a replay is not held against it.
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert main(["replay", str(whole), "--out", "again"]) == 0
    assert "tasks." not in capsys.readouterr().out

    assert main(["evaluate", str(whole), "--tasks", "signs.yaml", "--limit", "5", "--apply-chat-template"]) == 0
    assert read(whole / "tasks.json")["signs"]["tuned"]["questions"] == 5


@pytest.mark.slow
def test_an_adapter_with_added_tokens_asked_in_its_template(task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval")
    base = base_model(Path("base").absolute(), "llama", 0)
    assert main(["model=local", f"model.name_or_path={base}", "template=chatml", "trainer=lora", "dedup=exact",
                 "decontaminate.method=exact", "tracking=local", "trainer.max_steps=1", "dataset.turns=first",
                 "filter.length.max_tokens=200", "split.max_eval_tokens=200", "hydra.run.dir=run"]) == 0  # fmt: skip
    capsys.readouterr()
    options = ["--limit", "4", "--num-fewshot", "1", "--apply-chat-template"]
    assert main(["evaluate", "run", "--tasks", "signs.yaml", *options]) == 0
    assert "signs   acc_norm" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--tasks", "hellaswga"], 2, "hellaswga: no such task of lm-evaluation-harness; did you mean hellaswag?"),
        (["--tasks", "nowhere.yaml"], 2, "--tasks nowhere.yaml: no such file"),
        (["--tasks", " , "], 2, "--tasks: is empty"),
        (["--tasks", "signs.yaml", "--limit", "0"], 2, "--limit 0: must be at least 1"),
        (["--tasks", "broken.yaml"], 1, "evaluate: lm-evaluation-harness failed ("),
        (["--tasks", "arc_easy"], 1, "tasks with data on the Hub need a network"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_one_line(
    options: list[str], code: int, message: str, task: Path, tiny: list[str], capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    pytest.importorskip("lm_eval")
    run = tmp_path_factory.getbasetemp() / "evaluated_run"
    if not run.exists():
        assert main([*tiny, "trainer.max_steps=1", f"hydra.run.dir={run}"]) == 0
    before = read(run / "summary.json")
    Path("broken.yaml").write_text(TASK.format(file="nowhere.jsonl"))
    capsys.readouterr()
    assert main(["evaluate", str(run), *options]) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert message in last
    assert "Traceback" not in last
    assert read(run / "summary.json") == before
    assert not (run / "tasks.json").exists()


def test_without_the_harness_the_command_says_what_to_install(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as if it were not installed
    assert main(["evaluate", "run"]) == 2
    assert capsys.readouterr().err == (
        "sft-lab: evaluate: lm-evaluation-harness is not installed; run: pip install 'sft_lab[eval]'\n"
    )
