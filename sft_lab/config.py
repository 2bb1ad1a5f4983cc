"""Configs: Hydra's composition made strict, and saved YAML to Run and back. The only file that imports Hydra.

User input is composed once, here: the sweep is expanded, every job composed, walked for unknown keys, built and
checked before anything starts, and all problems come in one error.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft_lab.dedup.embedding import Embedder
from sft_lab.errors import ConfigError, all_problems
from sft_lab.files import FORMAT
from sft_lab.options import shipped
from sft_lab.run import SCHEMAS, Run

GROUPS = (*SCHEMAS, "experiment")
# Names that libraries dropped or other trainers use, and ours.
RENAMED = {
    "trainer.warmup_ratio": "trainer.warmup_steps (a share below 1)",
    "trainer.max_seq_length": "trainer.max_length",
    "trainer.max_seq_len": "trainer.max_length",
    "trainer.evaluation_strategy": "trainer.eval_steps",
    "trainer.eval_strategy": "trainer.eval_steps",
    "trainer.report_to": "tracking=wandb or tracking=local",
    "trainer.lr": "trainer.learning_rate",
    "trainer.epochs": "trainer.num_train_epochs",
    "trainer.batch_size": "trainer.per_device_train_batch_size",
    "trainer.gradient_checkpointing": "trainer.activation_checkpointing",
    "trainer.bf16": "trainer.precision=bf16",
    "trainer.fp16": "trainer.precision",
    "trainer.completion_only_loss": "trainer.loss_on=answer",
    "trainer.assistant_only_loss": "trainer.loss_on=answer",
    "report_to": "tracking=wandb or tracking=local",
    "logger": "tracking",
    "wandb": "tracking",
    "max_seq_length": "trainer.max_length",
    "warmup_ratio": "trainer.warmup_steps (a share below 1)",
    "evaluation_strategy": "trainer.eval_steps",
    "learning_rate": "trainer.learning_rate",
    "model.torch_dtype": "model.dtype",
    "model.trust_remote_code": "nothing: remote code is never run",
}


class _ExperimentSource(ConfigSource):
    """Group ``experiment`` over flat folders of YAML files; Hydra's own sources want a folder per group."""

    @staticmethod
    def scheme() -> str:
        return "experiments"

    def _file(self, config_path: str) -> Path:
        name = config_path.removeprefix("experiment/").removesuffix(".yaml")
        return Path(self.path) / f"{name}.yaml"

    def load_config(self, config_path: str) -> ConfigResult:
        file = self._file(config_path)
        if not self.is_config(config_path):
            raise ConfigLoadError(f"no experiment {file}")
        text = file.read_text(encoding="utf-8")
        header = {}
        for line in text.splitlines():
            if found := re.match(r"#\s*@package\s+(\S+)", line):
                header["package"] = found.group(1)
        loaded = OmegaConf.create(text)
        return ConfigResult(
            config=self._cleanup(loaded, config_path), path=f"{self.scheme()}://{self.path}",
            provider=self.provider, header=header,
        )  # fmt: skip

    @staticmethod
    def _cleanup(loaded: Any, config_path: str) -> DictConfig:
        if not isinstance(loaded, DictConfig):
            raise ConfigLoadError(f"experiment {config_path}: must hold keys and values")
        return loaded

    def available(self) -> bool:
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        return config_path.strip("/") in ("", "experiment")

    def is_config(self, config_path: str) -> bool:
        return config_path.startswith("experiment/") and self._file(config_path).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path.strip("/") == "":
            return ["experiment"] if results_filter in (None, ObjectType.GROUP) else []
        if results_filter is ObjectType.GROUP:
            return []
        return sorted(file.stem for file in Path(self.path).glob("*.yaml"))


