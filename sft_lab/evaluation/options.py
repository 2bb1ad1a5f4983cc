"""Evaluation options: what is measured beside training."""

from __future__ import annotations

from dataclasses import dataclass, field

from sft_lab.errors import require
from sft_lab.evaluation.verdict import Limits


@dataclass
class Evaluation:
    """What is measured, and where the verdict's rules cut.

    Attributes:
        objective: the summary key a sweep compares jobs by; lower is better.
        prompts: answered by base, prompted base and tuned model.
        system_prompt: what the prompted base model is told.
        max_new_tokens: of one sample answer.
        batch_tokens: tokens of a held-out batch, padding included.
    """

    objective: str = "eval/bits_per_byte"
    prompts: list[str] = field(default_factory=list)
    system_prompt: str = "Answer correctly and briefly."
    max_new_tokens: int = 64
    batch_tokens: int = field(default=4096, metadata={"changes_result": False})
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1")
        require(self.batch_tokens >= 1, "batch_tokens", self.batch_tokens, "at least 1")
        require(self.objective in OBJECTIVES, "objective", self.objective, f"one of {', '.join(OBJECTIVES)}")


OBJECTIVES = (
    "eval/bits_per_byte", "eval/loss", "best_eval_loss", "train/loss", "train/probe_loss", "gap",
)  # fmt: skip
