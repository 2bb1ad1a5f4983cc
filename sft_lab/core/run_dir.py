"""The run folder: where each file of a run is, and how its state is kept.

Whatever reads or writes a run folder goes through here, so this is the one list of its files.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import shutil
import socket
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sft_lab.core import records
from sft_lab.core.errors import FolderError
from sft_lab.core.io import clear_temporary, write_json
from sft_lab.core.locks import Holder, file_lock, holder
from sft_lab.core.redaction import redact

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK = ".lock"  # in a run folder: held while a process works there
log = logging.getLogger("sft_lab")
PATIENCE = 0.5  # seconds; somebody may only look whether the lock can be had
SWEEP = "sweep.json"  # marks a folder as a sweep's; its run folders lie in it
RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"
DATA = ("dataset_fingerprint", "inputs")  # what a manifest notes of the data that was read
RUN, PREPARE = "run", "prepare"  # what a folder is worked on for


class FolderInUse(FolderError):
    """Another process works in the folder."""


class RunDir:
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
        self.inputs = path / "inputs"  # copies of the small files that the config names
        self.checkpoints = path / "checkpoints"
        self.log = path / "run.log"
        self.queued = path / "queued.json"  # where the job lies in another's queue
        self.output = path / "output.log"  # what a process of its own printed
        self.wandb = path / "wandb"  # W&B's own files; it puts links to its log elsewhere among them
        self._lock = path / LOCK
        self._claimed: BaseFileLock | None = None

    @staticmethod
    def timestamped() -> Path:
        """Return ``outputs/<date>/<time>``, below the working folder."""
        return Path("outputs").absolute() / datetime.datetime.now().strftime("%Y-%m-%d/%H-%M-%S")  # noqa: DTZ005

    @classmethod
    def new(cls) -> tuple[Self, list[Path]]:
        """Make ``outputs/<date>/<time>``, with a counter where that is taken.

        Returns:
            The run folder, and what ``make_folders`` made for it.
        """
        path = cls.timestamped()
        attempt, counter, made = path, 1, make_folders(path)
        while attempt not in made:
            counter += 1
            attempt = path.with_name(f"{path.name}-{counter}")
            made = [*make_folders(attempt), *made]
        return cls(attempt), made

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
        problems: list[str] = []
        content = records.read(self.status, problems)
        if content.get("state"):
            return content
        why = (problems or ["must hold an object with a state"])[0].removeprefix(f"{self.status.name}: ")
        raise FolderError(f"{self.status}: {why}; remove it, and sft-lab exec goes on with the run")

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
        with self.claimed():
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
        """Refuse to work where a link would lead reading or writing out of the folder: a stranger's, anywhere.

        Only the paths of a run are looked at. What a user or W&B has put beside or below them is not ours to judge.

        Raises:
            FolderError: naming the link and where it leads.
        """
        root = self.path.resolve()
        trees = [self.figures, self.model, self.merged, self.dataset, self.checkpoints]
        files = [path for path in vars(self).values() if isinstance(path, Path) and path not in (self.path, *trees)]
        for path in (*files, *trees, *(below for tree in trees for below in tree.rglob("*"))):
            if path.is_symlink() and not (target := path.resolve()).is_relative_to(root):
                raise FolderError(
                    f"{path}: is a link out of the run folder, to {target}; nothing is read or written through it; "
                    "remove it, or put the whole run folder there with hydra.run.dir or hydra.sweep.dir"
                )

    def is_held(self) -> bool:
        """Whether a process works in the folder at this moment."""
        from filelock import Timeout

        if not self._lock.exists():
            return False
        try:
            with file_lock(self._lock).acquire(timeout=0):
                self._lock.unlink(missing_ok=True)
        except Timeout:
            return True
        except (OSError, FolderError):  # not ours to write
            return False
        return False

    def holder(self) -> Holder | None:
        """Return who works in a folder that is held."""
        return holder(self._lock)

    @contextmanager
    def claimed(self, *, wait: bool = False) -> Iterator[None]:
        """``claim`` for as long as the block runs."""
        self.claim(wait=wait)
        try:
            yield
        finally:
            self.release()

    def claim(self, *, wait: bool = False) -> None:
        """Keep other processes out until ``release``: two trainings in one folder would write each other's files.

        Claims of one ``RunDir`` nest; death frees them all.

        Args:
            wait: for whoever works here; else that is refused.

        Raises:
            FolderInUse: if another process works here.
            FolderError: if the folder cannot be written, or a link leads out of it.
        """
        from filelock import Timeout

        self.refuse_links()
        lock = self._claimed = self._claimed or file_lock(self._lock)
        try:
            make_folders(self.path)
            try:
                lock.acquire(timeout=PATIENCE)
            except Timeout as error:
                who = self.holder()
                if not wait:
                    at = f" ({who})" if who else ""
                    raise FolderInUse(
                        f"{self.path}: another process works here{at}; wait until it has ended"
                    ) from error
                log.info("%s: is being worked on by %s; waiting for it", self.path.name, who or "another process")
                lock.acquire()
        except OSError as error:
            raise self._unwritable(error) from error

    def release(self, *, wholly: bool = False) -> None:
        """End a claim.

        Args:
            wholly: all that are nested, since another process is to work here now.
        """
        lock = self._claimed
        if lock is None or not lock.is_locked:
            return
        if wholly or lock.lock_counter == 1:
            self._lock.unlink(missing_ok=True)
        lock.release(force=wholly)

    def discard(self, made: Sequence[Path]) -> None:
        """Remove all that lies in the folder, and the folders that this command made if they are empty then.

        Args:
            made: the deepest first.
        """
        with self.claimed():
            for path in self.path.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                elif path != self._lock:
                    path.unlink(missing_ok=True)
            self.release(wholly=True)
        with suppress(OSError):  # another command may have put something there
            for path in made:
                path.rmdir()

    def move_aside(self, target: Path) -> None:
        """Rename the folder, which this process has claimed, so that a new one can be made in its place."""
        self.path.rename(target)
        (target / LOCK).unlink(missing_ok=True)
        if self._claimed is not None:
            self._claimed.release(force=True)

    def refuse_other_data(self, changes: Callable[[dict[str, Any]], list[str]]) -> None:
        """Refuse to go on where the data is another than that which the folder's work began with.

        Args:
            changes: returns what is not as a manifest's ``DATA`` says; called where the folder notes some.

        Raises:
            FolderError: naming the changes, or if the manifest cannot be read.
        """
        then = self.noted_data()
        if then and (changed := changes(then)):
            raise FolderError(
                f"{self.path}: the data has changed since this run: {'; '.join(changed)}; put the old data back, "
                "choose another folder (sft-lab replay makes a new one), or give "
                "rerun=true to run again here and keep the old one beside it"
            )

    def refuse_other_job(self, job: str) -> None:
        """Refuse a folder that a run with another config has worked in.

        Args:
            job: the hash of this one's config.

        Raises:
            FolderError: if the folder's differs.
        """
        if (then := self.noted("job")) not in (None, job):
            raise FolderError(f"{self.path}: holds a run with another config (job {then}, not {job}); "
                              "choose another folder")  # fmt: skip

    def noted_data(self) -> dict[str, Any]:
        """Return what the manifest notes of the data that the folder's work began with."""
        return {name: value for name in DATA if (value := self.noted(name)) is not None}

    def noted(self, name: str) -> Any:
        """Return what the manifest notes, None where there is nothing yet."""
        problems: list[str] = []
        content = records.read(self.manifest, problems)
        if problems:
            why = problems[0].removeprefix(f"{self.manifest.name}: ")
            raise FolderError(f"{self.manifest}: {why}; rerun=true runs it again")
        return content.get(name)

    def _unwritable(self, error: OSError) -> FolderError:
        return FolderError(
            f"{self.path}: the run folder cannot be written ({error.strerror}); "
            "choose another with hydra.run.dir or hydra.sweep.dir"
        )


def make_folders(path: Path) -> list[Path]:
    """Make a folder, and those above it that are missing.

    Several commands may do so at the same moment; each folder is made by one of them.

    Returns:
        Those that this call made, the deepest first: no others are this command's to remove.

    Raises:
        FolderError: if one cannot be made.
    """
    made: list[Path] = []
    for attempt in range(100):
        try:
            for folder in reversed([path, *path.parents]):
                if not folder.exists():
                    folder.mkdir()
                    made.insert(0, folder)
        except OSError as error:
            # Another command may have made one, or removed one of its own.
            if attempt == 99 or not isinstance(error, FileExistsError | FileNotFoundError):
                raise FolderError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
        else:
            break
    return made
