"""The summary of a run: its numbers, the verdict with its evidence, and what to try next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sft_lab.core.verdict_warnings import PROMPTED_IS_BETTER, prompted_is_better
from sft_lab.evaluation import verdict
from sft_lab.evaluation.advice import advise

if TYPE_CHECKING:
    from sft_lab.data.preparation import Prepared
    from sft_lab.evaluation.heldout import Scores
    from sft_lab.run.config import Run
    from sft_lab.run.measurement import BaseMeasurement, Measurement
    from sft_lab.tracking.record import Record, Unwritten
    from sft_lab.training.train import Trained

# Null where there are no held-out rows.
HELD_OUT_KEYS = ("eval/loss", "eval/bits_per_byte", "base/eval_loss", "base/eval_bits_per_byte")


def summarize(
    run: Run,
    data: Prepared,
    record: Record | Unwritten,
    base: BaseMeasurement,
    trained: Trained,
    tuned: Measurement,
    *,
    tokens_before: int,
    measuring_seconds: float,
    seconds: float,
) -> dict[str, Any]:
    """Return the content of ``summary.json``.

    Args:
        run: its limits and its objective.
        data: the rows it trained on.
        record: of its training.
        base: what was measured of the base model.
        trained: what training did.
        tuned: what was measured of the trained model.
        tokens_before: trained on before the checkpoint that training went on from.
        measuring_seconds: before and after training.
        seconds: of all the run.
    """
    limits = run.evaluation.limits
    curve = [point for point in record.curve("eval/loss") if point[0] > 0]
    losses = record.curve("train/loss")
    judged = _judge(run, record, base, tuned)
    best_step, best_loss = min(curve, key=lambda point: point[1], default=(None, None))
    loss = tuned.numbers.get("eval/loss")
    training_seconds = trained.seconds - trained.watching_seconds
    prompted = prompted_numbers(base)
    summary = {
        **dict.fromkeys(HELD_OUT_KEYS),
        **tuned.numbers,
        **{f"base/{name.replace('/', '_')}": value for name, value in base.numbers.items()},
        **prompted,
        **({PROMPTED_IS_BETTER: prompted_is_better(tuned.numbers | prompted)} if prompted else {}),
        "base/eval_loss_untrained_template": base.untrained.loss if base.untrained else None,
        "train/loss": losses[-1][1] if losses else None,
        "gap": loss - tuned.numbers["train/probe_loss"] if loss is not None else None,
        "best_step": best_step,
        "best_eval_loss": best_loss,
        "converged_at": verdict.converged_at(curve, limits.converged_within),
        "verdict": judged.name,
        "evidence": judged.evidence,
        "advice": advise(judged.name, run, tuned.numbers | prompted),
        "tokens_per_second": trained.tokens / training_seconds if trained.tokens else None,
        "watching_share": trained.watching_seconds / trained.seconds if trained.seconds > 0 else None,
        "steps": trained.steps,
        "epochs": trained.epochs,
        "train_rows": len(data.train.rows),
        "train_tokens": tokens_before + trained.tokens,
        "eval_rows": len(data.held_out.rows),
        "train_seconds": trained.seconds,
        "measuring_seconds": measuring_seconds,
        "seconds": seconds,
        **_by_source(data, base, tuned),
    }
    return summary | {"objective": summary[run.evaluation.objective]}


def _judge(run: Run, record: Record | Unwritten, base: BaseMeasurement, tuned: Measurement) -> verdict.Judgment:
    values = [value for event in record.events for name, value in event.items() if name != "step"]
    observed = verdict.Observed(
        [point for point in record.curve("eval/loss") if point[0] > 0],
        record.curve("train/loss"),
        base.numbers,
        tuned.numbers,
        record.curve("train/learning_rate"),
        all_finite=bool(np.isfinite(values).all()),
    )
    return verdict.judge(observed, run.evaluation.limits)


def prompted_numbers(base: BaseMeasurement) -> dict[str, float]:
    """Return what the prompted base model reached, where no held-out row was too long with the examples."""
    if base.prompted is None or len(base.prompted.nats) != len(base.ids) or not base.ids:
        return {}
    return {"prompted/eval_loss": base.prompted.loss, "prompted/eval_bits_per_byte": base.prompted.bits_per_byte}


def _by_source(data: Prepared, base: BaseMeasurement, tuned: Measurement) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the held-out loss of each source in a mixture, of both models; nothing without a mixture."""
    rows = data.sides.held_out_rows
    source_of = dict(zip(rows.column("id"), rows.column("source"), strict=True))
    names = [name for name in dict.fromkeys(source_of.values()) if name]
    if not names or base.held_out is None or tuned.held_out is None:
        return {}

    def scores_of(measured: Measurement, name: str) -> Scores:
        assert measured.held_out is not None
        return measured.held_out.of(np.array([source_of[row_id] == name for row_id in measured.ids], bool))

    sources = {}
    for name in names:
        before, after = scores_of(base, name), scores_of(tuned, name)
        sources[name] = {
            "eval/loss": after.loss,
            "base/eval_loss": before.loss,
            "eval_rows": len(after.tokens),
            "eval_tokens": int(after.tokens.sum()),
        }
    return {"sources": sources}
