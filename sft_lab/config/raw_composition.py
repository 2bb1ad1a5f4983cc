"""A config taken apart as plain data: kinds, values and choices, of a composition or of a run."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sft_lab.config.compose import compose_raw
from sft_lab.config.overrides import parse, texts_of
from sft_lab.config.search_path import hydra_session
from sft_lab.config.validation import choices_of
from sft_lab.core.params import default, plain
from sft_lab.run.config import Run
from sft_lab.run.schemas import SCHEMAS


@dataclass(frozen=True)
class ConfigParts:
    """A config taken apart.

    Attributes:
        kinds: kind of every stage, by path: ``dedup``, ``filter.length``, ``split.filter.language``.
        values: all values, nested; ``???`` if an option requires one.
        choices: the chosen option in each group, always including ``split/filter``.
    """

    kinds: dict[str, str]
    values: dict[str, Any]
    choices: dict[str, Any]


def compose_parts(overrides: list[str]) -> ConfigParts:
    """Compose options without checks: missing or invalid values are no error here.

    Raises:
        ConfigError: if there is no such option.
    """
    with hydra_session():
        config = compose_raw(texts_of(parse(overrides)))
        choices = {"split/filter": [], **choices_of(config)}
        OmegaConf.set_struct(config, False)
        config.pop("hydra")
        values: Any = OmegaConf.to_container(config, enum_to_str=True)
        _drop_added(config, values)
        kinds = {group: kind for group in SCHEMAS if (kind := _kind(group, config, group))}
        for path in ("filter", "split.filter"):
            kinds |= {f"{path}.{name}": _kind("filter", config, f"{path}.{name}") for name in _names(config, path)}
        return ConfigParts(
            kinds, {name: value for name, value in values.items() if name not in ("choices", "plugins")}, choices
        )


def _drop_added(node: Any, values: Any) -> None:
    """Remove what a saved config omits: fields added later, at their defaults (see ``params.plain``)."""
    if not isinstance(node, DictConfig) or not isinstance(values, dict):
        return
    schema = OmegaConf.get_type(node)
    for field in fields(schema) if is_dataclass(schema) else ():
        if field.metadata.get("added") and values.get(field.name) == plain(default(field)):
            del values[field.name]
    for name in values:
        _drop_added(None if OmegaConf.is_missing(node, name) else node[name], values[name])


def parts_of(run: Run) -> ConfigParts:
    """Return a run's config taken apart in the same way."""
    values = run.saved()
    choices = {**values.pop("choices"), "filter": list(run.filter) or ["none"], "split/filter": list(run.split.filter)}
    del values["format"]
    values.pop("plugins", None)
    kinds = {group: values[group].pop("kind") for group in SCHEMAS if group != "filter"}
    for path, filters in (("filter", values["filter"]), ("split.filter", values["split"]["filter"])):
        kinds |= {f"{path}.{name}": knobs.pop("kind") for name, knobs in filters.items()}
    return ConfigParts(kinds, values, choices)


def _names(config: DictConfig, path: str) -> list[str]:
    """Return the names below a path; empty if there is no such path."""
    node = OmegaConf.select(config, path)
    return [str(name) for name in node] if isinstance(node, DictConfig) else []


def _kind(group: str, config: DictConfig, path: str) -> str:
    """Return the kind of the stage at a path; empty if there is none."""
    node = OmegaConf.select(config, path)
    schema = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
    return next((kind for kind, known in SCHEMAS[group].items() if known is schema), "")
