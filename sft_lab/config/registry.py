"""The stages of plug-ins put beside ours, each checked for what a saved config and the store need."""

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

# What a plug-in may add to: the stages that work on rows. What trains and measures is the same for everybody.
BASES: dict[str, type] = {"dataset": Dataset, "split": Split, "filter": Filter, "dedup": Dedup, "template": Template}
_done: list[tuple[tuple[str, ...], str]] = []  # for which path and variable this was done


def register() -> None:
    """Import the plug-ins that are here and put their stages into ``SCHEMAS``; once, until the environment changes.

    Raises:
        ConfigError: for a plug-in that cannot be used, naming it.
    """
    state = (tuple(sys.path), os.environ.get(plugins.VARIABLE, ""))
    if _done == [state]:
        return
    _done.clear()
    for kinds in SCHEMAS.values():
        for kind in [kind for kind, schema in kinds.items() if plugins.origin(schema)]:
            del kinds[kind]
    found: dict[tuple[str, str], type] = {}
    origins: dict[type, str] = {}
    for plugin in plugins.named():
        stages, said = plugin.load()
        for name, stage in stages.items():
            place = _place(plugin, name)
            if taken := SCHEMAS[place[0]].get(place[1]) or found.get(place):
                by = origins.get(taken, "sft_lab")
                raise ConfigError(f"plug-in {plugin}: {name} is a kind of {by}; call it otherwise in STAGES and conf/")
            _refuse_class(plugin, name, stage, [*origins, *SCHEMAS[place[0]].values()])
            found[place], origins[stage] = stage, said
        _refuse_shadowed(plugin)
    for (group, kind), stage in found.items():
        SCHEMAS[group][kind] = stage
    plugins.remember(origins)
    _done.append(state)


def _place(plugin: Plugin, name: str) -> tuple[str, str]:
    """Give the group and kind that a name in ``STAGES`` means."""
    group, _, kind = name.partition(".")
    if group not in BASES or not kind.isidentifier():
        raise ConfigError(
            f"plug-in {plugin}: STAGES[{name!r}]: must be a group, a dot and a kind, as 'filter.polite'; groups are "
            f"{', '.join(BASES)}; {plugins.HELP}"
        )
    return group, kind


def _refuse_class(plugin: Plugin, name: str, stage: type, taken: list[type]) -> None:
    """Refuse a class that cannot be a stage of its group, or is one by another name."""
    base = BASES[name.partition(".")[0]]
    where = f"plug-in {plugin}: {name}: {stage.__name__}"
    if stage in taken:
        raise ConfigError(f"{where} has a kind already; make a class of its own")
    if not issubclass(stage, base) or "__dataclass_params__" not in vars(stage):
        raise ConfigError(f"{where} must be a @dataclass below {base.__module__}.{base.__name__}; {plugins.HELP}")
    if missing := sorted(getattr(stage, "__abstractmethods__", ())):
        raise ConfigError(f"{where} must have {', '.join(missing)} too; {plugins.HELP}")
    try:
        OmegaConf.structured(stage)
    except OmegaConfBaseException as error:
        said = str(error).splitlines()[0]
        raise ConfigError(
            f"{where}: the type of a field cannot stand in a config ({said}); use bool, int, float, str, an Enum, or "
            "a list or dict of these"
        ) from error


def _refuse_shadowed(plugin: Plugin) -> None:
    """Refuse option files that would never be read, since one of ours has their name."""
    conf = plugin.conf()
    for file in sorted(conf.rglob("*.yaml")) if conf else ():
        if (shipped("conf") / file.relative_to(conf or Path())).exists():
            raise ConfigError(f"plug-in {plugin}: {file}: sft_lab has an option of this name; choose another")
