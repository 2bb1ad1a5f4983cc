"""``sft-lab runs``: one line per run folder, read from small files only, so that a thousand take seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core import tolerant_readers
from sft_lab.core.console import console, new_table
from sft_lab.core.errors import FolderError
from sft_lab.core.run_dir import RunDir
from sft_lab.core.run_discovery import find_run_dirs
from sft_lab.core.run_state import BROKEN, NOT_STARTED, current_state
from sft_lab.core.types import Work
from sft_lab.core.verdict_warnings import warnings_beside
from sft_lab.tracking import manifest

if TYPE_CHECKING:
    from rich.table import Table

DEFAULT_ROOTS = ("outputs", "multirun")  # default folders of runs, below the working folder
QUEUED = "queued"
MAX_PACKAGES = 6  # named in the caption


@dataclass(frozen=True)
class RunLine:
    """The line of a run folder.

    Attributes:
        path: of the folder.
        state: from ``status.json``; ``cut off`` if its process is gone, ``running on <host>`` on another machine,
            ``queued`` while it waits in a cluster's queue, ``not started`` with a config only, ``broken`` if
            ``status.json`` cannot be read.
        work: ``run`` or ``prepare``.
        verdict: empty without a summary.
        base_loss: held-out loss of the base model, nats per token; None where it was not measured, as below.
        loss: the same of the tuned one.
        gap: held-out loss above that of the training probe.
        rows: rows trained on.
        time: when the state was written, ISO 8601 in UTC.
        other_versions: packages whose versions are not those installed now, each as ``name version``.
        problems: what cannot be read, a file each.
        warnings: beside the verdict, in a few words.
    """

    path: Path
    state: str
    work: str = ""
    verdict: str = ""
    base_loss: float | None = None
    loss: float | None = None
    gap: float | None = None
    rows: int | None = None
    time: str = ""
    other_versions: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def list_runs(root: Path | None = None) -> list[RunLine]:
    """Return a line for each run folder, by path.

    Args:
        root: a folder of runs, a sweep, or one run; None: ``outputs`` and ``multirun`` here, as far as they exist.

    Raises:
        FolderError: if there is no such folder.
    """
    if root is not None and not root.is_dir():
        raise FolderError(
            f"{root}: no such folder; give a folder with runs in it, or none for ./outputs and ./multirun"
        )
    roots = [root] if root is not None else [Path(name) for name in DEFAULT_ROOTS if Path(name).is_dir()]
    installed = manifest.versions()
    return [run_line(folder, installed) for path in roots for folder in find_run_dirs(path)]


def run_line(folder: RunDir, installed: dict[str, str]) -> RunLine:
    """Return the line of a run folder.

    Args:
        folder: of the run.
        installed: the versions of the installed packages, with which those of the run are compared.
    """
    problems: list[str] = []
    status = tolerant_readers.read(folder.status, problems)
    is_broken = bool(problems)
    summary, content = (tolerant_readers.read(file, problems) for file in (folder.summary, folder.manifest))
    state = BROKEN if is_broken else current_state(status)
    return RunLine(
        folder.path,
        QUEUED if state == NOT_STARTED and folder.queued.exists() else state,
        work=str(status.get("work", Work.RUN)) if status else "",
        verdict=summary.get("verdict") or "",
        base_loss=summary.get("base/eval_loss"),
        loss=summary.get("eval/loss"),
        gap=summary.get("gap"),
        rows=summary.get("train_rows"),
        time=str(status.get("time", "")),
        other_versions=[f"{name} {version}" for name, version in other_versions(content, installed).items()],
        problems=problems,
        warnings=[warning.short for warning in warnings_beside(summary)],
    )


def other_versions(content: dict[str, Any], installed: dict[str, str]) -> dict[str, str]:
    """Return the packages in a manifest whose installed version differs, with the version in the manifest."""
    packages = content.get("packages") or {}
    return {name: version for name, version in packages.items() if installed.get(name) != version}


def table(lines: list[RunLine]) -> Table:
    """Return the lines as a table; a star marks runs with other library versions, the last column has problems."""
    runs = new_table("run", "state", "work", "verdict", "base", "loss", "gap", "rows", "when", "")
    for column in runs.columns[4:8]:
        column.justify, column.no_wrap = "right", True
    # A path is shown in full, over several lines if need be.
    runs.columns[0].overflow, runs.columns[0].min_width = "fold", 20

    for line in lines:
        numbers = ["" if number is None else f"{number:.4f}" for number in (line.base_loss, line.loss, line.gap)]
        rows = "" if line.rows is None else f"{line.rows:,}"
        notes = "; ".join([*line.problems, *(["*"] if line.other_versions else [])])
        time = line.time[:16].replace("T", " ")
        verdict = "; ".join(filter(None, [line.verdict, *line.warnings]))
        runs.add_row(str(line.path), line.state, line.work, verdict, *numbers, rows, time, notes)

    if packages := sorted({name for line in lines for name in line.other_versions}):
        listed = ", ".join(packages[:MAX_PACKAGES])
        rest = f" and {len(packages) - MAX_PACKAGES} more" if len(packages) > MAX_PACKAGES else ""
        runs.caption = f"* ran with library versions other than those installed now: {listed}{rest}"
        runs.caption_justify = "left"
    return runs


def show(lines: list[RunLine]) -> None:
    """Print the table, or that there are no runs yet."""
    if lines:
        console(200).print(table(lines))
    else:
        console().print("No runs here yet; `sft-lab` makes one in ./outputs, `sft-lab -m` several in ./multirun.")
