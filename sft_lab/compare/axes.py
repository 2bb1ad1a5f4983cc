"""Axes: what differs between jobs, read off their configs, so that any run folders can be compared."""

from __future__ import annotations

import json
from typing import Any

from sft_lab.files import flat
from sft_lab.run import NOT_IDENTITY

SEED = "seed"
VAGUE = ("name_or_path", "path", "name", "kind")  # keys that only their stage gives a meaning
NO_KEY = object()  # what a config has at a key it lacks


def axes_of(configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give each job's values at the keys that differ between jobs; a key that its config lacks is left out.

    A group in which jobs chose different options, or kinds, is one axis: its option. The keys below it that follow from
    the option are no axes; those that still differ between jobs of one option are. The seed comes last.

    Args:
        configs: of ``config.yaml``, as saved.
    """
    flats = [flat({name: value for name, value in config.items() if name not in NOT_IDENTITY}) for config in configs]
    order = list(dict.fromkeys(key for one in flats for key in one))
    differing = {key: values for key in order if _differ(values := [_frozen(one.get(key, NO_KEY)) for one in flats])}
    found: dict[str, list[Any]] = {}
    for path, options in _groups(configs, list(differing)):
        below = [key for key in differing if key == path or key.startswith(f"{path}.")]
        if not below or not _differ(options):
            continue
        found[path] = options
        for key in below:
            if len(set(zip(options, differing[key], strict=True))) == len(set(options)):
                del differing[key]
    found |= {key: [one.get(key, NO_KEY) for one in flats] for key in differing}
    place = {
        path: next(at for at, key in enumerate(order) if key == path or key.startswith(f"{path}.")) for path in found
    }
    names = sorted(found, key=lambda path: (path == SEED, place[path], path))
    return [{name: found[name][job] for name in names if found[name][job] is not NO_KEY} for job in range(len(configs))]


def _groups(configs: list[dict[str, Any]], differing: list[str]) -> list[tuple[str, list[Any]]]:
    """Give each group's place in the config and its option in every job; then the kinds that no option names."""
    chosen = [config.get("choices") or {} for config in configs]
    # dedup/embedder@decontaminate.embedder stands at decontaminate.embedder.
    names = sorted({name for one in chosen for name in one}, key=lambda name: (name.count("/"), name))
    groups = [(name.rpartition("@")[2].replace("/", "."), [_option(one.get(name)) for one in chosen]) for name in names]
    kinds = [key for key in differing if key.endswith(".kind")]
    return groups + [(key.removesuffix(".kind"), [_at(config, key) for config in configs]) for key in kinds]


def _option(chosen: Any) -> Any:
    return "+".join(map(str, chosen)) if isinstance(chosen, list) else chosen if chosen is not None else NO_KEY


def _at(config: dict[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part, NO_KEY) if isinstance(node, dict) else NO_KEY
    return node


def _differ(values: list[Any]) -> bool:
    return len(set(values)) > 1


def _frozen(value: Any) -> Any:
    return value if value is NO_KEY else json.dumps(value, sort_keys=True, default=str)


def short_names(axes: list[str]) -> dict[str, str]:
    """Give each axis its last part for a name; two where that says little, the whole key where two would be alike."""
    parts = {axis: axis.split(".") for axis in axes}
    names = {axis: ".".join(found[-2:] if found[-1] in VAGUE else found[-1:]) for axis, found in parts.items()}
    taken = list(names.values())
    return {axis: name if taken.count(name) == 1 else axis for axis, name in names.items()}


def shown(value: Any) -> str:
    """Give an axis value as a person writes it: 1e-05 for a small rate, true for a flag."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def ordered(values: list[Any]) -> list[Any]:
    """Give the distinct values of an axis, numbers by size, then the rest by name, those without one last."""
    distinct = {_frozen(value): value for value in values}
    return sorted(distinct.values(), key=rank)


def rank(value: Any) -> tuple[int, float, str]:
    """The order of axis values."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, float(value), ""
    return (2, 0.0, "") if value is None or value is NO_KEY else (1, 0.0, shown(value))
