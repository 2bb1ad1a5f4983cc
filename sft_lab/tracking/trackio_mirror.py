"""The adapter to Trackio: a run's events, config and tables in a local database, written by a process beside the run.

Trackio reads the folder of its database from TRACKIO_DIR once, when it is imported, and a process may run the jobs of
several folders. A process for each run also keeps it offline, and keeps its failures away from the training.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core.io import flat, is_number
from sft_lab.core.log import log
from sft_lab.tracking.config import Mirror
from sft_lab.tracking.tracked_run import summary_values

if TYPE_CHECKING:
    from sft_lab.tracking.tracked_run import TrackedRun

PROJECT = "sft_lab"
PATIENCE = 60  # seconds that a run waits for Trackio, which gives up writing after 30
SENDING = ("TRACKIO_BUCKET_ID", "TRACKIO_DATASET_ID")  # variables that make it load from the Hub or send there


class TrackioMirror(Mirror):
    """A run in ``trackio/`` of the run's or sweep's folder, or in TRACKIO_DIR."""

    def __init__(self, run: TrackedRun) -> None:
        own = (run.folder.sweep or run.folder.path) / "trackio"
        self._folder = Path(os.environ.get("TRACKIO_DIR") or own).absolute()
        self._step, self._has_failed = run.first_step, False
        environment = {name: value for name, value in os.environ.items() if name not in SENDING}
        environment |= {"TRACKIO_DIR": str(self._folder), "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sft_lab.tracking.trackio_mirror"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment,
            start_new_session=True,  # Ctrl-C is for the run, which ends this process
        )  # fmt: skip
        kind = "" if run.job_type in ("train", "search") else f"-{run.job_type}"
        self._send(
            {"run_id": run.id, "name": f"{run.name()}{kind}", "group": run.group, "config": flat(run.config)}
        )  # fmt: skip

    def log(self, event: dict[str, float]) -> None:
        """Log metrics at their optimizer step."""
        self._step = int(event["step"])
        metrics = {name: value for name, value in event.items() if name not in ("step", "epoch")}
        self._send({"step": self._step, "metrics": metrics | {"train/epoch": event.get("epoch", 0.0)}})

    def restore(self, events: list[dict[str, float]]) -> None:
        """Log the events of an earlier attempt again: what Trackio has of it is removed first."""
        for event in events:
            self.log(event)

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Log a table."""
        self._send({"step": self._step, "table": name, "columns": columns, "data": rows})

    def finish(self, summary: dict[str, Any] | None) -> list[str]:
        """End the run, unless it failed with its summary."""
        if summary is not None:
            values = summary_values(summary)
            self.table("summary", ["key", "value"], [[key, str(value)] for key, value in values.items()])
            if is_number(values.get("objective")):
                self._send({"step": self._step, "metrics": {"objective": values["objective"]}})
        if not self._has_failed and (problem := self._end()):
            log.warning("Trackio failed (%s) and has only part of the run; the run folder has the full record", problem)
        return [f"Trackio: TRACKIO_DIR={shlex.quote(str(self._folder))} trackio show --project {PROJECT}"]

    def _send(self, message: dict[str, Any]) -> None:
        """Pass a line to the process; one that is gone or stuck ends the mirror, not the training."""
        if self._has_failed or self._process.stdin is None:
            return
        pipe, line = self._process.stdin.fileno(), json.dumps(message, default=str).encode() + b"\n"
        os.set_blocking(pipe, False)
        try:
            while line:
                if not select.select([], [pipe], [], PATIENCE)[1]:
                    raise TimeoutError(f"it has not responded for {PATIENCE} seconds")
                line = line[os.write(pipe, line) :]
        except OSError as error:
            self._has_failed = True
            if isinstance(error, TimeoutError):
                self._process.kill()
            log.warning(
                "Trackio failed (%s) and receives no more events; the record in the run folder continues",
                self._end() or error,
            )

    def _end(self) -> str:
        """End the process, and return the last line of what it complained of."""
        try:
            errors = self._process.communicate(timeout=PATIENCE)[1].decode(errors="replace")
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return f"it did not end within {PATIENCE} seconds"
        return errors.strip().rpartition("\n")[2]


def write_run(lines: Iterator[str]) -> None:
    """Write a run into Trackio's database in TRACKIO_DIR.

    Args:
        lines: JSON: first id, name, group and config, then events and tables. They end where the run does, also by a
            kill.
    """
    warnings.simplefilter("ignore")
    from trackio import Api, Table
    from trackio.run import Run

    warnings.simplefilter("default", UserWarning)  # Trackio raises nothing, it warns
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"
    options = json.loads(next(lines))
    with suppress(ValueError):  # there is no project yet
        for run in Api().runs(PROJECT):
            if run.id == options["run_id"]:
                run.delete()
    run = Run(url=None, client=None, project=PROJECT, **options)
    with suppress(ValueError):  # the last line, if a kill has cut it off
        for line in lines:
            event = json.loads(line)
            table = event.get("table")
            metrics = {table: Table(columns=event["columns"], data=event["data"])} if table else event["metrics"]
            run.log(metrics, step=event["step"])
    run.finish()


if __name__ == "__main__":
    write_run(iter(sys.stdin))
