"""The one adapter to Weights & Biases: mirrors a run's events, tables and summary."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

from sft_lab.bench import log
from sft_lab.files import flat
from sft_lab.tracking.options import Mirror

if TYPE_CHECKING:
    from pathlib import Path

    from sft_lab.folder import RunFolder

STEP = "train/global_step"


class WandbMirror(Mirror):
    """A W&B run of its own, whatever else this process has logged before."""

    def __init__(
        self,
        folder: RunFolder,
        run_id: str,
        config: dict[str, Any],
        *,
        mode: Literal["online", "offline"],
        project: str,
        entity: str | None,
        tags: list[str],
    ) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._mode = mode
        # In a sweep all runs lie in one wandb folder, so that they can be viewed together.
        place = folder.sweep or folder.path
        self._place = place / "wandb"
        place.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            dir=place,
            mode=mode,
            id=run_id,
            resume="allow" if mode == "online" else None,
            project=project,
            entity=entity,
            group=folder.sweep.name if folder.sweep else None,
            name=folder.path.name.rpartition("-")[0] or folder.path.name if folder.sweep else folder.path.name,
            tags=tags or None,
            config=flat(config),
            # The default hands the second job of a sweep the first one's run.
            reinit="finish_previous",
            settings=wandb.Settings(console="off", disable_code=True, x_disable_stats=True),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        self._wandb = wandb

    def log(self, event: dict[str, float]) -> None:
        """Log metrics against ``train/global_step``."""
        metrics = {name: value for name, value in event.items() if name not in ("step", "epoch")}
        self._run.log({STEP: int(event["step"]), "train/epoch": event.get("epoch", 0.0), **metrics})

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Log a table."""
        self._run.log({name: self._wandb.Table(columns=columns, data=rows)})

    def picture(self, name: str, file: Path) -> None:
        """Log a figure as it is: W&B shows SVG inside a page, sharp at any size."""
        svg = file.read_text(encoding="utf-8")
        self._run.log({f"figures/{name}": self._wandb.Html(svg[svg.index("<svg") :], inject=False)})

    def finish(self, summary: dict[str, Any] | None) -> str | None:
        """End the run; a run that has no summary failed."""
        for name, value in flat(summary or {}).items():
            self._run.summary[name] = str(value) if isinstance(value, list | dict) else value
        url, folder = self._run.url, self._run.settings.sync_dir
        self._run.finish(exit_code=0 if summary is not None else 1)
        if self._mode == "online":
            return f"W&B: {url}"
        log.debug("W&B offline run: %s", folder)
        return f"W&B (offline): wandb sync {folder}"
