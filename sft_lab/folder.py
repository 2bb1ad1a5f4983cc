"""The run folder: where each file of a run is, and how its state is kept.

Whatever reads or writes a run folder goes through here, so this is the one list of its files.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sft_lab.errors import FolderError
from sft_lab.files import clear_temporary, read_json, write_json
from sft_lab.redaction import redact

SWEEP = "sweep.json"  # marks a folder as a sweep's; its run folders lie in it
RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"
RUN, PREPARE = "run", "prepare"  # what a folder is worked on for


class RunFolder:
    """Paths of one run's files, and its ``status.json``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.manifest = path / "manifest.json"
        self.status = path / "status.json"
        self.waterfall = path / "waterfall.json"
        self.dropped = path / "dropped.parquet"
        self.review = path / "review.csv"
        self.data = path / "data.json"
        self.metrics = path / "metrics.jsonl"
        self.eval = path / "eval.parquet"
        self.summary = path / "summary.json"
        self.samples = path / "samples.jsonl"
        self.training_samples = path / "training_samples.jsonl"
        self.outputs = path / "outputs.jsonl"
        self.figures = path / "figures"
        self.report = path / "report.html"
        self.model = path / "model"
        self.merged = path / "merged"
        self.dataset = path / "dataset"
        self.checkpoints = path / "checkpoints"
        self.log = path / "run.log"
        self.queued = path / "queued.json"  # where the job lies in another's queue
        self._lock = path / ".lock"

    @property
    def sweep(self) -> Path | None:
        """The sweep folder this run is a job of, if it is one."""
        return self.path.parent if (self.path.parent / SWEEP).exists() else None

    def state(self) -> str | None:
        """What ``status.json`` says, or None in a folder without one."""
        return str(self._said()["state"]) if self.status.exists() else None

    def work(self) -> str:
        """What the folder was last worked on for: a run, or preparing data alone."""
        return str(self._said().get("work", RUN)) if self.status.exists() else RUN

    def _said(self) -> dict[str, Any]:
        """Give what ``status.json`` holds.

        Raises:
            FolderError: if it is nonsense, which a run never writes.
        """
        try:
            found: Any = read_json(self.status)
        except (OSError, ValueError, RecursionError) as error:
            found, why = None, str(error)
        else:
            why = "must hold an object with a state"
        if isinstance(found, dict) and isinstance(found.get("state"), str):
            return found
        raise FolderError(f"{self.status}: cannot be read ({why}); remove it, and sft-lab exec goes on with the run")

    def _mark(self, state: str, **more: Any) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        where = {"host": socket.gethostname(), "pid": os.getpid()}
        write_json(self.status, {"state": state, "time": now, **where, **more})

    def _mark_in_need(self, state: str, **more: Any) -> None:
        """Mark, in the old file's block where there is no room for another file."""
        try:
            self._mark(state, **more)
        except OSError:
            with suppress(OSError, ValueError), self.status.open("r+", encoding="utf-8") as file:
                told = {**json.load(file), "state": state, **more}
                told.pop("traceback", None)  # too long for that block
                file.seek(0)
                file.write(json.dumps(told))
                file.truncate()

    def mark_failed(self, error: str) -> None:
        """Say so of a job that could not say it itself."""
        self._mark(FAILED, work=self.work(), error=redact(error))

    @contextmanager
    def running(self, work: str = RUN) -> Iterator[None]:
        """Hold ``status.json`` true around the work: running, then finished, failed or interrupted.

        A process killed without warning leaves ``running``; whoever finds that treats it as cut off.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        self.refuse_links()
        with self._held():
            try:
                clear_temporary(self.path)
                self._mark(RUNNING, work=work)
            except OSError as error:
                raise self._unwritable(error) from error
            try:
                yield
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                self._mark_in_need(FAILED, work=work, error=redact(said), traceback=redact(traceback.format_exc()))
                raise
            except BaseException:  # Ctrl-C, SIGTERM turned into SystemExit
                self._mark_in_need(INTERRUPTED, work=work)
                raise
            self._mark(FINISHED, work=work)
            if work == RUN:
                # Last, since a run that is cut off before it is finished goes on from them.
                shutil.rmtree(self.checkpoints, ignore_errors=True)

    def tidy(self) -> None:
        """Remove what a kill behind the last word left in a finished run's folder: lock and checkpoints."""
        if not self.is_held():
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def refuse_links(self) -> None:
        """Refuse links out of the folder before anything is written: a stranger's could lead anywhere.

        Raises:
            FolderError: naming the link and where it leads.
        """
        root = self.path.resolve()
        for here, folders, files in os.walk(self.path):
            for path in (Path(here, name) for name in (*folders, *files)):
                if path.is_symlink() and not (leads := path.resolve()).is_relative_to(root):
                    raise FolderError(
                        f"{path}: is a link out of the run folder, to {leads}; nothing is written through it; "
                        "remove it, or put the whole run folder there with hydra.run.dir or hydra.sweep.dir"
                    )

    def is_held(self) -> bool:
        """Whether a process works in the folder at this moment."""
        from filelock import FileLock, Timeout

        try:
            with FileLock(self._lock, timeout=0, fallback_to_soft=False):
                self._lock.unlink(missing_ok=True)
        except Timeout:
            return True
        except OSError:  # no such folder, or not ours to write
            return False
        return False

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Keep other processes out: two trainings in one folder would write each other's files. Death frees it."""
        from filelock import FileLock, Timeout

        lock = FileLock(self._lock, timeout=0, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout as error:
            status = read_json(self.status) if self.status.exists() else {}
            raise FolderError(
                f"{self.path}: another process works here (host {status.get('host')}, process {status.get('pid')}); "
                "wait until it has ended"
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield
        finally:
            self._lock.unlink(missing_ok=True)
            lock.release()

    def _unwritable(self, error: OSError) -> FolderError:
        return FolderError(
            f"{self.path}: the run folder cannot be written ({error.strerror}); "
            "choose another with hydra.run.dir or hydra.sweep.dir"
        )
