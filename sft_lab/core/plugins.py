"""Plug-ins: stages that live outside this package.

An installed package names its module in the entry-point group ``sft_lab.stages``; ``SFT_LAB_STAGES=module[,module]``
names modules that lie in the working folder or on Python's path. The module holds ``STAGES``, its classes by
``group.kind``. Nothing else brings code in: what a config names is only looked for among these.
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
from typing import Any

from sft_lab.core.errors import ConfigError

GROUP = "sft_lab.stages"
VARIABLE = "SFT_LAB_STAGES"
HELP = "docs/own_stage.md shows one"


@dataclass(frozen=True)
class Plugin:
    """A module with stages.

    Attributes:
        module: its dotted name.
        package: the installed distribution that names it, with its version; ``""`` for one that the environment names.
    """

    module: str
    package: str = ""

    def __str__(self) -> str:
        return self.package or f"module {self.module}"

    def conf(self) -> Path | None:
        """Give the folder of its options, ``conf/`` inside the package; found without importing it."""
        with _working_folder_last():
            spec = importlib.util.find_spec(self.module.partition(".")[0])
        places = (spec.submodule_search_locations if spec else None) or []
        return next((folder for place in places if (folder := Path(place) / "conf").is_dir()), None)

    def load(self) -> tuple[dict[str, type], str]:
        """Import the module.

        Returns:
            Its classes by ``group.kind``, and where they are from: package or module, and a hash of its source.

        Raises:
            ConfigError: if there is no such module, it cannot be imported, or it holds no ``STAGES``.
        """
        remedy = f"mend or uninstall {self.package}" if self.package else f"mend it, or take it out of {VARIABLE}"
        try:
            with _working_folder_last():
                module = importlib.import_module(self.module)
        except Exception as error:  # a plug-in raises what it likes
            if isinstance(error, ModuleNotFoundError) and error.name == self.module and not self.package:
                raise ConfigError(
                    f"{VARIABLE}={self.module}: no such module in {Path.cwd()} or on Python's path; start where "
                    "it lies, or name its folder in PYTHONPATH"
                ) from error
            raise ConfigError(
                f"plug-in {self}: cannot be imported ({type(error).__name__}: {error}); {remedy}"
            ) from error
        stages: Any = getattr(module, "STAGES", None)
        if not (isinstance(stages, dict) and stages and all(isinstance(one, type) for one in stages.values())):
            raise ConfigError(
                f"plug-in {self}: {module.__file__} has no STAGES = {{'filter.<kind>': <class>, ...}}; {HELP}"
            )
        return stages, f"{self} (source {_source(module)})"


def named() -> list[Plugin]:
    """Every plug-in that is here, none of them imported."""
    installed = _installed(tuple(sys.path))
    known = {one.module for one in installed}
    asked = dict.fromkeys(name.strip() for name in os.environ.get(VARIABLE, "").split(","))
    return [*installed, *(Plugin(name) for name in asked if name and name not in known)]


@lru_cache(maxsize=1)
def _installed(paths: tuple[str, ...]) -> list[Plugin]:
    """Those of installed packages, for as long as Python's path is the same."""
    files = (file for path in paths for file in Path(path).glob("*-info/entry_points.txt"))
    if not any(GROUP.encode() in file.read_bytes() for file in files if os.access(file, os.R_OK)):
        return []  # nearly always, and before every command: the library would take 15 ms to say so
    from importlib import metadata

    points = metadata.entry_points(group=GROUP)
    return [
        Plugin(point.module, f"{point.dist.name} {point.dist.version}" if point.dist else point.module)
        for point in sorted(points, key=lambda point: point.module)
    ]


@contextmanager
def _working_folder_last() -> Iterator[None]:
    """Find modules of the working folder too, but none of them in the place of an installed one."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        del sys.path[len(sys.path) - 1 - sys.path[::-1].index(here)]


@cache
def _source(module: ModuleType) -> str:
    """Hash a module's source, all of it for a package; 12 hex digits.

    Once: the code that is in memory stays what it is when its file is edited.
    """
    from sft_lab.core.io import digest, sha256_file  # here, since --help only looks for plug-ins

    if module.__file__ is None:
        return "unknown"
    file = Path(module.__file__)
    files = sorted(file.parent.rglob("*.py")) if hasattr(module, "__path__") else [file]
    return digest([[one.relative_to(file.parent).as_posix(), sha256_file(one)] for one in files])[:12]


_ORIGINS: dict[type, str] = {}


def remember(origins: dict[type, str]) -> None:
    """Note where the classes of plug-ins are from; what was noted before is forgotten."""
    _ORIGINS.clear()
    _ORIGINS.update(origins)


def origin(stage: type) -> str | None:
    """Say where a stage's class is from, None for one of ours."""
    return _ORIGINS.get(stage)


def version_of(stage: Any) -> int | str:
    """Give what a recipe says of a stage's code: its ``version``, for a plug-in's with package, version and source."""
    version: int = stage.version
    found = origin(type(stage))
    return f"{version} of {found}" if found else version
