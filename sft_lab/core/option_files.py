"""The option files, and their listing for ``--help``, made without importing Hydra."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from sft_lab.core import plugins

PACKAGE = Path(__file__).parents[1]


def shipped(name: str) -> Path:
    """Return the folder ``conf`` or ``experiments`` of the checkout, or else its copy in the wheel."""
    checkout = PACKAGE.parent / name
    in_checkout = (PACKAGE.parent / "pyproject.toml").exists() and checkout.is_dir()
    return checkout if in_checkout else PACKAGE / f"_{name}"


def option_roots() -> list[Path]:
    """Return the folders of options: the shipped one, ``conf/`` in the working folder, and those of plug-ins."""
    of_plugins = (plugin.conf() for plugin in plugins.named())
    return [shipped("conf"), Path.cwd() / "conf", *(conf for conf in of_plugins if conf)]


def listing() -> str:
    """Return a line with name and description for each option, including plug-ins and the working folder."""
    lines = ["", "options by group (group=option):"]
    conf, roots = shipped("conf"), option_roots()
    for group in sorted(str(path.relative_to(conf)) for path in conf.rglob("*") if path.is_dir()):
        lines += [f"  {group}", *_described(_files(roots, group))]
    lines += [
        "  experiment (+experiment=name)",
        *_described(_files([shipped("experiments"), Path.cwd() / "experiments"], "")),
    ]
    return "\n".join(lines) + "\n"


def is_yaml(file: str) -> bool:
    """Return whether a file is YAML by its name."""
    return file.lower().endswith((".yaml", ".yml"))


def how_to_run(file: str) -> str:
    """Return how the settings in a YAML file are run, for a message that refuses the file as an override."""
    path = Path(file)
    with suppress(OSError, UnicodeDecodeError):
        if re.search("^format:", path.read_text(encoding="utf-8"), re.MULTILINE):
            return f"it is the saved config of a run; write sft-lab replay {file}"
    own = f"experiments/{path.stem}.yaml"
    save = "" if path.absolute() == Path(own).absolute() else f"save it as {own} and "
    return f"settings in a YAML file are an experiment: {save}write +experiment={path.stem} (docs/options.md shows one)"


def _described(options: dict[str, str]) -> list[str]:
    import shutil
    import textwrap

    width = max(map(len, options), default=0) + 6
    columns = max(shutil.get_terminal_size((100, 24)).columns, width + 20)
    return [
        textwrap.fill(
            description,
            columns,
            initial_indent=f"    {name}".ljust(width),
            subsequent_indent=" " * width,
            break_on_hyphens=False,
        )
        for name, description in options.items()
    ]


def _files(roots: list[Path], group: str) -> dict[str, str]:
    """Return the description of each option of a group, by name."""
    descriptions: dict[str, str] = {}
    for root in roots:
        for file in sorted((root / group).glob("*.yaml")):
            descriptions.setdefault(file.stem, _first_comment(file))
    return descriptions


def _first_comment(file: Path) -> str:
    """Return the first comment line except Hydra's ``@package``."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ").strip()
    return ""
