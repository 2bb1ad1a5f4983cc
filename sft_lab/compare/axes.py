"""Axes: the config keys that differ between jobs, taken from saved configs so that any runs can be compared."""

from __future__ import annotations

import json
from typing import Any

from sft_lab.core.io import flat
from sft_lab.run.identity import NOT_IDENTITY, PROCESSES

SEED = "seed"
VAGUE_KEYS = ("name_or_path", "path", "name", "kind")  # last parts that are meaningless without their stage
MISSING = object()  # the value at a key that a config lacks


def find_axes(configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each job's values at the keys that differ between jobs; keys its config lacks are left out.

    A group in which jobs chose different options, or kinds, is one axis: its option. A key below it that
    follows from the option is not an axis; one that differs between jobs with the same option is. The seed
    comes last.

    Args:
        configs: contents of ``config.yaml``, as saved.
    """
    flats = [_flat_identity(config) for config in configs]
    keys = list(dict.fromkeys(key for config in flats for key in config))
    columns = {key: [_as_text(config.get(key, MISSING)) for config in flats] for key in keys}
    differing = {key: values for key, values in columns.items() if _differ(values)}

    axes: dict[str, list[Any]] = {}
    for path, options in _chosen_options(configs, list(differing)):
        below = [key for key in differing if _is_below(key, path)]
        if below and _differ(options):
            axes[path] = options
            for key in below:
                if _follows_from(options, differing[key]):
                    del differing[key]
    axes |= {key: [config.get(key, MISSING) for config in flats] for key in differing}

    first = {path: next(index for index, key in enumerate(keys) if _is_below(key, path)) for path in axes}
    names = sorted(axes, key=lambda path: (path == SEED, first[path], path))
    return [
        {name: axes[name][index] for name in names if axes[name][index] is not MISSING} for index in range(len(configs))
    ]


def _flat_identity(config: dict[str, Any]) -> dict[str, Any]:
    """Return what changes a job's result, by dotted key; a config without a number of processes is of one."""
    values = flat({name: value for name, value in config.items() if name not in NOT_IDENTITY})
    processes = _value_at(config, PROCESSES)
    return values | {PROCESSES: 1 if processes is MISSING else processes}


def _chosen_options(configs: list[dict[str, Any]], differing: list[str]) -> list[tuple[str, list[Any]]]:
    """Return each group's path in the config with every job's option, then the kinds that no option names."""
    choices = [config.get("choices") or {} for config in configs]
    names = {name for chosen in choices for name in chosen} - NOT_IDENTITY
    groups = [
        # the config of dedup/embedder@decontaminate.embedder is at decontaminate.embedder
        (name.rpartition("@")[2].replace("/", "."), [_format_choice(chosen.get(name)) for chosen in choices])
        for name in sorted(names, key=lambda name: (name.count("/"), name))
    ]
    kinds = [key for key in differing if key.endswith(".kind")]
    return groups + [(key.removesuffix(".kind"), [_value_at(config, key) for config in configs]) for key in kinds]


def _format_choice(choice: Any) -> Any:
    if choice is None:
        return MISSING
    return "+".join(map(str, choice)) if isinstance(choice, list) else choice


def _value_at(config: dict[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part, MISSING) if isinstance(node, dict) else MISSING
    return node


def _is_below(key: str, path: str) -> bool:
    return key == path or key.startswith(f"{path}.")


def _differ(values: list[Any]) -> bool:
    return len(set(values)) > 1


def _follows_from(options: list[Any], values: list[Any]) -> bool:
    """Return whether jobs with the same option have the same value."""
    return len(set(zip(options, values, strict=True))) == len(set(options))


def _as_text(value: Any) -> Any:
    """Return a value in hashable form."""
    return value if value is MISSING else json.dumps(value, sort_keys=True, default=str)


def short_names(axes: list[str]) -> dict[str, str]:
    """Return a short name for each axis.

    It is the key's last part, its last two where the last is vague, and the whole key where two axes would
    have one name.
    """
    names = {}
    for axis in axes:
        parts = axis.split(".")
        names[axis] = ".".join(parts[-2:] if parts[-1] in VAGUE_KEYS else parts[-1:])
    taken = list(names.values())
    return {axis: name if taken.count(name) == 1 else axis for axis, name in names.items()}


def format_value(value: Any) -> str:
    """Return the value of an axis as a person would write it: 1e-05 for a small rate, true for a flag."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):  # the values of twins
        return str(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def sort_values(values: list[Any]) -> list[Any]:
    """Return the distinct values of an axis: numbers by size, then the rest by name, missing ones last."""
    distinct = {_as_text(value): value for value in values}
    return sorted(distinct.values(), key=sort_key)


def sort_key(value: Any) -> tuple[int, float, str]:
    """Return the key by which values of an axis are sorted."""
    if isinstance(value, tuple):  # twins come where the first of them would
        return sort_key(value[0])
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, float(value), ""
    return (2, 0.0, "") if value is None or value is MISSING else (1, 0.0, format_value(value))
