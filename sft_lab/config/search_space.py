"""The space of a search: axes in Hydra's sweep grammar, and the jobs that values on them make."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from sft_lab.config.compose import Plan, build_plan, compose_raw, first_choices
from sft_lab.config.overrides import (
    MAX_JOBS,
    experiment_name,
    key_of,
    parse,
    refuse_sweep_settings,
    texts_of,
    value_of,
)
from sft_lab.config.search_path import hydra_session
from sft_lab.config.validation import refuse_hydra_settings
from sft_lab.core.errors import ConfigError, all_problems

GRAMMAR = "interval(1e-5,1e-3), tag(log, interval(1e-5,1e-3)), int(interval(4,64)), range(1,5) or choice(a,b)"
WHOLE_NUMBERS_HINT = "for whole numbers write int(interval(...))"
DIGITS = 4  # significant, of a value from an interval: a folder's name holds it


@dataclass(frozen=True)
class SearchAxis:
    """A key of the config that a search varies.

    Attributes:
        key: of the config.
        text: its values, as they were written.
        choices: its values in Hydra's spelling; empty for numbers between two ends.
        low, high: the ends, both included.
        step: between two values; None where there are all between.
        is_log: whether equal factors are equal steps.
        is_whole: whether the values are whole numbers.
    """

    key: str
    text: str
    choices: list[str] = field(default_factory=list)
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    is_log: bool = False
    is_whole: bool = False

    @property
    def kind(self) -> list[Any]:
        """What must stay the same when a search is resumed; ends and steps may change."""
        return [self.choices, self.is_log, self.is_whole]

    def format(self, value: Any) -> str:
        """Return a value as an override has it."""
        if self.choices:
            return str(value)
        if self.is_whole:
            return str(int(value))
        short = f"{value:.{DIGITS if self.step is None else 10}g}"
        return short if self.low <= float(short) <= self.high else repr(float(value))

    def points(self) -> list[Any]:
        """Return every value of a grid; empty if there are infinitely many."""
        if self.choices:
            return list(self.choices)
        if self.step is None:
            return []
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        return [self.low + index * self.step for index in range(min(count, MAX_JOBS + 1))]

    def probes(self) -> list[str]:
        """Return the values that are tried before anything starts: all choices, or the ends and one between."""
        if self.choices:
            return self.choices
        middle = math.sqrt(self.low * self.high) if self.is_log else (self.low + self.high) / 2
        if self.step is not None:
            middle = self.low
        return list(dict.fromkeys(map(self.format, (self.low, self.high, middle))))


@dataclass(frozen=True)
class SearchSpace:
    """What a search varies, and what all of its jobs share.

    Attributes:
        name: of the experiment, or None.
        fixed: overrides that all jobs share.
        axes: the keys that are varied.
        config_dir: a further folder of options.
        config_name: of the config to compose, instead of ``config``.
    """

    name: str | None
    fixed: list[str]
    axes: list[SearchAxis]
    config_dir: str | None = None
    config_name: str | None = None

    def plan(self, jobs: list[dict[str, str]]) -> Plan:
        """Compose, check and build jobs.

        Args:
            jobs: the values of each, by key.

        Raises:
            ConfigError: naming every problem.
        """
        grid = [[f"{key}={value}" for key, value in values.items()] for values in jobs]
        with hydra_session(self.config_dir, self.config_name):
            return build_plan(f"{self.name}-search" if self.name else "search", self.fixed, grid, is_sweep=True)

    def probe(self) -> Plan:
        """Compose a job for each value that is tried before anything starts, so that mistakes come out at once."""
        probes = {axis.key: axis.probes() for axis in self.axes}
        first = {key: values[0] for key, values in probes.items()}
        rest = [first | {key: value} for key, values in probes.items() for value in values[1:]]
        try:
            return self.plan([first, *rest])
        except ConfigError as error:
            raise ConfigError(
                re.sub(r"must be a whole number[^(\n]*(?= \()", rf"\g<0>; {WHOLE_NUMBERS_HINT}", str(error))
            ) from error


def read_space(
    overrides: list[str], axes: list[str], config_dir: str | None = None, config_name: str | None = None
) -> SearchSpace:
    """Return the space that a command line spans; axes may also be in an experiment's ``hydra.sweeper.params``.

    Args:
        overrides: of the command line; those with several values are axes, too.
        axes: overrides that must have several values.
        config_dir: a further folder of options.
        config_name: of the config to compose, instead of ``config``.

    Raises:
        ConfigError: for what is no override, no axis, or cannot be searched over.
    """
    with hydra_session(config_dir, config_name):
        parsed = [*parse(overrides), *_parse_axes(axes)]
        swept = {key_of(text) for text in texts_of(parsed, only_swept=True)}
        fixed = [text for text in texts_of(parsed) if key_of(text) not in swept]
        name = experiment_name(fixed)
        composed = compose_raw(first_choices(fixed))
        refuse_hydra_settings(composed)
        refuse_sweep_settings(parsed, is_sweep=True)

        keys = {key_of(text) for text in texts_of(parsed)}
        params = composed.hydra.sweeper.get("params") or {}
        from_file = parse([f"{key}={value}" for key, value in params.items() if key_of(str(key)) not in keys])
        fixed += [text for text in texts_of(from_file) if text not in texts_of(from_file, only_swept=True)]
        varied = [override for override in [*from_file, *parsed] if override.is_sweep_override()]
        if not varied:
            raise ConfigError(f"search: no key has several values, so there is nothing to search; write {GRAMMAR}")
        return SearchSpace(name, fixed, _read_axes(varied), config_dir, config_name)


def _parse_axes(axes: list[str]) -> list[Override]:
    parsed = parse(axes)
    if single := [str(override.input_line) for override in parsed if not override.is_sweep_override()]:
        raise all_problems(
            f"--over {text}: has only one value, so it is not an axis; put it before --over, or write {GRAMMAR}"
            for text in single
        )
    return parsed


def _read_axes(varied: list[Override]) -> list[SearchAxis]:
    axes: dict[str, SearchAxis] = {}
    problems = []
    for override in varied:
        try:
            axis = _read_axis(override)
            if axis.key in axes:
                problems.append(f"{axis.key}: given twice; keep one")
            axes[axis.key] = axis
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise all_problems(problems)
    return list(axes.values())


def _read_axis(override: Override) -> SearchAxis:
    text = str(override.input_line)
    key = key_of(text)
    sweep: Any = override.value()
    if key == "experiment" or re.match(r"hydra[./]", key):
        raise ConfigError(f"{text}: cannot be searched over; choose one value")
    if unknown := sorted(sweep.tags - {"log"}):
        raise ConfigError(
            f"{text}: unknown tag {', '.join(unknown)}; the only tag is log, as in tag(log, interval(1,10))"
        )
    if isinstance(sweep, IntervalSweep):
        return _interval(text, sweep)
    if sweep.tags:
        raise ConfigError(f"{text}: tag(log, ...) works only on an interval; list the values as choice(1,10,100)")
    if isinstance(sweep, RangeSweep):
        return _range(text, override)
    return SearchAxis(override.get_key_element(), value_of(text), list(dict.fromkeys(override.sweep_string_iterator())))


def _interval(text: str, sweep: IntervalSweep) -> SearchAxis:
    low, high, is_log = sweep.start, sweep.end, "log" in sweep.tags
    assert low is not None
    assert high is not None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{text}: the lower end must come first, and both must be finite")
    if is_log and low <= 0:
        raise ConfigError(f"{text}: with tag(log, ...) both ends must be above 0")
    is_whole = isinstance(low, int) and isinstance(high, int)
    step = 1 if is_whole and not is_log else None
    return SearchAxis(text.partition("=")[0], value_of(text), [], low, high, step, is_log, is_whole)


def _range(text: str, override: Override) -> SearchAxis:
    numbers: list[Any] = list(itertools.islice(override.sweep_iterator(), MAX_JOBS + 1))
    if not numbers or len(numbers) > MAX_JOBS:
        amount = "no values" if not numbers else f"more than {MAX_JOBS:,} values"
        raise ConfigError(f"{text}: has {amount}; write range(start,stop,step) or interval(low,high)")
    low, high = min(numbers[0], numbers[-1]), max(numbers[0], numbers[-1])
    step = abs(numbers[1] - numbers[0]) if len(numbers) > 1 else 1
    is_whole = all(isinstance(number, int) for number in numbers)
    return SearchAxis(text.partition("=")[0], value_of(text), [], low, high, step, is_whole=is_whole)
