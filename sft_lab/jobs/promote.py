"""``sft-lab promote``: a run's config as an experiment file with only the differences from the defaults."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from sft_lab import config as configs
from sft_lab.config.raw_composition import ConfigParts, compose_parts, parts_of
from sft_lab.core import tolerant_readers
from sft_lab.core.errors import ConfigError, FolderError, UserError
from sft_lab.core.io import flat, write_text
from sft_lab.core.option_files import option_roots, shipped
from sft_lab.core.params import plain
from sft_lab.core.run_dir import RunDir
from sft_lab.core.run_discovery import open_run_dir
from sft_lab.core.types import Work
from sft_lab.core.verdict_warnings import verdict_with_warnings
from sft_lab.data.mixture import Ingredient
from sft_lab.jobs import environment
from sft_lab.run.config import Run
from sft_lab.run.schemas import SCHEMAS

# What an experiment file does not carry: `rerun` is about a folder, and `choices` follow from what is chosen.
_LEFT_OUT = ("choices", "rerun")
# Names that Hydra's command line reads as values of another type.
_NO_NAMES = ("true", "false", "null", "nan", "inf", "none")


def promote(source: Path, name: str, *, force: bool = False) -> Path:
    """Save a run's config as ``./experiments/<name>.yaml`` and verify that it composes to the same config.

    Args:
        source: a run folder, in any state.
        name: name of the experiment.
        force: whether to overwrite an experiment of that name.

    Returns:
        The file.

    Raises:
        UserError: for a bad or taken name, a path that is not a run folder, or a config that no experiment file
            can express here.
    """
    folder = open_run_dir(source)
    name = _checked_name(name)
    target = Path.cwd() / "experiments" / f"{name}.yaml"
    taken = [file for file in (target, shipped("experiments") / target.name) if file.exists()]
    if taken and not force:
        problem = "already exists" if taken[0] == target else "is shipped with sft_lab, and yours would replace it"
        raise UserError(f"{taken[0]}: {problem}; choose another name, or use --force")
    run = configs.load(folder.config)
    text = f"{_header(folder, name)}{_Experiment.of(run).to_yaml()}"
    _write_verified(target, text, run)
    return target


def _checked_name(name: str) -> str:
    stem = name.removesuffix(".yaml")
    if not re.fullmatch(r"[A-Za-z_][\w.-]*", stem, re.ASCII) or stem.lower() in _NO_NAMES:
        raise UserError(
            f"{name!r}: not a valid experiment name; start it with a letter and use only letters, digits, _ - and ."
        )
    return stem


def _write_verified(target: Path, text: str, run: Run) -> None:
    """Write the file under a temporary name, verify it, and only then move it into place."""
    new_folders = [folder for folder in (target.parent,) if not folder.exists()]
    trial = target.with_name(f"{target.stem}-trial-{uuid4().hex[:8]}.yaml")
    try:
        try:
            write_text(trial, text)
            if difference := difference_from(run, trial.stem):
                raise ConfigError(f"{target}: not written, since it would not reproduce the run's config: {difference}")
            trial.replace(target)
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        raise FolderError(f"{target}: cannot be written ({error.strerror})") from error
    finally:
        for folder in new_folders:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def difference_from(run: Run, name: str) -> str:
    """Return how the config of the composed experiment differs from the run's; empty when it does not.

    The order of mappings counts too: filters and sources are applied in the order in which they are written.
    """
    try:
        composed = configs.build(configs.compose_config([f"experiment={name}"]))
    except ConfigError as error:
        return f"it cannot be composed here ({error})"
    old, new = (
        {key: value for key, value in config.saved().items() if key not in _LEFT_OUT} for config in (run, composed)
    )
    if composed.hash == run.hash and repr(old) == repr(new):
        return ""
    before, after = flat(old), flat(new)
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    changes = [f"{key} was {before.get(key, 'absent')}, would be {after.get(key, 'absent')}" for key in keys[:3]]
    return "; ".join(changes) or "the same keys in another order"


@dataclass
class _Experiment:
    """An experiment file under construction.

    Attributes:
        run: the run's config in parts, which the file must reproduce.
        choices: the option to choose in each group.
        written: paths of filters whose option files are missing, so that all their values are written.
        values: the values to write.
    """

    run: ConfigParts
    choices: dict[str, Any] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    values: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run) -> _Experiment:
        """Return an experiment with the options and values that differ from the defaults."""
        experiment = cls(parts_of(run))
        composed = experiment._replace(experiment._choose())
        experiment.values, _ = _changes(composed.values, experiment.run.values)
        experiment.values.pop("rerun", None)
        _drop_source_defaults(experiment.values, composed.values)
        return experiment

    def to_yaml(self) -> str:
        """Return the file's text below its comments."""
        from omegaconf import OmegaConf

        defaults: list[Any] = []
        for path in sorted(self.written):
            kinds = {name: kind for name, kind in self.run.kinds.items() if name.startswith(f"{path}.")}
            defaults += [f"/schema/filter/{kind}@{name}" for name, kind in kinds.items()]
        if defaults:
            defaults.append("_self_")  # the values below beat these schemas
        # Hydra wants overrides last.
        defaults += [{f"override /{group}": option} for group, option in self.choices.items()]
        content = ({"defaults": defaults} if defaults else {}) | self.values
        return OmegaConf.to_yaml(OmegaConf.create(content))

    def _choose(self) -> ConfigParts:
        """Choose the run's options until composition gives no other choice: outer groups first, then inner ones."""
        while True:
            composed = compose_parts(self._overrides())
            missing = {
                group: option
                for group, option in self.run.choices.items()
                if group not in self.choices
                and composed.choices.get(group, option) != option
                and _option_exists(group, option)
            }
            if not missing:
                return composed
            outer = {group: option for group, option in missing.items() if "/" not in group or group == "split/filter"}
            self.choices |= outer or missing

    def _replace(self, composed: ConfigParts) -> ConfigParts:
        """Replace each option that is missing or has changed by one of the same kind, with all its values written."""
        for path in ("filter", "split.filter"):
            current, wanted = (
                [item for item in parts.kinds.items() if item[0].startswith(f"{path}.")]
                for parts in (composed, self.run)
            )
            if current != wanted:
                self.choices[path.replace(".", "/")] = []
                self.written.add(path)
        _, stuck = _changes(composed.values, self.run.values)
        chosen = self.run.choices
        gone = [group for group in SCHEMAS if group != "filter"
                and (group in stuck or composed.kinds.get(group) != self.run.kinds[group]
                     or (group in chosen and not _option_exists(group, chosen[group])))]  # fmt: skip
        self.choices |= {group: option_of_kind(group, self.run.kinds[group]) for group in gone}
        return compose_parts(self._overrides()) if gone or self.written else composed

    def _overrides(self) -> list[str]:
        return [
            f"{group}=[{','.join(choice)}]" if isinstance(choice, list) else f"{group}={choice}"
            for group, choice in self.choices.items()
        ]


