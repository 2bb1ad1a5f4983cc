"""Twins: jobs of a sweep that would train on the same rows in the same way. One trains, the others take its result."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sft_lab.core import tolerant_readers
from sft_lab.core.errors import FolderError
from sft_lab.core.hardware import rank
from sft_lab.core.io import digest
from sft_lab.core.locks import holding
from sft_lab.core.run_dir import REPLACED, RunDir, make_folders
from sft_lab.core.types import Work
from sft_lab.run import inputs
from sft_lab.run.identity import SELECTING_STAGES, training_key

if TYPE_CHECKING:
    from sft_lab.core.context import StageContext
    from sft_lab.data.preparation import Prepared
    from sft_lab.run.config import Run

LOCKS = ".locks"  # in a sweep folder: for each training a lock, and the names of the jobs that have come to it
# Fields of a manifest that describe the training itself rather than the job whose folder it is in.
TRAINING_FIELDS = ("git", "packages", "threads", "hardware", "precision")


def key_of(run: Run, data: Prepared, context: StageContext) -> str:
    """Return a key of the training rows, of all that is done with them, and of the files that this reads."""
    files = {
        key: noted["sha256"]
        for key, noted in inputs.hashes(run, context.store).items()
        if key.partition(".")[0] not in SELECTING_STAGES
    }
    return digest([training_key(run, data), data.sides.fingerprint, context.template_date.isoformat(), files])[:32]


@contextmanager
def turn(run: Run, folder: RunDir, key: str) -> Iterator[RunDir | None]:
    """Hold the right to do a training; yield the job of the same sweep that has already done it, or None.

    If another job is doing it, wait for that one. A rerun or a replay always trains.

    Args:
        run: of the job.
        folder: its own.
        key: of the training.
    """
    sweep = folder.sweep
    # Processes that train together have taken their turn before they were started, where one machine has them all.
    is_shared = rank() is not None or run.launch.num_machines > 1
    if not key or sweep is None:
        yield None
        return
    make_folders(sweep / LOCKS)
    with (sweep / LOCKS / f"{key}.jobs").open("a", encoding="utf-8") as file:
        file.write(f"{folder.path.name}\n")
    if is_shared or run.rerun or folder.replay.exists():
        yield None
        return
    with holding(sweep / LOCKS / f"{key}.lock", "train: the same rows in the same way"):
        yield _find_trained(sweep, folder, key)


def _find_trained(sweep: Path, folder: RunDir, key: str) -> RunDir | None:
    """Return a finished job with this training; the one that did it, before those that took its result.

    Only the jobs that have come to this training before are read: a sweep may have thousands of others.
    """
    finished = []
    for name in sorted({*(sweep / LOCKS / f"{key}.jobs").read_text(encoding="utf-8").splitlines()}):
        other = RunDir(sweep / Path(name).name)
        if other.path == folder.path or REPLACED.search(other.path.name):
            continue
        with suppress(FolderError):
            manifest = tolerant_readers.read(other.manifest)
            has_result = other.has_finished(Work.RUN) and other.summary.exists() and other.model.is_dir()
            if manifest.get("training_key") == key and has_result:
                other.refuse_links()
                finished.append((manifest.get("same_as") is not None, other))
    return min(finished, key=lambda entry: entry[0])[1] if finished else None


def copy_results(twin: RunDir, folder: RunDir) -> None:
    """Copy the results of a training into another folder; weights are linked if the file system can do that."""
    for name in ("metrics", "eval", "samples", "outputs", "training_samples"):
        source, target = getattr(twin, name), getattr(folder, name)
        target.unlink(missing_ok=True)
        if source.exists():
            shutil.copyfile(source, target)
    shutil.rmtree(folder.model, ignore_errors=True)
    shutil.copytree(twin.model, folder.model, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
