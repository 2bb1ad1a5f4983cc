"""Completion of overrides in a shell, by Hydra's own plugins for bash, zsh and fish."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout, suppress
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.completion_plugin import CompletionPlugin

from sft_lab.config.overrides import parse, texts_of
from sft_lab.config.search_path import OptionSearchPath, hydra_session
from sft_lab.core.errors import ConfigError

LINE = "COMP_LINE"  # the variable in which a shell hands over the line as typed so far


def shell_script(shell: str, action: str) -> str:
    """Return what a shell is to evaluate.

    Args:
        shell: ``bash``, ``zsh`` or ``fish``.
        action: ``install`` or ``uninstall``.

    Raises:
        ConfigError: if Hydra has no plugin for the shell.
    """
    with hydra_session(), redirect_stdout(io.StringIO()) as output:
        plugin = _plugin(shell)
        plugin.install() if action == "install" else plugin.uninstall()
    return output.getvalue()


def complete_overrides(before: list[str], prefix: str, config_dir: str | None, config_name: str | None) -> list[str]:
    """Return the completions of an override: groups, options, keys and values, and files after ``key=./``.

    Args:
        before: overrides and options of Hydra's before it; those that cannot be read do not count.
        prefix: as typed so far.
        config_dir: an additional folder of options.
        config_name: of the config to compose, instead of ``config``.
    """
    with hydra_session(config_dir, config_name), redirect_stdout(io.StringIO()) as output:
        options = [text for text in before if text.startswith("-")]
        previous = os.environ.get(LINE)
        os.environ[LINE] = " ".join(["sft-lab", *options, *_readable(before), prefix])
        try:
            _plugin("fish").query(OptionSearchPath.config_name)  # which writes a line for each
        except Exception:  # noqa: BLE001 - Hydra raises errors of any type; a shell has nowhere to show them
            return []
        finally:
            os.environ.pop(LINE)
            if previous is not None:
                os.environ[LINE] = previous
    hidden = ("schema", "choices", "plugins", *(() if prefix.startswith("hydra") else ("hydra",)))
    return [text for text in output.getvalue().splitlines() if text and not text.startswith(hidden)]


def _readable(texts: list[str]) -> list[str]:
    overrides = []
    for text in texts:
        if not text.startswith("-"):
            with suppress(ConfigError):
                overrides += texts_of(parse([text]))
    return overrides


def _plugin(shell: str) -> Any:
    known: list[Any] = [*Plugins.instance().discover(CompletionPlugin)]
    plugins = {plugin.provides(): plugin for plugin in known}
    if shell not in plugins:
        raise ConfigError(f"-sc install={shell}: no completion for this shell; available: {', '.join(sorted(plugins))}")
    return plugins[shell](GlobalHydra.instance().config_loader())
