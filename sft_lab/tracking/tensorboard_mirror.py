"""The adapter to TensorBoard: a run's events as scalars, its config as hyperparameters, tables and summary as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sft_lab.core.io import flat, is_number
from sft_lab.tracking.config import Mirror
from sft_lab.tracking.tracked_run import summary_values

if TYPE_CHECKING:
    from sft_lab.tracking.tracked_run import TrackedRun

# The scalars that the tab of hyperparameters shows beside the config.
RESULTS = ("eval/loss", "eval/bits_per_byte", "train/loss", "train/probe_loss", "gap", "objective")


class TensorBoardMirror(Mirror):
    """Event files in the run folder, so that ``tensorboard --logdir`` over a sweep shows all its jobs."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self._folder, self._step = run.folder, run.first_step
        # What an earlier attempt logged behind the checkpoint is taken out, as in metrics.jsonl.
        self._writer = SummaryWriter(run.folder.tensorboard, purge_step=self._step + 1 if self._step else 0)
        values = {
            name: value if isinstance(value, bool) or is_number(value) else str(value)
            for name, value in flat(run.config).items()
        }
        *start, self._end = hparams(values, dict.fromkeys(RESULTS, 0.0))
        for summary in start:
            self._write(summary)

    def log(self, event: dict[str, float]) -> None:
        """Log metrics at their optimizer step, and at once: a killed process would lose two minutes of them."""
        self._step = int(event["step"])
        for name, value in event.items():
            if name not in ("step", "epoch"):
                self._writer.add_scalar(name, value, self._step)
        self._writer.add_scalar("train/epoch", event.get("epoch", 0.0), self._step)
        self._writer.flush()

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Log a table as Markdown."""
        lines = [columns, ["---"] * len(columns), *rows]
        self._writer.add_text(name, "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines), self._step)

    def finish(self, summary: dict[str, Any] | None) -> list[str]:
        """End the session, unless it failed, with its summary."""
        if summary is not None:
            values = summary_values(summary)
            self.table("summary", ["", "value"], [list(item) for item in values.items()])
            if is_number(values.get("objective")):
                self._writer.add_scalar("objective", values["objective"], self._step)
            self._write(self._end)
        self._writer.close()
        folder = self._folder.sweep or self._folder.tensorboard
        return [f"TensorBoard: tensorboard --logdir {folder}"]

    def _write(self, summary: Any) -> None:
        self._writer.file_writer.add_summary(summary)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
