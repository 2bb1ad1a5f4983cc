"""Advice on what to try after a verdict: a sentence and an override to copy."""

from __future__ import annotations

from typing import Any

from sft_lab.core.types import Verdict

MAX_ECHOED_SHARE = 0.5  # of answers that only repeat the question, from which a healthy run is doubted
CLEARLY_LESS = 0.95  # of the tuned model's bits per byte


def advise(verdict: str, run: Any, summary: dict[str, Any] | None = None) -> dict[str, str] | None:
    """Return what to try next; None if there is nothing to try.

    A healthy run gets advice only if its summary gives a reason to doubt it.

    Args:
        verdict: of the run.
        run: the run that was judged.
        summary: its metrics, including those of its answers and of the prompted base model.
    """
    if verdict == Verdict.HEALTHY:
        reason = _reason_to_doubt(summary or {})
        suggestion = (reason, _train_for(2, run.trainer)) if reason else None
    else:
        suggestion = _suggestions(run).get(verdict)
    return {"says": suggestion[0], "override": suggestion[1]} if suggestion else None


def _suggestions(run: Any) -> dict[str, tuple[str, str]]:
    """Return the sentence and the override for each verdict."""
    trainer = run.trainer
    keep_best = f"trainer.load_best_model_at_end=true trainer.save_steps={trainer.eval_steps:.15g}"
    longer = _train_for(2, trainer)
    has_held_out = getattr(run.split, "eval_share", 1) != 0
    has_own_template = run.choices.get("template") == "auto"

    return {
        Verdict.OVERFITTING: (
            "Train for fewer steps, or bring more varied data, and keep the best weights.",
            f"{_train_for(0.5, trainer)} {keep_best}",
        ),
        Verdict.UNDERFITTING: (
            "Raise the learning rate; if that does not help, look at the data, or take a larger model.",
            f"trainer.learning_rate={10 * trainer.learning_rate:g}",
        ),
        Verdict.MEMORIZING: (
            "Train for fewer epochs, remove near copies, and bring more varied rows.",
            _train_for(0.25, trainer),
        ),
        Verdict.DIVERGED: ("Lower the learning rate.", f"trainer.learning_rate={trainer.learning_rate / 10:g}"),
        Verdict.UNDERTRAINED: ("Train longer: held-out loss was still falling.", longer),
        Verdict.TEMPLATE_NOT_LEARNED: (
            "Look at what the template writes after an answer, and at outputs.jsonl.",
            longer if has_own_template else "template=auto",
        ),
        Verdict.NOT_JUDGED: (
            ("Measure the held-out loss at least three times during training.", "trainer.eval_steps=0.2")
            if has_held_out
            else ("Hold rows out, so that there is something to judge by.", "split.eval_share=0.1")
        ),
    }


def _train_for(factor: float, trainer: Any) -> str:
    """Return the override that trains ``factor`` times as long."""
    if trainer.max_steps > 0:
        return f"trainer.max_steps={max(1, round(factor * trainer.max_steps))}"
    return f"trainer.num_train_epochs={factor * trainer.num_train_epochs:g}"


def _reason_to_doubt(summary: dict[str, Any]) -> str:
    """Return why a healthy run may still be useless; empty if nothing suggests it."""
    echoed = summary.get("outputs/echoed_share") or 0.0
    if echoed >= MAX_ECHOED_SHARE:
        return (
            f"{echoed:.0%} of its answers only repeat the question: it has learned too little to answer; train longer."
        )

    tuned, prompted = summary.get("eval/bits_per_byte"), summary.get("prompted/eval_bits_per_byte")
    if tuned is not None and prompted is not None and prompted <= tuned:
        state = "better" if prompted < CLEARLY_LESS * tuned else "as good"
        return (
            f"The base model with a prompt is {state} ({prompted:.4f} bits per byte, tuned {tuned:.4f}): a prompt may "
            "do; else train longer or on more rows."
        )
    return ""
