"""A run folder at work on a whole run: the base model measured, training, the tuned model measured, the report."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from sft_lab import pipeline
from sft_lab.core import parquet
from sft_lab.core.errors import ConfigError, FolderError, during
from sft_lab.core.hardware import rank
from sft_lab.core.io import finite, write_json, write_lines
from sft_lab.core.log import log
from sft_lab.core.progress import Stopwatch
from sft_lab.evaluation import verdict
from sft_lab.evaluation.advice import advise
from sft_lab.report import card, html_report
from sft_lab.run.evaluator import Base, Measured, Measuring
from sft_lab.run.session import Session
from sft_lab.tracking.record import Lines, Record, Unwritten
from sft_lab.training import model_io, trl_trainer
from sft_lab.training.callbacks import Watch
from sft_lab.training.checkpoints import last_checkpoint
from sft_lab.training.config import refuse_no_step, resolve_precision
from sft_lab.training.rehearsal import refuse_misfit, rehearse, warn_of_long_rows
from sft_lab.training.sft_config import build_sft_config

if TYPE_CHECKING:
    from sft_lab.core.run_dir import RunDir
    from sft_lab.data.preparation import Prepared
    from sft_lab.evaluation.heldout import Scores
    from sft_lab.run.config import Run


class TrainingSession(Session):
    """A session that trains and judges too."""

    _suffix = ""

    def __init__(self, run: Run, folder: RunDir) -> None:
        super().__init__(run, folder)
        self._model: Any = None
        self._last: tuple[int, Scores, Scores | None] | None = None  # step, held-out rows, probe
        self._measuring = Measuring(run, self.context, self._loaded_model)
        self._clock = Stopwatch()  # of measuring before and after training
        self.record: Record | Unwritten = Unwritten()
        self._samples: Lines | Unwritten = Unwritten()

    def __enter__(self) -> Self:
        """Open the session, unless the trainer's knobs are refused: better now than after the data stages."""
        options = self.run.trainer
        rehearse(build_sft_config(options, self.folder.checkpoints, self.run.seed, watched=True))
        refuse_misfit(self.run.model, options, self.context)
        super().__enter__()
        self._note({"precision": resolve_precision(self.run.trainer.precision)})
        return self

    def set_up_training(self) -> None:
        """Set up a process that trains with the one that writes; it opens no file."""
        build_sft_config(self.run.trainer, self.folder.checkpoints, self.run.seed, watched=True)
        self.set_seed_and_threads()

    def begin(self, data: Prepared) -> None:
        """Write what the data stages did, start tracking and open the metrics.

        Raises:
            ConfigError: if training is to look at held-out rows, and there are none.
        """
        super().begin(data)
        if not self.run.trainer.packing:
            refuse_no_step(len(data.train.rows), self.run.trainer, self.run.launch.num_processes)
        warn_of_long_rows(data.train.tokens, self.run.model, self.run.trainer, self.context)
        if self.run.trainer.chooses and not len(data.held_out.rows):
            raise ConfigError(
                "trainer.load_best_model_at_end, trainer.early_stopping_patience: choose by the held-out loss, and no "
                "row is held out; raise split.eval_share, or set them to false and null"
            )
        checkpoint = self._checkpoint()
        step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        self.record = Record(self.folder.metrics, self._mirror, from_step=step)
        if self.run.evaluation.samples_every:
            self._samples = Lines(self.folder.training_samples, from_step=step)

    @during("measuring")
    def measure_base(self, data: Prepared) -> Base:
        """Measure the base model, or find what it was measured to do: the same for every job of a sweep."""
        with self._clock.running():
            base = self._measuring.base(data)
        if base.untrained is not None and not self.record.events:
            self.record({"step": 0, "epoch": 0.0, **_event(base.untrained, None)})
        if base.held_out is not None:
            log.info("base: held-out loss %.4f, %.4f bits per byte", base.held_out.loss, base.held_out.bits_per_byte)
        if base.prompted is not None and base.held_out is not None and len(base.prompted.nats):
            log.info("base: %.4f bits per byte with a system prompt and examples", base.prompted.bits_per_byte)
        return base

    @during("training")
    def train(self, data: Prepared) -> trl_trainer.Trained:
        """Fine-tune, watching the held-out loss."""

        def measure(model: Any, step: int) -> dict[str, float]:
            with during("measuring"):
                probe = self._measuring.score(model, data.probe) if self.run.evaluation.watch_probe else None
                scores = self._measuring.score(model, data.held_out)
            self._last = step, scores, probe
            return _event(scores, probe)

        def sample(model: Any, step: int) -> None:
            for prompt, answer in zip(self.run.evaluation.prompts, self._measuring.samples(model), strict=True):
                self._samples.write({"step": step, "prompt": prompt, "answer": answer})

        counted = self.record.curve("train/num_tokens")  # up to the checkpoint this run goes on from
        self._tokens_before = int(counted[-1][1]) if counted else 0
        watch = Watch(
            measure if len(data.held_out.rows) else None,
            self.record,
            self._tokens_before,
            sample=sample,
            samples_every=self.run.evaluation.samples_every,
        )
        trained = trl_trainer.train(
            self._loaded_model(),
            self.context.tokenizer,
            data.train.tokens,
            self.run.trainer,
            folder=self.folder.checkpoints,
            seed=self.run.seed,
            watch=watch,
            reference_rows=len(data.sides.train),
            new_tokens=self.context.new_tokens,
        )
        if trained.saved and not rank():
            self._model = None
            trained.model = model_io.load(self._loaded_model(), trained.saved)
        log.info(
            "train: %d steps, %d tokens, %.0f s, %s", trained.steps, trained.tokens, trained.seconds, trained.precision
        )
        return trained

    @during("measuring")
    def measure_tuned(self, data: Prepared, trained: trl_trainer.Trained) -> Measured:
        """Measure the weights that are saved, and save them."""
        with self._clock.running():
            tuned = self._last_measurement(data, trained)
        renderer = self.run.template.bind(self.context)
        shutil.rmtree(self.folder.model, ignore_errors=True)  # what a killed run had begun to save
        model_io.save(
            trained.model,
            self.context.tokenizer,
            renderer.jinja,
            self.folder.model,
            end_ids=renderer.end_ids,
            base_name=self.run.model.base_name,
            base_revision=self.run.model.base_revision,
        )
        return tuned

    def _last_measurement(self, data: Prepared, trained: trl_trainer.Trained) -> Measured:
        held_out: Scores | None
        probe: Scores | None
        kept_best = self.run.trainer.load_best_model_at_end
        if self._last and self._last[0] == trained.steps and not kept_best:
            _, held_out, probe = self._last  # the last measurement saw these very weights
        else:
            probe = self._measuring.score(trained.model, data.probe)
            held_out = self._measuring.score(trained.model, data.held_out) if len(data.held_out.rows) else None
            told = self.record.curve("eval/loss")
            if held_out is not None and not kept_best and (not told or told[-1][0] < trained.steps):
                self.record({"step": trained.steps, "epoch": trained.epochs, **_event(held_out, probe)})
        return self._measuring.tuned(trained.model, data, held_out, probe)

    def finish(self, data: Prepared, base: Base, trained: trl_trainer.Trained, tuned: Measured) -> dict[str, Any]:
        """Judge the run and write summary, samples, report and card."""
        summary: dict[str, Any] = finite(self._summary(data, base, trained, tuned))
        write_json(self.folder.summary, summary)
        self._write_eval(base, tuned)
        answers = {"samples": self._sample_rows(base, tuned), "outputs": _output_rows(base, tuned)}
        write_lines(self.folder.samples, answers["samples"])
        write_lines(self.folder.outputs, answers["outputs"])
        self._note_stages()
        html_report.write_report(self.folder)
        card.write_model_card(self.folder, self.run.model.base_name)
        self._mirror_data(data)
        for name, rows in answers.items():
            if rows:
                self._mirror.table(name, list(rows[0]), [[str(value) for value in row.values()] for row in rows])
        return self._end(summary)

    def score_test(self) -> dict[str, Any]:
        """Score base and saved model on the test side; the session need not be open."""
        work = pipeline.start(self.run, self.context)
        rows = pipeline.prepare(self.run, self.context, work).sides.test
        if not len(rows):
            raise FolderError(f"{self.folder.path}: none of its rows lies on the test side; raise split.test_share")
        ready = work.held_out_as(self.run.template, rows)
        base = self._measuring.score(self._loaded_model(), ready)
        tuned = self._measuring.score(model_io.load(self._loaded_model(), self.folder.model), ready)
        return {
            "test/loss": tuned.loss,
            "test/bits_per_byte": tuned.bits_per_byte,
            "base/test_loss": base.loss,
            "base/test_bits_per_byte": base.bits_per_byte,
            "test_rows": len(ready.rows),
        }

    def _summary(self, data: Prepared, base: Base, trained: trl_trainer.Trained, tuned: Measured) -> dict[str, Any]:
        limits = self.run.evaluation.limits
        curve = [point for point in self.record.curve("eval/loss") if point[0] > 0]
        losses = self.record.curve("train/loss")
        values = [value for event in self.record.events for name, value in event.items() if name != "step"]
        judged = verdict.judge(
            verdict.Observed(
                curve,
                losses,
                base.numbers,
                tuned.numbers,
                self.record.curve("learning_rate"),
                all_finite=bool(np.isfinite(values).all()),
            ),
            limits,
        )
        best = min(curve, key=lambda point: point[1], default=(None, None))
        loss = tuned.numbers.get("eval/loss")
        training_seconds = trained.seconds - trained.watching_seconds
        summary = {
            **dict.fromkeys(("eval/loss", "eval/bits_per_byte", "base/eval_loss", "base/eval_bits_per_byte")),
            **tuned.numbers,
            **{f"base/{name.replace('/', '_')}": value for name, value in base.numbers.items()},
            **_prompted(base),
            "base/eval_loss_untrained_template": base.untrained.loss if base.untrained else None,
            "train/loss": losses[-1][1] if losses else None,
            "gap": loss - tuned.numbers["train/probe_loss"] if loss is not None else None,
            "best_step": best[0],
            "best_eval_loss": best[1],
            "converged_at": verdict.converged_at(curve, limits.converged_within),
            "verdict": judged.name,
            "evidence": judged.evidence,
            "advice": advise(judged.name, self.run, tuned.numbers | _prompted(base)),
            "tokens_per_second": trained.tokens / training_seconds if trained.tokens else None,
            "watching_share": trained.watching_seconds / trained.seconds if trained.seconds > 0 else None,
            "steps": trained.steps,
            "epochs": trained.epochs,
            "train_rows": len(data.train.rows),
            "train_tokens": self._tokens_before + trained.tokens,
            "eval_rows": len(data.held_out.rows),
            "train_seconds": trained.seconds,
            "measuring_seconds": self._clock.seconds,
            "seconds": time.monotonic() - self._began,
            **_by_source(data, base, tuned),
        }
        return summary | {"objective": summary[self.run.evaluation.objective]}

    def _loaded_model(self) -> Any:
        if self._model is None:
            self._model = self.run.model.load(self.context, self.run.seed, four_bit=self.run.trainer.four_bit)
            if torch.cuda.is_available() and not self.run.trainer.four_bit:  # those are there already
                self._model.to("cuda")
        return self._model

    def _checkpoint(self) -> Path | None:
        return last_checkpoint(self.folder.checkpoints)

    def _write_eval(self, base: Base, tuned: Measured) -> None:
        columns: dict[str, Any] = {"id": tuned.ids}
        for name, measured in (("base", base), ("tuned", tuned)):
            scores = measured.held_out
            for part in ("nats", "tokens", "bytes"):
                by_id = dict(zip(measured.ids, getattr(scores, part).tolist(), strict=True)) if scores else {}
                columns[f"{name}/{'nll' if part == 'nats' else part}"] = [by_id.get(row_id) for row_id in tuned.ids]
        parquet.write(self.folder.eval, columns, parquet.EVAL)

    def _sample_rows(self, base: Base, tuned: Measured) -> list[dict[str, str]]:
        answers = base.answers | tuned.answers
        return [
            {"prompt": prompt, **{name: found[index] for name, found in answers.items()}}
            for index, prompt in enumerate(self.run.evaluation.prompts)
        ]


