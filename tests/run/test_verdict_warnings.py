"""A verdict judges the loss curve; what makes a good one misleading stands beside it, wherever it is shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import job_folders
import pytest

from sft_lab.cli.main import main
from sft_lab.cli.output import result_lines
from sft_lab.core.io import read_json
from sft_lab.core.verdict_warnings import verdict_with_warnings
from sft_lab.report.card import write_model_card

WORDS = "prompted base model is better"
SENTENCE = "The prompted base model is better than the tuned one: "
# The rate is too small to change any weight, and the tiny model of seed 7 is a little better behind a prompt, unlike
# that of seed 6.
UNCHANGED = ["trainer.learning_rate=1e-9", "evaluation.outputs=0", "evaluation.general=null", "tracking=wandb",
             "tracking.mode=offline"]  # fmt: skip


def sent_to_wandb(run: Path) -> dict[str, Any]:
    """Return the values that an offline run's record sends as its summary, by key."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    records = [json.loads(line) for line in lines if line.strip()]
    return {key: value for record in records if record["type"] == "summary" for key, value in values_of(record)}


def values_of(record: dict[str, Any]) -> list[tuple[str, Any]]:
    return [*record["summary"]["update"].items()]


@pytest.mark.slow
def test_a_run_that_a_prompt_beats_is_marked_wherever_its_verdict_is(
    here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-m", *tiny, *UNCHANGED, "seed=6,7", "hydra.sweep.dir=sweep"]) == 0
    shown = capsys.readouterr()
    assert [WORDS in line for line in shown.err.splitlines() if "held-out loss" in line and "finished" in line] == [
        False,
        True,
    ]
    assert shown.out.count(WORDS) == 1
    plain, marked = sorted(here.glob("sweep/seed_*"))
    assert [read_json(job / "summary.json")["prompted/is_better"] for job in (plain, marked)] == [False, True]
    assert SENTENCE not in (plain / "report.html").read_text()
    head, _, _ = (marked / "report.html").read_text().partition('<dl class="numbers">')
    assert SENTENCE in head
    assert main(["compare", "sweep"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if WORDS in line and "finished" in line]
    assert " 7 " in row
    assert (here / "sweep/compare.html").read_text().count(f">{WORDS}</div>") == 1
    assert main(["runs", "sweep"]) == 0
    assert " ".join(capsys.readouterr().out.split()).count("better") == 1
    runs = {run.name.split("-", 3)[3].partition("-")[0]: run for run in here.glob("sweep/wandb/offline-run-*")}
    for job, expected in ((plain, False), (marked, True)):
        assert sent_to_wandb(runs[job.name.rpartition("-")[2]])["prompted/is_better"] is expected


HEALTHY = {
    "verdict": "healthy", "evidence": [], "base/eval_loss": 3.0, "base/eval_bits_per_byte": 1.2, "eval/loss": 2.5,
    "eval/bits_per_byte": 1.0, "prompted/eval_bits_per_byte": 0.9, "outputs/echoed_share": 0.75,
    "eval_rows": 9, "steps": 4, "train_rows": 20, "train_tokens": 300, "tokens_per_second": 7.0, "seconds": 3.0,
}  # fmt: skip


def test_a_healthy_run_has_its_warnings_below_the_verdict(tmp_path: Path) -> None:
    """Of an older version's folder too, which has the numbers alone."""
    lines = result_lines(HEALTHY)
    verdict = next(index for index, line in enumerate(lines) if line.startswith("Verdict: healthy"))
    assert lines[verdict + 1 : verdict + 3] == [
        f"Warning: {SENTENCE}0.9000 against 1.0000 bits per byte.",
        "Warning: 75% of the tuned model's answers only repeat the question.",
    ]
    assert verdict_with_warnings(HEALTHY) == f"healthy; {WORDS}; answers repeat the question"
    folder = job_folders.write_job(tmp_path / "run", job_folders.nats_of(), summary=HEALTHY)
    card = write_model_card(folder, "owner/base").read_text()
    assert f"**{SENTENCE}0.9000 against 1.0000 bits per byte.**" in card.partition("## Metrics")[0]


@pytest.mark.parametrize(
    "numbers",
    [
        {"prompted/eval_bits_per_byte": 1.0, "outputs/echoed_share": 0.25},
        {"prompted/eval_bits_per_byte": None, "outputs/echoed_share": None},
        {"prompted/eval_bits_per_byte": "low", "outputs/echoed_share": "all"},
        {"eval/bits_per_byte": float("nan"), "outputs/echoed_share": float("nan")},
    ],
)
def test_no_warning_without_a_number_that_says_so(numbers: dict[str, Any]) -> None:
    assert verdict_with_warnings(HEALTHY | numbers) == "healthy"


def test_a_run_without_a_verdict_has_none() -> None:
    assert verdict_with_warnings({}) == ""
