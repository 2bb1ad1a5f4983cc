"""Composition of a command into jobs, all of which are checked and built before any starts."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose as hydra_compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft_lab.config.error_messages import (
    GROUPS,
    NO_SUCH_KEY,
    explain,
    first_line,
    plain_data,
    problems_in,
    refused_interpolations,
)
from sft_lab.config.overrides import (
    decimal_hint,
    expand_grid,
    experiment_name,
    key_of,
    parse,
    refuse_sweep_settings,
    texts_of,
    value_of,
)
from sft_lab.config.search_path import PRIMARY, OptionSearchPath, hydra_session, launcher_of
from sft_lab.config.serialize import build
from sft_lab.config.validation import refuse_hydra_settings, validate
from sft_lab.core.errors import ConfigError, all_problems
from sft_lab.run.config import Run


@dataclass(frozen=True)
class Job:
    """A composed, checked and built job.

    Attributes:
        run: the run object.
        overrides: of the command line and the sweep; None for a saved config, which was composed before.
        axes: the swept keys with this job's values.
        subdir: ``hydra.sweep.subdir`` as it comes out for this job; None where nobody sets it.
    """

    run: Run
    overrides: list[str] | None
    axes: dict[str, str]
    subdir: str | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that a command is to run.

    Attributes:
        jobs: jobs in the order of the grid; a single one without a sweep.
        swept: whether this is a sweep.
        name: the experiment's name, or None.
        run_dir: ``hydra.run.dir`` if the user set it.
        sweep_dir: ``hydra.sweep.dir`` if the user set it.
        dated: whether the folder that the user set is named by the clock (``${now:...}``), so that the same command
            names another.
    """

    jobs: list[Job]
    swept: bool
    name: str | None
    run_dir: str | None
    sweep_dir: str | None
    dated: bool = False


def compose(overrides: Sequence[str] | str = ()) -> Run:
    """Return the run of some overrides, as on the command line: ``compose(["dedup.threshold=0.9"])``.

    Raises:
        ConfigError: naming every problem.
    """
    try:
        plan = compose_jobs(override_list(overrides), multirun=False, sweep_remedy="call sft_lab.sweep([...])")
    except ConfigError as error:
        raise error from None  # without the hundred lines of Hydra's own errors
    if plan.swept:
        raise ConfigError("compose: this experiment is a sweep; call sft_lab.sweep([...])")
    return plan.jobs[0].run


def override_list(overrides: Sequence[str] | str | None) -> list[str]:
    """Return the overrides that a Python caller gives; a text alone is one override.

    Raises:
        ConfigError: for what is no text.
    """
    texts = [overrides] if isinstance(overrides, str) else overrides or []
    if isinstance(texts, dict) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(
            f"{overrides!r}: must be a list of strings key=value, as in ['dedup.threshold=0.9', 'seed=1']"
        )
    return list(texts)


def compose_config(
    overrides: list[str], part: str = "job", *, config_dir: str | None = None, config_name: str | None = None
) -> DictConfig:
    """Return the config of one job for ``--cfg``: valid, but without checks of files and packages.

    Args:
        overrides: of the command line, in Hydra's grammar.
        part: ``job``, ``hydra`` (Hydra's own node alone) or ``all``.
        config_dir: an additional folder of options.
        config_name: of the config to compose, instead of ``config``.

    Raises:
        ConfigError: naming every problem.
    """
    with hydra_session(config_dir, config_name):
        parsed = parse(overrides)
        if swept := texts_of(parsed, only_swept=True):
            raise ConfigError(f"{swept[0]}: --cfg shows one job; give one value")
        config = compose_raw(texts_of(parsed))
        hydra = copy.deepcopy(config.hydra) if part != "job" else None
        validate(config)
        build(config)
        if part == "all":
            config.hydra = hydra
        return OmegaConf.create({"hydra": hydra}) if part == "hydra" else config