def _output_rows(base: Base, tuned: Measured) -> list[dict[str, Any]]:
    before = {prompt: reply.text for prompt, _, reply in base.outputs}
    return [
        {"prompt": prompt, "reference": reference, "base": before.get(prompt), "tuned": reply.text,
         "ended": reply.ended, "stray": reply.stray}
        for prompt, reference, reply in tuned.outputs
    ]  # fmt: skip


def _event(held_out: Scores, probe: Scores | None) -> dict[str, float]:
    """What a measurement is called in ``metrics.jsonl``."""
    event = {
        "eval/loss": held_out.loss,
        "eval/bits_per_byte": held_out.bits_per_byte,
        "eval/token_accuracy": held_out.accuracy,
    }
    if probe is not None:
        event |= {"train/probe_loss": probe.loss, "gap": held_out.loss - probe.loss}
    return event


def _prompted(base: Base) -> dict[str, float]:
    """What the prompted base model reached, where every held-out row could be asked so."""
    if base.prompted is None or len(base.prompted.nats) != len(base.ids) or not base.ids:
        return {}
    return {"prompted/eval_loss": base.prompted.loss, "prompted/eval_bits_per_byte": base.prompted.bits_per_byte}


def _by_source(data: Prepared, base: Base, tuned: Measured) -> dict[str, dict[str, dict[str, Any]]]:
    """Held-out loss of each source in a mixture, by the tuned and by the base model; nothing without a mixture."""
    source_of = dict(zip(data.sides.held_out_rows.column("id"), data.sides.held_out_rows.column("source"), strict=True))
    names = [name for name in dict.fromkeys(source_of.values()) if name]
    if not names or base.held_out is None or tuned.held_out is None:
        return {}

    def of(measured: Measured, name: str) -> Scores:
        assert measured.held_out is not None
        return measured.held_out.of(np.array([source_of[row_id] == name for row_id in measured.ids], bool))

    found = {name: (of(base, name), of(tuned, name)) for name in names}
    return {
        "sources": {
            name: {
                "eval/loss": after.loss,
                "base/eval_loss": before.loss,
                "eval_rows": len(after.tokens),
                "eval_tokens": int(after.tokens.sum()),
            }
            for name, (before, after) in found.items()
        }
    }
