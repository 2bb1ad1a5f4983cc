"""The run folder: where each file of a run is, and how its state is kept.

Whatever reads or writes a run folder goes through here, so this is the one list of its files.
"""

from __future__ import annotations

import datetime
import os
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft_lab.errors import FolderError
from sft_lab.files import read_json, write_json

SWEEP = "sweep.json"  # marks a folder as a sweep's; its run folders lie in it
RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"


class RunFolder:
    """Paths of one run's files, and its ``status.json``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.manifest = path / "manifest.json"
        self.status = path / "status.json"
        self.waterfall = path / "waterfall.json"
        self.dropped = path / "dropped.parquet"
        self.metrics = path / "metrics.jsonl"
        self.eval = path / "eval.parquet"
        self.summary = path / "summary.json"
        self.samples = path / "samples.jsonl"
        self.figures = path / "figures"
        self.report = path / "report.html"
        self.model = path / "model"
        self.dataset = path / "dataset"
        self.checkpoints = path / "checkpoints"
        self.log = path / "run.log"

    @property
    def sweep(self) -> Path | None:
        """The sweep folder this run is a job of, if it is one."""
        return self.path.parent if (self.path.parent / SWEEP).exists() else None

    def state(self) -> str | None:
        """What ``status.json`` says, or None in a folder without one."""
        return read_json(self.status)["state"] if self.status.exists() else None

    def _mark(self, state: str, **more: Any) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        where = {"host": socket.gethostname(), "pid": os.getpid()}
        write_json(self.status, {"state": state, "time": now, **where, **more})

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold ``status.json`` true around the work: running, then finished, failed or interrupted.

        A process killed without warning leaves ``running``; whoever finds that treats it as cut off.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._mark(RUNNING)
        except OSError as error:
            raise FolderError(
                f"{self.path}: the run folder cannot be written ({error.strerror}); "
                "choose another with hydra.run.dir or hydra.sweep.dir"
            ) from error
        try:
            yield
        except Exception as error:
            self._mark(FAILED, error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
            raise
        except BaseException:  # Ctrl-C, SIGTERM turned into SystemExit
            self._mark(INTERRUPTED)
            raise
        self._mark(FINISHED)