def compose_jobs(
    overrides: list[str],
    *,
    multirun: bool,
    config_dir: str | None = None,
    config_name: str | None = None,
    sweep_remedy: str = "put -m before the overrides",
    to_start: bool = True,
) -> Plan:
    """Compose, check and build every job of a command before any starts.

    Args:
        overrides: of the command line, in Hydra's grammar.
        multirun: whether ``-m`` was given; a sweep file sweeps by itself.
        config_dir: an additional folder of options.
        config_name: of the config to compose, instead of ``config``.
        sweep_remedy: what the caller can do where a single run has several values.
        to_start: whether to refuse a job for what only this machine lacks.

    Raises:
        ConfigError: naming every problem of every job.
    """
    with hydra_session(config_dir, config_name):
        parsed = parse(overrides)
        swept_keys = {key_of(text) for text in texts_of(parsed, only_swept=True)}
        fixed = [text for text in texts_of(parsed) if key_of(text) not in swept_keys]
        name = experiment_name(fixed)

        # A sweep may bring the option that a fixed key belongs to, so if there may be one, only the experiment and
        # the settings of Hydra are composed first. Otherwise this is the job's own composition.
        may_sweep = multirun or bool(swept_keys) or name is not None
        composed = compose_raw(first_choices(fixed) if may_sweep else fixed)
        refuse_hydra_settings(composed)

        mode = composed.hydra.mode
        is_sweep = multirun or (mode is not None and mode.name == "MULTIRUN")
        if swept_keys and not is_sweep:
            text = next(text for text in texts_of(parsed) if key_of(text) in swept_keys)
            raise ConfigError(f"{text}: several values for one key are a sweep; {sweep_remedy}{decimal_hint(text)}")
        refuse_sweep_settings(parsed, is_sweep=is_sweep)

        params = composed.hydra.sweeper.get("params") or {}
        grid = expand_grid(parsed, swept_keys, params) if is_sweep else [[]]
        composed_job = None if may_sweep else composed
        try:
            return build_plan(name, fixed, grid, is_sweep=is_sweep, composed=composed_job, to_start=to_start)
        except ConfigError as error:
            hints = {key_of(text): decimal_hint(text) for text in texts_of(parsed, only_swept=True)}
            raise all_problems(
                problem + hints.get(problem.partition("=")[0], "") for problem in problems_in(error)
            ) from error


def first_choices(overrides: list[str]) -> list[str]:
    """Return the overrides that choose the experiment and its launcher, or set Hydra's own keys."""
    return [text for text in overrides if re.match("(experiment|launch)$|hydra[./]", key_of(text))]


def _refuse_held_out_axis(grid: list[list[str]]) -> None:
    """Refuse a sweep over the held-out rows, since jobs are compared by their loss on the same rows."""
    for override in (override for overrides in grid for override in overrides):
        if re.match(r"split[./]filter\b", key_of(override)):
            raise ConfigError(
                f"{key_of(override)}: cannot be swept, since the jobs would be "
                "measured on different rows; sweep over filter instead, or make two sweeps"
            )


def build_plan(
    name: str | None,
    fixed: list[str],
    grid: list[list[str]],
    *,
    is_sweep: bool,
    composed: DictConfig | None = None,
    to_start: bool = True,
) -> Plan:
    """Build every job of the grid; report each problem once, with its jobs.

    Args:
        name: of the experiment.
        fixed: overrides that all jobs share.
        grid: the overrides of each job.
        is_sweep: whether the jobs are a sweep.
        composed: the config of the only job, if it is composed already.
        to_start: as in ``compose_jobs``.
    """
    _refuse_held_out_axis(grid)
    jobs: list[Job] = []
    jobs_by_problem: dict[str, list[str]] = {}
    folders: tuple[str | None, str | None] = (None, None)
    dated = False
    cache: dict[tuple[str, ...], DictConfig] = {}
    for number, overrides in enumerate(grid):
        try:
            config = composed if composed is not None else _compose_cached(cache, fixed, overrides)
            folders = _folder(config, "run"), _folder(config, "sweep")
            dated = "${now:" in str(plain_data(config.hydra["sweep" if is_sweep else "run"]).get("dir"))
            subdir = sweep_subdir(config, number, overrides) if is_sweep else None
            jobs.append(build_job(config, fixed, overrides, subdir, to_start=to_start))
        except ConfigError as error:
            for problem in problems_in(error):
                jobs_by_problem.setdefault(problem, []).append(" ".join(overrides))
    if jobs_by_problem:
        axes = {key_of(override) for overrides in grid for override in overrides}
        raise all_problems(
            _sweep_problem(problem, affected, axes, is_in_all=len(affected) == len(grid))
            for problem, affected in jobs_by_problem.items()
        )
    _refuse_equal_jobs(jobs)
    return Plan(jobs, is_sweep, name, *folders, dated=dated)


def _sweep_problem(problem: str, jobs: list[str], axes: set[str], *, is_in_all: bool) -> str:
    """Return the message of a problem, with its jobs and, for a key that only some options have, the remedy."""
    if NO_SUCH_KEY in problem and problem.partition(".")[0] in axes:
        problem += (
            "; run two sweeps, each with only the keys its options have, then sft-lab compare SWEEP_DIR SWEEP_DIR"
        )
    return problem if is_in_all else f"{problem} (job {', job '.join(jobs)})"


def _folder(composed: DictConfig, mode: str) -> str | None:
    """Return ``hydra.run.dir`` or ``hydra.sweep.dir`` if the command line or an experiment sets it."""
    node = composed.hydra[mode]
    if problem := next(refused_interpolations(plain_data(node), f"hydra.{mode}"), None):
        raise ConfigError(problem)
    try:
        return None if OmegaConf.is_missing(node, "dir") else str(node.dir)
    except OmegaConfBaseException as error:
        raise ConfigError(f"hydra.{mode}.dir: {first_line(error)}; give a folder") from error