class _SearchPath(SearchPathPlugin):
    """The working folder's own conf/ and experiments/ come first, then the shipped experiments."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        here = Path.cwd()
        if (here / "conf").is_dir() and (here / "conf").resolve() != shipped("conf").resolve():
            search_path.prepend("sft_lab-here", f"file://{here / 'conf'}")
        if (here / "experiments").is_dir():
            search_path.append("sft_lab-here", f"experiments://{here / 'experiments'}")
        search_path.append("sft_lab", f"experiments://{shipped('experiments')}")


def _register() -> None:
    store = ConfigStore.instance()
    store.store("run", Run, group="schema")
    store.store("embedder", Embedder, group="schema")
    for group, kinds in SCHEMAS.items():
        for kind, schema in kinds.items():
            store.store(kind, schema, group=f"schema/{group}")
    Plugins.instance().register(_ExperimentSource)
    Plugins.instance().register(_SearchPath)


_register()


@dataclass(frozen=True)
class Job:
    """A composed, checked and built job.

    Attributes:
        run: the run object.
        overrides: what the command line and the sweep say.
        axes: the swept keys with this job's values.
    """

    run: Run
    overrides: list[str]
    axes: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """Everything one command asks for.

    Attributes:
        jobs: in the order of the grid; one without a sweep.
        swept: whether this is a sweep.
        name: the experiment's name, or None.
        run_dir: ``hydra.run.dir`` where the user gave one.
        sweep_dir: ``hydra.sweep.dir`` where the user gave one.
    """

    jobs: list[Job]
    swept: bool
    name: str | None
    run_dir: str | None
    sweep_dir: str | None


def compose(overrides: list[str] | None = None) -> Run:
    """Compose one run from overrides, as the command line does: ``compose(["dedup.threshold=0.9"])``.

    Raises:
        ConfigError: naming every problem.
    """
    plan = compose_jobs(list(overrides or []), multirun=False)
    if plan.swept:
        raise ConfigError("compose: this experiment is a sweep of several runs; use the command line, sft-lab -m")
    return plan.jobs[0].run


def compose_config(overrides: list[str]) -> DictConfig:
    """Compose one config and refuse unknown and missing keys, without building the run."""
    with _hydra():
        return _strict(_compose(_spelled(overrides)))[0]


def compose_jobs(overrides: list[str], *, multirun: bool, config_dir: str | None = None) -> Plan:
    """Compose, check and build every job of a command before any starts.

    Args:
        overrides: the command line's, in Hydra's grammar.
        multirun: whether ``-m`` was given; a sweep file sweeps by itself.
        config_dir: a further folder of options.

    Raises:
        ConfigError: naming every problem of every job.
    """
    overrides = _spelled(overrides)
    with _hydra(config_dir):
        swept = _swept_keys(overrides)
        _refuse_swept_experiments(swept)
        fixed = [word for word in overrides if _key(word) not in swept]
        own_params, hydra = _hydra_settings(fixed)
        is_sweep = multirun or (hydra.mode is not None and hydra.mode.name == "MULTIRUN")
        if swept and not is_sweep:
            first = next(word for word in overrides if _key(word) in swept)
            raise ConfigError(f"{first}: several values for one key are a sweep; put -m before the overrides")
        axes = _axes(overrides, swept, own_params) if is_sweep else [[]]
        jobs, problems = [], []
        for values in axes:
            try:
                jobs.append(_job(fixed, values))
            except ConfigError as error:
                label = f"job {' '.join(values)}: " if len(axes) > 1 else ""
                problems += [f"{label}{line}" for line in _lines(error)]
        if problems:
            raise all_problems(problems)
        _refuse_twins(jobs)
        given = {_key(word): word.partition("=")[2] for word in fixed}
        return Plan(jobs, is_sweep, _experiment_name(fixed), given.get("hydra.run.dir"), hydra_dir(hydra, given))


def hydra_dir(hydra: Any, given: dict[str, str]) -> str | None:
    """Give the sweep folder where the command line or an experiment file names one."""
    if "hydra.sweep.dir" in given:
        return given["hydra.sweep.dir"]
    raw = OmegaConf.to_container(hydra.sweep, resolve=False)
    place = str(raw["dir"]) if isinstance(raw, dict) else ""
    return None if "${now" in place or not place else place


def _job(fixed: list[str], values: list[str]) -> Job:
    config, choices = _strict(_compose([*fixed, *values]))
    config.choices = choices
    run = build(config)
    if problems := run.check():
        raise all_problems(problems)
    axes = {_key(word): word.partition("=")[2] for word in values}
    return Job(run, [*fixed, *values], axes)


def build(config: DictConfig) -> Run:
    """Turn a strict config into the run object; every stage's refusals come at once, each with its key.

    Raises:
        ConfigError: naming key, value and limit.
    """
    problems = []
    nodes = [(name, config[name]) for name in SCHEMAS if name != "filter"]
    nodes += [(f"filter.{name}", node) for name, node in config.filter.items()]
    for where, node in nodes:
        try:
            OmegaConf.to_object(node)
        except ConfigError as error:
            problems += [f"{where}.{line}" for line in _lines(error)]
    if problems:
        raise all_problems(problems)
    run = OmegaConf.to_object(config)
    assert isinstance(run, Run)
    return run


def load(path: Path, overrides: list[str] | None = None) -> Run:
    """Build a run from a saved config, without Hydra: data only, never code.

    Args:
        path: of ``config.yaml``.
        overrides: dotted keys of the saved config, ``key=value``.

    Raises:
        ConfigError: for a file that is not a saved config of this format.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    if "${" in text:
        raise ConfigError(f"{path}: holds an interpolation (${{...}}); a saved config is resolved data")
    try:
        saved = OmegaConf.create(text)
    except Exception as error:  # PyYAML's errors share no base with OmegaConf's
        raise ConfigError(f"{path}: not YAML ({_first_line(error)})") from error
    if not isinstance(saved, DictConfig):
        raise ConfigError(f"{path}: must hold keys and values")
    try:
        saved.merge_with_dotlist(overrides or [])
        return from_saved(OmegaConf.to_container(saved), str(path))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from error


