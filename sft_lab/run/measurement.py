"""What was measured of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sft_lab.evaluation.answers import contains_expected
from sft_lab.evaluation.heldout import Scores
from sft_lab.run.questions import Output


@dataclass(frozen=True)
class Measurement:
    """What was measured of a model.

    Attributes:
        ids: of the held-out rows.
        held_out: their scores, None without any.
        prompts: the fixed prompts.
        answers: to them: of ``tuned``, of ``base`` and of ``prompted_base``.
        calls: in these answers, for a reader; empty lists where there are no tools.
        outputs: answers to some held-out prompts.
        numbers: what goes into the summary.
    """

    ids: list[str]
    held_out: Scores | None
    prompts: list[str]
    answers: dict[str, list[str]]
    calls: dict[str, list[str]]
    outputs: list[Output]
    numbers: dict[str, Any]


@dataclass(frozen=True)
class BaseMeasurement(Measurement):
    """The base model, measured under its own template, or ``plain`` where the run's is new to it.

    Attributes:
        untrained: its held-out scores under the run's template.
        prompted: the same with a system prompt and examples before each row.
    """

    untrained: Scores | None = None
    prompted: Scores | None = None


def held_out_numbers(held_out: Scores | None, probe: Scores) -> dict[str, Any]:
    """Return the numbers of the summary that come from scores."""
    numbers: dict[str, Any] = {}
    if held_out is not None:
        numbers["eval/recalled_share"] = held_out.recalled_share
    numbers["train/recalled_share"] = probe.recalled_share
    if held_out is not None:
        numbers |= {
            "eval/loss": held_out.loss,
            "eval/bits_per_byte": held_out.bits_per_byte,
            "eval/token_accuracy": held_out.accuracy,
            "eval/stop_probability": held_out.stop_probability,
            "eval/foreign_probability": held_out.foreign_probability,
        }
    return {**numbers, "train/probe_loss": probe.loss}


def domain_numbers(outputs: list[Output]) -> dict[str, float]:
    """Return the share of the domain questions that are answered with what was expected."""
    if not outputs:
        return {}
    right = sum(contains_expected(output.answer.text, output.reference) for output in outputs)
    return {"domain/right_share": right / len(outputs)}
