"""What a Python user types and sees: stages alone, short representations, tables and the log in a notebook."""

from __future__ import annotations

import builtins
import logging
import pickle
import re
from collections.abc import Iterator

import pytest
from datasets import Dataset

import sft_lab
from sft_lab.core import console, progress
from sft_lab.core.errors import ConfigError, FolderError, SourceError
from sft_lab.core.rows import RowIds
from sft_lab.core.selection import Selection
from sft_lab.run.config import Run

SMALL = ["model=tiny_random", "dedup=exact", "decontaminate.method=exact", "split.min_eval_rows=1", "threads=1"]


@pytest.fixture(scope="module")
def run() -> Run:
    return sft_lab.compose(SMALL)


@pytest.fixture
def rows() -> Dataset:
    """Twenty pairs, an equal one and one without an answer, with a column of the user's."""
    numbers = [*range(20), 19]
    prompts, answers = [f"Say {n}." for n in numbers], [f"It is {n}." for n in numbers]
    return Dataset.from_dict({"prompt": [*prompts, "?"], "answer": [*answers, ""], "mine": range(22)})


def test_every_stage_is_called_with_a_data_set_alone(run, rows) -> None:
    assert run.filter["length"](rows).kept.all()
    sides = run.split(rows)
    assert len(sides.train) + len(sides.held_out_rows) == len(rows)
    assert repr(sides) == f"Sides({len(sides.train)} training rows, {len(sides.held_out)} held-out rows, 0 test rows)"
    assert run.decontaminate(rows, rows.select([3])).dropped == {"equals_held_out": 1}
    assert run.dedup(rows).dropped == {"duplicate": 1}
    selection, encoded = run.template(rows.select(range(2)))
    assert "Say 0." in encoded.table[0]["text"]
    assert selection.dataset()["mine"][:] == [0, 1]


def test_a_stage_alone_works_as_its_own_run_says(run, rows) -> None:
    """Another run that shares the stages does not lend them its tokenizer, and no worker is sent a run."""
    context = run.context()
    other = Run(**{name: getattr(run, name) for name in ("dataset", "split", "dedup", "template", "model")},
                filter=run.filter, trainer=run.trainer, launch=run.launch, engine=run.engine)  # fmt: skip
    assert other.filter["length"] is not run.filter["length"]
    assert other.filter["length"] == run.filter["length"]
    assert run.filter["length"](rows).reason == run.filter["length"](rows, context).reason
    assert b"Run" not in pickle.dumps(run.filter["length"])


def test_kept_rows_as_a_data_set(run, rows) -> None:
    selection = run.filter["answered"](rows)
    kept = selection.dataset()
    assert kept.column_names == ["prompt", "answer", "mine"]
    assert kept["mine"][:] == [*range(21)]
    training_side = run.split(kept).train
    assert run.dedup(training_side).dataset()["id"][:] == [row_id for row_id in training_side.ids if row_id != "20"]
    with pytest.raises(SourceError, match="this selection has no rows"):
        Selection(RowIds.of(["a"]), [""], selection.score[:1], [""]).dataset()


def test_objects_are_shown_in_a_line(run, rows) -> None:
    selection = run.filter["answered"](rows)
    assert repr(selection) == "Selection(21 of 22 rows kept; dropped: 1 empty_answer)"
    assert repr(run.filter["length"](rows)) == "Selection(22 of 22 rows kept)"
    assert repr(selection.ids) == "RowIds(22: 0, 1, 2, ...)"
    assert re.fullmatch(r"Rows\(\d+ of 22 rows; columns prompt, answer, .*\)", repr(run.split(rows).train))
    assert re.fullmatch(r"Run\(dataset=starter  filter=answered\+length  dedup=exact .*\)", repr(run))
    data = run.prepare(run.context())
    assert re.fullmatch(r"Prepared\([\d,]+ training rows, \d+ held-out rows\)", repr(data))
    assert re.fullmatch(r"Waterfall\(load \d+, split \d+, .*tokenize \d+\)", repr(data.train_flow))


