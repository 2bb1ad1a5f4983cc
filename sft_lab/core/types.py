"""Types and constants that several packages share."""

from __future__ import annotations

from enum import StrEnum

Curve = list[tuple[float, float]]  # (step or epoch, value); NaN where the value is not a finite number

IGNORED = -100  # the label of a token that is neither trained nor scored: PyTorch's cross entropy leaves it out

# The fields of a stored message by their Arrow types; all but the first two are null where they are not given.
MESSAGE = {
    "role": "string",
    "content": "string",
    "name": "string",
    "tool_calls": "string",  # JSON text: the schemas of different tools do not fit into one column
    "tool_call_id": "string",
    "reasoning_content": "string",
    "weight": "float32",
}
# The columns of what a template is given beside the messages: JSON text, null where not given.
TEMPLATE_INPUTS = ("tools", "template_kwargs", "documents")


class RunState(StrEnum):
    """How far the work in a run folder came, as ``status.json`` has it."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    PRUNED = "pruned"  # ended by a search, in which others were better at the same place


class Work(StrEnum):
    """What is done in a run folder: a whole run, or preparing its data alone; ``data``: for a training that follows.

    ``evaluate``: benchmarks on the weights of a finished run.
    """

    RUN = "run"
    PREPARE = "prepare"
    DATA = "data"
    EVALUATE = "evaluate"


class Verdict(StrEnum):
    """The judgement of a run, as ``summary.json`` has it; ``evaluation/verdict.py`` has the rules."""

    HEALTHY = "healthy"
    UNDERTRAINED = "undertrained"
    OVERFITTING = "overfitting"
    UNDERFITTING = "underfitting"
    MEMORIZING = "memorizing"
    TEMPLATE_NOT_LEARNED = "template_not_learned"
    DIVERGED = "diverged"
    NOT_JUDGED = "not_judged"
