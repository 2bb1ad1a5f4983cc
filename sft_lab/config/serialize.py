"""Loading of a saved ``config.yaml``, without Hydra and without executing code; and the checks of every build."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft_lab.config.error_messages import (
    all_keys,
    field_names,
    first_line,
    plain_data,
    problems_in,
    unknown_key,
    yaml_problem,
)
from sft_lab.config.registry import register_plugins
from sft_lab.config.text_fields import is_text, read_yaml
from sft_lab.config.validation import children
from sft_lab.core import plugins
from sft_lab.core.errors import ConfigError, all_problems
from sft_lab.core.io import FORMAT, read_text
from sft_lab.core.redaction import MAY_BE_SECRET, holds_secret, known_secrets
from sft_lab.core.text import is_unicode
from sft_lab.run.config import Run
from sft_lab.run.launch_config import Launcher
from sft_lab.run.schemas import SCHEMAS

_REMEDY = "give a config.yaml as a run wrote it"
_ADDED = {"engine": {"kind": "local"}}  # groups that are missing from configs written by older versions


def load(path: Path, overrides: list[str] | None = None, launcher: dict[str, Any] | None = None) -> Run:
    """Load a run from a saved config, which is data, never code.

    Args:
        path: path of ``config.yaml``.
        overrides: dotted keys of the saved config, ``key=value``.
        launcher: a launcher as a config saves it, in place of the saved one; what all launchers have stays as it was.

    Raises:
        ConfigError: if the file is not a saved config of this format.
    """
    overrides = overrides or []
    content: Any
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); {_REMEDY}") from error
    for subject, source in [(str(path), text), *((override, override) for override in overrides)]:
        if "${" in source:
            raise ConfigError(
                f"{subject}: contains an interpolation (${{...}}), but a saved config is resolved; write the value"
            )
    try:
        register_plugins()
        saved = OmegaConf.create(read_yaml(text) or {})
        if launcher and isinstance(saved, DictConfig):
            before = saved.get("launch") or {}
            saved.launch = launcher | {name: before[name] for name in field_names(Launcher) if name in before}
        for override in overrides if isinstance(saved, DictConfig) else []:
            key, _, value = override.partition("=")
            OmegaConf.update(saved, key, read_yaml(value, tuple(key.split("."))))
        content = OmegaConf.to_container(saved)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {first_line(error)}") from error
    except Exception as error:  # PyYAML's errors share no base class with OmegaConf's
        raise ConfigError(f"{path}: {yaml_problem(error)}; {_REMEDY}") from error
    return from_saved(content, str(path))


def from_saved(saved: Any, source: str) -> Run:
    """Return the run described by the plain data of ``Run.saved``.

    Args:
        saved: the data.
        source: origin of the data; error messages begin with it.

    Raises:
        ConfigError: for an unknown format, kind or key.
    """
    if not isinstance(saved, dict):
        raise ConfigError(f"{source}: must contain keys and values, not a {type(saved).__name__}")
    if problems := [*_not_storable(saved)]:  # first of all, so that nothing in a stranger's file is resolved
        raise ConfigError(f"{source}: {all_problems(problems)}")
    if saved.get("format") != FORMAT:
        raise ConfigError(
            f"{source}: format={saved.get('format')}: this version of sft_lab reads format {FORMAT}; give "
            "a config.yaml written by a run of this version"
        )
    if target := next((path for path, key in all_keys(saved) if key == "_target_"), None):
        raise ConfigError(f"{source}: {target}: a saved config must not name code to run; remove it")
    known = field_names(Run)
    if unknown := [str(name) for name in saved if name not in [*known, "format"]]:
        raise ConfigError(f"{source}: " + "; ".join(unknown_key(name, known) for name in unknown))
    _refuse_missing_plugins(saved.get("plugins") or {}, source)

    config = OmegaConf.structured(Run)
    saved = {**_ADDED, **saved}
    for name in (name for name in known if name in saved):
        _set_field(config, name, saved[name], f"{source}: {name}")
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(f"{source}: missing {', '.join(missing)}; {_REMEDY}")
    try:
        return build(config)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _refuse_missing_plugins(recorded: Any, source: str) -> None:
    """Refuse a run with stages of missing plug-ins."""
    register_plugins()
    if not isinstance(recorded, dict):
        raise ConfigError(f"{source}: plugins={recorded}: must be a mapping of stages to their plug-ins")
    names = [(str(name), *str(name).partition(".")[::2]) for name in recorded]
    if missing := [name for name, group, kind in names if kind not in SCHEMAS.get(group, {})]:
        problem = all_problems(f"this run used {name} from {recorded[name]}, which was not found" for name in missing)
        raise ConfigError(f"{source}: {problem}; install it, or set {plugins.VARIABLE} to its module")


def _set_field(config: DictConfig, name: str, content: Any, subject: str) -> None:
    """Set a field of the run to saved data, each stage by its kind."""
    if name == "filter":
        _set_filters(config, content, subject)
    elif name == "split" and isinstance(content, dict):
        knobs = {key: value for key, value in content.items() if key != "filter"}
        config[name] = _typed_stage(name, knobs, subject)
        _set_filters(config.split, content.get("filter", {}), f"{subject}.filter")
    elif name in SCHEMAS:
        config[name] = _typed_stage(name, content, subject)
    else:
        try:
            config.merge_with({name: content})
        except OmegaConfBaseException as error:
            raise ConfigError(f"{subject}={content}: {first_line(error)}") from error


def _set_filters(config: DictConfig, content: Any, subject: str) -> None:
    if not isinstance(content, dict):
        raise ConfigError(f"{subject}={content}: must be a mapping of names to filters")
    for name, knobs in content.items():
        config.filter[str(name)] = _typed_stage("filter", knobs, f"{subject}.{name}")


def _typed_stage(group: str, content: Any, subject: str) -> DictConfig:
    """Return a stage's saved data as a config with the schema of its kind."""
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in SCHEMAS[group]:
        raise ConfigError(f"{subject}.kind={kind}: must be one of {', '.join(SCHEMAS[group])}")
    knobs = {key: value for key, value in content.items() if key != "kind"}
    try:
        stage = OmegaConf.merge(OmegaConf.structured(SCHEMAS[group][kind]), knobs)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{subject}{f'.{key}' if key else ''}: {first_line(error)}") from error
    assert isinstance(stage, DictConfig)
    return stage


