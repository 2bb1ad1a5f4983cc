"""``hparams_search/NAME.yaml``: a search as lightning-hydra-template writes it for Hydra's Optuna sweeper, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft_lab.core.errors import ConfigError, FolderError
from sft_lab.core.io import flat, parse_yaml, read_text

FOLDER = "hparams_search"
ROOTS = (".", "conf", "configs")  # of the working folder; the last is the template's
_SAMPLERS = {"TPESampler": "tpe", "RandomSampler": "random", "GridSampler": "grid", "CmaEsSampler": "cmaes"}
_SWEEPER = "hydra.sweeper."
# What such a file says that is true here anyway.
_FULFILLED: dict[str, tuple[Any, ...]] = {
    "hydra.mode": ("MULTIRUN",),
    "hydra.sweeper._target_": ("hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",),
    "hydra.sweeper.direction": ("minimize", None),
    "hydra.sweeper.storage": (None,),
    "hydra.sweeper.study_name": (None,),
}


@dataclass(frozen=True)
class HparamsFile:
    """What is understood of such a file.

    Attributes:
        path: of the file.
        axes: its ``params`` as overrides.
        trials, sampler, seed, at_once: as in ``SearchOptions``; None where it does not say.
        ignored: keys that are not understood.
    """

    path: Path
    axes: list[str]
    trials: int | None = None
    sampler: str | None = None
    seed: int | None = None
    at_once: int | None = None
    ignored: list[str] = field(default_factory=list)


def read_hparams_file(name: str, config_dir: str | None = None) -> HparamsFile:
    """Return what is understood of a file.

    Args:
        name: without ``.yaml``.
        config_dir: a further folder of options.

    Raises:
        ConfigError: if there is no such file, it is no YAML, or it wants what cannot be done here.
    """
    path = _find(name, config_dir)
    content = _read(path)
    params = content.get("hydra", {}).get("sweeper", {}).pop("params", None) or {}
    axes = [f"{key}={'null' if value is None else value}" for key, value in params.items()]
    values = {key: value for key, value in flat(content).items() if value != {}}
    defaults = [
        entry for entry in content.pop("defaults", None) or [] if entry != {"override /hydra/sweeper": "optuna"}
    ]
    values.pop("defaults", None)

    if (direction := values.get(f"{_SWEEPER}direction")) not in (None, "minimize"):
        raise ConfigError(
            f"{path}: hydra.sweeper.direction={direction}: a search minimizes held-out loss; write minimize"
        )
    sampler = _sampler(path, values, defaults)
    seed = _integer(path, values, "sampler.seed", at_least=0)
    trials, at_once = _integer(path, values, "n_trials"), _integer(path, values, "n_jobs")
    values = {key: value for key, value in values.items() if value not in _FULFILLED.get(key, ())}
    return HparamsFile(
        path, axes, trials, sampler, seed, at_once, [*values, *(f"defaults: {entry}" for entry in defaults)]
    )


def _find(name: str, config_dir: str | None) -> Path:
    folders = [Path(config_dir)] if config_dir else []
    folders = [folder / FOLDER for folder in [*folders, *map(Path, ROOTS)]]
    for folder in folders:
        if (path := folder / f"{name}.yaml").is_file():
            return path
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    listed = f"available: {', '.join(known)}" if known else f"write {FOLDER}/{name}.yaml"
    raise ConfigError(f"{FOLDER}={name}: no such file in {', '.join(map(str, folders))}; {listed}")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(read_text(path))
    except FolderError as error:
        raise ConfigError(str(error)) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: is not YAML ({error})") from error
    sweeper = content.get("hydra", {}) if isinstance(content, dict) else None
    sweeper = sweeper.get("sweeper", {}) if isinstance(sweeper, dict) else None
    if not isinstance(sweeper, dict) or not isinstance(sweeper.get("params") or {}, dict):
        raise ConfigError(f"{path}: must contain keys and values, with the axes of the search in hydra.sweeper.params")
    return dict(content)


def _sampler(path: Path, values: dict[str, Any], defaults: list[Any]) -> str | None:
    """Return the sampler's name here, and take it out of what the file says."""
    target = values.pop(f"{_SWEEPER}sampler._target_", None)
    chosen = next((entry for entry in defaults if isinstance(entry, dict) and _SAMPLER_GROUP in entry), None)
    if chosen is not None:
        defaults.remove(chosen)
        target = target or chosen[_SAMPLER_GROUP]
    if target is None:
        return None
    name = str(target).removeprefix("optuna.samplers.")
    if name not in _SAMPLERS and name not in _SAMPLERS.values():
        raise ConfigError(
            f"{path}: hydra.sweeper.sampler={target}: not supported; available: {', '.join(_SAMPLERS.values())}"
        )
    return _SAMPLERS.get(name, name)


_SAMPLER_GROUP = "override /hydra/sweeper/sampler"


def _integer(path: Path, values: dict[str, Any], key: str, at_least: int = 1) -> int | None:
    value = values.pop(f"{_SWEEPER}{key}", None)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < at_least):
        raise ConfigError(f"{path}: hydra.sweeper.{key}={value}: must be a whole number, at least {at_least}")
    return value
