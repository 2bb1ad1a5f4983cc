"""Configs: Hydra's composition made strict, and saved YAML to Run and back. The only file that imports Hydra.

User input is composed once, here: the sweep is expanded, every job composed, walked for unknown keys, built and
checked before anything starts, and all problems come in one error.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
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
        if not self.is_config(config_path):
            raise ConfigLoadError(f"no experiment {self._file(config_path)}")
        loaded, package = _read_experiment(self._file(config_path))
        where = f"{self.scheme()}://{self.path}"
        return ConfigResult(config=loaded, path=where, provider=self.provider, header={"package": package})

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


def _read_experiment(file: Path) -> tuple[DictConfig, str]:
    """Read an experiment file and its package, ``_global_`` where it names none; refuse what Hydra would misread."""
    text = file.read_text(encoding="utf-8")
    try:
        loaded = OmegaConf.create(text)
    except Exception as error:  # PyYAML's errors share no base with OmegaConf's
        raise ConfigLoadError(f"{file}: {_not_yaml(error)}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigLoadError(f"{file}: must hold keys and values, not a list")
    plain = OmegaConf.to_container(loaded)
    assert isinstance(plain, dict)
    if bare := next((path for path, key in _keys(plain) if isinstance(key, bool)), None):
        raise ConfigLoadError(f"{file}: {bare}: {_BARE_WORD}")
    for entry in plain.get("defaults") or []:
        for group, chosen in entry.items() if isinstance(entry, dict) else ():
            if isinstance(chosen, bool):
                raise ConfigLoadError(f"{file}: {group}: {_BARE_WORD}")
            if group.removeprefix("override ").strip("/ ") == "filter":
                _refuse_none_beside(chosen, f"{file}: filter")
    found = re.search(r"^#\s*@package\s+(\S+)", text, re.MULTILINE)
    return loaded, found.group(1) if found else "_global_"


def _keys(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key in plain data, with its dotted path."""
    for key, value in content.items() if isinstance(content, dict) else ():
        yield f"{path}{key}", key
        yield from _keys(value, f"{path}{key}.")


_BARE_WORD = "YAML reads a bare on, off, yes or no as true or false; quote it, as in 'on'"


class _SearchPath(SearchPathPlugin):
    """The working folder's own conf/ and experiments/ come first, then the shipped experiments."""

    further: ClassVar[str | None] = None  # --config-dir

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        here = Path.cwd()
        if (here / "conf").is_dir() and (here / "conf").resolve() != shipped("conf").resolve():
            search_path.prepend("sft_lab-here", f"file://{here / 'conf'}")
        if self.further:
            search_path.prepend("sft_lab-config-dir", f"file://{Path(self.further).absolute()}")
        if (here / "experiments").is_dir():
            search_path.append("sft_lab-here", f"experiments://{here / 'experiments'}")
        search_path.append("sft_lab", f"experiments://{shipped('experiments')}")
        search_path.append("sft_lab", "schemas://")


class _SchemaSource(ConfigSource):
    """Group ``schema``: a stage's dataclass becomes a config when an option names it; ConfigStore makes all at once."""

    @staticmethod
    def scheme() -> str:
        return "schemas"

    def load_config(self, config_path: str) -> ConfigResult:
        schema = OmegaConf.structured(_SCHEMA_AT[config_path.removesuffix(".yaml")])
        return ConfigResult(config=schema, path="schemas://", provider=self.provider, header={"package": None})

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return any(name.startswith(f"{config_path.strip('/')}/") for name in _SCHEMA_AT)

    def is_config(self, config_path: str) -> bool:
        return config_path.removesuffix(".yaml") in _SCHEMA_AT

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:  # noqa: ARG002
        return []  # schemas are for option files, not to be chosen


_SCHEMA_AT: dict[str, type] = {"schema/run": Run, "schema/embedder": Embedder} | {
    f"schema/{group}/{kind}": schema for group, kinds in SCHEMAS.items() for kind, schema in kinds.items()
}


def _register() -> None:
    # Hydra's own config without its logging, help and output folders, which hydra.main alone reads: composing a job
    # takes two thirds of the time.
    own = ConfigStore.instance().repo["hydra"]["config.yaml"].node
    own.defaults = ["_self_", {"launcher": "basic"}, {"sweeper": "basic"}]
    for plugin in (_ExperimentSource, _SchemaSource, _SearchPath):
        Plugins.instance().register(plugin)


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


