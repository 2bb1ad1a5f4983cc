"""A job at work in another's hands (Slurm's, Ray's), followed by what its folder says."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from sft_lab.core.io import read_json
from sft_lab.core.log import log
from sft_lab.core.run_dir import FAILED, FINISHED, PREPARE, RUNNING, RunDir
from sft_lab.jobs.worker import Failure


@dataclass
class Watched:
    """A job that was handed over.

    Attributes:
        title: what it is called in the log.
        told: its status when it was last looked at; at first what an earlier attempt left.
    """

    title: str
    folder: RunDir
    told: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Take the folder as it is before this attempt."""
        self.title = self.title or self.folder.path.name
        self.told = self.told or status_of(self.folder)

    def look(self) -> None:
        """Tell when the job has begun, or was interrupted and will be begun again."""
        status = status_of(self.folder)
        if status == self.told:
            return
        self.told = status
        if status.get("state") == RUNNING:
            # Several processes begin with the data stages in one, and then train.
            done = "prepares its data" if status.get("work") == PREPARE else "started"
            log.info("%s: %s on %s", self.title, done, status.get("host"))
        elif status.get("state") not in (FINISHED, FAILED):
            log.info("%s: %s", self.title, status.get("state"))

    def end(
        self, work: str, before: dict[str, Any], otherwise: str, told: dict[str, Any] | None = None
    ) -> list[Failure]:
        """Tell how the job has ended.

        Args:
            work: what it was to do in the folder.
            before: the status that this attempt found.
            otherwise: why it ended, where its folder does not say so.
            told: what the job itself told of its failure.
        """
        status, seconds = status_of(self.folder), time.monotonic() - self.began
        state = status.get("state")
        if told is None and state == FINISHED and status.get("work") == work:
            summary = read_json(self.folder.summary) if self.folder.summary.exists() else {}
            log.info("%s: finished in %.0f s  %s", self.title, seconds, summary.get("verdict", ""))
            return []
        if told is not None:
            message = str(told["message"])
        elif state == FAILED and status != before:
            message = str(status.get("error"))
        else:
            message = otherwise
            if state == RUNNING:
                self.folder.mark_failed(message)
        log.info("%s: failed: %s", self.title, message)
        return [Failure(self.folder, message, by_input=bool(told and told["by_input"]))]


def status_of(folder: RunDir) -> dict[str, Any]:
    """Give what ``status.json`` says, nothing where it cannot be read at this moment: it may come over a network."""
    try:
        return read_json(folder.status)
    except (OSError, ValueError):
        return {}
