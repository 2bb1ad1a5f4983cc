"""Plug-ins: stages that live outside this package.

An installed package names its module in the entry-point group ``sft_lab.stages``; ``SFT_LAB_STAGES=module[,module]``
names modules in the working folder or on Python's path. Such a module has a dict ``STAGES`` of its classes by
``group.kind``. No other code is loaded: a config can name only these stages.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sft_lab.core.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "sft_lab.stages"
VARIABLE = "SFT_LAB_STAGES"
HELP = "docs/own_stage.md has an example"


@dataclass(frozen=True)
class Plugin:
    """A module with stages.

    Attributes:
        module: its dotted name.
        package: the installed distribution that names it, with its version; ``""`` if ``SFT_LAB_STAGES`` names it.
    """

    module: str
    package: str = ""

    def __str__(self) -> str:
        return self.package or f"module {self.module}"

    def conf(self) -> Path | None:
        """Return the folder of its options, ``conf/`` inside the package, or None, without importing anything."""
        with _working_folder_last():
            spec = importlib.util.find_spec(self.module.partition(".")[0])
        roots = (spec.submodule_search_locations if spec else None) or []
        return next((folder for root in roots if (folder := Path(root) / "conf").is_dir()), None)

    def load(self) -> tuple[dict[str, type], str]:
        """Import the module.

        Returns:
            Its classes by ``group.kind``, and their origin: package or module, and a hash of its source.

        Raises:
            ConfigError: if there is no such module, it cannot be imported, or it has no ``STAGES``.
        """
        remedy = f"fix or uninstall {self.package}" if self.package else f"fix it, or remove it from {VARIABLE}"
        try:
            with _working_folder_last():
                module = importlib.import_module(self.module)
        except Exception as error:  # a plug-in may raise anything
            if isinstance(error, ModuleNotFoundError) and error.name == self.module and not self.package:
                raise ConfigError(
                    f"{VARIABLE}={self.module}: no such module in {Path.cwd()} or on Python's path; start in its "
                    "folder, or add that to PYTHONPATH"
                ) from error
            raise ConfigError(
                f"plug-in {self}: cannot be imported ({type(error).__name__}: {error}); {remedy}"
            ) from error
        stages: Any = getattr(module, "STAGES", None)
        if not (isinstance(stages, dict) and stages and all(isinstance(stage, type) for stage in stages.values())):
            raise ConfigError(
                f"plug-in {self}: {module.__file__} has no STAGES = {{'filter.<kind>': <class>, ...}}; {HELP}"
            )
        return stages, f"{self} (source {_source(module)})"


def named() -> list[Plugin]:
    """Return every plug-in that is installed or named by ``SFT_LAB_STAGES``, without importing any."""
    installed = _installed(tuple(sys.path))
    known = {plugin.module for plugin in installed}
    names = dict.fromkeys(name.strip() for name in os.environ.get(VARIABLE, "").split(","))
    return [*installed, *(Plugin(name) for name in names if name and name not in known)]


def _installed(paths: tuple[str, ...]) -> list[Plugin]:
    """Return the plug-ins of installed packages."""
    points = sorted(_entry_points(GROUP, paths), key=lambda point: point.module)
    return [Plugin(point.module, distribution_of(point)) for point in points]


def entry_points(group: str) -> list[EntryPoint]:
    """Return the entry points of a group, sorted by name, without importing anything."""
    return sorted(_entry_points(group, tuple(sys.path)), key=lambda point: (point.name, point.value))


def distribution_of(point: EntryPoint) -> str:
    """Return the installed distribution that names an entry point, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.module


@lru_cache(maxsize=2)
def _entry_points(group: str, paths: tuple[str, ...]) -> list[EntryPoint]:
    """Return the entry points of a group; cached while Python's path stays the same."""
    files = (file for path in paths for file in Path(path).glob("*-info/entry_points.txt"))
    if not any(group.encode() in file.read_bytes() for file in files if os.access(file, os.R_OK)):
        return []  # the usual case, in every command: importlib.metadata would take 15 ms
    from importlib import metadata

    return list(metadata.entry_points(group=group))


@contextmanager
def _working_folder_last() -> Iterator[None]:
    """Search for modules in the working folder too, after all installed ones."""
    folder = str(Path.cwd())
    sys.path.append(folder)
    try:
        yield
    finally:
        del sys.path[len(sys.path) - 1 - sys.path[::-1].index(folder)]


@cache
def _source(module: ModuleType) -> str:
    """Return a hash of a module's source, or of all source files of a package: 12 hex digits.

    Cached, since editing a file does not change the code in memory.
    """
    from sft_lab.core.io import digest, sha256_file  # imported late: --help only lists plug-ins

    if module.__file__ is None:
        return "unknown"
    file = Path(module.__file__)
    files = sorted(file.parent.rglob("*.py")) if hasattr(module, "__path__") else [file]
    return digest([[path.relative_to(file.parent).as_posix(), sha256_file(path)] for path in files])[:12]


_ORIGINS: dict[type, str] = {}


def remember(origins: dict[type, str]) -> None:
    """Record the origins of plug-in classes, replacing those recorded before."""
    _ORIGINS.clear()
    _ORIGINS.update(origins)


def origin(stage: type) -> str | None:
    """Return the origin of a plug-in's stage; None for a stage of sft_lab itself."""
    return _ORIGINS.get(stage)


def version_of(stage: Any) -> int | str:
    """Return a stage's ``version`` for its recipe, with its origin if it comes from a plug-in."""
    version: int = stage.version
    source = origin(type(stage))
    return f"{version} of {source}" if source else version
