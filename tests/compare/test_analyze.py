"""Jobs of any state side by side: the table, what is claimed, compare.json."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest
from job_folders import ROWS, TOKENS, nats_of, write_grid, write_job

from sft_lab.cli.main import main
from sft_lab.compare import Comparison, analyze, claims, collect_jobs, job_table, print_comparison, write_comparison
from sft_lab.compare.html_page import render_page
from sft_lab.compare.notes import notes_on
from sft_lab.compare.scores import Measure
from sft_lab.compare.uncertainty import Claim
from sft_lab.compare.write import to_json
from sft_lab.config import compose
from sft_lab.core.errors import FolderError
from sft_lab.core.io import read_json, write_json, write_text


def analyze_folders(*paths: Path) -> Comparison:
    return analyze(collect_jobs(list(paths)))


def text_of(comparison: Comparison) -> str:
    headline = claims.headline(comparison)
    return " ".join([headline.badge, *headline.lines(), *notes_on(comparison)])


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_grid(tmp_path_factory.mktemp("grid") / "sweep-1a2b")


def test_a_grid_of_twelve_jobs(grid):
    comparison = analyze_folders(grid)
    assert comparison.axes == ["dedup", "trainer.learning_rate", "seed"]
    assert len(comparison.jobs) == 12
    assert [len(setting.jobs) for setting in comparison.settings] == [2] * 6
    assert comparison.row_count == ROWS
    assert comparison.measure == Measure.LOSS
    assert comparison.best is not None
    assert comparison.best.axes["trainer.learning_rate"] == 1e-3
    rate, dedup, seed = comparison.effects
    assert [rate.axis, dedup.axis, seed.axis] == ["trainer.learning_rate", "dedup", "seed"]
    assert [level.value for level in rate.levels] == [1e-4, 3e-4, 1e-3]
    assert rate.best.value == 1e-3
    assert rate.range == pytest.approx(0.1, abs=0.02)  # 5% of 2
    assert rate.difference is not None
    assert rate.difference.claim == Claim.BEYOND_SPREAD
    assert dedup.range < 0.01
    assert all(effect.is_matched for effect in comparison.effects)


def test_two_equal_settings_in_front_have_no_winner(grid):
    """dedup changes nothing in the grid, so its two options with the best rate cannot be distinguished."""
    comparison = analyze_folders(grid)
    assert comparison.winner is None
    headline = claims.headline(comparison)
    assert headline.badge == "no clear winner"
    assert re.search(
        r"the base model \(95%: \S+ to \S+\)\. The next, .*, within the noise \(95%: −", text_of(comparison)
    )
    assert "learning_rate changed the loss most, by 0." in text_of(comparison)
    assert "between 0.001 (lowest) and 0.0001 (highest); then dedup 0.00" in text_of(comparison)
    assert "the rows that measure it also chose it" in text_of(comparison)
    assert headline.next_step == "To settle it, train each of them with at least 3 seeds."
    assert " is best" not in text_of(comparison)


def test_a_setting_that_leads_all_others_wins(tmp_path):
    for rate, worse in ((1e-3, 1.0), (1e-4, 1.03), (1e-5, 1.06)):
        write_job(tmp_path / f"{rate}", nats_of(worse), trainer__learning_rate=rate)
    comparison = analyze_folders(tmp_path)
    assert comparison.winner is not None
    assert comparison.winner.axes == {"trainer.learning_rate": 1e-3}
    assert claims.headline(comparison).badge == "likely better"  # one seed: it rests on an assumed spread
    assert "assumed to be 0.35%" in text_of(comparison)


def test_three_seeds_each_are_compared_over_seeds(tmp_path):
    for rate, worse in ((1e-3, 1.0), (1e-4, 1.03)):
        for seed in (1, 2, 3):
            write_job(tmp_path / f"{rate}-{seed}", nats_of(worse, seed), trainer__learning_rate=rate, seed=seed)
    comparison = analyze_folders(tmp_path)
    assert to_json(comparison)["winner"]["claim"] == "differs_over_seeds"
    assert claims.headline(comparison).badge == "better over seeds"


def test_jobs_that_differ_by_their_seed_alone_are_one_setting(tmp_path):
    for seed in range(4):
        write_job(tmp_path / str(seed), nats_of(1.0, seed), seed=seed)
    comparison = analyze_folders(tmp_path)
    assert comparison.winner is None
    assert len(comparison.settings) == 1
    assert "one setting its 4 seeds average" in text_of(comparison)


def test_the_same_run_twice_is_no_replicate(tmp_path):
    for name in ("a", "b"):
        write_job(tmp_path / name, nats_of())
    comparison = analyze_folders(tmp_path)
    assert len(comparison.settings[0].jobs) == 1
    assert comparison.spread.replicates == 0


def test_another_number_of_processes_is_another_setting(tmp_path):
    for processes, worse in ((1, 1.0), (2, 1.03)):
        for seed in (7, 8):
            write_job(tmp_path / f"{processes}-{seed}", nats_of(worse, seed), seed=seed,
                      launch={"kind": "serial", "num_processes": processes})  # fmt: skip
    comparison = analyze_folders(tmp_path)
    assert comparison.axes == ["launch.num_processes", "seed"]
    assert [(setting.axes, len(setting.jobs)) for setting in comparison.settings] == [
        ({"launch.num_processes": 1}, 2), ({"launch.num_processes": 2}, 2),
    ]  # fmt: skip


def test_an_unfinished_sweep(tmp_path):
    write_job(tmp_path / "done", nats_of(), seed=1)
    write_job(tmp_path / "at-work", state="running", seed=2)
    write_job(tmp_path / "stopped", state="interrupted", seed=3)
    write_job(tmp_path / "broken", state="failed", error="JobError: out of memory\nsecond line", seed=4)
    killed = write_job(tmp_path / "killed", state="running", seed=5)
    write_json(
        killed.status, {"state": "running", "pid": 2**22 + 1, "host": socket.gethostname(), "time": "2026-01-01"}
    )
    write_text(tmp_path / "waiting" / "config.yaml", (tmp_path / "done" / "config.yaml").read_text())
    comparison = analyze_folders(tmp_path)
    lines = {row.job.name if row.job else "base": row for row in job_table.build_rows(comparison)}
    assert {name: row.state for name, row in lines.items()} == {
        "base": "base model", "done": "finished", "at-work": "running", "stopped": "interrupted", "broken": "failed",
        "waiting": "not started", "killed": "cut off",
    }  # fmt: skip
    assert lines["broken"].error == "JobError: out of memory"
    columns = list(job_table.COLUMNS)
    assert lines["at-work"].numbers[columns.index("final loss")] == "2.3000"  # what it has come to so far
    assert lines["at-work"].numbers[columns.index("rows")] == "90"
    assert lines["at-work"].numbers[columns.index("tokens read")] == "500"
    assert set(lines["waiting"].numbers) == {""}
    assert comparison.best is not None
    assert comparison.best.name == "done"  # 2.3 of the running job is no result
    assert "5 jobs not judged: 1 not started, 1 running, 1 interrupted, 1 failed, 1 cut off" in text_of(comparison)


def test_no_finished_job(tmp_path):
    write_job(tmp_path / "a", state="running")
    comparison = analyze_folders(tmp_path)
    assert comparison.best is None
    assert "0 of 1 job finished" in text_of(comparison)
    assert to_json(comparison)["best"] is None


def test_one_job(tmp_path):
    folder = write_job(tmp_path / "a", nats_of())
    comparison = analyze_folders(folder.path)
    assert comparison.axes == []
    assert "below the base model" in text_of(comparison)


def write_prepared(path, **changes):
    """Write the folder of a job that only prepared its data."""
    folder = write_job(path, **changes)
    write_json(folder.status, {"state": "finished", "work": "prepare"})
    folder.metrics.unlink()


def test_prepared_data_is_left_out_beside_runs(tmp_path):
    write_prepared(tmp_path / "data", trainer={"kind": "full", "optim": "sgd"}, template={"kind": "jinja"})
    for seed in (1, 2):
        write_job(tmp_path / str(seed), nats_of(), seed=seed)
    comparison = analyze_folders(tmp_path)
    assert [job.name for job in comparison.jobs] == ["1", "2"]
    assert comparison.axes == ["seed"]
    assert "1 folder left out: only the data was prepared there." in text_of(comparison)


def test_prepared_data_alone_is_compared(tmp_path):
    for limit in (10, 20):
        write_prepared(tmp_path / str(limit), dataset__limit=limit)
    write_job(tmp_path / "30", state="failed", dataset__limit=30).metrics.unlink()
    comparison = analyze_folders(tmp_path)
    assert [(job.state, job.axes) for job in comparison.jobs] == [
        ("prepared", {"dataset.limit": 10}), ("prepared", {"dataset.limit": 20}), ("failed", {"dataset.limit": 30}),
    ]  # fmt: skip
    assert "left out" not in text_of(comparison)


def test_runs_without_held_out_rows_and_old_runs(tmp_path):
    write_job(tmp_path / "none", nats_of(), seed=2, summary={"eval/loss": None, "eval/bits_per_byte": None})
    write_job(tmp_path / "x.old-20261122-101010", nats_of())
    comparison = analyze_folders(tmp_path)
    assert {job.name: job.state for job in comparison.jobs} == {"none": "finished"}
    assert comparison.best is None


def test_other_held_out_rows_are_an_alarm_and_name_no_winner(tmp_path):
    for rate, fingerprint in ((1e-3, "a"), (1e-4, "b")):
        write_job(
            tmp_path / f"{rate}", nats_of(1 + rate * 90), trainer__learning_rate=rate, fingerprint=fingerprint * 64
        )
    comparison = analyze_folders(tmp_path)
    assert claims.headline(comparison).badge == "not comparable"
    assert "(bbbbbbbbbbbb: 0.0001; aaaaaaaaaaaa: 0.001)" in text_of(comparison)
    content = to_json(comparison)
    assert (content["best"], content["winner"], content["settings"], content["effects"]) == (None, None, [], [])
    assert len(content["held_out_fingerprints"]) == 2
    page = write_comparison(comparison, tmp_path)
    assert "Not all jobs were scored on the same held-out rows" in page.read_text()


def test_rows_that_have_no_id_in_common_are_an_alarm(tmp_path):
    for name in "ab":
        ids = [f"{name}-{row}" for row in range(ROWS)]
        write_job(tmp_path / name, nats_of(), seed=ord(name), ids=ids, fingerprint="")
    comparison = analyze_folders(tmp_path)
    assert comparison.best is None
    assert "no held-out rows in common" in text_of(comparison)


def test_a_template_axis_is_compared_by_bits_per_byte(tmp_path):
    """The second template has twice the tokens for the same bytes, and so half the loss per token."""
    write_job(tmp_path / "auto", nats_of())
    longer = write_job(
        tmp_path / "plain", nats_of(1.05), template={"kind": "jinja", "path": "plain"}, choices__template="plain"
    )
    import pyarrow.parquet as pq

    rows = pq.read_table(longer.eval)
    pq.write_table(rows.set_column(5, "tuned/tokens", [np.array(rows["tuned/tokens"]) * 2]), longer.eval)
    write_json(longer.summary, {**read_json(longer.summary), "eval/loss": 1.05})
    comparison = analyze_folders(tmp_path)
    assert comparison.measure == Measure.BITS_PER_BYTE
    assert comparison.best is not None
    assert comparison.best.name == "auto"
    assert "default objective: jobs differ in template" in text_of(comparison)


def test_rows_in_another_order_and_missing_ones(tmp_path):
    write_job(tmp_path / "a", nats_of(), seed=1)
    back = nats_of()[::-1][:60]
    ids = [f"row-{row}" for row in range(ROWS)][::-1][:60]
    write_job(tmp_path / "b", back, seed=2, ids=ids, tokens=TOKENS[::-1][:60])
    comparison = analyze_folders(tmp_path)
    assert comparison.row_count == 60
    losses = [comparison.settings[0].nats[job].sum() for job in range(2)]
    assert losses[0] == pytest.approx(losses[1])
    assert "60 held-out rows that all jobs have" in text_of(comparison)


def test_without_row_losses_there_are_no_intervals(tmp_path):
    write_job(tmp_path / "a", nats_of(), trainer__learning_rate=1e-3).eval.unlink()
    write_job(tmp_path / "b", nats_of(1.1), trainer__learning_rate=1e-4)
    comparison = analyze_folders(tmp_path)
    assert comparison.best is not None
    assert comparison.best.name == "a"
    assert comparison.winner is None
    assert "No eval.parquet in a" in text_of(comparison)


@pytest.mark.parametrize("name", ["config", "summary", "status", "manifest", "metrics", "samples", "eval"])
@pytest.mark.parametrize("content", [b"{\n", b"[1]\n[2]\n", b"\xff\xfe\xff"])
def test_a_damaged_file_spoils_its_own_job_alone(tmp_path, name, content):
    write_job(tmp_path / "good", nats_of())
    bad = write_job(tmp_path / "bad", nats_of())
    getattr(bad, name).write_bytes(content)
    comparison = analyze_folders(tmp_path)
    write_comparison(comparison, tmp_path)
    states = {job.name: job.state for job in comparison.jobs}
    assert states == {"good": "finished", "bad": "unreadable"}
    assert next(job for job in comparison.jobs if job.name == "bad").error


def test_compare_json_is_what_the_specification_says(grid, tmp_path):
    write_comparison(analyze_folders(grid), tmp_path)
    content = read_json(tmp_path / "compare.json")
    assert content["format"] == 1
    assert set(content) >= {"jobs", "effects", "best", "winner", "settings", "held_out_fingerprints", "notes"}
    first = content["jobs"][0]
    assert first["axes"] == {"dedup": "exact", "trainer.learning_rate": 1e-4, "seed": 1}
    assert first["state"] == "finished"
    assert first["summary"]["verdict"] == "healthy"
    worst = content["settings"][-1]["from_best"]
    assert worst["on_these_rows"][0] < worst["difference"] < worst["on_these_rows"][1]
    assert worst["with_seeds"][0] < worst["on_these_rows"][0]
    assert content["base"][0]["eval/loss"] == 2.5
    assert [value["value"] for value in content["effects"][0]["values"]] == [1e-4, 3e-4, 1e-3]


def test_the_numbers_of_compare_json_stay_what_they_were(grid):
    """A change of these numbers changes what users have on record: it needs an entry in docs/decisions.md."""
    content = to_json(analyze_folders(grid))
    learning_rate = content["effects"][0]
    assert content["seed_spread"]["share_of_loss"] == pytest.approx(0.003260698939053229, rel=1e-12)
    assert content["settings"][0]["mean"] == pytest.approx(1.9803228657194303, rel=1e-12)
    assert learning_rate["range"] == pytest.approx(0.10117449980307841, rel=1e-12)
    assert learning_rate["best_to_worst"] == {
        "difference": pytest.approx(0.10117449980307841, rel=1e-12),
        "share": pytest.approx(0.05108990132592484, rel=1e-12),
        "claim": "differs_beyond_seed_spread",
        "on_these_rows": pytest.approx([0.09334800412768422, 0.10874076082904428], rel=1e-9),
        "with_seeds": pytest.approx([0.08894927910818996, 0.11339972049796686], rel=1e-9),
    }


def test_the_same_jobs_make_the_same_files(grid, tmp_path):
    for name in ("first", "second"):
        write_comparison(analyze_folders(grid), tmp_path / name)
    for name in ("compare.json", "compare.html"):
        assert (tmp_path / "first" / name).read_text() == (tmp_path / "second" / name).read_text()


def test_values_that_are_missing_in_a_grid_leave_matched_jobs(grid, tmp_path):
    """Only the learning rates that both options have are counted for the effect of dedup, and the other way round."""
    for path in sorted(grid.iterdir()):
        if path.is_dir() and path.name != "learning_rate=0.001-dedup=exact-seed=1":
            (tmp_path / path.name).symlink_to(path)
    comparison = analyze_folders(tmp_path)
    dedup = next(effect for effect in comparison.effects if effect.axis == "dedup")
    assert dedup.is_matched
    assert [len(level.losses) for level in dedup.levels] == [5, 5]


def test_what_stayed_equal_is_noted_where_rows_differ(tmp_path):
    for limit, rows in ((50, 45), (100, 90)):
        write_job(
            tmp_path / str(limit),
            nats_of(seed=limit),
            dataset__limit=limit,
            summary={"train_rows": rows, "epochs": rows / 90},
        )
    text = text_of(analyze_folders(tmp_path))
    assert (
        "numbers of training rows; their optimizer steps and tokens read differ by at most 1%, their epochs "
        "by more." in text
    )


def test_steps_that_differ_with_the_rows_name_the_budget(tmp_path):
    for limit, rows in ((50, 45), (100, 90)):
        summary = {"train_rows": rows, "steps": rows, "train_tokens": 50 * rows}
        write_job(tmp_path / str(limit), nats_of(seed=limit), dataset__limit=limit, summary=summary)
    text = text_of(analyze_folders(tmp_path))
    assert (
        "their epochs differ by at most 1%, their optimizer steps and tokens read by more. trainer.budget=steps" in text
    )


def test_thresholds_that_kept_the_same_rows_are_one(tmp_path):
    for threshold, fingerprint in ((0.8, "a"), (0.9, "b"), (0.95, "b")):
        for rate in (1e-4, 3e-4):
            write_job(
                tmp_path / f"{threshold}-{rate}",
                nats_of(threshold, 1),
                train_fingerprint=fingerprint,
                trainer__learning_rate=rate,
                dedup__threshold=threshold,
            )
    comparison = analyze_folders(tmp_path)
    text = text_of(comparison)
    assert text.count("kept the same training rows") == 1  # once, whatever the rates are
    assert "threshold=0.9 or 0.95 kept the same training rows: one training, done 2 times." in text
    assert [row.axes[0] for row in job_table.build_rows(comparison) if row.job] == [
        "0.8",
        "0.8",
        "0.9 or 0.95",
        "0.9 or 0.95",
    ]
    assert len(comparison.settings) == 4
    levels = next(effect for effect in comparison.effects if effect.axis == "dedup.threshold").levels
    assert [level.value for level in levels] == [0.8, 0.9, 0.95]
    jobs = to_json(comparison)["jobs"]
    assert sorted(job["axes"]["dedup.threshold"] for job in jobs) == [0.8, 0.8, 0.9, 0.9, 0.95, 0.95]
    assert [job["same_as"] for job in jobs if job["axes"]["dedup.threshold"] == 0.95] == ["0.9-0.0001", "0.9-0.0003"]
    assert "0.9 or 0.95" in render_page(comparison, tmp_path)


def test_twins_are_no_replicates_and_no_rivals(tmp_path):
    """The best setting has a twin in each seed, in the last one alone trained by the other of the two."""
    for seed in (1, 2, 3):
        for threshold in (0.9, 0.95, 0.5):
            is_taken = threshold == (0.9 if seed == 3 else 0.95)
            write_job(
                tmp_path / f"{threshold}-{seed}",
                nats_of(1.2 if threshold == 0.5 else 1.0, seed),
                train_fingerprint="b" if threshold == 0.5 else "a",
                summary={"same_as": "another job"} if is_taken else None,
                seed=seed,
                dedup__threshold=threshold,
            )
    comparison = analyze_folders(tmp_path)
    assert [len(setting.jobs) for setting in comparison.settings] == [3, 3]
    assert comparison.spread.replicates == 4  # of two settings with three seeds each
    assert comparison.winner is not None
    text = text_of(comparison)
    assert "threshold=0.9 or 0.95 has the lowest loss" in text
    assert "The next, threshold=0.5, is" in text
    assert "noise" not in text.partition("Every setting")[0]
    assert "To settle it" not in text
    assert "kept the same training rows: trained once." in text


@pytest.mark.parametrize("repeated", ["exact", "none"])
def test_a_repeated_job_is_a_row_beside_the_twins_and_no_rival(tmp_path, repeated):
    for name, kind, worse in (("a", "exact", 1.0), ("again", repeated, 1.5), ("b", "none", 1.0)):
        taken = {"same_as": "a"} if name == "b" else None
        write_job(tmp_path / name, nats_of(worse), train_fingerprint="f", summary=taken, dedup__kind=kind)
    comparison = analyze_folders(tmp_path)
    (merged,) = (job for job in comparison.jobs if job.twins)
    assert {job.name for job in comparison.jobs} == {"a", "again"}
    assert {twin.name for twin in merged.twins} == {"a", "b"}
    assert [setting.jobs[0].name for setting in comparison.settings] == ["a"]
    assert {job["job"] for job in to_json(comparison)["jobs"]} == {"a", "again", "b"}


def test_a_seed_whose_twin_has_not_finished_belongs_to_the_same_setting(tmp_path):
    for seed, threshold in ((1, 0.9), (1, 0.95), (2, 0.9)):
        write_job(
            tmp_path / f"{threshold}-{seed}",
            nats_of(1.0, seed),
            train_fingerprint="a",
            seed=seed,
            dedup__threshold=threshold,
        )
    write_job(tmp_path / "0.95-2", seed=2, dedup__threshold=0.95, state="failed", error="killed")
    assert [len(setting.jobs) for setting in analyze_folders(tmp_path).settings] == [2]


def test_run_folders_by_hand_and_of_two_levels(tmp_path):
    first = write_job(tmp_path / "2026-11-22" / "10-00-00", nats_of(), seed=1)
    second = write_job(tmp_path / "2026-11-23" / "10-00-00", nats_of(), seed=2)
    assert [job.name for job in analyze_folders(first.path, second.path, first.path).jobs] == [
        "2026-11-22/10-00-00",
        "2026-11-23/10-00-00",
    ]
    assert len(analyze_folders(tmp_path).jobs) == 2


def test_the_files_go_into_the_folder_of_one_path_or_of_out(tmp_path, capsys):
    write_job(tmp_path / "runs" / "a", nats_of())
    assert main(["compare", str(tmp_path / "runs")]) == 0
    assert f"Page: {tmp_path / 'runs' / 'compare.html'}" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "runs" / "compare.json").read_bytes() == (tmp_path / "out" / "compare.json").read_bytes()


def test_paths_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(FolderError, match="no such folder"):
        collect_jobs([tmp_path / "nowhere"])
    with pytest.raises(FolderError, match="has no run folders in it"):
        collect_jobs([tmp_path])
    write_job(tmp_path / "a", nats_of())
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match="--out"):
        write_comparison(analyze_folders(tmp_path / "a"), tmp_path / "file")


def test_the_table_on_the_terminal(grid, capsys):
    comparison = analyze_folders(grid)
    print_comparison(comparison, Path("compare.html"))
    lines = capsys.readouterr().out.splitlines()
    assert "learning_rate" in next(line for line in lines if "best loss" in line)
    first = next(index for index, line in enumerate(lines) if "base model" in line)
    assert "2.5000" in lines[first]
    assert "finished" in lines[first + 1]
    assert sum(line.strip().startswith("*") for line in lines) == 1
    assert sum("healthy" in line for line in lines) == 12


def test_a_table_of_too_many_axes_shows_those_that_changed_the_loss_most(tmp_path, capsys):
    for rate, worse in ((1e-4, 1.0), (1e-3, 1.1)):
        for beta in (0.8, 0.9):
            changes = {f"trainer__extraordinarily_long_name_{number}": beta for number in range(20)}
            write_job(tmp_path / f"{rate}-{beta}", nats_of(worse), trainer__learning_rate=rate, **changes)
    comparison = analyze_folders(tmp_path)
    assert len(comparison.axes) == 21
    print_comparison(comparison, Path("compare.html"))
    output = capsys.readouterr().out
    heading = next(line for line in output.splitlines() if "best loss" in line)
    assert "learning_rate" in heading
    shown = len(re.findall(r"extraordinarily_long_name_\d", heading))
    assert shown < 20
    assert output.count("healthy") == 4  # whole words, a line for each job
    assert f"{20 - shown} of 21 axes do not fit here; the page has all of them." in output


def test_a_loss_still_falling_at_the_end_has_not_converged(tmp_path):
    for rate, verdict in ((1e-4, "undertrained"), (1e-3, "healthy")):
        write_job(tmp_path / verdict, nats_of(), trainer__learning_rate=rate, summary={"verdict": verdict})
    comparison = analyze_folders(tmp_path)
    column = [*job_table.columns_of(comparison)].index("converged at")
    rows = {row.verdict: row.numbers[column] for row in job_table.build_rows(comparison)}
    assert (rows["undertrained"], rows["healthy"]) == ("", "10")


def test_settings_with_other_seeds_are_compared_on_those_they_share(tmp_path):
    for rate, losses in ((1e-3, {1: 0.99}), (1e-4, {1: 0.98, 2: 1.02})):
        for seed, worse in losses.items():
            write_job(tmp_path / f"{rate}-{seed}", nats_of(worse), trainer__learning_rate=rate, seed=seed)
    text = text_of(analyze_folders(tmp_path))
    assert "learning_rate=0.001 has the lowest loss" in text
    assert "Their seeds differ (learning_rate=0.001: 1; learning_rate=0.0001: 1, 2); on those they share" in text
    assert "learning_rate=0.0001 is lower" in text


def test_many_base_models_are_one_line(tmp_path):
    for seed in range(5):
        write_job(tmp_path / str(seed), nats_of(seed=seed), seed=seed, summary={"base/eval_loss": 2.5 + seed / 10})
    line = job_table.build_rows(analyze_folders(tmp_path))[0]
    assert line.state == "5 base models"
    assert "2.5000–2.9000" in line.numbers


def test_a_model_from_random_weights_is_believed_less(tmp_path):
    """Its seeds were measured to move the loss more, the farther training went (docs/decisions.md)."""
    for rate, worse in ((1e-3, 1.0), (1e-4, 1.03)):
        write_job(
            tmp_path / f"{rate}", nats_of(worse * 0.8), trainer__learning_rate=rate, model={"kind": "tiny_random"}
        )
    comparison = analyze_folders(tmp_path)
    assert comparison.winner is None
    assert comparison.spread.share > 0.02
    assert json.dumps(to_json(comparison))


def test_a_diverged_job_is_no_part_of_an_axis_effect(tmp_path):
    for seed in (1, 2):
        for rate, worse, verdict in ((1e-3, 1.0, "healthy"), (1e-4, 1.01, "healthy" if seed == 1 else "diverged")):
            loss = nats_of(worse if verdict == "healthy" else 4.0, seed)
            write_job(
                tmp_path / f"{rate}-{seed}", loss, trainer__learning_rate=rate, seed=seed, summary={"verdict": verdict}
            )
    comparison = analyze_folders(tmp_path)
    assert comparison.effects[0].axis == "trainer.learning_rate"
    assert comparison.effects[0].range < 0.1
    assert "1 job diverged and is left out" in text_of(comparison)


@pytest.mark.slow
def test_real_runs(tiny, tmp_path):
    """What runs write is what is read: two of a setting without training worth the name, two that learn."""
    for rate in ("1e-6", "2e-2"):
        for seed in (1, 2):
            overrides = [*tiny, f"trainer.learning_rate={rate}", f"seed={seed}", "evaluation.max_new_tokens=2"]
            compose(overrides).execute(tmp_path / f"{rate}-{seed}")
    comparison = analyze_folders(tmp_path)
    assert comparison.axes == ["trainer.learning_rate", "seed"]
    assert [job.state for job in comparison.jobs] == ["finished"] * 4
    assert comparison.row_count >= 8
    assert comparison.settings[0].axes == {"trainer.learning_rate": 2e-2}
    assert comparison.over_base is not None
    assert comparison.over_base.value < 0
    for job in comparison.jobs:
        own = next(setting for setting in comparison.settings if job in setting.jobs)
        at = own.jobs.index(job)
        assert own.nats is not None
        assert own.nats[at].sum() / job.tuned.tokens.sum() == pytest.approx(job.summary["eval/loss"])
    assert write_comparison(comparison, tmp_path).stat().st_size > 20_000


def write_tied(sweep: Path, seeds: tuple[int, ...], *overrides: list[str]) -> None:
    write_json(sweep / "sweep.json", {})
    for number, own in enumerate(overrides):
        for seed in seeds:
            folder = write_job(
                sweep / f"{number}-{seed}", nats_of(1 + number / 1000, seed), seed=seed, dataset__limit=number
            )
            write_text(folder.hydra / "overrides.yaml", json.dumps(["model=tiny_random", "rerun=true", *own]))


def test_a_near_tie_names_the_command_that_settles_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = tmp_path / "multirun" / "sweep-1"
    write_tied(sweep, (7,), ["trainer.learning_rate=1e-3", "seed=7"], ["trainer.learning_rate=2e-3"])
    command = "sft-lab -m model=tiny_random trainer.learning_rate=2e-3,1e-3 seed=7,8,9 hydra.sweep.dir=multirun/sweep-1"
    headline = claims.headline(analyze_folders(sweep))
    assert headline.next_step == "To settle it, train 3 seeds of each (finished jobs are kept):"
    assert headline.commands == (command,)
    assert to_json(analyze_folders(sweep))["next_step"] == {"says": headline.next_step, "commands": [command]}


def test_of_many_near_settings_the_nearest_get_more_seeds(tmp_path):
    write_tied(tmp_path, (7,), *([f"trainer.learning_rate={rate}e-3"] for rate in (1, 2, 3, 4)))
    headline = claims.headline(analyze_folders(tmp_path))
    assert headline.next_step == "To settle it, train 3 seeds of the nearest 3 (finished jobs are kept):"
    (command,) = headline.commands
    (rates,) = re.findall(r"trainer\.learning_rate=(\S+)", command)
    assert rates.count(",") == 2


def test_a_warning_beside_the_verdict_of_the_best_is_part_of_the_result(tmp_path):
    for rate, worse in ((1e-3, 1.0), (1e-4, 1.03)):
        summary = {"prompted/eval_bits_per_byte": 0.0625}
        write_job(tmp_path / f"{rate}", nats_of(worse), trainer__learning_rate=rate, summary=summary)
    comparison = analyze_folders(tmp_path)
    *_, last = claims.headline(comparison).lines()
    start = "Warning about the job with the lowest loss: The prompted base model is better than the tuned one: 0.0625"
    assert last.startswith(start)
    assert start in render_page(comparison, tmp_path)
    rows = job_table.build_rows(comparison)
    assert [len(row.warnings) for row in rows if row.job] == [1, 1]


def test_the_command_names_the_config_that_its_overrides_change(tmp_path):
    write_tied(tmp_path, (7,), ["trainer.learning_rate=1e-3"], ["trainer.learning_rate=2e-3"])
    for path in tmp_path.glob("*/manifest.json"):
        command = "sft-lab -m -cn mine seed=7,8 --config-dir=options trainer.learning_rate=1e-3,2e-3"
        write_json(path, {**read_json(path), "command": command})
    assert f"hydra.sweep.dir={tmp_path} -cn mine --config-dir=options" in text_of(analyze_folders(tmp_path))


def test_settings_that_differ_in_several_keys_have_a_command_each(tmp_path):
    own = [["dedup=none"], ["dedup=exact", "dedup.keep=longest"]]
    write_tied(tmp_path, (1, 2, 3), *own)
    text = text_of(analyze_folders(tmp_path))
    for words in ("dedup=none", "dedup=exact dedup.keep=longest"):
        assert f"sft-lab -m model=tiny_random {words} seed=1,2,3,4,5,6 hydra.sweep.dir={tmp_path}" in text


def test_settings_that_have_all_seeds_have_no_command(tmp_path):
    write_tied(tmp_path, (1, 2, 3), ["dedup=none"])
    for seed in (1, 2):
        folder = write_job(tmp_path / f"1-{seed}", nats_of(1.001, seed), seed=seed, dataset__limit=1)
        write_text(folder.hydra / "overrides.yaml", '["dedup=exact", "dedup.keep=longest"]')
    text = text_of(analyze_folders(tmp_path))
    assert "(finished jobs are kept): sft-lab -m dedup=exact dedup.keep=longest seed=1,2,3 " in text
    assert "sft-lab -m dedup=none" not in text
    assert "sft-lab -m model=tiny_random dedup=none" not in text


def test_no_command_where_a_folder_does_not_say_how_it_was_made(tmp_path):
    write_tied(tmp_path, (1,), ["dedup=none"], ["dedup=exact"])
    for damaged in ("{", "- 1", "a: b"):
        write_text(tmp_path / "0-1" / ".hydra" / "overrides.yaml", damaged)
        text = text_of(analyze_folders(tmp_path))
        assert "within the noise" in text
        assert "To settle it, train each of them with at least" in text
        assert "sft-lab" not in text


def test_the_time_of_a_part_is_not_shown(tmp_path):
    for name, speed in (("whole", 10.0), ("resumed", 1.0)):
        part = {"train_tokens": 100, "tokens_per_second": speed, "train_seconds": 10.0}
        write_job(tmp_path / name, nats_of(), trainer__learning_rate=speed, summary=part)
    comparison = analyze_folders(tmp_path)
    column = [*job_table.columns_of(comparison)].index("seconds")
    seconds = {row.job.name: row.numbers[column] for row in job_table.build_rows(comparison) if row.job}
    assert seconds == {"whole": "12", "resumed": ""}
