"""Composition: a command becomes jobs, all of them checked and built before any starts."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft_lab.config.error_messages import (
    GROUPS,
    NO_SUCH_KEY,
    explain,
    first_line,
    lines_of,
    plain_data,
    resolvers,
    unknown_key,
)
from sft_lab.config.overrides import experiment_name, grid_of, key_of, parse, refuse_sweep_settings, texts_of
from sft_lab.config.registry import register
from sft_lab.config.search_path import SearchPath
from sft_lab.config.serialize import build
from sft_lab.core.errors import ConfigError, all_problems
from sft_lab.core.option_files import shipped
from sft_lab.core.text import is_unicode
from sft_lab.run.config import Run
from sft_lab.run.schemas import SCHEMAS


@dataclass(frozen=True)
class Job:
    """A composed, checked and built job.

    Attributes:
        run: the run object.
        overrides: what the command line and the sweep say.
        axes: the swept keys with this job's values.
    """

    run: Run
    overrides: list[str]
    axes: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """Everything one command asks for.

    Attributes:
        jobs: in the order of the grid; one without a sweep.
        swept: whether this is a sweep.
        name: the experiment's name, or None.
        run_dir: ``hydra.run.dir`` where the user gave one.
        sweep_dir: ``hydra.sweep.dir`` where the user gave one.
    """

    jobs: list[Job]
    swept: bool
    name: str | None
    run_dir: str | None
    sweep_dir: str | None


def compose(overrides: list[str] | None = None) -> Run:
    """Compose one run from overrides, as the command line does: ``compose(["dedup.threshold=0.9"])``.

    Raises:
        ConfigError: naming every problem.
    """
    plan = compose_jobs(list(overrides or []), multirun=False)
    if plan.swept:
        raise ConfigError("compose: this experiment is a sweep of several runs; use the command line, sft-lab -m")
    return plan.jobs[0].run


def compose_config(overrides: list[str], *, config_dir: str | None = None) -> DictConfig:
    """Compose one config for ``--cfg job``: strict and buildable, the world not looked at.

    Raises:
        ConfigError: naming every problem.
    """
    with hydra(config_dir):
        words = parse(overrides)
        if swept := [str(word.input_line) for word in words if word.is_sweep_override()]:
            raise ConfigError(f"{swept[0]}: --cfg job shows one job; give one value")
        config, _ = _strict(compose_one(texts_of(words)))
        build(config)
        return config


def compose_jobs(overrides: list[str], *, multirun: bool, config_dir: str | None = None) -> Plan:
    """Compose, check and build every job of a command before any starts.

    Args:
        overrides: the command line's, in Hydra's grammar.
        multirun: whether ``-m`` was given; a sweep file sweeps by itself.
        config_dir: a further folder of options.

    Raises:
        ConfigError: naming every problem of every job.
    """
    with hydra(config_dir):
        words = parse(overrides)
        swept = {key_of(text) for text in texts_of(words, swept=True)}
        fixed = [text for text in texts_of(words) if key_of(text) not in swept]
        name = experiment_name(fixed)
        # Where there may be a sweep, only what speaks about it is composed first: the swept keys may be missed by
        # the rest. Otherwise this is the job's own composition.
        may_sweep = multirun or bool(swept) or name is not None
        about = [text for text in fixed if re.match("experiment$|hydra[./]", key_of(text))] if may_sweep else fixed
        composed = compose_one(about)
        refuse_hydra_settings(composed)
        mode = composed.hydra.mode
        is_sweep = multirun or (mode is not None and mode.name == "MULTIRUN")
        if swept and not is_sweep:
            first = next(text for text in texts_of(words) if key_of(text) in swept)
            raise ConfigError(f"{first}: several values for one key are a sweep; put -m before the overrides")
        refuse_sweep_settings(words, swept=is_sweep)
        grid = grid_of(words, swept, composed.hydra.sweeper.get("params") or {}) if is_sweep else [[]]
        _refuse_moving_rows(grid)
        if may_sweep:
            return _plan(name, fixed, grid, is_sweep=is_sweep)
        return _plan(name, fixed, grid, is_sweep=is_sweep, composed=composed)


def refuse_hydra_settings(composed: DictConfig) -> None:
    """Refuse what a file says of Hydra beyond mode, folders and sweep values.

    A sweeper or launcher of Hydra's is handed the whole command, so it must be seen before anything is composed;
    callbacks and ``_target_`` name code to run, ``job.env_set`` changes the environment.

    Args:
        composed: with Hydra's node in it; of what files say, not of the command line's ``hydra.*``.
    """
    for group in ("hydra/sweeper", "hydra/launcher"):
        chosen = composed.hydra.runtime.choices.get(group)
        if chosen not in (None, "basic"):
            raise ConfigError(f"{group}={chosen}: chosen in a file; write it on the command line, -m {group}={chosen}")
    found = plain_data(composed.hydra)
    own = plain_data(OmegaConf.create(ConfigStore.instance().repo["hydra"]["config.yaml"].node))
    basic = {"launcher": {"_target_"}, "sweeper": {"_target_", "max_batch_size", "params"}}
    wrong = [f"{name}.{key}" for name, known in basic.items() for key in set(found[name]) - known]
    wrong += [f"job.{key}" for key in ("chdir", "env_set", "env_copy") if found["job"][key] != own["job"][key]]
    settable = {"mode", "run", "sweep", "launcher", "sweeper", "job", "runtime", "overrides"}
    wrong += [key for key in found if key not in settable and found[key] != own.get(key)]
    if wrong:
        raise ConfigError(
            f"hydra.{sorted(wrong)[0]}: set in a file, which may set hydra.mode, run.dir, sweep.dir and sweeper.params "
            "alone, since a config is data; take it out, or write it on the command line"
        )


def _refuse_moving_rows(grid: list[list[str]]) -> None:
    """Jobs of a sweep are compared by their held-out loss, so what the held-out rows are is the same for all."""
    for value in (value for job in grid for value in job):
        if re.match(r"split[./]filter\b", key_of(value)):
            raise ConfigError(
                f"{key_of(value)}: says what the model is for and cannot be swept, since the jobs would be measured on "
                "different rows; sweep over filter instead, or make two sweeps"
            )


def _plan(
    name: str | None, fixed: list[str], grid: list[list[str]], *, is_sweep: bool, composed: DictConfig | None = None
) -> Plan:
    """Build every job of the grid; a problem is told once, with the jobs that have it."""
    jobs: list[Job] = []
    problems: dict[str, list[str]] = {}
    folders: tuple[str | None, str | None] = (None, None)
    bases: dict[tuple[str, ...], DictConfig] = {}
    for values in grid:
        try:
            config = composed if composed is not None else _compose_onto(bases, fixed, values)
            folders = _folder(config, "run"), _folder(config, "sweep")
            jobs.append(job_of(config, fixed, values))
        except ConfigError as error:
            for line in lines_of(error):
                problems.setdefault(line, []).append(" ".join(values))
    if problems:
        axes = {key_of(value) for values in grid for value in values}
        raise all_problems(_told(line, jobs, len(grid), axes) for line, jobs in problems.items())
    _refuse_twins(jobs)
    return Plan(jobs, is_sweep, name, *folders)


def _told(line: str, jobs: list[str], grid_size: int, axes: set[str]) -> str:
    group = line.partition(".")[0]
    if NO_SUCH_KEY in line and group in axes:
        line += "; make it two sweeps into one folder (hydra.sweep.dir=...), each with the keys its options have"
    return line if len(jobs) == grid_size else f"{line} (job {', job '.join(jobs)})"


def _folder(composed: DictConfig, mode: str) -> str | None:
    """Give ``hydra.run.dir`` or ``hydra.sweep.dir`` where the command line or an experiment file names one."""
    node = composed.hydra[mode]
    if asked := next(resolvers(plain_data(node), f"hydra.{mode}"), None):
        raise ConfigError(asked)
    try:
        return None if OmegaConf.is_missing(node, "dir") else str(node.dir)
    except OmegaConfBaseException as error:
        raise ConfigError(f"hydra.{mode}.dir: {first_line(error)}; give a folder") from error


def job_of(composed: DictConfig, fixed: list[str], values: list[str]) -> Job:
    """Check and build a composed job.

    Args:
        composed: with Hydra's node in it.
        fixed: overrides that all jobs share.
        values: this job's own.

    Raises:
        ConfigError: naming every problem.
    """
    config, choices = _strict(composed)
    config.choices = choices
    run = build(config)
    if problems := run.check():
        raise all_problems(problems)
    axes = {key_of(word): re.sub(r"^'([\w.+-]+)'$", r"\1", word.partition("=")[2]) for word in values}
    return Job(run, [*fixed, *values], axes)


@contextmanager
def hydra(config_dir: str | None = None) -> Iterator[None]:
    """Hydra, initialized on our conf/; a caller who has initialized it on theirs finds it so again."""
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder; give one that holds options, as conf/ does")
    if not is_unicode(here := str(Path.cwd())):
        raise ConfigError(
            f"{here.encode(errors='backslashreplace').decode()}: the name of this folder is not UTF-8, as records and "
            "reports are that name it; rename the folder, or work in another"
        )
    register()
    callers = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    SearchPath.further = config_dir
    try:
        with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = callers


def compose_one(overrides: list[str]) -> DictConfig:
    """Compose one config with Hydra's own node in it."""
    try:
        return hydra_compose("config", overrides=[*map(_forced, overrides)], return_hydra_config=True)
    except Exception as error:  # Hydra and PyYAML answer a user's mistakes with errors of any type
        raise ConfigError(explain(error)) from error


