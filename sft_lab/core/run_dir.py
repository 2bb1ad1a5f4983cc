"""The run folder: the paths of its files, the state of its run, and its lock."""

from __future__ import annotations

import datetime
import json
import os
import re
import shlex
import shutil
import socket
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sft_lab.core import tolerant_readers
from sft_lab.core.errors import FolderError, Pruned
from sft_lab.core.io import clear_temporary, write_json
from sft_lab.core.locks import Holder, file_lock, holder, is_taken
from sft_lab.core.log import log
from sft_lab.core.redaction import redact
from sft_lab.core.types import RunState, Work

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK = ".lock"  # held while a process works in the folder
PATIENCE = 0.5  # seconds to wait for the lock: another process may only be testing whether it is free
SWEEP = "sweep.json"  # marks the folder of a sweep
SEARCH = "search.json"  # beside it, if the runs are trials of a search
REPLACED = re.compile(r"\.old-\d{8}-\d{6}")  # in the name of an old run that rerun=true keeps beside the new one
DATA = ("dataset_fingerprint", "inputs")  # the manifest's fields about the input data


class FolderInUse(FolderError):
    """Another process works in the folder."""


class RunDir:
    """The paths of a run's files, its ``status.json`` and its lock."""

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
        self.export = path / "export"
        self.dataset = path / "dataset"
        self.hydra = path / ".hydra"  # config and overrides again, for tools that read Hydra's folders
        self.inputs = path / "inputs"  # copies of the small files that the config names
        self.checkpoints = path / "checkpoints"
        self.tasks = path / "tasks.json"
        self.log = path / "run.log"
        self.trial = path / "trial.json"  # which trial of a search the run is
        self.queued = path / "queued.json"  # the job's number in Slurm's queue
        self.output = path / "output.log"  # what the run printed, if it was a process of its own
        self.replay = path / "replay.json"  # which run it replays, and what differs
        self.wandb = path / "wandb"  # W&B's own files, including links to logs elsewhere
        self.tensorboard = path / "tensorboard"  # event files
        self._lock = path / LOCK
        self._claimed: BaseFileLock | None = None

    @staticmethod
    def timestamped() -> Path:
        """Return ``outputs/<date>/<time>``, below the working folder."""
        return Path("outputs").absolute() / datetime.datetime.now().strftime("%Y-%m-%d/%H-%M-%S")  # noqa: DTZ005

    @classmethod
    def new(cls) -> tuple[Self, list[Path]]:
        """Make ``outputs/<date>/<time>``, with a counter if that exists.

        Returns:
            The run folder, and the folders that ``make_folders`` made for it.
        """
        timestamped = cls.timestamped()
        path, created = timestamped, make_folders(timestamped)
        while path not in created:  # another run took the name
            path = free_path(timestamped)
            created = [*make_folders(path), *created]
        return cls(path), created

    @property
    def sweep(self) -> Path | None:
        """The folder of the sweep to which this run belongs; None for a single run."""
        return self.path.parent if (self.path.parent / SWEEP).exists() else None

    def exec_command(self, work: str = Work.RUN) -> str:
        """Return the command that resumes the work in this folder, valid in any working folder."""
        return f"sft-lab exec {shlex.quote(str(self.path))}" + ("" if work == Work.RUN else f" --work {work}")

    def state(self) -> str | None:
        """Return the state in ``status.json``, one of ``RunState``; None without that file."""
        return str(self._read_status()["state"]) if self.status.exists() else None

    def work(self) -> str:
        """Return what was last done in the folder, one of ``Work``."""
        return str(self._read_status().get("work", Work.RUN)) if self.status.exists() else Work.RUN

    def has_finished(self, work: str) -> bool:
        """Return whether some work has been finished in the folder; a finished run has prepared its data too.

        Raises:
            FolderError: if ``status.json`` cannot be read.
        """
        return self.state() == RunState.FINISHED and self.work() in (Work.RUN, work)

    def _read_status(self) -> dict[str, Any]:
        """Return the content of ``status.json``.

        Raises:
            FolderError: if a run did not write it so.
        """
        problems: list[str] = []
        content = tolerant_readers.read(self.status, problems)
        if content.get("state"):
            return content

        problem = (problems or ["must be an object with a state"])[0].removeprefix(f"{self.status.name}: ")
        raise FolderError(f"{self.status}: {problem}; remove it, and sft-lab exec resumes the run")

    def _mark(self, state: RunState, **details: Any) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        process = {"host": socket.gethostname(), "pid": os.getpid()}
        write_json(self.status, {"state": state, "time": now, **process, **details})

    def _mark_on_full_disk(self, state: RunState, **details: Any) -> None:
        """Write ``status.json``; on a full disk, overwrite the old file in place."""
        try:
            self._mark(state, **details)
        except OSError:
            with suppress(OSError, ValueError), self.status.open("r+", encoding="utf-8") as file:
                content = {**json.load(file), "state": state, **details}
                content.pop("traceback", None)  # too long for the old file's disk block
                file.seek(0)
                file.write(json.dumps(content))
                file.truncate()

    def mark_failed(self, error: str) -> None:
        """Mark the run as failed, on behalf of a process that was killed."""
        self._mark(RunState.FAILED, work=self.work(), error=redact(error))

    @contextmanager
    def running(self, work: str = Work.RUN) -> Iterator[None]:
        """Keep ``status.json`` up to date around the work: running, then finished, pruned, failed or interrupted.

        A process that is killed leaves ``running`` behind without holding the lock.
        """
        with self.claimed():
            try:
                clear_temporary(self.path)
                self._mark(RunState.RUNNING, work=work)
            except OSError as error:
                raise self._unwritable(error) from error
            try:
                yield
            except Pruned as end:
                self._mark(RunState.PRUNED, work=work, reason=str(end))
                shutil.rmtree(self.checkpoints, ignore_errors=True)
                raise
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
                self._mark_on_full_disk(
                    RunState.FAILED, work=work, error=redact(message), traceback=redact(traceback.format_exc())
                )
                raise
            except BaseException:  # Ctrl-C, SIGTERM turned into SystemExit
                self._mark_on_full_disk(RunState.INTERRUPTED, work=work)
                raise

            self._mark(RunState.FINISHED, work=work)
            if work == Work.RUN:
                # Removed last: a run that is killed before it has finished resumes from them.
                shutil.rmtree(self.checkpoints, ignore_errors=True)

    def tidy(self) -> None:
        """Remove the lock and checkpoints that a finished run left because it was killed at its very end."""
        if not self.is_held():
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def refuse_links(self) -> None:
        """Refuse a folder with a link through which a run would read or write outside it.

        Only the paths of a run are checked, not files that a user or W&B has put beside them.

        Raises:
            FolderError: naming the link and its target.
        """
        root = self.path.resolve()
        trees = [self.figures, self.model, self.merged, self.export, self.dataset, self.checkpoints, self.hydra]
        files = [path for path in vars(self).values() if isinstance(path, Path) and path not in (self.path, *trees)]
        for path in (*files, *trees, *(below for tree in trees for below in tree.rglob("*"))):
            if path.is_symlink() and not (target := path.resolve()).is_relative_to(root):
                raise FolderError(
                    f"{path}: is a link that leads out of the run folder, to {target}, and is not followed; "
                    "remove it, or move the run folder there with hydra.run.dir or hydra.sweep.dir"
                )

    def is_held(self) -> bool:
        """Return whether a process is working in the folder."""
        return is_taken(self._lock)

    def holder(self) -> Holder | None:
        """Return the process that is working in the folder; None if the lock does not name it."""
        return holder(self._lock)

    @contextmanager
    def claimed(self, *, wait: bool = False) -> Iterator[None]:
        """Claim the folder while the block runs."""
        self.claim(wait=wait)
        try:
            yield
        finally:
            self.release()

    def claim(self, *, wait: bool = False) -> None:
        """Keep other processes out until ``release``: two trainings in one folder would write each other's files.

        Claims of one ``RunDir`` nest. They end with the process, however it ends.

        Args:
            wait: wait for another process that works here, instead of raising.

        Raises:
            FolderInUse: if another process is working here.
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
                self._refuse_or_announce(error, wait=wait)
                lock.acquire()
        except OSError as error:
            raise self._unwritable(error) from error

    def _refuse_or_announce(self, error: Exception, *, wait: bool) -> None:
        """Raise because another process is working here; with ``wait``, log which one is waited for."""
        process = self.holder()
        if not wait:
            named = f" ({process})" if process else ""
            raise FolderInUse(f"{self.path}: another process is working here{named}; wait until it ends") from error
        log.info("%s: %s is working on it; waiting", self.path.name, process or "another process")

    def release(self, *, wholly: bool = False) -> None:
        """End a claim.

        Args:
            wholly: end all nested claims at once, so that another process can work here.
        """
        lock = self._claimed
        if lock is None or not lock.is_locked:
            return
        if wholly or lock.lock_counter == 1:
            self._lock.unlink(missing_ok=True)
        lock.release(force=wholly)

    def discard(self, created: Sequence[Path]) -> None:
        """Remove everything in the folder, then the folders that this command made if they are empty.

        Args:
            created: the folders that this command made, deepest first.
        """
        with self.claimed():
            for path in self.path.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                elif path != self._lock:
                    path.unlink(missing_ok=True)
            self.release(wholly=True)
        with suppress(OSError):  # another command may have put something there
            for path in created:
                path.rmdir()

    def move_aside(self, target: Path) -> None:
        """Rename the folder, which this process has claimed, to make room for a new one."""
        self.path.rename(target)
        (target / LOCK).unlink(missing_ok=True)
        if self._claimed is not None:
            self._claimed.release(force=True)

    def refuse_other_data(self, changes: Callable[[dict[str, Any]], list[str]]) -> None:
        """Refuse to resume with other data than that with which the folder's run began.

        Args:
            changes: returns how the data differs from the manifest's fields ``DATA``.

        Raises:
            FolderError: naming the changes, or if the manifest cannot be read.
        """
        recorded = self.noted_data()
        if recorded and (changed := changes(recorded)):
            raise FolderError(
                f"{self.path}: the data has changed since this run: {'; '.join(changed)}; restore the old data, choose "
                "another folder (sft-lab replay makes a new one), or set rerun=true to run again here and keep the old "
                "folder beside it"
            )

    def refuse_other_job(self, job: str) -> None:
        """Refuse a folder that holds a run with another config.

        Args:
            job: the hash of this run's config.

        Raises:
            FolderError: if the hash in the folder differs.
        """
        if (recorded := self._noted("job")) not in (None, job):
            raise FolderError(
                f"{self.path}: has a run with another config (job {recorded}, not {job}); choose another folder"
            )

    def noted_data(self) -> dict[str, Any]:
        """Return the manifest's fields about the input data."""
        return {name: value for name in DATA if (value := self._noted(name)) is not None}

    def training_key(self) -> str:
        """Return the key that jobs with the same training share; empty if the manifest has none."""
        return str(self._noted("training_key") or "")

    def _noted(self, name: str) -> Any:
        """Return a field of the manifest; None if it has none yet."""
        problems: list[str] = []
        content = tolerant_readers.read(self.manifest, problems)
        if problems:
            problem = problems[0].removeprefix(f"{self.manifest.name}: ")
            raise FolderError(f"{self.manifest}: {problem}; set rerun=true to run it again")
        return content.get(name)

    def _unwritable(self, error: OSError) -> FolderError:
        return FolderError(
            f"{self.path}: the run folder cannot be written ({error.strerror}); "
            "choose another with hydra.run.dir or hydra.sweep.dir"
        )


def make_folders(path: Path) -> list[Path]:
    """Make a folder and its missing parents.

    Several commands may do so at the same moment; each folder is made by only one of them.

    Returns:
        The folders that this call made, deepest first: this command may remove these and no others.

    Raises:
        FolderError: if one cannot be made.
    """
    created: list[Path] = []
    for attempt in range(100):
        try:
            for folder in reversed([path, *path.parents]):
                if not folder.exists():
                    folder.mkdir()
                    created.insert(0, folder)
        except OSError as error:
            # Meanwhile another command may have made a folder, or removed one of its own.
            if attempt == 99 or not isinstance(error, FileExistsError | FileNotFoundError):
                raise FolderError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
        else:
            break
    return created


def free_path(path: Path) -> Path:
    """Return a path, with a counter appended if it exists."""
    candidate, counter = path, 1
    while candidate.exists():
        counter += 1
        candidate = path.with_name(f"{path.name}-{counter}")
    return candidate