def test_objects_are_tables_in_a_notebook(run) -> None:
    hostile = Selection(RowIds.of(["a", "b"]), ["", "<script>"], [0.0, 0.0], ["", ""])
    assert hostile._repr_html_().count("<tr>") == 3
    assert "&lt;script&gt;" in hostile._repr_html_()
    assert f"Run {run.hash}, seed 42" in run._repr_html_()
    assert "<td>limit" not in run._repr_html_()
    data = run.prepare(run.context())
    assert data._repr_html_() == data.train_flow._repr_html_()
    assert "<td>filter.answered</td>" in data._repr_html_()


@pytest.mark.slow  # trains once
def test_a_sweep_goes_on_past_a_job_that_fails(tiny, here) -> None:
    job = ["dataset.limit=null", "split.min_eval_rows=1", "hydra.sweep.dir=sweep"]
    comparison = sft_lab.sweep([*tiny, *job, "decontaminate.action=drop,fail"])
    assert [job.state for job in comparison.jobs] == ["finished", "failed"]
    assert repr(comparison.jobs).startswith("[ComparedJob(action_drop-")
    assert repr(comparison).startswith("Comparison(2 jobs, 1 failed; ")
    assert comparison._repr_html_().count("<tr>") == 5  # headings, two base models, two jobs
    assert "decontaminate.action=fail" in comparison.jobs[1].error
    assert repr(sft_lab.compare(["sweep"])) == repr(sft_lab.compare("sweep")) == repr(comparison)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sft_lab.compose(["seed=1,2"]), r"seed=1,2: .* a sweep; call sft_lab\.sweep\(\[\.\.\.\]\)"),
        (lambda: sft_lab.compose("+experiment=epochs_sweep"), r"call sft_lab\.sweep\(\[\.\.\.\]\)"),
        (lambda: sft_lab.compose("sede=1"), "did you mean seed"),
        (lambda: sft_lab.compose("seed=[1,2]"), "must be a whole number, .*; for a sweep write the values without"),
        (lambda: sft_lab.compose([1]), r"\[1\]: must be a list of strings key=value"),
        (lambda: sft_lab.compose({"seed": 1}), "{'seed': 1}: must be a list of strings"),
        (lambda: sft_lab.sweep("seed"), "seed: has no value"),
        (lambda: sft_lab.compare("nowhere"), "nowhere: no such folder"),
        (lambda: sft_lab.compare(["nowhere"]), "nowhere: no such folder"),
    ],
)
def test_slips_are_answered(call, message, here) -> None:
    with pytest.raises((ConfigError, FolderError), match=message) as error:
        call()
    assert error.value.__cause__ is None  # a notebook would show the errors of Hydra first


def test_a_text_is_one_override() -> None:
    assert sft_lab.compose("dedup=exact").dedup == sft_lab.compose(["dedup=exact"]).dedup


class ZMQInteractiveShell:
    """The name by which a notebook's kernel is known."""


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    log = logging.getLogger("sft_lab")
    before = (log.handlers[:], log.level, log.propagate)
    log.handlers.clear()
    yield log
    log.handlers[:], log.level, log.propagate = before


def test_the_log_is_shown_below_a_cell(notebook, tiny, here, capsys) -> None:
    sft_lab.compose([*tiny, "dataset.limit=60"]).prepare_only("run")
    stages = capsys.readouterr().out
    assert "filter.answered" in stages
    console.show_in_notebook()
    assert [type(handler).__name__ for handler in notebook.handlers].count("_Stderr") == 1


def test_bars_need_widgets_in_a_notebook(notebook, monkeypatch) -> None:
    assert not progress.is_shown()  # no terminal, and ipywidgets is not installed
    monkeypatch.setattr("sft_lab.core.notebook.find_spec", lambda name: name == "ipywidgets")
    assert progress.is_shown()


def test_elsewhere_the_log_is_the_callers_own(tiny, here, capsys) -> None:
    log = logging.getLogger("sft_lab")
    before = log.handlers[:]
    log.handlers.clear()
    try:
        console.show_in_notebook()
        assert log.handlers == []
    finally:
        log.handlers[:] = before
