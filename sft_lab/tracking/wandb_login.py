"""Where W&B's client finds its server and the user's login, and settings files that it must not follow."""

from __future__ import annotations

import configparser
import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from sft_lab.core.redaction import netrc_file

# The hosts of W&B's own service: the client's default today, and the one that older logins are for.
SERVICE = ("api.forge.coreweave.com", "api.wandb.ai")
# What a wandb/settings in the working folder may set: names and the mode, which the option sets anyway.
HARMLESS_SETTINGS = {"entity", "project", "mode", "disabled"}


def strange_settings(folder: Path) -> list[str]:
    """Return problems of a ``wandb/settings`` in the working folder that sets more than names and the mode.

    W&B's client reads that file, and would send the user's key to the server it names.
    """
    problems = []
    for file in (folder / "wandb" / "settings", folder / ".wandb" / "settings"):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(file, encoding="utf-8")
        except (OSError, ValueError, configparser.Error) as error:
            problems.append(f"{file}: cannot be read ({str(error).splitlines()[0]}); remove it")
            continue
        names = {name for section in [*parser.sections(), parser.default_section] for name in parser[section]}
        if wrong := sorted(names - HARMLESS_SETTINGS):
            problems.append(
                f"{file}: sets {', '.join(wrong)}, and W&B would trust it no matter who wrote it; remove it, and use "
                "W&B's environment variables (WANDB_BASE_URL, ...) or `wandb login --host`"
            )
    return problems


def server_url() -> str:
    """Return W&B's address: of the environment, else as `wandb login --host` wrote it, else of W&B's own service."""
    if url := os.environ.get("WANDB_BASE_URL"):
        return url
    folder = Path(os.path.expanduser(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"))  # noqa: PTH111
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(folder / "settings", encoding="utf-8")
    except (OSError, ValueError, configparser.Error):
        return f"https://{SERVICE[0]}"
    return parser.get("default", "base_url", fallback=f"https://{SERVICE[0]}")


def is_logged_in() -> bool:
    """Return whether W&B's client would find a login for its server: in the environment or in netrc."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(server_url()).netloc
    try:
        logins = netrc.netrc(str(netrc_file()))
    except (OSError, netrc.NetrcParseError):
        return False
    return any(logins.authenticators(name) for name in (SERVICE if host in SERVICE else (host,)))
