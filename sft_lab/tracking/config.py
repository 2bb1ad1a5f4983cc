"""Options of tracking: every run has a record in its folder, and may be mirrored to W&B, TensorBoard and Trackio."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from sft_lab.tracking.tracked_run import TrackedRun


class Mirror:
    """Receives a run's events. This base class ignores them, for runs with a local record only."""

    def log(self, event: dict[str, float]) -> None:
        """Log an event (``step`` and metrics)."""

    def restore(self, events: list[dict[str, float]]) -> None:
        """Take the events of an earlier attempt, up to the checkpoint that the run goes on from."""

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Log a table."""

    def picture(self, name: str, file: Path) -> None:
        """Log a figure, an SVG file."""

    def finish(self, summary: dict[str, Any] | None) -> list[str]:  # noqa: ARG002
        """End with the run's summary, None if it failed; return a line about where to see the run, if there is any."""
        return []


class SeveralMirrors(Mirror):
    """Passes everything to each of several mirrors."""

    def __init__(self, mirrors: list[Mirror]) -> None:
        self._mirrors = mirrors

    def log(self, event: dict[str, float]) -> None:
        """Log an event."""
        for mirror in self._mirrors:
            mirror.log(event)

    def restore(self, events: list[dict[str, float]]) -> None:
        """Take the events of an earlier attempt."""
        for mirror in self._mirrors:
            mirror.restore(events)

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Log a table."""
        for mirror in self._mirrors:
            mirror.table(name, columns, rows)

    def picture(self, name: str, file: Path) -> None:
        """Log a figure."""
        for mirror in self._mirrors:
            mirror.picture(name, file)

    def finish(self, summary: dict[str, Any] | None) -> list[str]:
        """End each, and return their lines."""
        return [line for mirror in self._mirrors for line in mirror.finish(summary)]


FILE_MIRRORS = ("tensorboard", "trackio")  # each with the name of its package


@dataclass
class FileMirror:
    """A mirror beside the option's own, which writes files of its kind; its key in ``mirrors`` is its name."""


def _missing(name: str) -> list[str]:
    """Return why there is no mirror of this name."""
    if name not in FILE_MIRRORS:
        return [f"tracking.mirrors.{name}: no such mirror; available: {', '.join(FILE_MIRRORS)}"]
    if find_spec(name):
        return []
    return [f"tracking={name}: needs the package {name}; run: pip install 'sft_lab[{name}]'"]


def _start(name: str, run: TrackedRun) -> Mirror:
    if name == "trackio":
        from sft_lab.tracking.trackio_mirror import TrackioMirror

        return TrackioMirror(run)
    from sft_lab.tracking.tensorboard_mirror import TensorBoardMirror

    return TensorBoardMirror(run)


@dataclass
class Tracking:
    """The record in the run folder and, beside it, mirrors; the base of options with a mirror of their own.

    Attributes:
        mirrors: those beside the option's own, by name. An option file puts itself here, so that Hydra can choose
            several options at once.
    """

    mirrors: dict[str, FileMirror] = field(default_factory=dict)

    def own_mirror(self, run: TrackedRun) -> Mirror:  # noqa: ARG002
        """Return the option's own mirror of a run; this one has none, and ignores everything."""
        return Mirror()

    def going_online(self) -> str:
        """Return what will leave this machine, for the log of a run that begins; empty if nothing will."""
        return ""

    def start(self, run: TrackedRun) -> Mirror:
        """Return what mirrors a run."""
        return SeveralMirrors([self.own_mirror(run), *(_start(name, run) for name in self.mirrors)])

    def check(self) -> list[str]:
        """Return problems of this option in the present environment."""
        return [problem for name in self.mirrors for problem in _missing(name)]

    def missing_requirements(self) -> list[str]:
        """Return what is missing to start jobs with this option; a job that has begun continues without it."""
        return []


