"""Data to Run and back: ``config.yaml``, without Hydra and without code."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft_lab.config.error_messages import all_keys, first_line, lines_of, not_yaml, plain_data, unknown_key
from sft_lab.config.registry import register
from sft_lab.config.text_fields import read_yaml
from sft_lab.core import plugins
from sft_lab.core.errors import ConfigError, all_problems
from sft_lab.core.io import FORMAT, read_text, refuse_alias_bomb
from sft_lab.core.redaction import MAY_BE_SECRET, holds_secret, known_secrets
from sft_lab.core.text import is_unicode
from sft_lab.run.config import Run
from sft_lab.run.schemas import SCHEMAS


def load(path: Path, overrides: list[str] | None = None) -> Run:
    """Build a run from a saved config, without Hydra: data only, never code.

    Args:
        path: of ``config.yaml``.
        overrides: dotted keys of the saved config, ``key=value``.

    Raises:
        ConfigError: for a file that is not a saved config of this format.
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a config.yaml as a run wrote it") from error
    for where, content in [(str(path), text), *((word, word) for word in overrides or [])]:
        if "${" in content:
            raise ConfigError(
                f"{where}: holds an interpolation (${{...}}); a saved config is resolved data; write the value"
            )
    try:
        refuse_alias_bomb(text)
        register()
        saved = OmegaConf.create(read_yaml(text) or {})
        for word in overrides or [] if isinstance(saved, DictConfig) else []:
            key, _, value = word.partition("=")
            OmegaConf.update(saved, key, read_yaml(value, tuple(key.split("."))))
        plain = OmegaConf.to_container(saved)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {first_line(error)}") from error
    except Exception as error:  # PyYAML's errors share no base with OmegaConf's
        raise ConfigError(f"{path}: {not_yaml(error)}; give a config.yaml as a run wrote it") from error
    return from_saved(plain, str(path))


