"""Skip finished jobs: whether the work of a run folder is done, and what happens to a job that needs none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sft_lab.core.log import log
from sft_lab.core.types import RunState, Work

if TYPE_CHECKING:
    from sft_lab.core.run_dir import RunDir


def is_finished(folder: RunDir, work: str) -> bool:
    """Return whether the work is done in a run folder; a finished run has prepared its data too.

    Raises:
        FolderError: if ``status.json`` cannot be read.
    """
    return folder.state() == RunState.FINISHED and folder.work() in (Work.RUN, work)


def skip_if_finished(folder: RunDir, work: str, title: str = "") -> bool:
    """Return whether a job is finished, and then log so and leave its folder in order.

    Args:
        folder: of the job.
        work: run it, or prepare its data alone.
        title: what the job is called in the log; empty: its folder.
    """
    if not is_finished(folder, work):
        return False
    log.info("%s: finished before; nothing to do", title or folder.path)
    folder.tidy()
    return True
