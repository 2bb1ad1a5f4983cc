"""Stages of plug-ins, each checked for what a saved config and the store need."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft_lab.core import plugins
from sft_lab.core.errors import ConfigError
from sft_lab.core.option_files import shipped
from sft_lab.core.plugins import Plugin
from sft_lab.data.chat_template import Template
from sft_lab.data.filters import Filter
from sft_lab.data.load import Dataset
from sft_lab.data.split import Split
from sft_lab.dedup.exact import Dedup
from sft_lab.run.schemas import SCHEMAS

# What a plug-in may add to: the stages that work on rows. Training and measuring are the same for everybody.
BASES: dict[str, type] = {"dataset": Dataset, "split": Split, "filter": Filter, "dedup": Dedup, "template": Template}
_registered: list[tuple[tuple[str, ...], str]] = []  # the import path and variable of the last registration


def register_plugins() -> None:
    """Import the installed plug-ins and add their stages to ``SCHEMAS``; repeat only if the environment has changed.

    Raises:
        ConfigError: for a plug-in that cannot be used, naming it.
    """
    environment = (tuple(sys.path), os.environ.get(plugins.VARIABLE, ""))
    if _registered == [environment]:
        return
    _registered.clear()
    for kinds in SCHEMAS.values():
        for kind in [kind for kind, schema in kinds.items() if plugins.origin(schema)]:
            del kinds[kind]

    stages: dict[tuple[str, str], type] = {}
    origins: dict[type, str] = {}
    for plugin in plugins.named():
        plugin_stages, origin = plugin.load()
        for name, stage in plugin_stages.items():
            group, kind = _group_and_kind(plugin, name)
            if namesake := SCHEMAS[group].get(kind) or stages.get((group, kind)):
                owner = origins.get(namesake, "sft_lab")
                raise ConfigError(
                    f"plug-in {plugin}: {owner} already has a kind {name}; rename yours in STAGES and in conf/"
                )
            _refuse_class(plugin, name, stage, [*origins, *SCHEMAS[group].values()])
            stages[group, kind], origins[stage] = stage, origin
        _refuse_shadowed(plugin)

    for (group, kind), stage in stages.items():
        SCHEMAS[group][kind] = stage
    plugins.remember(origins)
    _registered.append(environment)


def _group_and_kind(plugin: Plugin, name: str) -> tuple[str, str]:
    """Return the group and kind of a name in ``STAGES``."""
    group, _, kind = name.partition(".")
    if group not in BASES or not kind.isidentifier():
        raise ConfigError(
            f"plug-in {plugin}: STAGES[{name!r}]: must be a group, a dot and a kind, as in 'filter.polite'; groups "
            f"are {', '.join(BASES)}; {plugins.HELP}"
        )
    return group, kind


def _refuse_class(plugin: Plugin, name: str, stage: type, registered: list[type]) -> None:
    """Refuse a class that cannot be a stage of its group, or is registered under another name."""
    base = BASES[name.partition(".")[0]]
    subject = f"plug-in {plugin}: {name}: {stage.__name__}"
    if stage in registered:
        raise ConfigError(f"{subject} is already registered as another kind; write a separate class")
    if not issubclass(stage, base) or "__dataclass_params__" not in vars(stage):
        raise ConfigError(
            f"{subject} must be a @dataclass derived from {base.__module__}.{base.__name__}; {plugins.HELP}"
        )
    if missing := sorted(getattr(stage, "__abstractmethods__", ())):
        raise ConfigError(f"{subject} must also have {', '.join(missing)}; {plugins.HELP}")
    try:
        OmegaConf.structured(stage)
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{subject}: a field has a type that configs do not support ({str(error).splitlines()[0]}); use bool, int, "
            "float, str, an Enum, or a list or dict of these"
        ) from error


def _refuse_shadowed(plugin: Plugin) -> None:
    """Refuse option files that would never be read, because a shipped one has the same name."""
    conf = plugin.conf()
    for file in sorted(conf.rglob("*.yaml")) if conf else ():
        if (shipped("conf") / file.relative_to(conf or Path())).exists():
            raise ConfigError(f"plug-in {plugin}: {file}: sft_lab already has an option with this name; choose another")