def _compose_onto(bases: dict[tuple[str, ...], DictConfig], fixed: list[str], values: list[str]) -> DictConfig:
    """Compose a job of a grid.

    Options are looked up once for each choice of groups; a value is put onto a copy of that, as Hydra itself puts it
    onto what it has looked up. Twelve jobs that differ in values are composed in the time of two.

    Args:
        bases: what was composed for the jobs before, by their choices.
        fixed: overrides that all jobs share.
        values: this job's own.
    """
    words = [_forced(word) for word in texts_of(parse(values))]
    chosen = tuple(word for word in words if not word.startswith("++"))
    if chosen not in bases:
        bases[chosen] = compose_one([*fixed, *chosen])
    config = copy.deepcopy(bases[chosen])
    put = OverridesParser.create().parse_overrides([word for word in words if word.startswith("++")])
    try:
        ConfigLoaderImpl._apply_overrides_to_config(put, config)  # noqa: SLF001
    except Exception as error:  # as above
        raise ConfigError(explain(error)) from error
    return config


def _forced(word: str) -> str:
    """Spell a value ``++key=value``: Hydra then takes new keys of free mappings, and leaves unknown ones to us."""
    key = key_of(word)
    is_value = word[0] not in "+~" and key not in GROUPS and not re.search("[/@]", key)
    return f"++{word}" if is_value and not key.startswith("hydra.") else word