# --- from a config to the run object -----------------------------------------------------------------------------


def build(config: DictConfig) -> Run:
    """Build a run from a valid config; the problems of all stages are raised at once, each with its key.

    Raises:
        ConfigError: naming key, value and limit.
    """
    # Limits make sense for numbers only, so these checks come first.
    content = plain_data(config)
    if problems := [*_not_storable(content), *_not_texts(content)] or _stage_problems(config):
        raise all_problems(problems)
    run = OmegaConf.to_object(config)
    assert isinstance(run, Run)
    if problems := list(_not_storable(run.saved())):  # of paths, which have become absolute
        remedy = "it comes from a folder's name; rename the folder, or work in another"
        raise all_problems(f"{problem.partition(';')[0]}; {remedy}" for problem in problems)
    return run


def _stage_problems(node: DictConfig, path: str = "") -> list[str]:
    """Return the problems that the stages' ``__post_init__`` raise, inner nodes first, so that each has its key."""
    problems = []
    for key, child in children(node):
        if isinstance(child, DictConfig):
            problems += _stage_problems(child, f"{path}.{key!s}".lstrip("."))
    if problems or not path or not is_dataclass(OmegaConf.get_type(node)):
        return problems
    try:
        OmegaConf.to_object(node)
    except ConfigError as error:
        return [f"{path}.{problem}" for problem in problems_in(error)]
    except OmegaConfBaseException as error:
        return [f"{path}: {first_line(error)}"]
    return []


def _not_texts(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[str]:
    """Yield a message for each list or mapping in place of a string: OmegaConf accepts them in a list of strings."""
    for key, child in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(child, dict | list):
            inner = (*path, key)
            if is_text(inner):
                yield f"{'.'.join(map(str, inner))}={child}: must be a string"
            else:
                yield from _not_texts(child, inner)


def _not_storable(node: Any, path: str = "", secrets: Sequence[str] | None = None) -> Iterator[str]:
    """Yield a message for each value that JSON or a saved config cannot or must not hold.

    Args:
        node: plain data.
        path: of the node.
        secrets: secrets of this environment, read once.
    """
    secrets = known_secrets() if secrets is None else secrets
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            inner = f"{path}.{key}" if path else str(key)
            yield from _not_storable(str(key), f"{inner} (a key)", secrets)
            yield from _not_storable(child, inner, secrets)
    elif isinstance(node, float) and not math.isfinite(node):
        yield f"{path}={node}: must be a finite number"
    elif isinstance(node, int) and abs(node) >= 2**63:
        yield f"{path}={node}: must be below 2**63"
    elif isinstance(node, str) and holds_secret(f"{path}={node}", secrets):
        yield f"{path}: contains {MAY_BE_SECRET}, which the config would store; use `hf auth login` or `wandb login`"
    elif isinstance(node, str) and "${" in node:
        yield f"{path}: must not contain ${{, which a saved config would read as an interpolation"
    elif isinstance(node, str) and not is_unicode(node):
        yield f"{path}={node.encode(errors='backslashreplace').decode()}: is not UTF-8"
    elif isinstance(node, str) and "\x85" in node:
        yield f"{path}: must not contain U+0085 (next line), which YAML does not preserve; write a line break"
