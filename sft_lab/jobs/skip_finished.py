"""Skipping of finished jobs: whether the work in a run folder is done, and what happens then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sft_lab.core.log import log
from sft_lab.core.types import RunState, Work

if TYPE_CHECKING:
    from sft_lab.core.run_dir import RunDir


def is_finished(folder: RunDir, work: str) -> bool:
    """Return whether the work in a run folder is done; a finished run has prepared its data too.

    Raises:
        FolderError: if ``status.json`` cannot be read.
    """
    return folder.state() == RunState.FINISHED and folder.work() in (Work.RUN, work)


def skip_if_finished(folder: RunDir, work: str, title: str = "") -> bool:
    """Return whether a job is finished; if it is, log that and tidy its folder.

    Args:
        folder: folder of the job.
        work: run it, or only prepare its data.
        title: name of the job in the log; empty for its folder.
    """
    if not is_finished(folder, work):
        return False
    log.info("%s: finished before; nothing to do", title or folder.path)
    folder.tidy()
    return True
