"""The options by group with the first line of each file: what ``--help`` lists, without importing Hydra."""

from __future__ import annotations

from pathlib import Path

from sft_lab.core import plugins

PACKAGE = Path(__file__).parents[1]


def shipped(name: str) -> Path:
    """Give ``conf`` or ``experiments``: the checkout's, else what travels in the wheel."""
    checkout = PACKAGE.parent / name
    in_checkout = (PACKAGE.parent / "pyproject.toml").exists() and checkout.is_dir()
    return checkout if in_checkout else PACKAGE / f"_{name}"


def option_roots() -> list[Path]:
    """Give the folders of options: what is shipped, the working folder's own ``conf/``, those of plug-ins."""
    brought = (plugin.conf() for plugin in plugins.named())
    return [shipped("conf"), Path.cwd() / "conf", *(conf for conf in brought if conf)]


def listing() -> str:
    """Give a line for each option: name and what it is; the working folder's own and those of plug-ins too."""
    lines = ["", "options by group (group=option):"]
    conf, roots = shipped("conf"), option_roots()
    for group in sorted(str(path.relative_to(conf)) for path in conf.rglob("*") if path.is_dir()):
        lines += [f"  {group}", *_described(_files(roots, group))]
    lines += [
        "  experiment (+experiment=name)",
        *_described(_files([shipped("experiments"), Path.cwd() / "experiments"], "")),
    ]
    return "\n".join(lines) + "\n"


def _described(options: dict[str, str]) -> list[str]:
    import shutil
    import textwrap

    width = max(map(len, options), default=0) + 6
    columns = max(shutil.get_terminal_size((100, 24)).columns, width + 20)
    return [
        textwrap.fill(
            says,
            columns,
            initial_indent=f"    {name}".ljust(width),
            subsequent_indent=" " * width,
            break_on_hyphens=False,
        )
        for name, says in options.items()
    ]


def _files(roots: list[Path], group: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for root in roots:
        for file in sorted((root / group).glob("*.yaml")):
            found.setdefault(file.stem, _first_words(file))
    return found


def _first_words(file: Path) -> str:
    """The first comment that is not Hydra's package line."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ").strip()
    return ""
