"""The adapter to Weights & Biases: mirrors a run's events, tables, figures and summary."""

from __future__ import annotations

import math
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sft_lab.core.errors import FolderError
from sft_lab.core.log import log
from sft_lab.tracking.config import Mirror
from sft_lab.tracking.tracked_run import summary_values
from sft_lab.tracking.wandb_login import strange_settings

if TYPE_CHECKING:
    from sft_lab.tracking.tracked_run import TrackedRun

STEP = "train/global_step"
HEADER_SIZE = 7  # bytes of an offline record that holds nothing yet
INIT_TIMEOUT = 30  # seconds; W&B's own default is 90


class WandbMirror(Mirror):
    """A W&B run, separate from any other run of this process.

    The client is called in a thread: some calls wait for the server, and training must not.

    Args:
        run: to mirror.
        mode: whether its record is sent at once or kept.
        labels: options of ``wandb.init``: project, name, group, ...
    """

    def __init__(self, run: TrackedRun, mode: Literal["online", "offline"], labels: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_INIT_TIMEOUT", str(INIT_TIMEOUT))
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", "60")  # W&B's own default is no limit
        import wandb

        self._wandb, self._mode, self._failed = wandb, mode, False
        # The runs of a sweep share one wandb folder, so that they can be synced together.
        root = run.folder.sweep or run.folder.path
        root.mkdir(parents=True, exist_ok=True)
        refuse_strange_folders(root)
        _remove_empty(root, run.id)
        settings = wandb.Settings(console="off", disable_code=True, x_disable_stats=True, finish_timeout_raises=True)
        options: dict[str, Any] = {
            "settings": settings,
            "dir": root,
            "id": run.id,
            "config": run.config,
            **labels,
            # By default the second job of a sweep would log to the first one's run.
            "reinit": "finish_previous",
        }
        if mode == "online":
            try:
                self._run = wandb.init(**options, mode=mode, resume="allow")
            except wandb.Error as error:
                log.warning("W&B cannot be reached or rejects the run (%s); it is recorded offline", _first_line(error))
                self._mode = "offline"
                wandb.teardown()  # its service would not accept the run's id a second time
        if self._mode == "offline":
            self._run = wandb.init(**options, mode="offline")
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        self._actions: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, event: dict[str, float]) -> None:
        """Log metrics against ``train/global_step``."""
        metrics = {name: value for name, value in event.items() if name not in ("step", "epoch")}
        row = {STEP: int(event["step"]), "train/epoch": event.get("epoch", 0.0), **metrics}
        self._send(lambda: self._run.log(row))

    def restore(self, events: list[dict[str, float]]) -> None:
        """Log the events of an earlier attempt again, unless the server has them and appends.

        ``wandb sync`` appends nothing: it writes each folder of one run over the one before, from its first line.
        """
        if not self._run.resumed:
            for event in events:
                self.log(event)

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Log a table."""
        self._send(lambda: self._run.log({name: self._wandb.Table(columns=columns, data=rows)}))

    def picture(self, name: str, file: Path) -> None:
        """Log a figure as SVG inside a page, which W&B shows sharp at any size."""
        svg = file.read_text(encoding="utf-8")
        page = svg[svg.index("<svg") :]
        self._send(lambda: self._run.log({f"figures/{name}": self._wandb.Html(page, inject=False)}))

    def finish(self, summary: dict[str, Any] | None) -> list[str]:
        """End the run, as failed without a summary. Returns its URL, or the command that uploads the rest."""
        values = summary_values(summary or {})
        self._send(lambda: self._run.summary.update(values))
        self._send(lambda: self._run.finish(exit_code=0 if summary is not None else 1))
        self._actions.put(None)
        settings = self._run.settings
        self._thread.join(settings.finish_timeout + 1)
        if self._mode == "offline":
            return [f"W&B (offline): wandb sync {settings.sync_dir}"]
        sent = not self._thread.is_alive() and not self._failed and not _has_errors(Path(settings.log_internal))
        return [f"W&B: {self._run.url}" if sent else f"W&B (upload incomplete): wandb sync {settings.sync_dir}"]

    def _send(self, action: Callable[[], object]) -> None:
        self._actions.put(action)

    def _work(self) -> None:
        """Run the actions in order; an error ends the mirror, not the training."""
        while action := self._actions.get():
            try:
                action()
            except Exception as error:  # noqa: BLE001 - whatever the client raises
                self._failed = True
                log.warning(
                    "W&B failed (%s) and receives no more events; the record in the run folder continues",
                    _first_line(error),
                )
                return


@cache  # of success alone: an error is tried again
def verify_login(url: str) -> None:
    """Ask W&B's server whether it takes the login of this environment.

    Args:
        url: of the server.

    Raises:
        ConnectionError: if it cannot be reached or refuses.
    """
    import wandb

    patience = math.ceil(float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_TIMEOUT)))
    is_in_use, began = bool(wandb.run or os.environ.get("WANDB_SERVICE")), time.monotonic()
    try:
        wandb.Api(timeout=patience)
    except wandb.Error as error:
        is_late = time.monotonic() - began >= patience
        reason = f"no answer within {patience} seconds" if is_late else _first_line(error.__cause__ or error)
        raise ConnectionError(f"W&B at {url} cannot be reached or rejects the login ({reason})") from error
    finally:
        if not is_in_use:
            wandb.teardown()  # a process started here would stay with the jobs that are started later


def refuse_strange_folders(folder: Path) -> None:
    """Refuse a link where W&B would write, and a settings file that could send the login to another server.

    Raises:
        FolderError: naming it.
    """
    for path in (folder / "wandb", folder / ".wandb"):
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise FolderError(
                f"{path}: is a link that leads out of {folder}, and W&B would write through it; remove it"
            )
    if problems := strange_settings(Path.cwd()):
        raise FolderError("; ".join(problems))


def _remove_empty(root: Path, run_id: str) -> None:
    """Remove what a killed attempt of this run left without a record: ``wandb sync`` would read nothing beside it.

    W&B's client writes 32 KB at a time, and keeps the rest in memory until the run ends.
    """
    for file in (root / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"):
        if file.stat().st_size <= HEADER_SIZE and not file.parent.is_symlink():
            shutil.rmtree(file.parent)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _has_errors(client_log: Path) -> bool:
    """Return whether W&B's client logged errors: it retries and gives up without telling its caller."""
    try:
        return '"level":"ERROR' in client_log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