def from_saved(saved: Any, where: str) -> Run:
    """Build a run from the plain data that ``Run.saved`` gives.

    Raises:
        ConfigError: for an unknown format, kind or key.
    """
    if saved.get("format") != FORMAT:
        raise ConfigError(f"{where}: format={saved.get('format')}: this version of sft_lab reads format {FORMAT}")
    config = OmegaConf.structured(Run)
    known = {found.name for found in fields(Run)} | {"format"}
    if unknown := sorted(set(saved) - known):
        raise ConfigError(f"{where}: unknown keys {unknown}")
    for name, node in saved.items():
        if name == "format":
            continue
        if name == "filter":
            for key, child in node.items():
                config.filter[key] = _typed("filter", child, f"{where}: filter.{key}")
        elif name in SCHEMAS:
            config[name] = _typed(name, node, f"{where}: {name}")
        else:
            config[name] = node
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(f"{where}: missing {', '.join(missing)}")
    return build(config)


def _typed(group: str, node: Any, where: str) -> DictConfig:
    if not isinstance(node, dict) or node.get("kind") not in SCHEMAS[group]:
        kind = node.get("kind") if isinstance(node, dict) else None
        raise ConfigError(f"{where}.kind={kind}: must be one of {', '.join(SCHEMAS[group])}")
    schema = SCHEMAS[group][node["kind"]]
    values = {key: value for key, value in node.items() if key != "kind"}
    try:
        typed = OmegaConf.merge(OmegaConf.structured(schema), values)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {_first_line(error)}") from error
    assert isinstance(typed, DictConfig)
    return typed


def dump(run: Run) -> str:
    """Write a run as the text of ``config.yaml``."""
    return OmegaConf.to_yaml(OmegaConf.create(run.saved()))


# --- composition -----------------------------------------------------------------------------------------------


@contextmanager
def _hydra(config_dir: str | None = None) -> Iterator[None]:
    """Hydra, initialized on our conf/, its errors turned into ours."""
    GlobalHydra.instance().clear()
    extra = [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"] if config_dir else []
    token = _EXTRA[:]
    _EXTRA[:] = extra
    try:
        with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
            yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error)) from error
    finally:
        _EXTRA[:] = token
        GlobalHydra.instance().clear()


