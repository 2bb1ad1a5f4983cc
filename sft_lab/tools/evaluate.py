"""``sft-lab evaluate``: tasks of lm-evaluation-harness on a run's base model and on the tuned one.

The numbers join the run's summary as ``tasks.<task>.<metric>`` and ``base/tasks.<task>.<metric>``, so that report and
``compare`` show them; no verdict rests on them.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core.console import console, new_table
from sft_lab.core.errors import FolderError, JobError, SftLabError, UserError
from sft_lab.core.gpus import release_memory, use_one_gpu
from sft_lab.core.io import is_number, write_json
from sft_lab.core.log import log
from sft_lab.core.text import one_line
from sft_lab.core.tolerant_readers import TASKS, read
from sft_lab.core.types import Work
from sft_lab.report.formatting import DASH, format_count
from sft_lab.tools.finished_run import FinishedRun, open_run

if TYPE_CHECKING:
    from rich.table import Table

MAX_ERROR = 300  # characters of the harness's error in ours
WIDTH = 120  # characters of a line where the output is a file
YAML = (".yaml", ".yml")

# Of each task the number of its ``questions`` and, by metric, the ``value`` and its ``stderr`` (None: not known).
Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class EvaluationOptions:
    """How tasks are run.

    Attributes:
        tasks: names of the harness's tasks and groups, and YAML files with tasks of one's own.
        limit: the first so many questions of each task; None: all.
        num_fewshot: examples before each question; None: as the task says.
        batch_size: questions at a time.
        apply_chat_template: whether the run's chat template is put around the questions, for the base model too.
    """

    tasks: list[str]
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 8
    apply_chat_template: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that the harness would take for something else."""
        for name, value, minimum in (
            ("limit", self.limit, 1), ("num-fewshot", self.num_fewshot, 0), ("batch-size", self.batch_size, 1)
        ):  # fmt: skip
            if value is not None and value < minimum:
                raise UserError(f"--{name} {value}: must be at least {minimum}")


@dataclass(frozen=True)
class TaskScores:
    """What a run's models scored.

    Attributes:
        base: the base model's results.
        tuned: the tuned model's.
    """

    base: Results
    tuned: Results


def evaluate_run(path: Path, options: EvaluationOptions) -> TaskScores:
    """Run tasks on both models of a finished run, and write the numbers into its summary, report and mirrors.

    ``tasks.json`` has the whole results. Tasks that were run before keep their numbers.

    Raises:
        UserError: if the harness is not installed, a task is unknown, or the run has no model.
        JobError: if the harness fails, as without a network for a task of the Hub.
    """
    if not find_spec("lm_eval"):
        raise UserError("evaluate: lm-evaluation-harness is not installed; run: pip install 'sft_lab[eval]'")
    finished = open_run(path)
    use_one_gpu()
    with finished.folder.claimed():
        finished.folder.refuse_links()
        with _harness_errors():
            scores = TaskScores(*_score_both(finished, options))
        _write(finished, scores, options)
    return scores


def print_scores(scores: TaskScores) -> None:
    """Print each metric of both models."""
    console(WIDTH).print(_table(scores))


def _score_both(finished: FinishedRun, options: EvaluationOptions) -> tuple[Results, Results]:
    from lm_eval.tasks import TaskManager

    # Listing the harness's own tasks takes seconds; files need none of them.
    names = [task for task in options.tasks if not task.endswith(YAML)]
    manager = TaskManager(include_defaults=bool(names))
    _refuse_unknown(options.tasks, manager)
    specs = [str(Path(task).absolute()) if task.endswith(YAML) else task for task in options.tasks]

    four_bit = finished.run.trainer.holding.four_bit
    model = finished.load_base(four_bit=four_bit).eval()
    log.info("evaluate: %s on the base model", ", ".join(options.tasks))
    base = _score(model, finished, specs, manager, options)
    if not finished.is_adapter:
        model = None
        release_memory()
    log.info("evaluate: the same tasks on the tuned model")
    return base, _score(finished.load_tuned(model), finished, specs, manager, options)