def _strict(composed: DictConfig) -> tuple[DictConfig, dict[str, Any]]:
    """Take Hydra's node out, refuse unknown and missing keys; give the config and the chosen options."""
    choices = choices_of(composed)
    OmegaConf.set_struct(composed, False)
    composed.pop("hydra")
    if asked := list(resolvers(plain_data(composed))):
        raise all_problems(asked)
    problems = [unknown_key(path, known, composed, choices) for path, known in _unknown_keys(composed)]
    problems += [
        f"{one.name}: cannot be removed; give it another value" for one in fields(Run) if one.name not in composed
    ]
    problems += _unresolved(composed)
    if problems:
        raise all_problems(problems)
    try:
        OmegaConf.resolve(composed)
        problems += [f"{key}: no value; give one, {key}=..." for key in sorted(OmegaConf.missing_keys(composed))]
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    if not problems and composed.choices:
        problems.append("choices: a record of what was chosen, not to be set; choose with dedup=exact and the like")
    if not problems and composed.plugins:
        problems.append("plugins: a record of where stages are from, not to be set; install a package to change it")
    if problems:
        raise all_problems(problems)
    return composed, choices


def _unresolved(node: Any, path: str = "") -> Iterator[str]:
    """Interpolations that lead nowhere, each with its key; OmegaConf's own error may name none."""
    for key in node if isinstance(node, DictConfig) and not (node._is_none() or node._is_missing()) else ():  # noqa: SLF001
        child = node._get_node(key)  # noqa: SLF001
        if not child._is_interpolation():  # noqa: SLF001
            yield from _unresolved(child, f"{path}{key!s}.")
            continue
        try:
            child._dereference_node()  # noqa: SLF001
        except (OmegaConfBaseException, RecursionError) as error:
            yield f"{path}{key!s}={child._value()}: {first_line(error)}; write the value itself"  # noqa: SLF001


def choices_of(composed: DictConfig) -> dict[str, Any]:
    """Give the option chosen in each group."""
    raw = composed.hydra.runtime.choices
    found = {name: raw[name] for name in SCHEMAS if name in raw}
    # Hydra leaves out groups chosen as lists.
    found["filter"] = list(composed.get("filter") or {}) or ["none"]
    if not OmegaConf.is_missing(composed, "split") and composed.split.get("filter"):
        found["split/filter"] = list(composed.split.filter)
    found |= {str(name): raw[name] for name in raw if str(name).startswith("dedup/")}
    return {str(name): value for name, value in found.items()}


def _unknown_keys(node: Any, path: str = "") -> Iterator[tuple[str, list[str]]]:
    """Keys that no schema has, with the names beside them; a struct does not stop those added with ``+``."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():  # noqa: SLF001
        return
    schema = OmegaConf.get_type(node)
    known = [found.name for found in fields(schema)] if is_dataclass(schema) else None
    for key in node:
        inner = f"{path}{key!s}"
        if known is not None and key not in known:
            yield inner, known
        elif not OmegaConf.is_missing(node, key):
            yield from _unknown_keys(node._get_node(key), f"{inner}.")  # noqa: SLF001


def _refuse_twins(jobs: list[Job]) -> None:
    seen: dict[str, Job] = {}
    for job in jobs:
        if twin := seen.get(job.run.hash):
            first, second = (" ".join(f"{key}={value}" for key, value in one.axes.items()) for one in (twin, job))
            raise ConfigError(
                f"sweep: {first} and {second} are one job, since nothing that changes a result differs; leave one out"
            )
        seen[job.run.hash] = job


def environment_note() -> str:
    """Say where options are looked for."""
    here = [name for name in ("conf", "experiments") if (Path.cwd() / name).is_dir()]
    return f"{shipped('conf')}; here: {', '.join(here) or 'none'} ({Path.cwd()})"