_EXTRA: list[str] = []


def _compose(overrides: list[str]) -> DictConfig:
    """Compose one config with Hydra's own node in it."""
    try:
        return hydra_compose("config", overrides=[*_EXTRA, *overrides], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error)) from error
    except (ValueError, TypeError, AttributeError) as error:  # raw errors of Hydra: a group set to null, broken YAML
        raise ConfigError(f"config: {_first_line(error)}") from error
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            raise ConfigError(f"config: not YAML ({' '.join(str(error).split())})") from error
        raise


def _strict(composed: DictConfig) -> tuple[DictConfig, dict[str, Any]]:
    """Take Hydra's node out, refuse unknown and missing keys; give the config and the chosen options."""
    choices = _choices(composed)
    config = OmegaConf.create({})
    OmegaConf.set_struct(composed, False)
    composed.pop("hydra")
    config = composed
    problems = [_unknown(path, known) for path, known in _unknown_keys(config)]
    problems += [f"{key}: no value; give one, {key}=..." for key in sorted(OmegaConf.missing_keys(config))]
    if problems:
        raise all_problems(problems)
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from error
    return config, choices


def _choices(composed: DictConfig) -> dict[str, Any]:
    raw = composed.hydra.runtime.choices
    found = {name: raw[name] for name in SCHEMAS if name in raw}
    # Hydra leaves out groups chosen as lists.
    found["filter"] = list(composed.get("filter", {})) or ["none"]
    found |= {str(name): raw[name] for name in raw if str(name).startswith("dedup/")}
    return {str(name): value for name, value in found.items()}


def _unknown_keys(node: Any, path: str = "") -> Iterator[tuple[str, list[str]]]:
    """Keys added with ``+`` that no schema has; a struct does not stop them."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():  # noqa: SLF001
        return
    schema = OmegaConf.get_type(node)
    known = [found.name for found in fields(schema)] if is_dataclass(schema) else None
    for key in node:
        inner = f"{path}{key!s}"
        if known is not None and key not in known:
            yield inner, [f"{path}{name}" for name in known]
        elif not OmegaConf.is_missing(node, key):
            yield from _unknown_keys(node._get_node(key), f"{inner}.")  # noqa: SLF001


def _unknown(path: str, known: list[str]) -> str:
    if path in RENAMED:
        return f"{path}: unknown key; here it is {RENAMED[path]}"
    near = difflib.get_close_matches(path, [*known, *GROUPS], n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"
    return f"{path}: unknown key{hint}"


def _explain(error: Exception) -> str:
    """Say Hydra's error in one line, with the nearest known key."""
    text = str(error)
    cause = error.__cause__
    while cause is not None:
        text += "\n" + str(cause)
        cause = cause.__cause__
    if found := re.search(r"Could not override '([^']+)'", text):
        return _unknown(found.group(1), _known_near(found.group(1)))
    if found := re.search(r"Could not find '([^/']+)/([^']+)'", text):
        group, option = found.groups()
        options = re.search(r"Available options in '[^']+':\n((?:\t.*\n?)+)", text)
        names = options.group(1).split() if options else []
        near = difflib.get_close_matches(option, names, n=1, cutoff=0.5)
        hint = f"; did you mean {group}={near[0]}?" if near else ""
        return f"{group}={option}: no such option; there are {', '.join(names) or 'none'}{hint}"
    if found := re.search(r"In '([^']+)': .*?Key '([^']+)' not in '([^']+)'", text, re.DOTALL):
        return f"{found.group(1)}.yaml: key {found.group(2)} is unknown to its schema {found.group(3)}"
    full = re.search(r"full_key: (\S+)", text)
    merging = re.search(r"Error merging override (\S+)", text)
    wrong = re.search(r"(Value '.*|Invalid value '.*|Incompatible value .*|Ambiguous value .*)", text)
    where = merging.group(1) if merging else full.group(1) if full else None
    if wrong:
        said = wrong.group(1).strip()
        file = re.search(r"In '([^']+)':", text)
        return f"{where or (file.group(1) + '.yaml' if file else 'config')}: {said}"
    return f"{where + ': ' if where else ''}{_first_line(error)}"