def compose_config(overrides: list[str], *, config_dir: str | None = None) -> DictConfig:
    """Compose one config for ``--cfg job``: strict and buildable, the world not looked at.

    Raises:
        ConfigError: naming every problem.
    """
    with _hydra(config_dir):
        words = _parse(overrides)
        if swept := [str(word.input_line) for word in words if word.is_sweep_override()]:
            raise ConfigError(f"{swept[0]}: --cfg job shows one job; give one value")
        config, _ = _strict(_compose(_texts(words)))
        build(config)
        return config


def compose_jobs(overrides: list[str], *, multirun: bool, config_dir: str | None = None) -> Plan:
    """Compose, check and build every job of a command before any starts.

    Args:
        overrides: the command line's, in Hydra's grammar.
        multirun: whether ``-m`` was given; a sweep file sweeps by itself.
        config_dir: a further folder of options.

    Raises:
        ConfigError: naming every problem of every job.
    """
    with _hydra(config_dir):
        words = _parse(overrides)
        swept = {_key(text) for text in _texts(words, swept=True)}
        fixed = [text for text in _texts(words) if _key(text) not in swept]
        name = _experiment_name(fixed)
        # Where there may be a sweep, only what speaks about it is composed first: the swept keys may be missed by
        # the rest. Otherwise this is the job's own composition.
        may_sweep = multirun or bool(swept) or name is not None
        about = [text for text in fixed if re.match("experiment$|hydra[./]", _key(text))] if may_sweep else fixed
        composed = _compose(about)
        mode = composed.hydra.mode
        is_sweep = multirun or (mode is not None and mode.name == "MULTIRUN")
        if swept and not is_sweep:
            first = next(text for text in _texts(words) if _key(text) in swept)
            raise ConfigError(f"{first}: several values for one key are a sweep; put -m before the overrides")
        _refuse_sweep_settings(words, swept=is_sweep)
        grid = _grid(words, swept, composed.hydra.sweeper.get("params") or {}) if is_sweep else [[]]
        if may_sweep:
            return _plan(name, fixed, grid, is_sweep=is_sweep)
        return _plan(name, fixed, grid, is_sweep=is_sweep, composed=composed)


def _plan(
    name: str | None, fixed: list[str], grid: list[list[str]], *, is_sweep: bool, composed: DictConfig | None = None
) -> Plan:
    """Build every job of the grid; a problem is told once, with the jobs that have it."""
    jobs: list[Job] = []
    problems: dict[str, list[str]] = {}
    folders: tuple[str | None, str | None] = (None, None)
    for values in grid:
        try:
            config = composed if composed is not None else _compose([*fixed, *_texts(_parse(values))])
            folders = _folder(config, "run"), _folder(config, "sweep")
            jobs.append(_job(config, fixed, values))
        except ConfigError as error:
            for line in _lines(error):
                problems.setdefault(line, []).append(" ".join(values))
    if problems:
        axes = {_key(value) for values in grid for value in values}
        raise all_problems(_told(line, jobs, len(grid), axes) for line, jobs in problems.items())
    _refuse_twins(jobs)
    return Plan(jobs, is_sweep, name, *folders)


def _told(line: str, jobs: list[str], grid_size: int, axes: set[str]) -> str:
    group = line.partition(".")[0]
    if _NO_SUCH_KEY in line and group in axes:
        line += "; make it two sweeps into one folder (hydra.sweep.dir=...), each with the keys its options have"
    return line if len(jobs) == grid_size else f"{line} (job {', job '.join(jobs)})"


def _folder(composed: DictConfig, mode: str) -> str | None:
    """Give ``hydra.run.dir`` or ``hydra.sweep.dir`` where the command line or an experiment file names one."""
    node = composed.hydra[mode]
    try:
        return None if OmegaConf.is_missing(node, "dir") else str(node.dir)
    except OmegaConfBaseException as error:
        raise ConfigError(f"hydra.{mode}.dir: {_said(error)}; give a folder") from error


