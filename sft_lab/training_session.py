"""A run folder at work on a whole run: the base model measured, training, the tuned model measured, the report."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from sft_lab.bench import log
from sft_lab.data.prepare import Preparation
from sft_lab.data.template import Auto, Jinja, Template
from sft_lab.errors import FolderError
from sft_lab.evaluation import heldout, samples, verdict
from sft_lab.files import digest, finite, read_json, write_json, write_text
from sft_lab.report import card, page
from sft_lab.session import Session
from sft_lab.tracking.record import Record
from sft_lab.training import saved, trl
from sft_lab.training.callbacks import Watch

if TYPE_CHECKING:
    import datasets

    from sft_lab.data.prepare import Prepared, Ready
    from sft_lab.folder import RunFolder
    from sft_lab.run import Run

PLAIN = Jinja(path="package:sft_lab/data/templates/plain.jinja")


@dataclass(frozen=True)
class Measured:
    """What a model was measured to do.

    Attributes:
        scores: of the held-out rows, None without any.
        ids: of those rows.
        answers: to the fixed prompts, by the way they were asked.
    """

    scores: heldout.Scores | None
    ids: list[str]
    answers: dict[str, list[str]]


@dataclass(frozen=True)
class Base(Measured):
    """The base model, measured.

    Attributes:
        untrained: held-out loss under the run's template, before training.
    """

    untrained: float | None = None


class TrainingSession(Session):
    """A session that trains and judges too."""

    _suffix = ""

    def __init__(self, run: Run, folder: RunFolder) -> None:
        super().__init__(run, folder)
        self._model: Any = None
        self._last_scores: heldout.Scores | None = None

    def __enter__(self) -> Self:
        """Open the session."""
        super().__enter__()
        self._note({"precision": trl.resolve_precision(self.run.trainer.precision)})
        return self

    def begin(self, data: Prepared) -> None:
        """Write what the data stages did, start tracking and open the metrics."""
        super().begin(data)
        checkpoint = self._checkpoint()
        step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        self.record = Record(self.folder.metrics, self._mirror, from_step=step)

    def measure_base(self, data: Prepared) -> Base:
        """Measure the base model, or find what it was measured to do: the same for every job of a sweep."""
        own = self._own_template()
        template = self.run.template if own else PLAIN
        ready = data.held_out if own else self._held_out_as(data, template)
        scores = self._stored_scores(ready)
        answers = {
            "base": self._stored_answers(template, system=None),
            "prompted_base": self._stored_answers(template, system=self.run.evaluation.system_prompt),
        }
        untrained = scores if own else self._stored_scores(data.held_out)
        if untrained is not None and not self.record.events:
            self.record(
                {"step": 0, "epoch": 0.0, "eval/loss": untrained.loss, "eval/bits_per_byte": untrained.bits_per_byte}
            )
        if scores is not None:
            log.info("base: held-out loss %.4f, %.4f bits per byte", scores.loss, scores.bits_per_byte)
        return Base(scores, ready.rows.column("id"), answers, untrained.loss if untrained else None)

    def train(self, data: Prepared) -> trl.Trained:
        """Fine-tune, watching the held-out loss."""

        def measure(model: Any) -> dict[str, float]:
            scores = self._last_scores = self._score(model, data.held_out)
            return {"eval/loss": scores.loss, "eval/bits_per_byte": scores.bits_per_byte}

        watched = len(data.held_out.rows) > 0
        counted = self.record.curve("train/num_tokens")  # up to the checkpoint this run goes on from
        self._tokens_before = int(counted[-1][1]) if counted else 0
        trained = trl.train(
            self._loaded_model(),
            self.bench.tokenizer,
            data.train.tokens,
            self.run.trainer,
            folder=self.folder.checkpoints,
            seed=self.run.seed,
            watch=Watch(measure if watched else None, self.record, self._tokens_before),
            reference_rows=len(data.sides.train),
            new_tokens=self.run.model.new_tokens(self.bench),
        )
        log.info(
            "train: %d steps, %d tokens, %.0f s, %s", trained.steps, trained.tokens, trained.seconds, trained.precision
        )
        return trained

    def measure_tuned(self, data: Prepared, trained: trl.Trained) -> Measured:
        """Measure the weights that are saved."""
        jinja = self.run.template.jinja(self.bench.tokenizer)
        scores = self._final_scores(data, trained) if len(data.held_out.rows) else None
        self._probe_loss = self._score(trained.model, data.probe).loss
        answers = {"tuned": self._answers(trained.model, self.run.template, system=None)}
        trl.save(trained.model, self.bench.tokenizer, jinja, self.folder.model)
        return Measured(scores, data.held_out.rows.column("id"), answers)

    def _final_scores(self, data: Prepared, trained: trl.Trained) -> heldout.Scores:
        """Score the held-out rows once more, unless the last evaluation saw these very weights."""
        told = self.record.curve("eval/loss")
        last = self._last_scores
        if last and told and told[-1][0] == trained.steps and not self.run.trainer.load_best_model_at_end:
            return last
        scores = self._score(trained.model, data.held_out)
        told_before = bool(told) and told[-1][0] == trained.steps
        if not told_before and not self.run.trainer.load_best_model_at_end:
            epoch = self.record.events[-1].get("epoch", 0.0)
            found = {"eval/loss": scores.loss, "eval/bits_per_byte": scores.bits_per_byte}
            self.record({"step": trained.steps, "epoch": epoch, **found})
        return scores

    def finish(self, data: Prepared, base: Base, trained: trl.Trained, tuned: Measured) -> dict[str, Any]:
        """Judge the run and write summary, samples, report and card."""
        summary: dict[str, Any] = finite(self._summary(data, base, trained, tuned))
        write_json(self.folder.summary, summary)
        self._write_eval(base, tuned)
        self._write_samples(base, tuned)
        self._note_stages()
        page.write(self.folder)
        card.write(self.folder, str(getattr(self.run.model, "name_or_path", "")))
        self._mirror_data(data)
        if sampled := self._sample_rows(base, tuned):
            self._mirror.table("samples", list(sampled[0]), [list(row.values()) for row in sampled])
        shutil.rmtree(self.folder.checkpoints, ignore_errors=True)
        return self._end(summary)

    def score_test(self) -> dict[str, Any]:
        """Score base and saved model on the test side; the session need not be open."""
        work = self.run.preparation(self.bench)
        rows = self.run.prepare(self.bench, work).sides.test
        if not len(rows):
            raise FolderError(f"{self.folder.path}: none of its rows lies on the test side; raise split.test_share")
        ready = work.held_out_as(self.run.template, rows)
        base = self._score(self._loaded_model(), ready)
        tuned = self._score(saved.load(self._loaded_model(), self.folder.model), ready)
        return {
            "test/loss": tuned.loss,
            "test/bits_per_byte": tuned.bits_per_byte,
            "base/test_loss": base.loss,
            "base/test_bits_per_byte": base.bits_per_byte,
            "test_rows": len(ready.rows),
        }

    def _summary(self, data: Prepared, base: Base, trained: trl.Trained, tuned: Measured) -> dict[str, Any]:
        limits = self.run.evaluation.limits
        curve = [point for point in self.record.curve("eval/loss") if point[0] > 0]
        losses = self.record.curve("train/loss")
        values = [value for event in self.record.events for name, value in event.items() if name != "step"]
        base_loss = base.scores.loss if base.scores else None
        judged = verdict.judge(curve, losses, base_loss, limits, all_finite=bool(np.isfinite(values).all()))
        best = min(curve, key=lambda point: point[1], default=(None, None))
        loss = tuned.scores.loss if tuned.scores else None
        training_seconds = trained.seconds - trained.watching_seconds
        seconds = time.monotonic() - self._began
        summary = {
            "eval/loss": loss,
            "eval/bits_per_byte": tuned.scores.bits_per_byte if tuned.scores else None,
            "base/eval_loss": base_loss,
            "base/eval_bits_per_byte": base.scores.bits_per_byte if base.scores else None,
            "base/eval_loss_untrained_template": base.untrained,
            "train/loss": losses[-1][1] if losses else None,
            "train/probe_loss": self._probe_loss,
            "gap": loss - self._probe_loss if loss is not None else None,
            "best_step": best[0],
            "best_eval_loss": best[1],
            "converged_at": verdict.converged_at(curve, limits.converged_within),
            "verdict": judged.name,
            "evidence": judged.evidence,
            "tokens_per_second": trained.tokens / training_seconds if trained.tokens else None,
            "watching_share": trained.watching_seconds / trained.seconds if trained.seconds > 0 else None,
            "steps": trained.steps,
            "epochs": self.record.events[-1].get("epoch") if self.record.events else None,
            "train_rows": len(data.train.rows),
            "train_tokens": self._tokens_before + trained.tokens,
            "eval_rows": len(data.held_out.rows),
            "train_seconds": trained.seconds,
            "seconds": seconds,
            **_by_source(data, base, tuned),
        }
        return summary | {"objective": summary[self.run.evaluation.objective]}

    def _score(self, model: Any, ready: Ready) -> heldout.Scores:
        return heldout.score(model, ready.tokens, ready.answer_bytes, batch_tokens=self.run.evaluation.batch_tokens)

    def _stored_scores(self, ready: Ready) -> heldout.Scores | None:
        if not len(ready.rows):
            return None

        def compute(folder: Path) -> None:
            scores = self._score(self._loaded_model(), ready)
            np.save(folder / "nats.npy", scores.nats)
            np.save(folder / "tokens.npy", scores.tokens)

        recipe = {"version": 1, "model": self._base_key(), "input": _content(ready.tokens)}
        path = self.bench.stage("base", recipe, compute).path
        return heldout.Scores(np.load(path / "nats.npy"), np.load(path / "tokens.npy"), ready.answer_bytes)

    def _stored_answers(self, template: Template, system: str | None) -> list[str]:
        def compute(folder: Path) -> None:
            write_json(folder / "answers.json", {"answers": self._answers(self._loaded_model(), template, system)})

        prompts = self._prompts(template, system)
        params = {"max_new_tokens": self.run.evaluation.max_new_tokens}
        recipe = {"version": 1, "params": params, "model": self._base_key(), "input": digest(prompts)}
        found: list[str] = read_json(self.bench.stage("base_answers", recipe, compute).path / "answers.json")["answers"]
        return found

    def _answers(self, model: Any, template: Template, system: str | None) -> list[str]:
        end = {template.bind(self.bench).end_of_turn_id, self.bench.tokenizer.eos_token_id}
        return samples.generate(
            model,
            self.bench.tokenizer,
            self._prompts(template, system),
            end_ids=sorted(end - {None}),
            max_new_tokens=self.run.evaluation.max_new_tokens,
        )

    def _prompts(self, template: Template, system: str | None) -> list[str]:
        renderer = template.bind(self.bench)
        head = [{"role": "system", "content": system}] if system else []
        return [renderer.prompt([*head, {"role": "user", "content": text}]) for text in self.run.evaluation.prompts]

    def _own_template(self) -> bool:
        """Whether the run's template is the one the model came with."""
        own = self.bench.tokenizer.chat_template
        return isinstance(self.run.template, Auto) or self.run.template.jinja(self.bench.tokenizer) == own

    def _held_out_as(self, data: Prepared, template: Template) -> Ready:
        work = Preparation(self.bench, self.run.trainer.max_length, loss_on_all=False)
        return work.held_out_as(template, data.held_out.rows)

    def _loaded_model(self) -> Any:
        if self._model is None:
            self._model = self.run.model.load(self.bench, self.run.seed, four_bit=self.run.trainer.four_bit)
            if torch.cuda.is_available() and not self.run.trainer.four_bit:  # those are there already
                self._model.to("cuda")
        return self._model

    def _base_key(self) -> str:
        held = ["nf4"] if self.run.trainer.four_bit else []
        return digest([self.run.model.key(self.bench, self.run.seed), self.run.model.dtype, *held])

    def _checkpoint(self) -> Path | None:
        return trl.last_checkpoint(self.folder.checkpoints)

    def _write_eval(self, base: Base, tuned: Measured) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, Any] = {"id": tuned.ids}
        for name, measured in (("base", base), ("tuned", tuned)):
            scores = measured.scores
            for part in ("nats", "tokens", "bytes"):
                by_id = dict(zip(measured.ids, getattr(scores, part).tolist(), strict=True)) if scores else {}
                columns[f"{name}/{'nll' if part == 'nats' else part}"] = [by_id.get(row_id) for row_id in tuned.ids]
        pq.write_table(pa.table(columns), self.folder.eval)

    def _write_samples(self, base: Base, tuned: Measured) -> None:
        import json

        lines = [json.dumps(row, ensure_ascii=False) for row in self._sample_rows(base, tuned)]
        write_text(self.folder.samples, "".join(f"{line}\n" for line in lines))

    def _sample_rows(self, base: Base, tuned: Measured) -> list[dict[str, str]]:
        answers = base.answers | tuned.answers
        return [
            {"prompt": prompt, **{name: found[index] for name, found in answers.items()}}
            for index, prompt in enumerate(self.run.evaluation.prompts)
        ]


def _by_source(data: Prepared, base: Base, tuned: Measured) -> dict[str, dict[str, dict[str, Any]]]:
    """Held-out loss of each source in a mixture, by the tuned and by the base model; nothing without a mixture."""
    source_of = dict(zip(data.sides.held_out_rows.column("id"), data.sides.held_out_rows.column("source"), strict=True))
    names = [name for name in dict.fromkeys(source_of.values()) if name]
    if not names or base.scores is None or tuned.scores is None:
        return {}

    def of(measured: Measured, name: str) -> heldout.Scores:
        assert measured.scores is not None
        return measured.scores.of(np.array([source_of[row_id] == name for row_id in measured.ids], bool))

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


def _content(tokens: datasets.Dataset) -> str:
    return digest([tokens["input_ids"][:], tokens["labels"][:]])