def from_saved(saved: Any, where: str) -> Run:
    """Build a run from the plain data that ``Run.saved`` gives.

    Raises:
        ConfigError: for an unknown format, kind or key.
    """
    if not isinstance(saved, dict):
        raise ConfigError(f"{where}: must hold keys and values, holds a {type(saved).__name__}")
    if problems := [*_not_plain(saved)]:  # first of all, so that nothing in a stranger's file is resolved
        raise ConfigError(f"{where}: {all_problems(problems)}")
    if saved.get("format") != FORMAT:
        raise ConfigError(
            f"{where}: format={saved.get('format')}: this version of sft_lab reads format {FORMAT}; give a config.yaml "
            "as a run of it wrote it"
        )
    if target := next((path for path, key in all_keys(saved) if key == "_target_"), None):
        raise ConfigError(f"{where}: {target}: a saved config is data and names no code to run; remove it")
    known = [found.name for found in fields(Run)]
    if unknown := [str(name) for name in saved if name not in [*known, "format"]]:
        raise ConfigError(f"{where}: " + "; ".join(unknown_key(name, known) for name in unknown))
    _refuse_absent(saved.get("plugins") or {}, where)
    config = OmegaConf.structured(Run)
    for name in known:
        if name in saved:
            _put(config, name, saved[name], f"{where}: {name}")
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(f"{where}: missing {', '.join(missing)}; give a config.yaml as a run wrote it")
    try:
        return build(config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _refuse_absent(noted: Any, where: str) -> None:
    """Refuse a run whose stages came from plug-ins that are not here."""
    register()
    if not isinstance(noted, dict):
        raise ConfigError(f"{where}: plugins={noted}: must be a mapping of stages to where they are from")
    names = [(str(name), *str(name).partition(".")[::2]) for name in noted]
    if absent := [name for name, group, kind in names if kind not in SCHEMAS.get(group, {})]:
        used = all_problems(f"this run used {name} of {noted[name]}, which is not here" for name in absent)
        raise ConfigError(f"{where}: {used}; install it, or set {plugins.VARIABLE} to its module")


def _put(config: DictConfig, name: str, node: Any, where: str) -> None:
    if name == "filter":
        _put_filters(config, node, where)
    elif name == "split" and isinstance(node, dict):
        config[name] = _typed(name, {key: value for key, value in node.items() if key != "filter"}, where)
        _put_filters(config.split, node.get("filter", {}), f"{where}.filter")
    elif name in SCHEMAS:
        config[name] = _typed(name, node, where)
    else:
        try:
            config.merge_with({name: node})
        except OmegaConfBaseException as error:
            raise ConfigError(f"{where}={node}: {first_line(error)}") from error


def _put_filters(config: DictConfig, node: Any, where: str) -> None:
    if not isinstance(node, dict):
        raise ConfigError(f"{where}={node}: must be a mapping of names to filters")
    for key, child in node.items():
        config.filter[str(key)] = _typed("filter", child, f"{where}.{key}")


def _typed(group: str, node: Any, where: str) -> DictConfig:
    kind = node.get("kind") if isinstance(node, dict) else None
    if not isinstance(kind, str) or kind not in SCHEMAS[group]:
        raise ConfigError(f"{where}.kind={kind}: must be one of {', '.join(SCHEMAS[group])}")
    schema = SCHEMAS[group][kind]
    values = {key: value for key, value in node.items() if key != "kind"}
    try:
        typed = OmegaConf.merge(OmegaConf.structured(schema), values)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{where}{f'.{key}' if key else ''}: {first_line(error)}") from error
    assert isinstance(typed, DictConfig)
    return typed


def build(config: DictConfig) -> Run:
    """Turn a strict config into the run object; every stage's refusals come at once, each with its key.

    Raises:
        ConfigError: naming key, value and limit.
    """
    # A limit says nothing of a number that is none, so these come first.
    if problems := [*_not_plain(plain_data(config)), *_misplaced(config)] or _refusals(config):
        raise all_problems(problems)
    run = OmegaConf.to_object(config)
    assert isinstance(run, Run)
    if problems := list(_not_plain(run.saved())):  # of paths, which are absolute only now
        remedy = "it stands in the name of a folder: rename that, or work in another"
        raise all_problems(f"{problem.partition(';')[0]}; {remedy}" for problem in problems)
    return run


def _refusals(node: DictConfig, path: str = "") -> list[str]:
    """What the stages' ``__post_init__`` refuse; inner nodes are built first, so that a refusal names its whole key."""
    problems = []
    for key in node:
        child = node._get_node(key)  # noqa: SLF001 - node[key] is ten times slower
        if isinstance(child, DictConfig) and not (child._is_none() or child._is_missing()):  # noqa: SLF001
            problems += _refusals(child, f"{path}.{key!s}".lstrip("."))
    if problems or not path or not is_dataclass(OmegaConf.get_type(node)):
        return problems
    try:
        OmegaConf.to_object(node)
    except ConfigError as error:
        return [f"{path}.{line}" for line in lines_of(error)]
    except OmegaConfBaseException as error:
        return [f"{path}: {first_line(error)}"]
    return []


def _misplaced(node: Any, path: str = "") -> Iterator[str]:
    """Lists and mappings where a text belongs: OmegaConf lets them into a list of texts."""
    if node._is_none() or node._is_missing():  # noqa: SLF001
        return
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        child = node._get_node(key)  # noqa: SLF001
        here = f"{path}.{key!s}".lstrip(".")
        if not isinstance(child, DictConfig | ListConfig):
            continue
        if node._metadata.element_type is str:  # noqa: SLF001
            yield f"{here}={OmegaConf.to_container(child)}: must be a text"
        else:
            yield from _misplaced(child, here)


def _not_plain(node: Any, path: str = "", known: Sequence[str] | None = None) -> Iterator[str]:
    """Values that JSON, or a saved config, cannot hold; ``known``: secrets of this environment, asked for once."""
    known = known_secrets() if known is None else known
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            here = f"{path}.{key}" if path else str(key)
            yield from _not_plain(str(key), f"{here} (a key)", known)
            yield from _not_plain(child, here, known)
    elif isinstance(node, float) and not math.isfinite(node):
        yield f"{path}={node}: must be a finite number"
    elif isinstance(node, str) and holds_secret(f"{path}={node}", known):
        yield f"{path}: holds {MAY_BE_SECRET}, which a config would keep; use `hf auth login` or `wandb login`"
    elif isinstance(node, int) and abs(node) >= 2**63:
        yield f"{path}={node}: must be below 2**63"
    elif isinstance(node, str) and "${" in node:
        yield f"{path}: must not hold ${{, which a saved config would read as an interpolation"
    elif isinstance(node, str) and not is_unicode(node):
        yield f"{path}={node.encode(errors='backslashreplace').decode()}: is not UTF-8"
    elif isinstance(node, str) and "\x85" in node:
        yield f"{path}: must not hold U+0085 (next line), which YAML does not give back; write a line break"
