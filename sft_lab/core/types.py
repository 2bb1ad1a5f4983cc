"""Types and constants that several packages share."""

from __future__ import annotations

from enum import StrEnum

Curve = list[tuple[float, float]]  # (step or epoch, value); NaN where the value is not a finite number

IGNORED = -100  # the label of a token that is neither trained nor scored: PyTorch's cross entropy leaves it out

# The fields of a stored message and their Arrow types; all but the first two may be null.
MESSAGE = {
    "role": "string",
    "content": "string",
    "name": "string",
    "tool_calls": "string",  # JSON text: the schemas of different tools do not fit into one column
    "tool_call_id": "string",
    "reasoning_content": "string",
    "weight": "float32",
}
# The columns of a template's inputs besides the messages: JSON text or null.
TEMPLATE_INPUTS = ("tools", "template_kwargs", "documents")


class RunState(StrEnum):
    """The state of the work in a run folder, as in ``status.json``."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    PRUNED = "pruned"  # ended by a search because others were better at the same point of training


class Work(StrEnum):
    """The work done in a run folder.

    ``run``: a whole run. ``prepare``: its data alone. ``data``: its data, for a training that follows. ``evaluate``:
    benchmarks of a finished run's weights.
    """

    RUN = "run"
    PREPARE = "prepare"
    DATA = "data"
    EVALUATE = "evaluate"


class Verdict(StrEnum):
    """The verdict on a run, as in ``summary.json``; its rules are in ``evaluation/verdict.py``."""

    HEALTHY = "healthy"
    UNDERTRAINED = "undertrained"
    OVERFITTING = "overfitting"
    UNDERFITTING = "underfitting"
    MEMORIZING = "memorizing"
    TEMPLATE_NOT_LEARNED = "template_not_learned"
    DIVERGED = "diverged"
    NOT_JUDGED = "not_judged"
