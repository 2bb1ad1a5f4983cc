"""Finding run folders: the one at a path, or all at or below it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sft_lab.core.errors import FolderError
from sft_lab.core.io import open_file
from sft_lab.core.run_dir import SWEEP, RunDir


def open_run_dir(path: Path) -> RunDir:
    """Return the run folder at a path.

    Raises:
        FolderError: if there is none.
    """
    folder = RunDir(path.absolute())
    if folder.config.exists():
        return folder
    if not path.exists():
        raise FolderError(f"{path}: no such folder; `sft-lab runs` lists the run folders")
    if (path / SWEEP).exists():
        raise FolderError(f"{path}: a sweep of several runs; give one of the run folders in it")
    raise FolderError(f"{path}: not a run folder (no config.yaml); `sft-lab runs` lists the run folders")


def find_run_dirs(root: Path, max_depth: int | None = None) -> Iterator[RunDir]:
    """Yield every run folder at or below ``root``, sorted by path; run folders themselves are not searched.

    Args:
        root: where to begin.
        max_depth: levels of folders below ``root`` to search; None: all.
    """
    for parent, folders, files in os.walk(root):
        folder = RunDir(Path(parent))
        if folder.status.name in files or (folder.config.name in files and _is_saved_config(folder.config)):
            folders.clear()
            yield folder
        elif max_depth is not None and len(folder.path.relative_to(root).parts) >= max_depth:
            folders.clear()
        else:  # wandb/ of a sweep holds thousands of files
            folders[:] = sorted(name for name in folders if name != "wandb" and not name.startswith("."))


def _is_saved_config(path: Path) -> bool:
    """Return whether a ``config.yaml`` is a run's, and not Hydra's defaults list as in a project's ``conf/``."""
    try:
        with open_file(path) as file:
            return file.read(7) == b"format:"
    except OSError:
        return False