def _option_exists(group: str, option: Any) -> bool:
    """Return whether the option files exist here."""
    roots = [root / group.partition("@")[0] for root in option_roots()]
    names = option if isinstance(option, list) else [option]
    return all(any((root / f"{name}.yaml").is_file() for root in roots) for name in names)


def option_of_kind(group: str, kind: str) -> str:
    """Return an option of a kind, preferably the one with the kind's name."""
    option_files = (file for root in option_roots() for file in (root / group).glob("*.yaml"))
    files = sorted(option_files, key=lambda file: (file.stem != kind, file.stem))
    of_kind = [file.stem for file in files if f"/schema/{group}/{kind}@" in file.read_text(encoding="utf-8")]
    if not of_kind:
        raise ConfigError(f"{group}: no option here has kind {kind}; add one to conf/{group}/")
    return of_kind[0]


def _changes(current: dict[str, Any], wanted: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Return the values to write, nested, and the outermost keys below which a key would have to be removed.

    An experiment can add and replace keys, but not remove one from a mapping.
    """
    values: dict[str, Any] = {}
    stuck = {key for key in current if key not in wanted}
    for key, value in wanted.items():
        old = current.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            inner, below = _changes(old, value)
            if inner:
                values[key] = inner
            if below:
                stuck.add(key)
        elif key not in current or old != value or type(old) is not type(value):
            values[key] = value
    return values, stuck


def _drop_source_defaults(values: dict[str, Any], composed: dict[str, Any]) -> None:
    """Remove defaults from the sources of a mixture."""
    default = {**plain(Ingredient(path=""), every_knob=True), "path": None}
    sources = values.get("dataset", {}).get("sources", {})
    for name, source in sources.items():
        if name not in composed["dataset"].get("sources", {}):
            sources[name] = {key: value for key, value in source.items() if value != default[key]}


def _header(folder: RunDir, name: str) -> str:
    """Return the comments at the top of the file: its origin, and how to run it."""
    files = (folder.manifest, folder.status, folder.summary)
    manifest, status, summary = (tolerant_readers.read(file, []) for file in files)
    prepared = status.get("work") == Work.PREPARE
    base, loss, verdict = summary.get("base/eval_loss"), summary.get("eval/loss"), verdict_with_warnings(summary)
    if isinstance(loss, float):
        before = f"{base:.4f} base -> " if isinstance(base, float) else ""
        numbers = f"held-out loss {before}{loss:.4f} tuned, verdict {verdict}"
    elif prepared:
        numbers = "data prepared, nothing trained"
    else:
        numbers = f"verdict {verdict}" if verdict else f"{status.get('state', 'not started')}, no result"
    git = environment.part(manifest, "git")
    commit = f"commit {str(git['commit'])[:12]}" if git.get("commit") else "commit unknown"
    dirty = " with uncommitted changes" if git.get("dirty") else ""
    lines = [
        "@package _global_",
        f"Kept from the run {folder.path.name}: {numbers}.",
        f"Run it: sft-lab {'prepare ' if prepared else ''}+experiment={name}",
        f"From {folder.path}, {manifest.get('started', 'date unknown')}, {commit}{dirty}.",
        "This file contains only what differs from the defaults.",
    ]
    return "".join(f"# {_printable(line)}\n" for line in lines)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
