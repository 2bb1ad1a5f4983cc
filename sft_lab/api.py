"""The Python API besides ``compose``, ``compare`` and ``Run``: ``sweep``."""

from __future__ import annotations

from collections.abc import Sequence

from sft_lab import config
from sft_lab.compare import Comparison, compare
from sft_lab.core import console
from sft_lab.jobs import launch, layout


def sweep(overrides: Sequence[str] | str) -> Comparison:
    """Run every job of a sweep, as ``sft-lab -m`` does, and compare them.

    A failed job does not stop the others; the comparison has its state and error. The same call resumes what has not
    finished.

    Args:
        overrides: as for ``compose``, several values behind a key: ``["trainer.learning_rate=5e-5,2e-4"]``.

    Raises:
        ConfigError: naming every problem of every job.
    """
    console.show_in_notebook()
    plan = config.compose_jobs(config.override_list(overrides), multirun=True)
    job_folders = layout.create_job_folders(plan)
    with console.each_line_once():
        launch.launch(job_folders)
    return compare([job_folder.folder.path for job_folder in job_folders])
