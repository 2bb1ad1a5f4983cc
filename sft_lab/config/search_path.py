"""Hydra's search path: shipped conf/ and experiments/, those of the working folder and of plug-ins, and the schemas."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft_lab.config.error_messages import (
    UNQUOTED_WORD,
    all_keys,
    field_names,
    first_line,
    refuse_none_with_filters,
    refused_interpolations,
    yaml_problem,
)
from sft_lab.config.registry import register_plugins
from sft_lab.config.text_fields import read_yaml
from sft_lab.core import plugins
from sft_lab.core.errors import ConfigError
from sft_lab.core.option_files import shipped
from sft_lab.core.text import is_unicode
from sft_lab.dedup.embed import Embedder
from sft_lab.run.config import Run
from sft_lab.run.schemas import SCHEMAS

# Hydra reads the package of an option file from the comments at its top.
_PACKAGE = re.compile(r"(?:\s*#[^\n]*\n|\s*\n)*?\s*#\s*@package\s+(\S+)")
PRIMARY = "config"  # the config whose defaults list is composed
EXPERIMENT_PACKAGE = "_global_"  # of an experiment file that names none
_STANDALONE_SCHEMAS: dict[str, type] = {"run": Run, "embedder": Embedder}  # schemas that belong to no group


@contextmanager
def hydra_session(config_dir: str | None = None, config_name: str | None = None) -> Iterator[None]:
    """Initialize Hydra with our conf/, and restore its state afterwards: the caller may use Hydra too.

    Args:
        config_dir: an additional folder of options.
        config_name: the file with the defaults list, ``config`` unless another is given.

    Raises:
        ConfigError: if there is no such folder, or the working folder cannot be named in UTF-8.
    """
    _refuse_missing(config_dir)
    if not is_unicode(folder := str(Path.cwd())):
        raise ConfigError(
            f"{folder.encode(errors='backslashreplace').decode()}: this folder's name is not UTF-8, so records and "
            "reports could not contain it; rename the folder, or work in another"
        )
    register_plugins()
    previous = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    settings = OptionSearchPath.is_active, OptionSearchPath.config_dir, OptionSearchPath.config_name
    OptionSearchPath.is_active, OptionSearchPath.config_dir = True, config_dir
    OptionSearchPath.config_name = (config_name or PRIMARY).removesuffix(".yaml")
    # Hydra's own config without its logging, help and output folders, which only hydra.main reads: composing a job
    # takes a third less time.
    _store_hydra_config(HydraConf(defaults=["_self_", {"launcher": "basic"}, {"sweeper": "basic"}]))
    try:
        with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
            yield
    finally:
        OptionSearchPath.is_active, OptionSearchPath.config_dir, OptionSearchPath.config_name = settings
        if not OptionSearchPath.is_active:  # a run that a sweeper of Hydra's started may compose, too
            _store_hydra_config(HydraConf())
        GlobalHydra.instance().hydra = previous


def _store_hydra_config(node: HydraConf) -> None:
    ConfigStore.instance().store(group="hydra", name="config", node=node, provider="hydra")


class OptionSearchPath(SearchPathPlugin):
    """Puts the working folder's conf/ and experiments/ first, then the shipped options, then those of plug-ins."""

    is_active: ClassVar[bool] = False  # Hydra asks every plugin, also for the composition of others
    config_dir: ClassVar[str | None] = None
    config_name: ClassVar[str] = PRIMARY

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if not self.is_active:
            return
        own_conf, own_experiments = Path.cwd() / "conf", Path.cwd() / "experiments"
        if own_conf.is_dir() and own_conf.resolve() != shipped("conf").resolve():
            search_path.prepend("working-folder", f"file://{own_conf}")
        if self.config_dir:
            search_path.prepend("config-dir", f"file://{Path(self.config_dir).absolute()}")

        if own_experiments.is_dir():
            search_path.append("working-folder", f"experiments://{own_experiments}")
        search_path.append("sft_lab", f"experiments://{shipped('experiments')}")
        for plugin in plugins.named():
            if conf := plugin.conf():
                search_path.append(f"sft_lab-{plugin.module}", f"file://{conf}")
        search_path.append("sft_lab", "schemas://")

        for entry in search_path.get_path():
            if entry.path.startswith("file://"):
                entry.path = f"options://{entry.path.removeprefix('file://')}"


