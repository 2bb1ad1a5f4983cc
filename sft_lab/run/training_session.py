"""A session that trains: it measures the base model, trains, measures the tuned model and writes the report."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any, Self

from sft_lab import pipeline
from sft_lab.core import parquet
from sft_lab.core.errors import FolderError, all_problems, during
from sft_lab.core.gpus import gpu_is_in_use, has_gpu, release_memory
from sft_lab.core.hardware import rank
from sft_lab.core.io import finite, write_json, write_lines
from sft_lab.core.log import log
from sft_lab.core.progress import Stopwatch
from sft_lab.core.types import Work
from sft_lab.run import data_report
from sft_lab.run.checks import check_rows
from sft_lab.run.evaluator import Evaluator
from sft_lab.run.measurement import BaseMeasurement, Measurement
from sft_lab.run.session import Session
from sft_lab.run.summary import summarize
from sft_lab.run.trial import create_pruning
from sft_lab.tracking.record import Lines, Record, Unwritten
from sft_lab.training import model_io
from sft_lab.training.callbacks import Watch
from sft_lab.training.checkpoints import last_checkpoint
from sft_lab.training.config import resolve_precision
from sft_lab.training.rehearsal import refuse_misfit, rehearse, warn_of_long_rows
from sft_lab.training.sft_config import build_sft_config
from sft_lab.training.train import Trained, train
from sft_lab.training.weights import TRUST_KERNEL, packing_attention, takes_flash_attention

if TYPE_CHECKING:
    from pathlib import Path

    from sft_lab.core.run_dir import RunDir
    from sft_lab.data.preparation import Prepared
    from sft_lab.evaluation.heldout import Scores
    from sft_lab.run.config import Run


class TrainingSession(Session):
    """A session that also trains and judges; in processes other than the one that writes, it only trains."""

    _work = Work.RUN
    _id_suffix = ""

    def __init__(self, run: Run, folder: RunDir) -> None:
        super().__init__(run, folder)
        self._model: Any = None
        self._last: tuple[int, Scores, Scores | None] | None = None  # step, held-out rows, probe
        self._evaluator = Evaluator(run, self.context, self._loaded_model)
        self._measuring_clock = Stopwatch()  # before and after training
        self._tokens_before = 0  # trained on before the checkpoint that training resumes from
        self.record: Record | Unwritten = Unwritten()
        self._samples: Lines | Unwritten = Unwritten()

    def __enter__(self) -> Self:
        """Open the session, unless the trainer's options are refused: better before the data stages than after."""
        options = self.run.trainer
        args = build_sft_config(options, self.folder.checkpoints, self.run.seed, watched=True)
        rehearse(args)
        refuse_misfit(self.run.model, options, self.context, args)
        super().__enter__()
        self._note({"precision": resolve_precision(self.run.trainer.precision)})
        if options.holding.four_bit and not has_gpu():
            memory = "the weights take an eighth of the memory, but steps are slower than with trainer=lora"
            self.context.notice(f"trainer.quantization=nf4 on a CPU: {memory}")
        return self

    def set_up_training(self) -> None:
        """Set up a process that helps another one train; it opens no file."""
        build_sft_config(self.run.trainer, self.folder.checkpoints, self.run.seed, watched=True)
        self.set_seed_and_threads()

    def begin(self, data: Prepared) -> None:
        """Write what the data stages did, start tracking and open the metrics.

        Raises:
            ConfigError: if the rows are too few for a step, or for what is to be decided by held-out rows.
        """
        super().begin(data)
        if problems := check_rows(self.run, data):
            raise all_problems(problems)
        warn_of_long_rows(data.train.tokens, self.run.model, self.run.trainer, self.context)

        step = self.first_step()
        if not step and self.folder.metrics.exists():
            log.info("train: an earlier attempt saved no checkpoint; training starts over")
        self.record = Record(self.folder.metrics, self._mirror, from_step=step)
        if self.run.evaluation.samples_every:
            self._samples = Lines(self.folder.training_samples, from_step=step)

    def first_step(self) -> int:
        """Return the step of the checkpoint that training goes on from."""
        checkpoint = last_checkpoint(self.folder.checkpoints)
        return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0

    @during("measuring")
    def measure_base(self, data: Prepared) -> BaseMeasurement:
        """Measure the base model, or read what was measured before: the same for every job of a sweep."""
        with self._measuring_clock.running():
            base = self._evaluator.measure_base(data)
        if base.untrained is not None and not self.record.events:
            self.record({"step": 0, "epoch": 0.0, **_event(base.untrained, None)})
        if base.held_out is not None:
            log.info("base: held-out loss %.4f, %.4f bits per byte", base.held_out.loss, base.held_out.bits_per_byte)
        if base.prompted is not None and base.held_out is not None and len(base.prompted.nats):
            log.info("base: %.4f bits per byte with a system prompt and examples", base.prompted.bits_per_byte)
        return base

    @during("training")
    def train(self, data: Prepared) -> Trained:
        """Fine-tune, and measure the held-out loss meanwhile."""

        def measure(model: Any, step: int, shared: bool) -> dict[str, float]:
            score = self._evaluator.score
            with during("measuring"):
                probe = score(model, data.probe, shared=shared) if self.run.evaluation.watch_probe else None
                scores = score(model, data.held_out, shared=shared)
            self._last = step, scores, probe
            return _event(scores, probe)

        def sample(model: Any, step: int) -> None:
            answers = self._evaluator.answer_fixed_prompts(model, data)
            for prompt, answer in zip(self._evaluator.prompts(data), answers, strict=True):
                self._samples.write({"step": step, "prompt": prompt, "answer": answer.text})

        if token_counts := self.record.curve("train/num_tokens"):  # up to the checkpoint
            self._tokens_before = int(token_counts[-1][1])

        watch = Watch(
            measure if len(data.held_out.rows) else None,
            self.record,
            self._tokens_before,
            sample=sample,
            samples_every=self.run.evaluation.samples_every,
            is_hopeless=create_pruning(self.folder),
        )
        trained = train(
            self._loaded_model(),
            self.context.tokenizer,
            data.train.tokens,
            self.run.trainer,
            folder=self.folder.checkpoints,
            seed=self.run.seed,
            watch=watch,
            reference_rows=len(data.sides.train),
            new_tokens=self.context.new_tokens,
            attention=self._packing_attention(),
        )
        self._tokens_before = watch.tokens_before  # up to the checkpoint, logged or not
        if trained.saved and not rank():
            # What was sharded over several processes is on disk; the one that writes loads it again.
            self._model = None
            release_memory()
            trained.model = model_io.load(trained.saved, self._loaded_model, self._load_whole)
        tokens, seconds = self._tokens_before + trained.tokens, trained.seconds  # of this attempt; steps are of all
        part = " since the checkpoint" if self._tokens_before else ""
        log.info("train: %d steps, %d tokens, %.0f s%s, %s", trained.steps, tokens, seconds, part, trained.precision)
        return trained

    def _packing_attention(self) -> str | None:
        """Return the attention for packed rows, and notice what they cost without a good one."""
        options, own_attention = self.run.trainer, self.run.model.attn_implementation
        if not options.packing:
            return None
        attention = packing_attention(own_attention, options.holding.precision)
        if attention is None and gpu_is_in_use() and "flash" not in (own_attention or ""):
            tokens = options.per_device_train_batch_size * options.max_length
            remedy = "lower trainer.per_device_train_batch_size"
            if takes_flash_attention(options.holding.precision):
                kernel = f"{TRUST_KERNEL}=kernels-community/flash-attn2"
                remedy = f"pip install flash-attn, or pip install kernels and set {kernel}; else {remedy}"
            self.context.notice(
                f"packing without FlashAttention: each of the {tokens:,} tokens of a batch attends to every other (a "
                f"mask of {tokens**2 / 1e6:,.0f} MB); {remedy}"
            )
        return attention

    @during("measuring")
    def measure_tuned(self, data: Prepared, trained: Trained) -> Measurement:
        """Measure the trained weights, and save them."""
        with self._measuring_clock.running():
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

    def _last_measurement(self, data: Prepared, trained: Trained) -> Measurement:
        held_out: Scores | None
        probe: Scores | None
        kept_best = self.run.trainer.load_best_model_at_end
        if self._last and self._last[0] == trained.steps and not kept_best:
            _, held_out, probe = self._last  # the last measurement saw these very weights
        else:
            probe = self._evaluator.score(trained.model, data.probe)
            held_out = self._evaluator.score(trained.model, data.held_out) if len(data.held_out.rows) else None
            curve = self.record.curve("eval/loss")
            is_recorded = bool(curve) and curve[-1][0] >= trained.steps
            if held_out is not None and not kept_best and not is_recorded:
                self.record({"step": trained.steps, "epoch": trained.epochs, **_event(held_out, probe)})
        return self._evaluator.measure_tuned(trained.model, data, held_out, probe)

    def finish(self, data: Prepared, base: BaseMeasurement, trained: Trained, tuned: Measurement) -> dict[str, Any]:
        """Judge the run and write summary, samples, report and card."""
        summary = summarize(
            self.run,
            data,
            self.record,
            base,
            trained,
            tuned,
            tokens_before=self._tokens_before,
            measuring_seconds=self._measuring_clock.seconds,
            seconds=time.monotonic() - self._began,
        )
        summary = finite(summary)
        write_json(self.folder.summary, summary)
        self._write_eval(base, tuned)

        write_lines(self.folder.samples, self._sample_rows(base, tuned))
        write_lines(self.folder.outputs, _output_rows(base, tuned))

        data_report.write_notices(self.folder, self.context)
        return self._conclude(data, summary)

    def score_test(self) -> dict[str, Any]:
        """Score base and saved model on the test side; the session need not be open."""
        work = pipeline.start(self.run, self.context)
        rows = pipeline.prepare(self.run, self.context, work).sides.test
        if not len(rows):
            raise FolderError(f"{self.folder.path}: has no test rows; raise split.test_share")
        ready = work.held_out_as(self.run.template, rows)
        base = self._evaluator.score(self._loaded_model(), ready)
        model = model_io.load(self.folder.model, self._loaded_model, self._load_whole)
        tuned = self._evaluator.score(model, ready)
        return {
            "test/loss": tuned.loss,
            "test/bits_per_byte": tuned.bits_per_byte,
            "base/test_loss": base.loss,
            "base/test_bits_per_byte": base.bits_per_byte,
            "test_rows": len(ready.rows),
        }

    def _loaded_model(self) -> Any:
        if self._model is None:
            self._model = self.run.model.load(self.context, self.run.seed, self.run.trainer.holding)
        return self._model

    def _load_whole(self, folder: Path) -> Any:
        """Load weights that were all trained, in place of the base model's."""
        self._model = None
        release_memory()
        return self.run.model.load_saved(folder, self.context, self.run.trainer.holding)

    def _write_eval(self, base: BaseMeasurement, tuned: Measurement) -> None:
        columns: dict[str, Any] = {"id": tuned.ids}
        for name, measured in (("base", base), ("tuned", tuned)):
            scores = measured.held_out
            for part in ("nats", "tokens", "bytes"):
                by_id = dict(zip(measured.ids, getattr(scores, part).tolist(), strict=True)) if scores else {}
                columns[f"{name}/{'nll' if part == 'nats' else part}"] = [by_id.get(row_id) for row_id in tuned.ids]
        parquet.write(self.folder.eval, columns, parquet.EVAL)

    def _sample_rows(self, base: BaseMeasurement, tuned: Measurement) -> list[dict[str, str]]:
        columns = base.answers | tuned.answers
        columns |= {f"{name}_calls": calls for name, calls in (base.calls | tuned.calls).items() if calls}
        return [
            {"prompt": prompt, **{name: texts[index] for name, texts in columns.items()}}
            for index, prompt in enumerate(tuned.prompts)
        ]


def _output_rows(base: BaseMeasurement, tuned: Measurement) -> list[dict[str, Any]]:
    of_base = {output.prompt: output for output in base.outputs}
    rows = []
    for output in tuned.outputs:
        before = of_base.get(output.prompt)
        row = {
            "prompt": output.prompt,
            "reference": output.reference,
            "base": before and before.answer.text,
            "tuned": output.answer.text,
            "ended": output.answer.ended,
            "stray": output.answer.stray,
        }
        if output.calls is not None:
            row |= {"base_calls": before and before.calls, "tuned_calls": output.calls}
        rows.append(row)
    return rows


def _event(held_out: Scores, probe: Scores | None) -> dict[str, float]:
    """Return a measurement as ``metrics.jsonl`` holds it."""
    event = {
        "eval/loss": held_out.loss,
        "eval/bits_per_byte": held_out.bits_per_byte,
        "eval/token_accuracy": held_out.accuracy,
    }
    if probe is not None:
        event |= {"train/probe_loss": probe.loss, "gap": held_out.loss - probe.loss}
    return event
