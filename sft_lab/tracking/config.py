"""Options of tracking: every run has a record in its folder, and may be mirrored to W&B."""

from __future__ import annotations

import abc
import os
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sft_lab.core.redaction import netrc_file

if TYPE_CHECKING:
    from sft_lab.core.run_dir import RunDir


class Mirror:
    """Receives a run's events. This base class ignores them, for runs with a local record only."""

    def log(self, event: dict[str, float]) -> None:
        """Log an event (``step`` and metrics)."""

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Log a table."""

    def picture(self, name: str, file: Path) -> None:
        """Log a figure, an SVG file."""

    def finish(self, summary: dict[str, Any] | None) -> str | None:  # noqa: ARG002
        """End with the run's summary, None if it failed; return a line about where to see the run, or None."""
        return None


@dataclass
class Tracking(abc.ABC):
    """Base of the tracking options."""

    @abc.abstractmethod
    def start(self, folder: RunDir, run_id: str, config: dict[str, Any]) -> Mirror:
        """Return the mirror of a run."""

    def check(self) -> list[str]:
        """Return the problems of this option with its environment."""
        return []


@dataclass
class Local(Tracking):
    """The record in the run folder, nothing else."""

    def start(self, folder: RunDir, run_id: str, config: dict[str, Any]) -> Mirror:  # noqa: ARG002
        """Return a mirror that ignores everything."""
        return Mirror()


class Mode(Enum):
    """Where W&B's record goes; ``auto``: WANDB_MODE, else online when logged in, else offline."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


# W&B's own rules, which its client checks only when a run starts.
MOST_PROJECT, MOST_TAG = 128, 64
_PROJECT = f"a name of at most {MOST_PROJECT} characters without / \\ # ? % :"


def _is_project(name: str) -> bool:
    return bool(name.strip()) and len(name) <= MOST_PROJECT and not set(name) & set("/\\#?%:")


# What a wandb/settings in the working folder may set: names and the mode, which this option sets anyway.
HARMLESS_SETTINGS = {"entity", "project", "mode", "disabled"}


@dataclass
class Wandb(Tracking):
    """Weights & Biases.

    Attributes:
        project: null: WANDB_PROJECT, else ``sft_lab``.
        entity: user or team; null: the login's own.
    """

    mode: Mode = Mode.auto
    project: str | None = None
    entity: str | None = None
    tags: list[str] = field(default_factory=list)

    def check(self) -> list[str]:
        """Return problems with names, WANDB_MODE (a misspelt "offline" must not go online) and settings files.

        Names are not checked in ``__post_init__``, so that older saved runs can still be read.
        """
        names = [
            f"tracking.tags={tag!r}: must be texts of 1 to {MOST_TAG} characters"
            for tag in self.tags
            if not 1 <= len(tag) <= MOST_TAG
        ]
        if self.project is not None and not _is_project(self.project):
            names.append(f"tracking.project={self.project!r}: must be {_PROJECT}, or null")
        if names:
            return names
        project = os.environ.get("WANDB_PROJECT")
        if self.project is None and project and not _is_project(project):
            return [f"WANDB_PROJECT={project}: must be {_PROJECT}; set another, or tracking.project"]
        mode = os.environ.get("WANDB_MODE", "").strip().lower()
        modes = [known.name for known in Mode if known is not Mode.auto]
        if self.mode is not Mode.auto or not mode or mode in modes:
            return [] if self.resolved_mode() == "disabled" else strange_settings(Path.cwd())
        return [f"WANDB_MODE={mode}: must be one of {', '.join(modes)}; set one, or tracking.mode, or unset it"]

    def start(self, folder: RunDir, run_id: str, config: dict[str, Any]) -> Mirror:
        """Start a W&B run and return its mirror; with ``mode=disabled`` one that ignores everything."""
        mode = self.resolved_mode()
        if mode not in ("online", "offline"):
            return Mirror()
        from sft_lab.tracking.wandb_mirror import WandbMirror

        project = self.project or os.environ.get("WANDB_PROJECT") or "sft_lab"
        return WandbMirror(folder, run_id, config, mode=mode, project=project, entity=self.entity, tags=self.tags)

    def resolved_mode(self) -> Literal["online", "offline", "disabled"]:
        """Return the mode: of the config, else WANDB_MODE, else online if logged in, else offline."""
        name = self.mode.name if self.mode is not Mode.auto else os.environ.get("WANDB_MODE", "").strip().lower()
        for mode in ("online", "offline", "disabled"):
            if name == mode:
                return mode
        return "online" if _logged_in() else "offline"


def strange_settings(folder: Path) -> list[str]:
    """Return problems of a ``wandb/settings`` in the working folder that sets more than names and the mode.

    W&B's client reads that file, and would send the user's key to the server it names.
    """
    import configparser

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
                f"{file}: sets {', '.join(wrong)}, which W&B would take from this folder, whoever made it; remove it, "
                "and set that by W&B's environment variables (WANDB_BASE_URL, ...) or `wandb login --host`"
            )
    return problems


def _logged_in() -> bool:
    """Return whether the W&B client would find a login: in the environment or in netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc
    from urllib.parse import urlparse

    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(str(netrc_file())).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
