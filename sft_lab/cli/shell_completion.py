"""``sft-lab -sc install=bash``: what a shell offers after Tab, commands and options of ours and Hydra's overrides."""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from pathlib import Path

from sft_lab.cli.arguments import options_of
from sft_lab.cli.command_help import ABOUT
from sft_lab.core.errors import UserError

WITH_OVERRIDES = ("train", "prepare", "plan", "search")
_WITH_PATH = ("--config-dir", "-cd", "--out", "--path")  # options whose value is a file or folder


def run(text: str) -> int:
    """Carry out ``install=SHELL``, ``uninstall=SHELL`` or ``query=SHELL`` and return the exit code.

    Raises:
        UserError: for anything else.
    """
    action, _, shell = text.partition("=")
    if action == "query":
        sys.stdout.write("".join(f"{candidate}\n" for candidate in candidates(os.environ.get("COMP_LINE", ""))))
    elif action in ("install", "uninstall"):
        from sft_lab.config.completion import shell_script

        sys.stdout.write(shell_script(shell, action))
    else:
        raise UserError(
            f'-sc {text}: must be install=SHELL or uninstall=SHELL, as in eval "$(sft-lab -sc install=bash)"'
        )
    return 0


def candidates(line: str) -> list[str]:
    """Return the completions of a command line.

    Args:
        line: as typed so far, from the name of the program on.
    """
    tokens = line.split()[1:]
    prefix = "" if not tokens or line[-1].isspace() else tokens.pop()
    command = tokens[0] if tokens and tokens[0] in ABOUT else "train"
    if prefix.startswith("-"):
        return [option for option in options_of(command) if option.startswith(prefix)]
    if (tokens and tokens[-1] in _WITH_PATH) or command not in WITH_OVERRIDES:
        return _paths(prefix)

    from sft_lab.config.completion import complete_overrides

    names = [] if tokens else [name for name in ABOUT if name.startswith(prefix)]
    before = [text for text in tokens if "=" in text or text in ("-m", "--multirun")]
    folder, name = (_value_of(tokens, *option) for option in (("--config-dir", "-cd"), ("--config-name", "-cn")))
    return [*names, *complete_overrides(before, prefix, folder, name)]


def _value_of(tokens: list[str], *names: str) -> str | None:
    return next((value for option, value in pairwise(tokens) if option in names), None)


def _paths(prefix: str) -> list[str]:
    folder, _, start = prefix.rpartition("/")
    root = Path(f"{folder}/" if "/" in prefix else ".").expanduser()
    parent = prefix[: len(prefix) - len(start)]
    try:
        return sorted(
            f"{parent}{path.name}{'/' * path.is_dir()}" for path in root.iterdir() if path.name.startswith(start)
        )
    except OSError:
        return []
