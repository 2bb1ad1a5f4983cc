"""Warnings beside a verdict: it judges the loss curve, and a run may be healthy by that and still be useless."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sft_lab.core.io import is_number

PROMPTED_IS_BETTER = "prompted/is_better"  # its key in summary.json and in W&B
MAX_ECHOED_SHARE = 0.5  # of answers that only repeat the question


class VerdictWarning(NamedTuple):
    """A warning in a few words, for a table, and as a sentence."""

    short: str
    sentence: str


def warnings_beside(summary: Mapping[str, Any]) -> list[VerdictWarning]:
    """Return the warnings that belong beside a run's verdict, judged by the numbers in its summary."""
    warnings = []
    if prompted_is_better(summary):
        prompted, tuned = summary["prompted/eval_bits_per_byte"], summary["eval/bits_per_byte"]
        sentence = (
            f"The prompted base model is better than the tuned one: {prompted:.4f} against {tuned:.4f} bits per byte."
        )
        warnings.append(VerdictWarning("prompted base model is better", sentence))
    if answers_repeat_the_question(summary):
        sentence = f"{summary['outputs/echoed_share']:.0%} of the tuned model's answers only repeat the question."
        warnings.append(VerdictWarning("answers repeat the question", sentence))
    return warnings


def prompted_is_better(summary: Mapping[str, Any]) -> bool | None:
    """Return whether the prompted base model has fewer bits per byte than the tuned one; None if either is unknown."""
    tuned, prompted = summary.get("eval/bits_per_byte"), summary.get("prompted/eval_bits_per_byte")
    return prompted < tuned if is_number(tuned) and is_number(prompted) else None


def answers_repeat_the_question(summary: Mapping[str, Any]) -> bool:
    """Return whether many of the tuned model's answers are nothing but the question again."""
    share = summary.get("outputs/echoed_share")
    return is_number(share) and share >= MAX_ECHOED_SHARE


def verdict_with_warnings(summary: Mapping[str, Any]) -> str:
    """Return the verdict of a summary with its warnings in a few words; empty without a verdict."""
    verdict = summary.get("verdict")
    return "; ".join([str(verdict), *(warning.short for warning in warnings_beside(summary))]) if verdict else ""
