"""``sft-lab runs --delete``: remove run folders, after asking; never one that a process or a cluster is at work on."""

from __future__ import annotations

import shutil
import sys
from contextlib import suppress
from pathlib import Path

from sft_lab.core.errors import FolderError, UserError
from sft_lab.core.run_dir import SWEEP, RunDir
from sft_lab.core.store import Store, default_root
from sft_lab.core.text import count_of
from sft_lab.core.types import RunState
from sft_lab.jobs.list_runs import QUEUED, RunLine, list_runs, show


def delete_runs(root: Path | None) -> int:
    """Show the run folders at or below a folder, ask, and remove them. Returns the exit code.

    Raises:
        UserError: if no folder is named, or it is none.
    """
    if root is None:
        raise UserError(
            "runs --delete: name the folder, sft-lab runs DIR --delete; a run, a sweep, or one that holds some"
        )
    lines = list_runs(root)
    show(lines)
    idle = [line for line in lines if not _is_at_work(line)]
    for line in lines:
        if line not in idle:
            sys.stdout.write(f"{line.path}: {line.state}; it stays\n")
    if not idle:
        return 0
    size = sum(_size(line.path) for line in idle) / 1e6
    if not _confirms(f"Delete {count_of(len(idle), 'run folder')}, {size:,.1f} MB? [y/N] "):
        sys.stdout.write("Nothing was deleted.\n")
        return 0
    kept = [line for line in idle if not _delete(line.path)]
    stored = sum(entry.size for entry in Store(default_root()).listing()) / 1e6
    sys.stdout.write(
        f"{count_of(len(idle) - len(kept), 'run folder')} deleted. Results of data stages stay in the store, "
        f"which holds {stored:,.1f} MB: sft-lab store prune\n"
    )
    if len(idle) == len(lines) and not kept and (root / SWEEP).exists():
        shutil.rmtree(root, ignore_errors=True)  # with its marker, locks and W&B files
    return 1 if kept else 0


def _is_at_work(line: RunLine) -> bool:
    return line.state == QUEUED or line.state.startswith(RunState.RUNNING) or RunDir(line.path).is_held()


def _size(path: Path) -> int:
    """Return the bytes that go with a folder; a file that another folder has too, as twins have weights, stays."""
    files = [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    return sum(status.st_size for status in map(Path.stat, files) if status.st_nlink == 1)


def _confirms(question: str) -> bool:
    sys.stdout.write(question)
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _delete(path: Path) -> bool:
    """Remove a run folder, unless a process has begun to work there or a link leads out of it."""
    folder = RunDir(path)
    try:
        folder.discard([path])
    except (FolderError, OSError) as error:
        sys.stdout.write(f"{error}\n")
        return False
    with suppress(OSError):
        path.rmdir()
    return not path.exists()