def _known_near(path: str) -> list[str]:
    """Give the keys of the default config beside ``path``, for a suggestion."""
    config = hydra_compose("config", overrides=[], return_hydra_config=False)
    keys: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        for key in node:
            keys.append(f"{prefix}{key}")
            if not OmegaConf.is_missing(node, key) and isinstance(node._get_node(key), DictConfig):  # noqa: SLF001
                walk(node._get_node(key), f"{prefix}{key}.")  # noqa: SLF001

    walk(config, "")
    parent = path.rpartition(".")[0]
    beside = [key for key in keys if key.rpartition(".")[0] == parent]
    leaf = path.rpartition(".")[2]
    same_name = [key for key in keys if key.rpartition(".")[2] == leaf]
    return same_name or beside or keys


def _lines(error: ConfigError) -> list[str]:
    lines = str(error).splitlines()
    return (
        [line.removeprefix("  - ") for line in lines[1:]]
        if len(lines) > 1 and lines[0].endswith("problems:")
        else [str(error)]
    )


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__


# --- sweeps ----------------------------------------------------------------------------------------------------


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _spelled(overrides: list[str]) -> list[str]:
    """``experiment=x`` works too: Hydra itself wants ``+experiment``, since it is in no defaults list."""
    return [f"+{word}" if word.startswith("experiment=") else word for word in overrides]


def _parse(overrides: list[str]) -> list[Any]:
    try:
        return list(OverridesParser.create().parse_overrides(overrides))
    except HydraException as error:
        raise ConfigError(_first_line(error)) from error


def _swept_keys(overrides: list[str]) -> set[str]:
    return {_key(str(found.input_line)) for found in _parse(overrides) if found.is_sweep_override()}


def _refuse_swept_experiments(swept: set[str]) -> None:
    if "experiment" in swept:
        raise ConfigError(
            "experiment: experiments cannot be swept over, since Hydra would ignore the hydra.* settings in them; "
            "combine two with +experiment=[base,sweep], or run them one after another"
        )


def _hydra_settings(fixed: list[str]) -> tuple[dict[str, str], Any]:
    """Compose the part that is not swept for what experiments say about the sweep."""
    hydra = _compose(fixed).hydra
    params = hydra.sweeper.get("params") or {}
    return {str(key): str(value) for key, value in params.items()}, hydra


def _axes(overrides: list[str], swept: set[str], own_params: dict[str, str]) -> list[list[str]]:
    """Expand the grid: the command line's axes beat those of a sweep file."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    given = {_key(word) for word in overrides}
    words = [f"{key}={value}" for key, value in own_params.items() if key not in given]
    words += [word for word in overrides if _key(word) in swept]
    if not words:
        return [[]]
    batches = BasicSweeper.split_arguments(_parse(words), None)
    return [list(job) for batch in batches for job in batch]


def _refuse_twins(jobs: list[Job]) -> None:
    seen: dict[str, Job] = {}
    for job in jobs:
        if job.run.hash in seen:
            raise ConfigError(f"sweep: {' '.join(job.overrides)}: the grid holds this job twice")
        seen[job.run.hash] = job


def _experiment_name(fixed: list[str]) -> str | None:
    names = [word.partition("=")[2].strip("[]").replace(",", "+") for word in fixed if _key(word) == "experiment"]
    return names[-1] if names else None


def environment_note() -> str:
    """Say where options are looked for."""
    here = [name for name in ("conf", "experiments") if (Path.cwd() / name).is_dir()]
    return f"{shipped('conf')}; here: {', '.join(here) or 'none'} ({os.getcwd()})"  # noqa: PTH109
