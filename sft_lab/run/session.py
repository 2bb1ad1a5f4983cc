"""A session: what a run keeps open and writes while it works in its folder: log, manifest, tracking, data report."""

from __future__ import annotations

import logging
import math
import random
import shutil
import time
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow.compute as pc
import torch

from sft_lab.core import tolerant_readers
from sft_lab.core.errors import Pruned
from sft_lab.core.io import write_json, write_text
from sft_lab.core.log import log
from sft_lab.core.redaction import Formatter
from sft_lab.core.types import Work
from sft_lab.data import export
from sft_lab.data.waterfall import write as write_waterfall
from sft_lab.evaluation import custom_metrics
from sft_lab.report import card, figures, html_report
from sft_lab.run import data_report, inputs, twins
from sft_lab.run.checks import doubtful_settings
from sft_lab.tracking import manifest
from sft_lab.tracking.config import Mirror
from sft_lab.tracking.tracked_run import TrackedRun, tracking_id

if TYPE_CHECKING:
    from sft_lab.core.run_dir import RunDir
    from sft_lab.core.store import Entry
    from sft_lab.data.preparation import Prepared
    from sft_lab.run.config import Run


class Session:
    """A run's context and records, open for as long as it works. This one prepares data.

    Args:
        run: to carry out.
        folder: that this process has claimed.
    """

    def __init__(self, run: Run, folder: RunDir) -> None:
        self.run = run
        self.folder = folder
        self.context = run.context(folder=folder)
        self._began = time.monotonic()
        self._mirror = Mirror()
        self._manifest: dict[str, Any] = {}

    def __enter__(self) -> Self:
        """Set seed and threads, note what the run starts with, and open the log."""
        if not self.folder.config.exists():  # from Python; a launcher has written it before
            write_text(self.folder.config, self.run.to_yaml())
        self.set_seed_and_threads()
        self._manifest |= self.folder.noted_data()  # of a checkpoint, until this session has read its data
        self._note(
            {
                "command": manifest.command_line(),
                "started": manifest.now(),
                "git": manifest.git_state(),
                "packages": manifest.versions(),
                "plugins": self.run.plugins,
                "metrics": custom_metrics.origins(),
                "job": self.run.hash,
                "tracking_id": tracking_id(self.folder, self.run.hash),
                "seed": self.run.seed,
                "template_date": self.context.template_date.isoformat(),
                "threads": torch.get_num_threads(),
                "hardware": manifest.hardware(),
            }
        )
        if not logging.getLogger("sft_lab").level:  # not set in a notebook, where the log would hold only warnings
            logging.getLogger("sft_lab").setLevel(logging.INFO)
        # Last: ``__exit__`` is not called where entering fails, and the log would get the next job's lines too.
        self._handler = logging.FileHandler(self.folder.log, encoding="utf-8")
        self._handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("sft_lab").addHandler(self._handler)
        for doubt in doubtful_settings(self.run):
            self.context.notice(doubt)
        if online := self.run.tracking.going_online():
            log.info("%s", online)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Close what is open; a failed run ends as failed in W&B too, a pruned one as ended."""
        if kind is not None:
            is_pruned = isinstance(error, Pruned)
            self._mirror.finish({"pruned": True} if is_pruned else None)
        logging.getLogger("sft_lab").removeHandler(self._handler)
        self._handler.close()

    def set_seed_and_threads(self) -> None:
        """Set what arithmetic depends on; done here and nowhere else."""
        if self.run.threads:
            torch.set_num_threads(self.run.threads)
        # What transformers.set_seed does, but importing that takes seconds, since it imports PEFT.
        random.seed(self.run.seed)
        np.random.seed(self.run.seed)
        torch.manual_seed(self.run.seed)

    def begin(self, data: Prepared) -> None:
        """Write what the data stages did, and start tracking."""
        write_waterfall(self.folder, data.train_flow, data.held_out_flow)
        data_report.write(self.folder, self.run, data, self.context)
        self.note_inputs()
        self._note(
            {
                "train_fingerprint": data.train_fingerprint,
                "held_out_fingerprint": data.sides.fingerprint,
                "grouped_by": data.grouped_by,
                "groups": pc.count_distinct(data.train.rows.arrow("group")).as_py(),
            }
        )
        run_id = f"{self._manifest['tracking_id']}{self._id_suffix}"
        tracked = TrackedRun(self.folder, run_id, self.run.saved(complete=True), self._work, self.first_step())
        self._mirror = self.run.tracking.start(tracked)

    def note_training_key(self, data: Prepared) -> str:
        """Record and return a key that is equal for jobs whose training would be the same."""
        key = twins.key_of(self.run, data, self.context)
        self._note({"training_key": key})
        return key

    def finish_as(self, twin: RunDir, data: Prepared) -> dict[str, Any]:
        """Finish with the result of a job that has done the same training, and return its summary."""
        shutil.rmtree(self.folder.checkpoints, ignore_errors=True)  # of an earlier attempt at it here
        self.folder.metrics.unlink(missing_ok=True)
        self.begin(data)
        self.note_training_key(data)
        trained = tolerant_readers.read(twin.manifest)
        original = trained.get("same_as") or twin.path.name
        log.info("train: skipped, since %s trained on the same rows in the same way", original)
        for event in tolerant_readers.read_metrics(twin.metrics):
            self._mirror.log({name: math.nan if value is None else value for name, value in event.items()})

        twins.copy_results(twin, self.folder)
        summary = tolerant_readers.read(twin.summary) | {"same_as": original}
        write_json(self.folder.summary, summary)
        self._note({"same_as": original, **{name: trained[name] for name in twins.TRAINING_FIELDS if name in trained}})
        return self._conclude(data, summary)

    def note_inputs(self) -> None:
        """Note what the data stages have read, and copy the small files."""
        inputs.copy(self.run, self.folder, self.context.store)
        self._note(
            {
                "dataset_fingerprint": self.run.data_fingerprint(self.context.store),
                "inputs": inputs.hashes(self.run, self.context.store),
            }
        )

    def write_dataset(self, data: Prepared) -> None:
        """Write the prepared rows for other trainers, with a card."""
        shutil.rmtree(self.folder.dataset, ignore_errors=True)
        export.write(data, self.folder.dataset, with_tokens=self.run.prepare.tokens)
        card.write_dataset_card(self.folder)

    def report(self, data: Prepared) -> dict[str, Any]:
        """Write the report, and end tracking with what it shows."""
        self._note_stages()
        html_report.write_report(self.folder)
        self._mirror_data(data)
        stages = data.train_flow.stages
        return self._end(
            {
                "rows": stages[0]["rows_in"],
                "train_rows": len(data.train.rows),
                "eval_rows": len(data.held_out.rows),
                "train_tokens": stages[-1]["tokens_kept"],
            }
        )

    def _conclude(self, data: Prepared, summary: dict[str, Any]) -> dict[str, Any]:
        """Write report and card of a model, and end tracking with what they show."""
        self._note_stages()
        html_report.write_report(self.folder)
        card.write_model_card(self.folder, self.run.model.base_name)
        self._mirror_data(data)
        self._mirror_answers()
        return self._end(summary)

    def _end(self, summary: dict[str, Any]) -> dict[str, Any]:
        for line in self._mirror.finish(summary):
            log.info("%s", line)
        self._mirror = Mirror()  # it has ended, whatever comes
        return summary

    _work = Work.PREPARE
    _id_suffix = "-data"  # preparing is tracked separately from the training that may follow

    def first_step(self) -> int:
        """Return the optimizer step from which training resumes; 0 for a new one."""
        return 0

    def _note(self, facts: dict[str, Any]) -> None:
        self._manifest |= facts
        write_json(self.folder.manifest, self._manifest)

    def _note_stages(self) -> None:
        self._note({"finished": manifest.now(), "stages": [_stage(entry) for entry in self.context.entries]})

    def _mirror_answers(self) -> None:
        """Send the samples and the answers to held-out prompts to W&B too."""
        for file in (self.folder.samples, self.folder.outputs):
            if rows := tolerant_readers.read_lines(file):
                self._mirror.table(file.stem, list(rows[0]), [[str(value) for value in row.values()] for row in rows])

    def _mirror_data(self, data: Prepared) -> None:
        """Send the tables and pictures of the data report to W&B too."""
        columns = ["stage", "rows_in", "rows_kept", "tokens_in", "tokens_kept"]
        for name, flow in (("waterfall", data.train_flow), ("waterfall_held_out", data.held_out_flow)):
            rows = [[*(stage[column] for column in columns), str(stage["dropped"])] for stage in flow.stages]
            self._mirror.table(name, [*columns, "dropped"], rows)
        for name, columns, rows in data_report.tables(self.folder):
            self._mirror.table(name, columns, rows)
        for name in figures.FIGURE_NAMES:  # no other file, since an SVG of a stranger could run code in W&B's page
            if (file := self.folder.figures / f"{name}.svg").exists():
                self._mirror.picture(name, file)


class ReferenceSession(Session):
    """A session that trains nothing and finishes with the result of another job."""

    _work = Work.RUN
    _id_suffix = ""


def _stage(entry: Entry) -> dict[str, Any]:
    return {"stage": entry.stage, "key": entry.key, "hit": entry.hit, "seconds": round(entry.seconds, 3)}