def sweep_subdir(composed: DictConfig, number: int, overrides: list[str]) -> str | None:
    """Return ``hydra.sweep.subdir`` for a job, or None if it is not set.

    Args:
        composed: the job's config, with Hydra's node.
        number: of the job in its grid, ``hydra.job.num``.
        overrides: the job's own, ``hydra.job.override_dirname``; Hydra would name those that all jobs share as well.

    Raises:
        ConfigError: if it refers to what there is not.
    """
    hydra = composed.hydra
    if OmegaConf.is_missing(hydra.sweep, "subdir"):
        return None
    style = hydra.job.config.override_dirname
    named = sorted(text for text in overrides if key_of(text) not in style.exclude_keys)
    job = {"num": number, "id": str(number), "override_dirname": style.item_sep.join(named).replace("=", style.kv_sep)}
    OmegaConf.set_readonly(hydra, value=False)
    hydra.job.update(job)
    try:
        return str(hydra.sweep.subdir)
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"hydra.sweep.subdir={plain_data(hydra.sweep)['subdir']}: {first_line(error)}; refer to keys of the "
            "config, to ${hydra.job.num} or to ${hydra.job.override_dirname}"
        ) from error


def build_job(
    composed: DictConfig, fixed: list[str], overrides: list[str], subdir: str | None, *, to_start: bool = True
) -> Job:
    """Check a composed config, including files and packages, and build its job.

    Args:
        composed: the config, with Hydra's node.
        fixed: overrides that all jobs share.
        overrides: this job's own.
        subdir: as in ``Job``.
        to_start: as in ``compose_jobs``.

    Raises:
        ConfigError: naming every problem.
    """
    composed.choices = validate(composed)
    run = build(composed)
    if problems := run.check(to_start=to_start):
        raise all_problems(problems)
    axes = {key_of(text): re.sub(r"^'([\w.+-]+)'$", r"\1", value_of(text)) for text in overrides}
    return Job(run, [*fixed, *overrides], axes, subdir)


def compose_raw(overrides: list[str]) -> DictConfig:
    """Return the config that Hydra composes, unchecked and including Hydra's node.

    Raises:
        ConfigError: for overrides that Hydra refuses.
    """
    name = OptionSearchPath.config_name
    try:
        with launcher_of(overrides):
            composed = hydra_compose(name, overrides=[*map(_forced, overrides)], return_hydra_config=True)
    except Exception as error:  # Hydra and PyYAML raise errors of any type for a user's mistakes
        raise ConfigError(explain(error)) from error
    if OmegaConf.get_type(composed) is not Run:
        if "format" in composed:  # as only a saved config has
            folder = Path(OptionSearchPath.config_dir or "conf")
            raise ConfigError(
                f"--config-name {name}: is the saved config of a run; run `sft-lab replay {folder / name}.yaml`"
            )
        raise ConfigError(f"--config-name {name}: does not extend config; begin its defaults list with `- {PRIMARY}`")
    return composed


def _compose_cached(cache: dict[tuple[str, ...], DictConfig], fixed: list[str], overrides: list[str]) -> DictConfig:
    """Compose a job of a grid.

    Jobs that choose the same options differ only in values, which are set on a copy of one composition, as Hydra does
    it: composing twelve such jobs takes as long as composing two.

    Args:
        cache: compositions by chosen options.
        fixed: overrides that all jobs share.
        overrides: this job's own.
    """
    forced = [_forced(text) for text in texts_of(parse(overrides))]
    choices = tuple(text for text in forced if not text.startswith("++"))
    if choices not in cache:
        cache[choices] = compose_raw([*fixed, *choices])
    config = copy.deepcopy(cache[choices])
    values = [text for text in forced if text.startswith("++")]
    for override in OverridesParser.create().parse_overrides(values):
        try:
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True, force_add=True)
        except OmegaConfBaseException as error:
            raise ConfigError(explain(error, str(override.input_line))) from error
    return config


def _forced(override: str) -> str:
    """Return a value as ``++key=value``: Hydra then accepts new keys of mappings, and we check for unknown ones."""
    key = key_of(override)
    is_value = override[0] not in "+~" and key not in GROUPS and not re.search("[/@]", key)
    return f"++{override}" if is_value and not key.startswith("hydra.") else override


def _refuse_equal_jobs(jobs: list[Job]) -> None:
    """Refuse two jobs with the same config, which would share a folder."""
    first_by_hash: dict[str, Job] = {}
    for job in jobs:
        first = first_by_hash.setdefault(job.run.hash, job)
        if first is not job:
            texts = (" ".join(f"{key}={value}" for key, value in twin.axes.items()) for twin in (first, job))
            raise ConfigError(
                f"sweep: {' and '.join(texts)} are the same job: they differ in nothing that affects the result; leave "
                "one out"
            )
