"""Advice on what to try after a verdict: a sentence and an override to copy."""

from __future__ import annotations

from typing import Any

from sft_lab.core.types import Verdict
from sft_lab.core.verdict_warnings import answers_repeat_the_question, prompted_is_better

FEW_STEPS = 30  # by which a learning rate is not judged; chosen, not measured


def advise(verdict: str, run: Any, summary: dict[str, Any] | None = None) -> dict[str, str] | None:
    """Return what to try next; None if there is nothing to try.

    A healthy run gets advice only if there is a warning beside its verdict.

    Args:
        verdict: of the run.
        run: the run that was judged.
        summary: its metrics, including those of its answers and of the prompted base model.
    """
    if verdict == Verdict.HEALTHY:
        sentence = _despite_warnings(summary or {})
        suggestion = (sentence, _train_for(2, run.trainer)) if sentence else None
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

    underfitting = (
        "Raise the learning rate; if that does not help, check the data or use a larger model.",
        f"trainer.learning_rate={10 * trainer.learning_rate:g}",
    )
    if 0 < trainer.max_steps < FEW_STEPS:
        underfitting = ("Train longer: so few steps say little about the learning rate.", longer)

    not_judged = ("Measure the held-out loss at least three times during training.", "trainer.eval_steps=0.2")
    if run.choices.get("trainer") == "smoke":
        not_judged = ("A smoke run is too short to be judged: train for real.", "trainer=lora")
    elif not has_held_out:
        not_judged = ("Hold out rows, so that the run can be judged.", "split.eval_share=0.1")

    return {
        Verdict.OVERFITTING: (
            "Train for fewer steps or on more varied data, and keep the best weights.",
            f"{_train_for(0.5, trainer)} {keep_best}",
        ),
        Verdict.UNDERFITTING: underfitting,
        Verdict.MEMORIZING: (
            "Train for fewer epochs, remove near-duplicates, and add more varied rows.",
            _train_for(0.25, trainer),
        ),
        Verdict.DIVERGED: ("Lower the learning rate.", f"trainer.learning_rate={trainer.learning_rate / 10:g}"),
        Verdict.UNDERTRAINED: ("Train longer: held-out loss was still falling.", longer),
        Verdict.TEMPLATE_NOT_LEARNED: (
            "Check what the template writes after an answer, and read outputs.jsonl.",
            longer if has_own_template else "template=auto",
        ),
        Verdict.NOT_JUDGED: not_judged,
    }


def _train_for(factor: float, trainer: Any) -> str:
    """Return the override that trains ``factor`` times as long."""
    if trainer.max_steps > 0:
        return f"trainer.max_steps={max(1, round(factor * trainer.max_steps))}"
    return f"trainer.num_train_epochs={factor * trainer.num_train_epochs:g}"


def _despite_warnings(summary: dict[str, Any]) -> str:
    """Return what to do about a healthy run with a warning; empty without one."""
    if answers_repeat_the_question(summary):
        return "It has learned too little to answer: train longer, or choose a larger model."
    if prompted_is_better(summary):
        return "A prompt may be enough; if not, train longer or on more rows."
    return ""