def _score(model: Any, finished: FinishedRun, specs: list[str], manager: Any, options: EvaluationOptions) -> Results:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    with _tied(model), _without_library_output():
        scored: dict[str, Any] = lm_eval.simple_evaluate(
            HFLM(pretrained=model, tokenizer=finished.tokenizer, batch_size=options.batch_size),
            tasks=list(specs),
            task_manager=manager,
            limit=options.limit,
            num_fewshot=options.num_fewshot,
            apply_chat_template=options.apply_chat_template,
            log_samples=False,
        )
    # The subtasks of a group are in its own numbers.
    below = {name for names in (scored.get("group_subtasks") or {}).values() for name in names}
    questions = scored.get("n-samples") or {}
    return {
        task: {"questions": questions.get(task, {}).get("effective"), "metrics": _metrics(result)}
        for task, result in scored["results"].items()
        if task not in below
    }


def _metrics(result: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return a task's metrics; how an answer was filtered is part of the name, unless it was not."""
    metrics = {}
    for key, value in result.items():
        name, _, filtered = key.partition(",")
        if filtered and is_number(value) and not name.endswith("_stderr"):
            error = result.get(f"{name}_stderr,{filtered}")
            metric = name if filtered == "none" else f"{name}_{filtered}"
            metrics[metric] = {"value": float(value), "stderr": float(error) if is_number(error) else None}
    return metrics


def _write(finished: FinishedRun, scores: TaskScores, options: EvaluationOptions) -> None:
    from sft_lab.report import html_report

    folder = finished.folder
    summary = read(folder.summary) | {
        f"{prefix}{TASKS}{task}.{metric}": score["value"]
        for prefix, results in (("", scores.tuned), ("base/", scores.base))
        for task, result in results.items()
        for metric, score in result["metrics"].items()
    }
    earlier = read(folder.tasks)
    added = {
        task: {"base": scores.base.get(task), "tuned": scores.tuned[task], "options": asdict(options)}
        for task in scores.tuned
    }
    try:
        write_json(folder.tasks, {**earlier, **added})
        write_json(folder.summary, summary)
        html_report.write_report(folder)
    except OSError as error:
        raise FolderError(f"{folder.path}: cannot be written ({error.strerror})") from error
    _mirror(finished, summary)


def _mirror(finished: FinishedRun, summary: dict[str, Any]) -> None:
    """Send the summary to W&B as a separate run, since the training's own may have been sent already."""
    from sft_lab.tracking.tracked_run import TrackedRun, tracking_id

    folder, run = finished.folder, finished.run
    run_id = f"{tracking_id(folder, run.hash)}-eval"
    tracked = TrackedRun(folder, run_id, run.saved(complete=True), Work.EVALUATE, int(summary.get("steps") or 0))
    for line in run.tracking.start(tracked).finish(summary):
        log.info("%s", line)


def _refuse_unknown(tasks: list[str], manager: Any) -> None:
    if not tasks:
        raise UserError("--tasks: is empty; give names of lm-evaluation-harness tasks, or YAML files")
    known = {*manager.all_tasks, *(task for task in tasks if Path(task).is_file())}
    for name in tasks:
        if name not in known:
            if name.endswith(YAML):
                raise UserError(f"--tasks {name}: no such file")
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else "`lm-eval ls tasks` lists them; a file must end with .yaml"
            raise UserError(f"--tasks {name}: no such task of lm-evaluation-harness; {hint}")


@contextmanager
def _tied(model: Any) -> Iterator[None]:
    """Keep the harness from tying the weights again, which fails with PEFT's wrapper around added tokens."""
    model.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del model.tie_weights


@contextmanager
def _harness_errors() -> Iterator[None]:
    """Turn any error of the harness into a one-line message: tasks and their data are third-party code."""
    try:
        yield
    except SftLabError:
        raise
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}", MAX_ERROR)
        raise JobError(
            f"evaluate: lm-evaluation-harness failed ({reason}); tasks with data on the Hub need a network"
        ) from error


@contextmanager
def _without_library_output() -> Iterator[None]:
    """Hide what the harness and the Git processes it starts write to standard error, except with ``--verbose``."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if log.isEnabledFor(logging.DEBUG):
        yield
        return
    saved = os.dup(2)
    with Path(os.devnull).open("wb") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _table(scores: TaskScores) -> Table:
    table = new_table("task", "metric")
    for heading in ("base", "tuned", "standard error", "questions"):
        table.add_column(heading, justify="right")
    for task, result in scores.tuned.items():
        for metric, score in result["metrics"].items():
            before = scores.base.get(task, {"metrics": {}})["metrics"].get(metric, {"value": None})
            numbers = (before["value"], score["value"], score["stderr"])
            cells = [DASH if number is None else f"{number:.4f}" for number in numbers]
            table.add_row(task, metric, *cells, format_count(result["questions"]))
    return table
