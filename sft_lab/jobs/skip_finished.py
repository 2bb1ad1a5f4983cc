"""Skipping of finished jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sft_lab.core.log import log

if TYPE_CHECKING:
    from sft_lab.core.run_dir import RunDir


def skip_if_finished(folder: RunDir, work: str, title: str = "") -> bool:
    """Return whether a job is finished; if it is, log that and tidy its folder.

    Args:
        folder: folder of the job.
        work: run it, or only prepare its data.
        title: name of the job in the log; empty for its folder.

    Raises:
        FolderError: if ``status.json`` cannot be read.
    """
    if not folder.has_finished(work):
        return False
    log.info("%s: already finished", title or folder.path)
    folder.tidy()
    return True
