"""``sft-lab runs``: a line per run folder, from its small files alone, so that a thousand take seconds."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core import records
from sft_lab.core.console import console
from sft_lab.core.errors import FolderError
from sft_lab.core.io import open_file
from sft_lab.core.run_dir import RUN, RUNNING, RunDir
from sft_lab.tracking import manifest

if TYPE_CHECKING:
    from rich.table import Table

DEFAULT = ("outputs", "multirun")  # where runs lie unless told otherwise, below the working folder
CUT_OFF, QUEUED, NOT_STARTED, BROKEN = "cut off", "queued", "not started", "broken"


@dataclass(frozen=True)
class RunLine:
    """What a run folder says of itself.

    Attributes:
        path: of the folder.
        state: of ``status.json``; ``cut off`` where its process is gone, ``running on <host>`` on another machine,
            ``queued`` while a cluster has it and has not begun, ``not started`` with a config alone, ``broken`` where
            ``status.json`` cannot be read.
        work: ``run`` or ``prepare``.
        verdict: empty without a summary.
        base_loss: held-out loss of the base model, nats per token; None where it was not measured, as below.
        loss: the same of the tuned one.
        gap: held-out loss above that of the training probe.
        rows: rows trained on.
        when: the state was written, ISO 8601 in UTC.
        other_versions: packages whose versions are not those installed now, each as ``name then``.
        problems: what cannot be read, a file each.
    """

    path: Path
    state: str
    work: str = ""
    verdict: str = ""
    base_loss: float | None = None
    loss: float | None = None
    gap: float | None = None
    rows: int | None = None
    when: str = ""
    other_versions: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def listing(root: Path | None = None) -> list[RunLine]:
    """Give a line for each run folder, by path.

    Args:
        root: a folder of runs, a sweep, or one run; None: ``outputs`` and ``multirun`` here, as far as they exist.

    Raises:
        FolderError: if there is no such folder.
    """
    if root is not None and not root.is_dir():
        raise FolderError(f"{root}: no such folder; name one that holds runs, or none for ./outputs and ./multirun")
    roots = [root] if root is not None else [Path(name) for name in DEFAULT if Path(name).is_dir()]
    installed = manifest.versions()
    return [_line(folder, installed) for top in roots for folder in run_folders(top)]


def run_folders(root: Path) -> Iterator[RunDir]:
    """Every run folder at or below ``root``, by path; what lies inside a run folder is not looked at."""
    for here, below, files in os.walk(root):
        folder = RunDir(Path(here))
        if folder.status.name in files or (folder.config.name in files and _is_saved_config(folder.config)):
            below.clear()
            yield folder
        else:  # wandb/ of a sweep holds thousands of files
            below[:] = sorted(name for name in below if name != "wandb" and not name.startswith("."))


def _is_saved_config(path: Path) -> bool:
    """Tell a run's ``config.yaml`` from a defaults list of Hydra, as in a project's ``conf/``."""
    try:
        with open_file(path) as file:
            return file.read(7) == b"format:"
    except OSError:
        return False


def _line(folder: RunDir, installed: dict[str, str]) -> RunLine:
    problems: list[str] = []
    status, summary, made_by = (
        records.read(file, problems) for file in (folder.status, folder.summary, folder.manifest)
    )
    packages = made_by.get("packages") or {}
    state = _state(status, broken=any(told.startswith(folder.status.name) for told in problems))
    return RunLine(
        folder.path,
        QUEUED if state == NOT_STARTED and folder.queued.exists() else state,
        work=str(status.get("work", RUN)) if status else "",
        verdict=summary.get("verdict") or "",
        base_loss=summary.get("base/eval_loss"),
        loss=summary.get("eval/loss"),
        gap=summary.get("gap"),
        rows=summary.get("train_rows"),
        when=str(status.get("time", "")),
        other_versions=[f"{name} {then}" for name, then in packages.items() if installed.get(name) != then],
        problems=problems,
    )


def _state(status: dict[str, Any], *, broken: bool) -> str:
    if broken:
        return BROKEN
    state = str(status.get("state", NOT_STARTED if not status else BROKEN))
    host, pid = status.get("host"), status.get("pid")
    if state != RUNNING or host is None:
        return state
    if host != socket.gethostname():
        return f"{RUNNING} on {host}"
    return RUNNING if _is_alive(pid, str(status.get("time", ""))) else CUT_OFF


def _is_alive(pid: object, since: str) -> bool:
    """Whether the process that said so at ``since`` is still there, and no later one with its number."""
    import datetime

    try:
        # Everything behind the name, which may hold spaces and brackets: state first, start time as the 20th.
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        up = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
    except (OSError, ValueError, IndexError):
        return False
    if words[0] in "ZX":
        return False
    try:
        said = datetime.datetime.fromisoformat(since)
    except ValueError:
        return True
    now = datetime.datetime.now(datetime.UTC)
    started = now - datetime.timedelta(seconds=up - int(words[19]) / os.sysconf("SC_CLK_TCK"))
    return started <= said + datetime.timedelta(seconds=2)  # a time written to the second


def table(lines: list[RunLine]) -> Table:
    """Show the lines; a star marks runs by other library versions, and what is broken stands at the end of its line."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table("run", "state", "work", "verdict", "base", "loss", "gap", "rows", "when", "", box=box.SIMPLE_HEAD)
    for column in shown.columns[4:8]:
        column.justify, column.no_wrap = "right", True
    shown.columns[0].overflow, shown.columns[0].min_width = (
        "fold",
        20,
    )  # a path is shown whole, on lines below if need be
    for line in lines:
        numbers = ["" if number is None else f"{number:.4f}" for number in (line.base_loss, line.loss, line.gap)]
        rows = "" if line.rows is None else f"{line.rows:,}"
        says = "; ".join([*line.problems, *(["*"] if line.other_versions else [])])
        when = line.when[:16].replace("T", " ")
        words = (str(line.path), line.state, line.work, line.verdict, *numbers, rows, when, says)
        shown.add_row(*map(Text, words))  # a path may hold [brackets], which are markup in a plain string
    if marked := sorted({name for line in lines for name in line.other_versions}):
        told = ", ".join(marked[:6]) + (f" and {len(marked) - 6} more" if len(marked) > 6 else "")
        shown.caption, shown.caption_justify = f"* made by other library versions than installed now: {told}", "left"
    return shown


def show(lines: list[RunLine]) -> None:
    """Print the table, or that there is nothing yet."""
    if lines:
        console(200).print(table(lines))
    else:
        console().print("No runs here yet; `sft-lab` makes one in ./outputs, `sft-lab -m` several in ./multirun.")
