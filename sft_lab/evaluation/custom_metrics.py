"""Custom metrics: numbers that an installed package computes from held-out rows and a model's answers to them.

A package names each of its metrics in the entry-point group ``sft_lab.metrics``; docs/own_metric.md shows one. No
verdict depends on them, and one that fails is reported and left out.
"""

from __future__ import annotations

import copy
import math
import re
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core import plugins
from sft_lab.core.text import one_line
from sft_lab.core.tolerant_readers import METRICS

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "sft_lab.metrics"
MAX_ERROR = 200  # characters of a metric's error in the notice
_KEY = re.compile(r"[\w-]+")


def measure_custom(rows: list[dict[str, Any]], answers: list[str], notice: Callable[[str], None]) -> dict[str, float]:
    """Return the numbers of every installed metric by ``metrics.<name>.<key>``.

    Args:
        rows: held-out rows, each with its columns and the ``reference`` answer.
        answers: of a model, in the same order.
        notice: called with each problem of a metric; the others are measured all the same.
    """
    points = plugins.entry_points(GROUP)
    counts = Counter(point.name for point in points)
    numbers: dict[str, float] = {}
    for point in points:
        label = f"metric {point.name} of {plugins.distribution_of(point)}"
        if counts[point.name] > 1:
            notice(f"{label}: left out, since another package has a metric with this name; uninstall one of them")
        elif not _KEY.fullmatch(point.name):
            notice(f"{label}: left out, since its name must be letters, digits, _ and -")
        elif not rows:
            notice(f"{label}: not measured, since no held-out prompts are answered; raise evaluation.outputs")
        else:
            values, problems = _measure(point, rows, answers)
            numbers |= {f"{METRICS}{point.name}.{key}": value for key, value in values.items()}
            for problem in problems:
                notice(f"{label}: {problem}")
    return numbers


def origins() -> dict[str, str]:
    """Return the package and version of each installed metric, by its name."""
    return {point.name: plugins.distribution_of(point) for point in plugins.entry_points(GROUP)}


def _measure(point: EntryPoint, rows: list[dict[str, Any]], answers: list[str]) -> tuple[dict[str, float], list[str]]:
    """Return a metric's numbers, and its problems."""
    try:
        # Copies, so that a metric that changes them changes nothing for the next.
        values = point.load()(copy.deepcopy(rows), list(answers))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - third-party code may raise anything
        return {}, [f"failed ({_describe(error)}); its numbers are left out"]
    if not isinstance(values, Mapping):
        return {}, [f"returned a {type(values).__name__}; must return a dict of numbers by name"]
    numbers, problems = {}, []
    for key, value in values.items():
        if not (isinstance(key, str) and _KEY.fullmatch(key)):
            problems.append(f"{key!r} is left out, since a name must be letters, digits, _ and -")
        elif isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            problems.append(f"{key}={one_line(repr(value), 40)} is left out, since it is not a finite number")
        else:
            numbers[key] = float(value)
    return numbers, problems


def _describe(error: BaseException) -> str:
    """Return an error in one line, with the file and line that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = one_line(f"{type(error).__name__}: {error}", MAX_ERROR)
    return f"{text} in {Path(frame.filename).name}, line {frame.lineno}"
