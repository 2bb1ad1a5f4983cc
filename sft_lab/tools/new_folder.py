"""A new output folder: it appears only when it is complete, and never replaces existing files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sft_lab.core.errors import FolderError


def refuse_used(folder: Path) -> None:
    """Refuse a path that exists, unless it is an empty folder.

    Raises:
        FolderError: naming it.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FolderError(f"{folder}: already exists; remove it, or give another folder with --out")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; it is renamed to ``folder`` at the end and removed on an error.

    Raises:
        FolderError: if it cannot be written.
    """
    work = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        yield work
        if folder.exists():
            folder.rmdir()
        work.rename(folder)
    except OSError as error:
        raise FolderError(f"{folder}: cannot be written ({error.strerror}); give another folder with --out") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
