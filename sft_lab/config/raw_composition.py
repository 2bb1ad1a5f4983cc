"""What options come to by themselves: a composition as plain data, before it is checked and built."""

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
class Bare:
    """A config in two parts.

    Attributes:
        kinds: of every stage, by its path: ``dedup``, ``filter.length``, ``split.filter.language``.
        values: of every knob, nested; ``???`` where an option asks for one.
        choices: the option chosen in each group, ``split/filter`` always among them.
    """

    kinds: dict[str, str]
    values: dict[str, Any]
    choices: dict[str, Any]


def compose_bare(overrides: list[str]) -> Bare:
    """Compose options and leave them as they are: values that are missing or refused are no error here.

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
        return Bare(
            kinds, {name: value for name, value in values.items() if name not in ("choices", "plugins")}, choices
        )


def _drop_added(node: Any, values: Any) -> None:
    """Take out what a saved config leaves out: fields added later, at their defaults (see ``params.plain``)."""
    if not isinstance(node, DictConfig) or not isinstance(values, dict):
        return
    schema = OmegaConf.get_type(node)
    for field in fields(schema) if is_dataclass(schema) else ():
        if field.metadata.get("added") and values.get(field.name) == plain(default(field)):
            del values[field.name]
    for name in values:
        _drop_added(None if OmegaConf.is_missing(node, name) else node[name], values[name])


def bare_of(run: Run) -> Bare:
    """Take a run apart in the same way."""
    values = run.saved()
    choices = {**values.pop("choices"), "filter": list(run.filter) or ["none"], "split/filter": list(run.split.filter)}
    del values["format"]
    values.pop("plugins", None)
    kinds = {group: values[group].pop("kind") for group in SCHEMAS if group != "filter"}
    for path, filters in (("filter", values["filter"]), ("split.filter", values["split"]["filter"])):
        kinds |= {f"{path}.{name}": knobs.pop("kind") for name, knobs in filters.items()}
    return Bare(kinds, values, choices)


def _names(config: DictConfig, path: str) -> list[str]:
    """Give the names below a path, none where nothing is there yet."""
    node = OmegaConf.select(config, path)
    return [str(name) for name in node] if isinstance(node, DictConfig) else []


def _kind(group: str, config: DictConfig, path: str) -> str:
    """Give the kind of the stage at a path, empty where there is none."""
    node = OmegaConf.select(config, path)
    schema = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
    return next((kind for kind, known in SCHEMAS[group].items() if known is schema), "")