def _job(composed: DictConfig, fixed: list[str], values: list[str]) -> Job:
    config, choices = _strict(composed)
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
    if problems := [*_not_plain(_plain(config)), *_refusals(config)]:
        raise all_problems(problems)
    run = OmegaConf.to_object(config)
    assert isinstance(run, Run)
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
        parent, _, leaf = path.rpartition(".")  # some inner classes say their own name
        return [f"{parent if line.startswith(f'{leaf}.') else path}.{line}" for line in _lines(error)]
    return []


def _not_plain(node: Any, path: str = "") -> Iterator[str]:
    """Values that JSON, or a saved config, cannot hold."""
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _not_plain(child, f"{path}.{key}" if path else str(key))
    elif isinstance(node, float) and not math.isfinite(node):
        yield f"{path}={node}: must be a finite number"
    elif isinstance(node, str) and "${" in node:
        yield f"{path}: must not hold ${{, which a saved config would read as an interpolation"


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
    for where, content in [(str(path), text), *((word, word) for word in overrides or [])]:
        if "${" in content:
            raise ConfigError(f"{where}: holds an interpolation (${{...}}); a saved config is resolved data")
    try:
        saved = OmegaConf.create(text)
        if isinstance(saved, DictConfig):
            saved.merge_with_dotlist(overrides or [])
        plain = OmegaConf.to_container(saved)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_said(error)}") from error
    except Exception as error:  # PyYAML's errors share no base with OmegaConf's
        raise ConfigError(f"{path}: {_not_yaml(error)}") from error
    return from_saved(plain, str(path))


