"""Every number of a finished run's result, and the comparison of two results."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sft_lab.core import parquet
from sft_lab.core.errors import FolderError
from sft_lab.core.io import LONG, flat, is_number, parse_json, read_json, read_text
from sft_lab.core.tolerant_readers import TASKS
from sft_lab.core.types import Work
from sft_lab.core.verdict_warnings import PROMPTED_IS_BETTER
from sft_lab.jobs.environment import Difference

if TYPE_CHECKING:
    from sft_lab.core.run_dir import RunDir

# Where the environment is not the same, or sums are made by a GPU in any order. A held-out loss is a mean over
# thousands of tokens: bf16 in place of fp32 moved it by 0.002% in 60 steps of the tiny model, and the smallest step
# that a verdict regards is 1%. One row is a sum over few tokens and moves more.
LOSS_TOLERANCE = 1e-3  # relative, of losses and bits per byte
ROW_TOLERANCE = 1e-2  # relative, of one held-out row's negative log-likelihood
ROW_SLACK = 0.05  # nats; a memorized row has almost none, which makes relative errors large
TIMES = {"tokens_per_second", "watching_share", "train_seconds", "measuring_seconds", "seconds"}
# What follows from losses that are compared themselves: a difference far below the tolerance may turn it over.
DERIVED = {"gap", "best_step", "converged_at", "evidence", "objective", PROMPTED_IS_BETTER}

Numbers = dict[str, dict[str, Any]]  # by file and name, then by row, step or part


def read_result(folder: RunDir, work: str) -> Numbers:
    """Return every number in a finished run's result, except times.

    Raises:
        FolderError: if a file is missing or cannot be read.
    """
    try:
        numbers = _data_numbers(folder)
        return numbers | _training_numbers(folder) if work == Work.RUN else numbers
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise FolderError(
            f"{folder.path}: its result cannot be read ({type(error).__name__}: {error}); replay only its config.yaml"
        ) from error


def _data_numbers(folder: RunDir) -> Numbers:
    numbers: Numbers = {}
    waterfall = read_json(folder.waterfall)
    for side, title in (("stages", "waterfall.json"), ("held_out", "waterfall.json held-out")):
        for stage in waterfall[side]:
            numbers[f"{title} {stage['stage']}"] = {key: value for key, value in flat(stage).items() if value != {}}

    dropped = parquet.read(folder.dropped, parquet.DROPPED).to_pylist()
    numbers["dropped.parquet"] = {f"{row['id']} {row['stage']}": row["reason"] for row in dropped}

    manifest = read_json(folder.manifest)
    for side in ("train", "held_out"):
        if fingerprint := manifest.get(f"{side}_fingerprint"):
            numbers[f"{side.replace('_', '-')} fingerprint"] = {"": fingerprint}
    return numbers


def _training_numbers(folder: RunDir) -> Numbers:
    summary = read_json(folder.summary)
    # Another version may word a rule or an advice differently: its numbers are compared, not its sentences.
    summary["evidence"] = [
        {key: value for key, value in rule.items() if key != "says"} for rule in summary.get("evidence", [])
    ]
    left_out = {*TIMES, "format", "advice.says", "same_as"}
    numbers: Numbers = {
        f"summary.json {key}": {"": value}
        for key, value in flat(summary).items()
        if key not in left_out and not key.removeprefix("base/").startswith(TASKS)  # added after the run
    }

    for line in read_text(folder.metrics, LONG).splitlines():
        event = parse_json(line)
        for key, value in event.items():
            if _is_loss(key):
                numbers.setdefault(f"metrics.jsonl {key}", {})[f"step {event['step']}"] = value

    rows = parquet.read(folder.eval, parquet.EVAL).to_pylist()
    for column in [name for name in parquet.EVAL if name != "id"]:
        numbers[f"eval.parquet {column}"] = {row["id"]: row[column] for row in rows}
    return numbers


def _is_loss(name: str) -> bool:
    return "loss" in name or "bits_per_byte" in name


def compare_results(before: Numbers, after: Numbers, *, exact: bool) -> list[Difference]:
    """Return the differences between two results, one per name, at the row or step where it is largest.

    Args:
        before: the old result; numbers that it lacks, from an older sft_lab, are not compared.
        after: the new result.
        exact: whether every digit must agree; otherwise losses within ``LOSS_TOLERANCE``, rows
            within ``ROW_TOLERANCE``, and counts exactly.
    """
    differences = []
    for name, old in before.items():
        if not exact and name.removeprefix("summary.json ") in DERIVED:
            continue
        new = after.get(name, {})
        keys = [key for key in {**old, **new} if not _is_equal(name, old.get(key), new.get(key), exact=exact)]
        if keys:
            largest = max(keys, key=lambda key: _distance(old.get(key), new.get(key)))
            count = f", {len(keys)} of {len({**old, **new})} differ, most at {largest}" if len(old) > 1 else ""
            differences.append(Difference(f"{name}{count}", old.get(largest), new.get(largest)))
    return differences


def _is_equal(name: str, old: Any, new: Any, *, exact: bool) -> bool:
    if exact or not (isinstance(old, float) and isinstance(new, float)):
        return bool(old == new)
    if name.startswith("eval.parquet") and name.endswith("nll"):
        return math.isclose(old, new, rel_tol=ROW_TOLERANCE, abs_tol=ROW_SLACK)
    return math.isclose(old, new, rel_tol=LOSS_TOLERANCE) if _is_loss(name) else old == new


def _distance(old: Any, new: Any) -> float:
    return abs(old - new) if is_number(old) and is_number(new) else math.inf
