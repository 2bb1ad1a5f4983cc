"""``sft-lab runs --delete``: remove run folders after asking, but never one that is in use or queued."""

from __future__ import annotations

import shutil
import stat
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

from sft_lab.core.errors import FolderError, UserError
from sft_lab.core.locks import is_taken
from sft_lab.core.run_dir import LOCK, SEARCH, SWEEP, RunDir
from sft_lab.core.run_discovery import find_run_dirs
from sft_lab.core.store import Store, default_root
from sft_lab.core.text import count_of
from sft_lab.core.types import RunState
from sft_lab.jobs.list_runs import QUEUED, RunLine, list_runs, run_line, show
from sft_lab.jobs.slurm import SUBMITIT_DIR
from sft_lab.run.trial import JOURNAL, SEARCH_LOCK
from sft_lab.run.twins import LOCKS

# What a sweep folder holds besides its runs. The marker comes last: without it, the folder is no longer a sweep.
SWEEP_FILES = (
    SEARCH, JOURNAL, f".{JOURNAL}.lock", "compare.html", "compare.json", LOCKS, SUBMITIT_DIR, "wandb", SWEEP,
)  # fmt: skip


def delete_runs(root: Path | None) -> int:
    """Show the run folders at or below a folder, ask, and remove them. Returns the exit code.

    Raises:
        UserError: if no folder is named, or it is none.
    """
    if root is None:
        raise UserError(
            "runs --delete: give the folder, sft-lab runs DIR --delete: a run, a sweep, or a folder with runs in it"
        )
    lines = list_runs(root)
    show(lines)
    idle = [line for line in lines if not _is_at_work(line)]
    for line in lines:
        if line not in idle:
            sys.stdout.write(f"{line.path}: {line.state}; not deleted\n")
    if not idle:
        return 0
    size = _size([line.path for line in idle]) / 1e6
    if not _confirms(f"Delete {count_of(len(idle), 'run folder')}, {size:,.1f} MB? [y/N] "):
        sys.stdout.write("Nothing was deleted.\n")
        return 0
    deleted = [line.path for line in idle if _delete(line.path)]
    for sweep in {path.parent for path in deleted if path != root and (path.parent / SWEEP).exists()}:
        _delete_sweep(sweep)
    stored = sum(entry.size for entry in Store(default_root()).listing()) / 1e6
    sys.stdout.write(
        f"{count_of(len(deleted), 'run folder')} deleted. Results of data stages stay in the store, "
        f"which has {stored:,.1f} MB; sft-lab store prune frees space\n"
    )
    return 0 if len(deleted) == len(idle) else 1


def _is_at_work(line: RunLine) -> bool:
    return line.state == QUEUED or line.state.startswith(RunState.RUNNING) or RunDir(line.path).is_held()


def _size(paths: list[Path]) -> int:
    """Return the bytes that go with these folders; a file that has a link elsewhere, as weights of twins may, stays."""
    size, links = 0, Counter[tuple[int, int]]()
    for status in (file.lstat() for path in paths for file in path.rglob("*")):
        if stat.S_ISREG(status.st_mode):
            inode = (status.st_dev, status.st_ino)
            links[inode] += 1
            if links[inode] == status.st_nlink:
                size += status.st_size
    return size


def _confirms(question: str) -> bool:
    sys.stdout.write(question)
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _delete(path: Path) -> bool:
    """Remove a run folder, unless work has begun there since it was listed, or a link leads out of it."""
    folder = RunDir(path)
    try:
        if _is_at_work(run_line(folder, {})):
            sys.stdout.write(f"{path}: a run has started there; not deleted\n")
            return False
        folder.discard([path])
    except (FolderError, OSError) as error:
        sys.stdout.write(f"{error}\n")
        return False
    with suppress(OSError):
        path.rmdir()
    return not path.exists()


def _delete_sweep(sweep: Path) -> None:
    """Remove a sweep's own files once none of its runs is left; the folder stays if it holds files of the user."""
    has_runs = any(find_run_dirs(sweep)) or any(sweep.glob(f"*/{LOCK}"))
    if has_runs or is_taken(sweep / SEARCH_LOCK):
        return
    with suppress(OSError):
        for path in map(sweep.joinpath, SWEEP_FILES):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        sweep.rmdir()