def from_saved(saved: Any, where: str) -> Run:
    """Build a run from the plain data that ``Run.saved`` gives.

    Raises:
        ConfigError: for an unknown format, kind or key.
    """
    if not isinstance(saved, dict):
        raise ConfigError(f"{where}: must hold keys and values, holds a {type(saved).__name__}")
    if saved.get("format") != FORMAT:
        raise ConfigError(f"{where}: format={saved.get('format')}: this version of sft_lab reads format {FORMAT}")
    if target := next((path for path, key in _keys(saved) if key == "_target_"), None):
        raise ConfigError(f"{where}: {target}: a saved config is data and names no code to run; remove it")
    known = [found.name for found in fields(Run)]
    if unknown := [str(name) for name in saved if name not in [*known, "format"]]:
        raise ConfigError(f"{where}: " + "; ".join(_unknown(name, known) for name in unknown))
    config = OmegaConf.structured(Run)
    for name in known:
        if name in saved:
            _put(config, name, saved[name], f"{where}: {name}")
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(f"{where}: missing {', '.join(missing)}")
    try:
        return build(config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _put(config: DictConfig, name: str, node: Any, where: str) -> None:
    if name == "filter":
        if not isinstance(node, dict):
            raise ConfigError(f"{where}={node}: must be a mapping of names to filters")
        for key, child in node.items():
            config.filter[str(key)] = _typed("filter", child, f"{where}.{key}")
    elif name in SCHEMAS:
        config[name] = _typed(name, node, where)
    else:
        try:
            config.merge_with({name: node})
        except OmegaConfBaseException as error:
            raise ConfigError(f"{where}={node}: {_said(error)}") from error


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
        raise ConfigError(f"{where}{f'.{key}' if key else ''}: {_said(error)}") from error
    assert isinstance(typed, DictConfig)
    return typed


def dump(run: Run) -> str:
    """Write a run as the text of ``config.yaml``."""
    return OmegaConf.to_yaml(OmegaConf.create(run.saved()))


# --- composition -----------------------------------------------------------------------------------------------


@contextmanager
def _hydra(config_dir: str | None = None) -> Iterator[None]:
    """Hydra, initialized on our conf/."""
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder")
    GlobalHydra.instance().clear()
    _SearchPath.further = config_dir
    try:
        with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().clear()


def _compose(overrides: list[str]) -> DictConfig:
    """Compose one config with Hydra's own node in it."""
    try:
        return hydra_compose("config", overrides=[*map(_forced, overrides)], return_hydra_config=True)
    except Exception as error:  # Hydra and PyYAML answer a user's mistakes with errors of any type
        raise ConfigError(_explain(error)) from error


def _forced(word: str) -> str:
    """Spell a value ``++key=value``: Hydra then takes new keys of free mappings, and leaves unknown ones to us."""
    key = _key(word)
    is_value = word[0] not in "+~" and key not in GROUPS and not re.search("[/@]", key)
    return f"++{word}" if is_value and not key.startswith("hydra.") else word


def _strict(composed: DictConfig) -> tuple[DictConfig, dict[str, Any]]:
    """Take Hydra's node out, refuse unknown and missing keys; give the config and the chosen options."""
    choices = _choices(composed)
    OmegaConf.set_struct(composed, False)
    composed.pop("hydra")
    problems = [_unknown(path, known, composed, choices) for path, known in _unknown_keys(composed)]
    try:
        OmegaConf.resolve(composed)
        problems += [f"{key}: no value; give one, {key}=..." for key in sorted(OmegaConf.missing_keys(composed))]
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from error
    if not problems and composed.choices:
        problems.append("choices: a record of what was chosen, not to be set; choose with dedup=exact and the like")
    if problems:
        raise all_problems(problems)
    return composed, choices


def _choices(composed: DictConfig) -> dict[str, Any]:
    raw = composed.hydra.runtime.choices
    found = {name: raw[name] for name in SCHEMAS if name in raw}
    # Hydra leaves out groups chosen as lists.
    found["filter"] = list(composed.get("filter") or {}) or ["none"]
    found |= {str(name): raw[name] for name in raw if str(name).startswith("dedup/")}
    return {str(name): value for name, value in found.items()}


def _unknown_keys(node: Any, path: str = "") -> Iterator[tuple[str, list[str]]]:
    """Keys that no schema has, with the names beside them; a struct does not stop those added with ``+``."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():  # noqa: SLF001
        return
    schema = OmegaConf.get_type(node)
    known = [found.name for found in fields(schema)] if is_dataclass(schema) else None
    for key in node:
        inner = f"{path}{key!s}"
        if known is not None and key not in known:
            yield inner, known
        elif not OmegaConf.is_missing(node, key):
            yield from _unknown_keys(node._get_node(key), f"{inner}.")  # noqa: SLF001


# --- what an error says ----------------------------------------------------------------------------------------

_NO_SUCH_KEY = "has no such key"


def _unknown(path: str, known: list[str], config: Any = None, choices: dict[str, Any] | None = None) -> str:
    """Answer an unknown key with its new name, the option it belongs to, the nearest key, or all there are.

    Args:
        path: the key.
        known: the names that may stand in its place.
        config: where a key of the same name may stand elsewhere.
        choices: the options chosen.
    """
    if path in RENAMED:
        return f"{path}: unknown key; here it is {RENAMED[path]}"
    parent, _, leaf = path.rpartition(".")
    if leaf in ("True", "False"):
        return f"{path}: {_BARE_WORD}"
    kinds = SCHEMAS.get(parent, {}).items() if parent != "filter" else ()
    if owners := [kind for kind, schema in kinds if leaf in {found.name for found in fields(schema)}]:
        chosen = f"{parent}={choices[parent]}" if choices and parent in choices else f"this {parent}"
        return f"{path}: {chosen} {_NO_SUCH_KEY}; {parent} of kind {' or '.join(owners)} has it"
    elsewhere = [found for found, key in _keys(_plain(config)) if key == leaf and not found.startswith(path)]
    if elsewhere:
        return f"{path}: unknown key; did you mean {' or '.join(elsewhere)}?"
    near = difflib.get_close_matches(leaf, known if parent else [*known, *GROUPS], n=1, cutoff=0.6)
    if near:
        return f"{path}: unknown key; did you mean {f'{parent}.' if parent else ''}{near[0]}?"
    listed = f"known here: {', '.join(known)}" if known else "there are no keys here"
    return f"{path}: unknown key; {listed}"


def _plain(config: Any) -> Any:
    return OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig) else {}


def _explain(error: Exception) -> str:
    """Say Hydra's error in one line: where, what was found, what there is."""
    if isinstance(error, ConfigLoadError):  # our own experiment source's
        return str(error)
    text = "\n".join(str(found) for found in _chain(error))
    file = re.search(r"In '([^']+)':", text)
    named = file.group(1).replace("experiment/", "experiments/") if file and file.group(1) != "config" else ""
    where = f"{named}.yaml: " if named else ""
    if found := re.search(r"Could not (?:find|load) '([^']+)'", text):
        return _no_option(found.group(1))
    if found := re.search(r"Could not override '([^']+)'", text):
        return where + _no_group(found.group(1))
    full_key = re.search(r"full_key: (\S+)", text)
    if found := re.search(r"Key '([^']+)' not in '([^']+)'", text):
        path = full_key.group(1) if full_key else found.group(1)
        return where + _unknown(path, _SCHEMA_FIELDS.get(found.group(2), []))
    if found := re.search(r"An item is already at '([^']+)'", text):
        return f"{found.group(1)}: is in the config already; write it without +"
    if "is not a subclass of Filter" in text and full_key:
        return f"filter.{full_key.group(1)}: not among the chosen filters; choose it too, filter=[...]"
    if "in defaults : bool" in text:
        return f"{where}defaults: {_BARE_WORD}"
    if type(error).__module__.startswith("yaml"):
        return where + _not_yaml(error)
    merging = re.search(r"Error merging override (.+)", text)
    place = merging.group(1).lstrip("+") if merging else full_key.group(1) if full_key else ""
    return f"{where}{place}{': ' if place else ''}{_said(_chain(error)[-1])}"


def _chain(error: BaseException) -> list[BaseException]:
    return [error, *(_chain(error.__cause__) if error.__cause__ else [])]


def _no_option(path: str) -> str:
    loader = GlobalHydra.instance().config_loader()
    group = next((group for group in (path.rpartition("/")[0], path.partition("/")[0])
                  if loader.get_group_options(group)), path)  # fmt: skip
    names = loader.get_group_options(group)
    option = path.removeprefix(f"{group}/")
    near = difflib.get_close_matches(option, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{group}={option}: no such option; there are {', '.join(names) or 'none'}{hint}"


def _no_group(key: str) -> str:
    if key.startswith("hydra"):
        return f"{key}: Hydra has no such setting; hydra.run.dir and hydra.sweep.dir are the ones sft_lab reads"
    names = [*GROUPS, "dedup/embedder", "dedup/embedder@decontaminate.embedder"]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"{key}: no such group; {f'did you mean {near[0]}?' if near else 'there are ' + ', '.join(names)}"


_SCHEMA_FIELDS = {schema.__name__: [found.name for found in fields(schema)] for schema in _SCHEMA_AT.values()}


def _said(error: BaseException) -> str:
    """Give the first line of an error, in words that do not speak of OmegaConf."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("In '")]
    said = lines[0] if lines else type(error).__name__
    said = re.sub(r"^\w+ raised while (resolving interpolation|composing config): ", "", said)
    said = re.sub(r"^LexerNoViableAltException: .*$", "it stops in the middle", said)
    said = re.sub(r"^field '.+' is not Optional$", "cannot be null", said)
    return re.sub(r"^.* does not support deletion$", "cannot be removed; give it another value", said)


def _not_yaml(error: Exception) -> str:
    """Say where a file stops being YAML."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or _said(error)
    named = f"{mark.name}, " if mark and not mark.name.startswith("<") else ""
    return f"not YAML ({named}{f'line {mark.line + 1}: ' if mark else ''}{problem})"


def _lines(error: ConfigError) -> list[str]:
    lines = str(error).splitlines()
    many = len(lines) > 1 and lines[0].endswith("problems:")
    return [line.removeprefix("  - ") for line in lines[1:]] if many else [str(error)]


# --- the command line's words ----------------------------------------------------------------------------------


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _texts(words: Iterable[Override], *, swept: bool = False) -> list[str]:
    return [str(word.input_line) for word in words if word.is_sweep_override() or not swept]


def _parse(overrides: list[str]) -> list[Override]:
    """Read overrides in Hydra's grammar; ``experiment=x`` works too, where Hydra itself wants ``+experiment``.

    Raises:
        ConfigError: naming every word that is none, and every group that is given no name of an option.
    """
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    words: list[Override] = []
    problems = []
    for text in overrides:
        if not _key(text):
            problems.append(f"{text}: no key; write key=value")
            continue
        try:
            words += parser.parse_overrides([f"+{text}" if text.startswith("experiment=") else text])
            _refuse_group_value(words[-1])
        except HydraException as error:
            remedy = "quote it, \"key='a=b'\", if it holds = , ( { [ or a space" if "=" in text else "write key=value"
            problems.append(f"{text}: no override in Hydra's grammar ({_said(error)}); {remedy}")
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise all_problems(problems)
    return words


def _refuse_group_value(word: Override) -> None:
    group, text = str(word.key_or_group), str(word.input_line).removeprefix("+")
    if word.is_sweep_override() or (group not in GROUPS and "/" not in group):
        return
    if word.is_delete():
        raise ConfigError(f"{text}: a group cannot be removed; choose another option, {group}=...")
    value: Any = word.value()
    several = group in ("filter", "experiment") and isinstance(value, list)
    if not all(isinstance(name, str) for name in value) if several else not isinstance(value, str):
        names = GlobalHydra.instance().config_loader().get_group_options(group)
        raise ConfigError(f"{text}: must be the name of an option; there are {', '.join(names)}")
    if group == "filter":
        _refuse_none_beside(value, text)


def _refuse_none_beside(chosen: Any, where: str) -> None:
    if isinstance(chosen, list) and "none" in chosen and len(chosen) > 1:
        raise ConfigError(f"{where}: none stands alone; leave it out, or choose filter=none")


def _experiment_name(fixed: list[str]) -> str | None:
    names = [word.partition("=")[2].strip("[]").replace(",", "+") for word in fixed if _key(word) == "experiment"]
    return names[-1] if names else None


# --- sweeps ----------------------------------------------------------------------------------------------------


def _refuse_sweep_settings(words: list[Override], *, swept: bool) -> None:
    """Refuse what a sweep would silently ignore: hydra.run.dir, and hydra.* settings in experiments swept over."""
    for word in words:
        key = _key(str(word.input_line))
        if swept and key == "hydra.run.dir":
            raise ConfigError(f"{word.input_line}: the folder of a sweep is hydra.sweep.dir")
        if key != "experiment" or not word.is_sweep_override():
            continue
        for name in re.findall(r"[^\s,\[\]]+", str(word.input_line).partition("=")[2]):
            files = [root / f"{name}.yaml" for root in (Path.cwd() / "experiments", shipped("experiments"))]
            if file := next((file for file in files if file.is_file()), None):
                content, _ = _read_experiment(file)
                if "hydra" in content or any("hydra/" in str(entry) for entry in content.get("defaults") or []):
                    raise ConfigError(
                        f"{word.input_line}: {name} carries hydra.* settings, which are ignored when experiments are "
                        "swept over; combine two with +experiment=[base,sweep], or run them one after another"
                    )


def _grid(words: list[Override], swept: set[str], params: Any) -> list[list[str]]:
    """Expand the grid: the command line's values beat those of a sweep file."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    given = {_key(text) for text in _texts(words)}
    own = [f"{key}={value}" for key, value in params.items() if _key(str(key)) not in given]
    axes = [*_parse(own), *(word for word in words if _key(str(word.input_line)) in swept)]
    if not axes:
        return [[]]
    try:
        batches = BasicSweeper.split_arguments(axes, None)
    except HydraException as error:
        raise ConfigError(f"{' '.join(_texts(axes))}: {_said(error)}; write the values, a,b or choice(a,b)") from error
    return [list(job) for batch in batches for job in batch]


def _refuse_twins(jobs: list[Job]) -> None:
    seen: dict[str, Job] = {}
    for job in jobs:
        if twin := seen.get(job.run.hash):
            first, second = (" ".join(f"{key}={value}" for key, value in one.axes.items()) for one in (twin, job))
            raise ConfigError(
                f"sweep: {first} and {second} are one job, since nothing that changes a result differs; leave one out"
            )
        seen[job.run.hash] = job


def environment_note() -> str:
    """Say where options are looked for."""
    here = [name for name in ("conf", "experiments") if (Path.cwd() / name).is_dir()]
    return f"{shipped('conf')}; here: {', '.join(here) or 'none'} ({Path.cwd()})"