class Mode(Enum):
    """Where W&B records go; ``auto``: WANDB_MODE, else online when logged in, else offline."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


# W&B's own rules, which its client checks only when a run starts, and its server only when it gets the run.
MOST_PROJECT, MOST_TAG, MOST_NAME = 128, 64, 128
_PROJECT = f"a name of at most {MOST_PROJECT} characters without / \\ # ? % :"


def _is_project(name: str) -> bool:
    return bool(name.strip()) and len(name) <= MOST_PROJECT and not set(name) & set("/\\#?%:")


@dataclass
class Wandb(Tracking):
    """Weights & Biases.

    Attributes:
        project: null: WANDB_PROJECT, else ``sft_lab``.
        entity: user or team; null: the login's own.
        name: of a run, before what differs in a sweep; null: WANDB_NAME, else what the run is made of.
        notes: null: WANDB_NOTES.
        group: null: WANDB_RUN_GROUP, else the name of the sweep's folder.
        job_type: null: WANDB_JOB_TYPE, else ``train``, ``prepare`` or ``search``.
    """

    mode: Mode = Mode.auto
    project: str | None = None
    entity: str | None = None
    tags: list[str] = field(default_factory=list)
    name: str | None = None
    notes: str | None = None
    group: str | None = None
    job_type: str | None = None

    def check(self) -> list[str]:
        """Return problems with names, WANDB_MODE (a misspelt "offline" must not go online), and settings files.

        Names are not checked in ``__post_init__``, so that older saved runs can still be read.
        """
        names = super().check() + [
            f"tracking.tags={tag!r}: must be 1 to {MOST_TAG} characters long"
            for tag in self.tags
            if not 1 <= len(tag) <= MOST_TAG
        ]
        names += [
            f"tracking.{key}={value!r}: must be 1 to {MOST_NAME} characters long, or null"
            for key in ("name", "group", "job_type")
            if (value := getattr(self, key)) is not None and not 1 <= len(value) <= MOST_NAME
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
        if self.mode is Mode.auto and mode and mode not in modes:
            return [f"WANDB_MODE={mode}: must be one of {', '.join(modes)}; set one, or tracking.mode, or unset it"]
        from sft_lab.tracking.wandb_login import strange_settings

        return [] if self.resolved_mode() == "disabled" else strange_settings(Path.cwd())

    def missing_requirements(self) -> list[str]:
        """Return why W&B does not take this login, where the user has chosen to be online."""
        mode = os.environ.get("WANDB_MODE", "").strip().lower()
        if self.mode is Mode.online:
            setting, remedy = "tracking.mode=online", "tracking.mode=auto (offline if W&B is unavailable)"
        elif self.mode is Mode.auto and mode == "online":
            setting, remedy = "WANDB_MODE=online", "WANDB_MODE=offline, or unset it"
        else:
            return []
        from sft_lab.tracking.wandb_login import is_logged_in, server_url

        if not is_logged_in():
            return [f"{setting}: not logged in to W&B at {server_url()}; run `wandb login`, or set {remedy}"]
        from sft_lab.tracking.wandb_mirror import verify_login

        try:
            verify_login(server_url())
        except ConnectionError as error:
            return [f"{setting}: {error}; set {remedy}"]
        return []

    def own_mirror(self, run: TrackedRun) -> Mirror:
        """Start a W&B run and return its mirror; with ``mode=disabled`` one that ignores everything."""
        mode = self.resolved_mode()
        if mode not in ("online", "offline"):
            return Mirror()
        from sft_lab.tracking.wandb_mirror import WandbMirror

        return WandbMirror(run, mode, self.labels(run))

    def going_online(self) -> str:
        """Return that metrics and some of the texts go to W&B's server; empty unless the mode is online."""
        if self.resolved_mode() != "online":
            return ""
        from sft_lab.tracking.wandb_login import server_url

        return (
            f"tracking: {server_url()} gets config, metrics and samples of your texts (W&B); tracking=local keeps "
            "everything on this machine"
        )

    def labels(self, run: TrackedRun) -> dict[str, Any]:
        """Return what W&B calls the run and puts it under: the option, else W&B's own variable, else ours."""
        variable = os.environ.get
        name = self.name or variable("WANDB_NAME")
        is_of_agent = "WANDB_SWEEP_ID" in os.environ  # W&B names and numbers an agent's runs
        return {
            "project": self.project or variable("WANDB_PROJECT") or "sft_lab",
            "entity": self.entity,
            "name": name if is_of_agent else run.name(name),
            "notes": self.notes,
            "group": self.group or variable("WANDB_RUN_GROUP") or run.group,
            "job_type": self.job_type or variable("WANDB_JOB_TYPE") or run.job_type,
            "tags": self.tags or None,
        }

    def resolved_mode(self) -> Literal["online", "offline", "disabled"]:
        """Return the mode: of the config, else WANDB_MODE, else online if logged in, else offline."""
        name = self.mode.name if self.mode is not Mode.auto else os.environ.get("WANDB_MODE", "").strip().lower()
        for mode in ("online", "offline", "disabled"):
            if name == mode:
                return mode
        from sft_lab.tracking.wandb_login import is_logged_in

        return "online" if is_logged_in() else "offline"
