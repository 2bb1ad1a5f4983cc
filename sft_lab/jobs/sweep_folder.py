"""The folder of a sweep: its name, the names of its jobs' folders, and the marker that says what is swept in it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sft_lab.config import Job, Plan
from sft_lab.config.overrides import key_of, value_of
from sft_lab.core import tolerant_readers
from sft_lab.core.errors import FolderError
from sft_lab.core.io import clear_temporary, digest, flat, read_json, write_json
from sft_lab.core.run_dir import REPLACED, SWEEP, RunDir
from sft_lab.core.types import Work
from sft_lab.run.identity import NOT_IDENTITY, describe_differences

MAX_NAME = 80  # characters of a job folder's name before its hash
HASHED = re.compile(r"(?:^|-)([0-9a-f]{12})$")  # how the name of a job's folder ends


def sweep_name(plan: Plan, work: str = Work.RUN) -> str:
    """Return the name of a sweep's folder: the experiment, or ``sweep``, and a hash of what no axis changes."""
    kind = "-data" if work == Work.PREPARE else ""
    return f"{_safe(plan.name or 'sweep')}{kind}-{digest(_base_identity(plan))[:8]}"


def job_paths(sweep: Path, jobs: list[Job], axes: list[str]) -> list[Path]:
    """Return the folder of each job: the one that has its hash, whatever its name is, or a new path."""
    paths = _paths_by_hash(sweep)
    return [paths.get(job.run.hash) or sweep / _job_name(job, axes) for job in jobs]


def _paths_by_hash(sweep: Path) -> dict[str, Path]:
    """Return the job folders of a sweep by hash: as their names end, or as the manifest of a renamed one has it."""
    folders = [path for path in sorted(sweep.glob("*/")) if not REPLACED.search(path.name)]
    named = {path: match[1] for path in folders if (match := HASHED.search(path.name))}
    renamed = {
        path: tolerant_readers.read(RunDir(path).manifest, []).get("job") for path in folders if path not in named
    }
    return {str(key): path for path, key in [*named.items(), *renamed.items()][::-1] if key}


def _job_name(job: Job, axes: list[str]) -> str:
    """Return the name of a job's new folder: its swept values, or what the user's ``hydra.sweep.subdir`` says.

    Args:
        job: of a sweep.
        axes: of all that was swept in the folder before; this command may give one value for some of them.
    """
    readable = job.subdir
    if readable is None:
        single = {key_of(text): value_of(text) for text in job.overrides or () if key_of(text) in axes}
        readable = "-".join(f"{key.rpartition('.')[2]}={value}" for key, value in (single | job.axes).items())
    return f"{_safe(readable)[:MAX_NAME]}-{job.run.hash}".lstrip("-")


def _safe(name: str) -> str:
    """Return a name without signs that Hydra's grammar, a shell or a file system would read as more than a name."""
    return re.sub(r"[^\w.+-]+", "_", re.sub(r"[\[\]{}()'\"]", "", name).replace(",", "-")).strip("_")


def _axes(plan: Plan) -> list[str]:
    return sorted({key for job in plan.jobs for key in job.axes})


def _base_identity(plan: Plan) -> dict[str, Any]:
    """Return the identity that all jobs share: everything but the swept keys, whatever their order in the grid."""
    first, *rest = (
        flat({name: value for name, value in job.run.saved().items() if name not in NOT_IDENTITY}) for job in plan.jobs
    )
    shared = {
        key: value
        for key, value in first.items()
        if all(key in identity and identity[key] == value for identity in rest)
    }
    return _without(shared, _axes(plan))


def _without(identity: dict[str, Any], axes: Iterable[str]) -> dict[str, Any]:
    """Return the keys of a flat identity that no axis changes; a dataset option may bring its split and prompts."""
    keys = {*axes, "split", "evaluation.prompts"} if "dataset" in axes else {*axes}
    return {
        key: value
        for key, value in identity.items()
        if not any(key == axis or key.startswith(f"{axis}.") for axis in keys)
    }


def sweep_marker(sweep: Path, plan: Plan) -> dict[str, Any]:
    """Return the content for ``sweep.json``; two sweeps with the same base config may share a folder.

    Raises:
        FolderError: if the folder holds a sweep with another base config.
    """
    if sweep.exists() and not sweep.is_dir():
        raise FolderError(f"hydra.sweep.dir={sweep}: a file, not a folder; choose another")
    base, axes = _base_identity(plan), _axes(plan)
    if not (sweep / SWEEP).exists():
        return {"base": base, "axes": axes}
    try:
        marker = read_json(sweep / SWEEP)
        axes = sorted({*marker["axes"], *axes})
        old_base = _without(marker["base"], axes)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise FolderError(f"{sweep / SWEEP}: cannot be read; choose another folder with hydra.sweep.dir") from error
    if differences := describe_differences(old_base, _without(base, axes)):
        raise FolderError(
            f"{sweep}: this folder has a sweep with another base config: {differences}; "
            "choose another folder with hydra.sweep.dir"
        )
    return {"base": marker["base"], "axes": axes}


def write_marker(sweep: Path, marker: dict[str, Any]) -> None:
    """Write ``sweep.json``.

    Raises:
        FolderError: if the folder cannot be written.
    """
    try:
        write_json(sweep / SWEEP, marker)
        clear_temporary(sweep, older_than=60)
    except OSError as error:
        raise FolderError(f"hydra.sweep.dir={sweep}: cannot be written ({error.strerror}); choose another") from error
