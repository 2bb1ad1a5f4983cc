"""Checks of a composed config that Hydra lacks: unknown keys, missing values, code and settings in files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.conf import HydraConf
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft_lab.config.error_messages import (
    explain,
    field_names,
    first_line,
    plain_data,
    refused_interpolations,
    unknown_key,
)
from sft_lab.config.other_names import SUBMITIT, submitit_in_file
from sft_lab.core.errors import ConfigError, all_problems
from sft_lab.run.config import Run
from sft_lab.run.schemas import SCHEMAS
from sft_lab.tracking.config import Tracking

# What a config may hold below hydra: mode, run.dir, sweep.dir and the values of a sweep, and what Hydra sets itself.
_HYDRA_NODES = {"mode", "run", "sweep", "launcher", "sweeper", "job", "runtime", "overrides"}
_BASIC_KEYS = {"launcher": {"_target_"}, "sweeper": {"_target_", "max_batch_size", "params"}}


def refuse_hydra_settings(composed: DictConfig) -> None:
    """Refuse Hydra settings in a file, except mode, folders and sweep values.

    A Hydra sweeper or launcher gets the whole command line, so it must be known before composition; callbacks and
    ``_target_`` name code to run, and ``job.env_set`` changes the environment.

    Args:
        composed: a config with Hydra's node, composed without the ``hydra.*`` of the command line.

    Raises:
        ConfigError: naming the setting.
    """
    for group in ("hydra/sweeper", "hydra/launcher"):
        choice = composed.hydra.runtime.choices.get(group)
        if choice in SUBMITIT:
            raise ConfigError(submitit_in_file(choice))
        if choice not in (None, "basic"):
            raise ConfigError(
                f"{group}={choice}: cannot be set in a file; write it on the command line: -m {group}={choice}"
            )

    settings = plain_data(composed.hydra)
    defaults = plain_data(OmegaConf.structured(HydraConf))
    refused = [f"{node}.{key}" for node, known in _BASIC_KEYS.items() for key in set(settings[node]) - known]
    refused += [
        f"job.{key}" for key in ("chdir", "env_set", "env_copy") if settings["job"][key] != defaults["job"][key]
    ]
    refused += [key for key in settings if key not in _HYDRA_NODES and settings[key] != defaults.get(key)]
    if refused:
        raise ConfigError(
            f"hydra.{sorted(refused)[0]}: cannot be set in a file (only hydra.mode, run.dir, sweep.dir, sweep.subdir "
            "and sweeper.params can); take it out, or write it on the command line"
        )


def choices_of(composed: DictConfig) -> dict[str, Any]:
    """Return the option chosen in each group.

    Args:
        composed: a config with Hydra's node.
    """
    recorded = composed.hydra.runtime.choices
    choices = {name: recorded[name] for name in SCHEMAS if name in recorded}
    # Hydra leaves out groups chosen as lists.
    choices["filter"] = list(composed.get("filter") or {}) or ["none"]
    if not OmegaConf.is_missing(composed, "split") and composed.split.get("filter"):
        choices["split/filter"] = list(composed.split.filter)
    tracking = composed.get("tracking")
    if "tracking" not in choices and tracking:
        is_local = OmegaConf.get_type(tracking) is Tracking
        choices["tracking"] = [*([] if is_local else ["wandb"]), *tracking.mirrors] or ["local"]
    choices |= {str(name): recorded[name] for name in recorded if str(name).startswith("dedup/")}
    return {str(name): value for name, value in choices.items()}


def validate(composed: DictConfig) -> dict[str, Any]:
    """Remove Hydra's node from a composed config, resolve it and refuse unknown and missing keys; return the choices.

    Raises:
        ConfigError: naming every problem.
    """
    choices = choices_of(composed)
    OmegaConf.set_struct(composed, False)
    composed.pop("hydra")
    if problems := list(refused_interpolations(plain_data(composed))):
        raise all_problems(problems)

    problems = [unknown_key(path, known, composed, choices) for path, known in _unknown_keys(composed)]
    removed = [field.name for field in fields(Run) if field.name not in composed]
    problems += [f"{name}: cannot be removed; give it another value" for name in removed]
    problems += _broken_references(composed)
    if problems:
        raise all_problems(problems)

    try:
        OmegaConf.resolve(composed)
        missing = sorted(OmegaConf.missing_keys(composed))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    if missing:
        raise all_problems(f"{key}: no value; give one, {key}=..." for key in missing)

    if composed.choices:
        problems.append(
            "choices: records the chosen options and cannot be set; choose an option with its group, as in dedup=exact"
        )
    if composed.plugins:
        problems.append("plugins: records where stages come from and cannot be set; install a package to change it")
    if problems:
        raise all_problems(problems)
    return choices


def children(node: DictConfig) -> list[tuple[Any, Any]]:
    """Return keys and unresolved values of a node; empty if it is null, missing or a reference."""
    return node.items_ex(resolve=False) if len(node) else []


def _unknown_keys(node: DictConfig, path: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield keys that no schema has, with the allowed names: OmegaConf accepts keys added with ``+``."""
    schema = OmegaConf.get_type(node)
    known = field_names(schema)
    for key, child in children(node):
        if is_dataclass(schema) and key not in known:
            yield f"{path}{key!s}", known
        elif isinstance(child, DictConfig):
            yield from _unknown_keys(child, f"{path}{key!s}.")


def _broken_references(node: DictConfig | ListConfig, path: str = "") -> Iterator[str]:
    """Yield a message for each dangling interpolation; OmegaConf's own error may not name the key."""
    keys: Iterable[Any] = range(len(node)) if isinstance(node, ListConfig) else [key for key, _ in children(node)]
    for key in keys:
        name = f"{path}[{key}]" if isinstance(node, ListConfig) else f"{path}.{key!s}".lstrip(".")
        if OmegaConf.is_interpolation(node, key):
            try:
                node[key]
            except (OmegaConfBaseException, RecursionError) as error:
                text = OmegaConf.to_container(node, resolve=False)[key]  # type: ignore[index]
                yield f"{name}={text}: {first_line(error)}; write the value itself"
        elif not OmegaConf.is_missing(node, key) and isinstance(child := node[key], DictConfig | ListConfig):
            yield from _broken_references(child, name)