@contextmanager
def launcher_of(overrides: Sequence[str]) -> Iterator[None]:
    """Let a ``launch=...`` among the overrides drop the settings of other launchers from the files composed here."""
    before = OptionSource.launch_override
    OptionSource.launch_override = next((text for text in overrides if text.startswith("launch=")), None)
    try:
        yield
    finally:
        OptionSource.launch_override = before


def describe_search_path(config_dir: str | None = None) -> str:
    """Return the folders that are searched for options, in one line.

    Args:
        config_dir: an additional folder of options.

    Raises:
        ConfigError: if there is no such folder.
    """
    _refuse_missing(config_dir)
    own = [name for name in ("conf", "experiments") if (Path.cwd() / name).is_dir()]
    added = f"; --config-dir: {Path(config_dir).absolute()}" if config_dir else ""
    return f"{shipped('conf')}; here: {', '.join(own) or 'none'} ({Path.cwd()}){added}"


def _refuse_missing(config_dir: str | None) -> None:
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder; give a folder of options, laid out like conf/")


class OptionSource(ConfigSource):
    """A folder of option files with a subfolder per group; text fields keep what the file says."""

    launch_override: ClassVar[str | None] = None  # of the command line, which beats the launcher of an experiment

    @staticmethod
    def scheme() -> str:
        return "options"

    def load_config(self, config_path: str) -> ConfigResult:
        content, package = read_option_file(self.file_of(config_path), self._default_package(config_path))
        if (
            self.launch_override
            and package in ("", EXPERIMENT_PACKAGE)
            and isinstance(content.get("launch"), DictConfig)
        ):
            _drop_other_launchers(content.launch, self.launch_override)
        path = f"{self.scheme()}://{self.path}"
        return ConfigResult(config=content, path=path, provider=self.provider, header={"package": package})

    def available(self) -> bool:
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        return (Path(self.path) / config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        return self.file_of(config_path).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        paths = list((Path(self.path) / config_path).iterdir())
        groups = [] if results_filter is ObjectType.CONFIG else [path.name for path in paths if path.is_dir()]
        configs = [] if results_filter is ObjectType.GROUP else [path.stem for path in paths if path.suffix == ".yaml"]
        return sorted({*groups, *configs})

    def file_of(self, config_path: str) -> Path:
        """Return the path of an option's file."""
        return Path(self.path) / f"{config_path.removesuffix('.yaml')}.yaml"

    def _default_package(self, config_path: str) -> str:
        return config_path.rpartition("/")[0].replace("/", ".")


def _drop_other_launchers(settings: DictConfig, launch_override: str) -> None:
    """Remove the settings that other launchers have and the chosen one has not; what none has is left, and refused."""
    with launcher_of([]):
        chosen = OmegaConf.get_type(hydra_compose(PRIMARY, overrides=[launch_override]).launch)
    known = {name for schema in SCHEMAS["launch"].values() for name in field_names(schema)}
    for name in known.difference(field_names(chosen)).intersection(settings):
        del settings[name]


class ExperimentSource(OptionSource):
    """The group ``experiment``, from a flat folder of files."""

    @staticmethod
    def scheme() -> str:
        return "experiments"

    def is_group(self, config_path: str) -> bool:
        return config_path.strip("/") in ("", "experiment")

    def is_config(self, config_path: str) -> bool:
        return config_path.startswith("experiment/") and super().is_config(config_path)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path.strip("/") == "":
            return [] if results_filter is ObjectType.CONFIG else ["experiment"]
        return super().list("", ObjectType.CONFIG) if results_filter is not ObjectType.GROUP else []

    def file_of(self, config_path: str) -> Path:
        return super().file_of(config_path.removeprefix("experiment/"))

    def _default_package(self, config_path: str) -> str:  # noqa: ARG002
        return EXPERIMENT_PACKAGE


class SchemaSource(ConfigSource):
    """The group ``schema``: builds a dataclass's config when an option names it; ConfigStore would build them all."""

    @staticmethod
    def scheme() -> str:
        return "schemas"

    def load_config(self, config_path: str) -> ConfigResult:
        schema = OmegaConf.structured(_schema_at(config_path))
        return ConfigResult(config=schema, path="schemas://", provider=self.provider, header={"package": None})

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        root, _, group = config_path.strip("/").partition("/")
        return root == "schema" and (not group or group in SCHEMAS)

    def is_config(self, config_path: str) -> bool:
        return _schema_at(config_path) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:  # noqa: ARG002
        return []  # schemas are for option files, not to be chosen


def _schema_at(path: str) -> type | None:
    """Return the schema that option files call ``schema/<group>/<kind>``, or a plug-in's; None if there is none."""
    root, _, name = path.removesuffix(".yaml").partition("/")
    if root != "schema":
        return None
    group, _, kind = name.partition("/")
    return SCHEMAS.get(group, {}).get(kind) if kind else _STANDALONE_SCHEMAS.get(group)


def read_option_file(file: Path, default_package: str) -> tuple[DictConfig, str]:
    """Return the content and package of an option file; refuse what Hydra would misread.

    Raises:
        ConfigLoadError: naming the file and the problem.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigLoadError(f"{file}: cannot be read ({error}); save it as UTF-8") from error
    match = _PACKAGE.match(text)
    package = match.group(1) if match else default_package
    path = () if package == "_global_" else tuple(filter(None, package.split(".")))
    try:
        content = OmegaConf.create(read_yaml(text, path) or {})
    except OmegaConfBaseException as error:
        raise ConfigLoadError(f"{file}: {first_line(error)}") from error
    except Exception as error:  # PyYAML's errors share no base class
        raise ConfigLoadError(f"{file}: {yaml_problem(error)}") from error
    if not isinstance(content, DictConfig):
        raise ConfigLoadError(f"{file}: must contain keys and values, not a list")
    _refuse_misread(file, content)
    return content, package


def _refuse_misread(file: Path, content: DictConfig) -> None:
    """Refuse unquoted words that YAML reads as booleans, interpolations that compute, and ``none`` beside filters."""
    plain = OmegaConf.to_container(content)
    assert isinstance(plain, dict)
    if unquoted := next((path for path, key in all_keys(plain) if isinstance(key, bool)), None):
        raise ConfigLoadError(f"{file}: {unquoted}: {UNQUOTED_WORD}")
    if problem := next(refused_interpolations(plain), None):
        raise ConfigLoadError(f"{file}: {problem}")
    for entry in plain.get("defaults") or []:
        if isinstance(entry, bool):
            raise ConfigLoadError(f"{file}: defaults: {UNQUOTED_WORD}")
        for group, choice in entry.items() if isinstance(entry, dict) else ():
            if isinstance(choice, bool):
                raise ConfigLoadError(f"{file}: {group}: {UNQUOTED_WORD}")
            if group.removeprefix("override ").strip("/ ") == "filter":
                refuse_none_with_filters(choice, f"{file}: filter")


def _hydra_plugins() -> Plugins:
    """Return Hydra's registry, which imports every plugin of Hydra's that is installed.

    Raises:
        ConfigError: if one of them cannot be imported.
    """
    try:
        return Plugins.instance()
    except Exception as error:
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        file = next((file for file in reversed(files) if "hydra_plugins" in file), "hydra_plugins")
        raise ConfigError(
            f"{file}: this Hydra plugin cannot be imported ({error}); uninstall it, or install a version for this "
            "Python"
        ) from error


for _plugin in (OptionSource, ExperimentSource, SchemaSource, OptionSearchPath):
    _hydra_plugins().register(_plugin)
