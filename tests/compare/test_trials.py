"""Jobs that are trials of a search: loss by trial, the importance of each axis, and those that were pruned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from job_folders import nats_of, write_job

from sft_lab.compare import analyze, claims, collect_jobs, write_comparison
from sft_lab.compare.trials import SearchHistory, SearchTrial
from sft_lab.core.errors import FolderError
from sft_lab.core.io import read_json, write_json

RATES = [1e-5, 3e-5, 1e-4, 2e-4, 3e-4, 5e-4, 7e-4, 1e-3, 2e-3, 4e-3, 8e-3]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search over a rate, its last trial pruned, and a failed one without a folder."""
    root = tmp_path_factory.mktemp("search") / "search-1a2b"
    trials = []
    for number, rate in enumerate(RATES):
        job = f"learning_rate={rate:g}"
        is_last = rate == RATES[-1]
        folder = write_job(
            root / job,
            None if is_last else nats_of(1 + 0.01 * abs(number - 6)),
            state="pruned" if is_last else "finished",
            trainer__learning_rate=rate,
        )
        if is_last:
            write_json(folder.status, {"state": "pruned", "reason": "at 25% of the training", "work": "run"})
        loss = 2.3 if is_last else read_json(folder.summary)["eval/loss"]
        outcome = "pruned" if is_last else "finished"
        trials.append({"number": number, "job": job, "outcome": outcome, "loss": loss, "values": {}, "reason": ""})
    trials.append({"number": 99, "job": "", "outcome": "failed", "loss": None, "values": {}, "reason": "bad"})
    importance = {"trainer.weight_decay": 0.25, "trainer.learning_rate": 0.75}
    record = {"sampler": "tpe", "pruner": "halving", "measure": "eval/loss", "importance": importance, "trials": trials}
    write_json(root / "search.json", record)
    return root


def test_the_page_shows_loss_by_trial_and_importance(sweep: Path) -> None:
    html = write_comparison(analyze(collect_jobs([sweep])), sweep).read_text()
    section = html.partition("<h2>The search</h2>")[2].partition("</section>")[0]
    assert "12 trials, proposed by tpe: 10 finished, 1 pruned, 1 failed." in section
    assert len(re.findall('<g class="dot job', section)) == 11
    assert section.count("<title>best so far</title>") == 1
    assert re.findall(r"<bdi>([\w.]+)</bdi></td><td class=\"right\">(\d+%)", section) == [
        ("learning_rate", "75%"),
        ("trainer.weight_decay", "25%"),
    ]
    assert "at 25% of the training" in html  # in the table


def test_a_search_is_confirmed_where_others_would_be_given_a_command(tmp_path: Path) -> None:
    for number, rate in enumerate(RATES[:2]):
        write_job(tmp_path / f"{rate}", nats_of(1 + number / 1000), trainer__learning_rate=rate)
    trial = {"number": 0, "job": f"{RATES[0]}", "outcome": "finished", "loss": 2.0, "values": {}, "reason": ""}
    write_json(tmp_path / "search.json", {"measure": "eval/loss", "trials": [trial]})
    headline = claims.headline(analyze(collect_jobs([tmp_path])))
    assert headline.badge == "no clear winner"
    assert headline.next_step == "To settle it, run the same search again with --confirm 3."


def test_the_page_names_the_objective_that_the_search_learned_from(sweep: Path) -> None:
    record = read_json(sweep / "search.json")
    try:
        write_json(sweep / "search.json", record | {"measure": "gap"})
        html = write_comparison(analyze(collect_jobs([sweep])), sweep).read_text()
    finally:
        write_json(sweep / "search.json", record)
    section = html.partition("<h2>The search</h2>")[2].partition("</section>")[0]
    assert 'aria-label="Loss of each trial (gap), and the best so far"' in section
    assert ">gap<" in re.sub(r"<!--(.*?)-->", "", section)
    assert "nats per token" not in section


def test_many_values_of_an_axis_are_a_line_and_few_are_groups(sweep: Path) -> None:
    html = write_comparison(analyze(collect_jobs([sweep])), sweep).read_text()
    section = html.partition("<h2>The effect of each axis</h2>")[2].partition("</section>")[0]
    assert 'aria-label="Held-out loss by learning_rate"' in section
    assert '<table class="small levels">' not in section
    few = write_comparison(analyze(collect_jobs([sweep / f"learning_rate={rate:g}" for rate in RATES[:3]])), sweep)
    assert '<table class="small levels">' in few.read_text()


def test_the_comparison_as_data_has_the_search(sweep: Path) -> None:
    write_comparison(analyze(collect_jobs([sweep])), sweep)
    content = read_json(sweep / "compare.json")
    assert content["search"]["importance"] == {"trainer.learning_rate": 0.75, "trainer.weight_decay": 0.25}
    assert len(content["search"]["trials"]) == 12
    assert any(note.startswith("1 job pruned: ") for note in content["notes"])
    assert not any("may still change" in note for note in content["notes"])


def test_the_best_so_far_is_a_staircase_of_finished_trials() -> None:
    ends = [("finished", 3.0), ("pruned", 1.0), ("finished", 2.0), ("failed", None), ("finished", 2.5)]
    trials = [SearchTrial(number, "", outcome, loss) for number, (outcome, loss) in enumerate(ends, start=1)]
    assert SearchHistory("tpe", "none", "eval/loss", trials).best_so_far == [(1, 3.0), (3, 3.0), (3, 2.0), (5, 2.0)]
    assert SearchHistory("tpe", "none", "eval/loss", trials[1:2]).best_so_far == []


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    write_job(tmp_path / "job", nats_of())
    write_json(tmp_path / "search.json", {"trials": [{"number": "one"}]})
    with pytest.raises(FolderError, match=r"search\.json: trials\[0\]"):
        analyze(collect_jobs([tmp_path]))
