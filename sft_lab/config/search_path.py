"""Where Hydra finds options: conf/, the working folder's own, the experiments and the schemas."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from sft_lab.config.error_messages import BARE_WORD, all_keys, not_yaml, refuse_none_beside, resolvers
from sft_lab.config.text_fields import read_yaml
from sft_lab.core import plugins
from sft_lab.core.io import refuse_alias_bomb
from sft_lab.core.option_files import shipped
from sft_lab.dedup.embed import Embedder
from sft_lab.run.config import Run
from sft_lab.run.schemas import SCHEMAS


class _OptionSource(FileConfigSource):
    """Folders of options as Hydra reads them, but for fields that are text: those keep the letters of the file."""

    @staticmethod
    def scheme() -> str:
        return "options"

    def load_config(self, config_path: str) -> ConfigResult:
        with (Path(self.path) / self._normalize_file_name(config_path)).open(encoding="utf-8") as file:
            text = file.read()
            refuse_alias_bomb(text)
            header = self._get_header_dict(text[:512])
            package = header.get("package") or config_path.rpartition("/")[0].replace("/", ".")
            below = () if package == "_global_" else tuple(filter(None, package.split(".")))
            file.seek(0)
            loaded = read_yaml(file, below)
        config = OmegaConf.create({} if loaded is None else loaded)
        return ConfigResult(config=config, path=f"options://{self.path}", provider=self.provider, header=header)


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
        loaded, package = read_experiment(self._file(config_path))
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
        return sorted(file.stem for file in Path(self.path).glob("*.yaml") if file.is_file())


def read_experiment(file: Path) -> tuple[DictConfig, str]:
    """Read an experiment file and its package, ``_global_`` where it names none; refuse what Hydra would misread."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigLoadError(f"{file}: cannot be read ({error}); save it as a file in UTF-8") from error
    try:
        refuse_alias_bomb(text)
        loaded = OmegaConf.create(read_yaml(text) or {})
    except Exception as error:  # PyYAML's errors share no base with OmegaConf's
        raise ConfigLoadError(f"{file}: {not_yaml(error)}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigLoadError(f"{file}: must hold keys and values, not a list")
    plain = OmegaConf.to_container(loaded)
    assert isinstance(plain, dict)
    if bare := next((path for path, key in all_keys(plain) if isinstance(key, bool)), None):
        raise ConfigLoadError(f"{file}: {bare}: {BARE_WORD}")
    if asked := next(resolvers(plain), None):
        raise ConfigLoadError(f"{file}: {asked}")
    for entry in plain.get("defaults") or []:
        for group, chosen in entry.items() if isinstance(entry, dict) else ():
            if isinstance(chosen, bool):
                raise ConfigLoadError(f"{file}: {group}: {BARE_WORD}")
            if group.removeprefix("override ").strip("/ ") == "filter":
                refuse_none_beside(chosen, f"{file}: filter")
    found = re.search(r"^#\s*@package\s+(\S+)", text, re.MULTILINE)
    return loaded, found.group(1) if found else "_global_"


class SearchPath(SearchPathPlugin):
    """The working folder's own conf/ and experiments/ come first, then what is shipped, then what plug-ins bring."""

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
        for plugin in plugins.named():
            if conf := plugin.conf():
                search_path.append(f"sft_lab-{plugin.module}", f"file://{conf}")
        search_path.append("sft_lab", "schemas://")
        for entry in search_path.get_path():
            if entry.path.startswith("file://"):
                entry.path = f"options://{entry.path.removeprefix('file://')}"


class _SchemaSource(ConfigSource):
    """Group ``schema``: a stage's dataclass becomes a config when an option names it; ConfigStore makes all at once."""

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
    """Give the schema that option files call ``schema/<group>/<kind>``, a plug-in's too; None where there is none."""
    root, _, name = path.removesuffix(".yaml").partition("/")
    if root != "schema":
        return None
    group, _, kind = name.partition("/")
    return SCHEMAS.get(group, {}).get(kind) if kind else _WHOLE.get(group)


_WHOLE: dict[str, type] = {"run": Run, "embedder": Embedder}  # schemas that belong to no group


def _register() -> None:
    # Hydra's own config without its logging, help and output folders, which hydra.main alone reads: composing a job
    # takes two thirds of the time.
    own = ConfigStore.instance().repo["hydra"]["config.yaml"].node
    own.defaults = ["_self_", {"launcher": "basic"}, {"sweeper": "basic"}]
    for plugin in (_OptionSource, _ExperimentSource, _SchemaSource, SearchPath):
        Plugins.instance().register(plugin)


_register()
