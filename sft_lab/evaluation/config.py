"""Evaluation options: what is measured beside training."""

from __future__ import annotations

from dataclasses import dataclass, field

from sft_lab.core.errors import require
from sft_lab.core.packages import missing_package, package_path, saved_path
from sft_lab.evaluation.verdict import Limits

MOST_NEW_TOKENS = 131_072  # of an answer: no model is made to write longer ones


@dataclass
class Baseline:
    """How the base model is prompted to do without tuning: would a good prompt have been enough?

    Attributes:
        system_prompt: what it is told; null: nothing.
        examples: training rows shown to it as earlier turns.
    """

    system_prompt: str | None = "Answer correctly and briefly."
    examples: int = 2

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require(self.examples >= 0, "examples", self.examples, "at least 0")


@dataclass
class Evaluation:
    """What is measured, and where the verdict's rules cut.

    Attributes:
        objective: the summary key a sweep compares jobs by; lower is better.
        prompts: answered by base, prompted base and tuned model.
        outputs: held-out prompts that base and tuned model answer too, those with the shortest answers.
        max_new_tokens: of one answer.
        samples_every: optimizer steps between answers to the prompts during training; 0: none.
        watch_probe: measure the training probe, too, at each held-out measurement.
        baseline: the prompted base model.
        domain: a file of your own questions with expected answers; null: none.
        general: a file of general questions, whose loss before and after shows what was forgotten; null: none.
        batch_tokens: tokens of a held-out batch, padding included.
    """

    objective: str = "eval/bits_per_byte"
    prompts: list[str] = field(default_factory=list)
    outputs: int = 8
    max_new_tokens: int = 64
    samples_every: int = 0
    watch_probe: bool = True
    baseline: Baseline = field(default_factory=Baseline)
    domain: str | None = None
    general: str | None = None
    batch_tokens: int = field(default=4096, metadata={"changes_result": False})
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Refuse impossible values; make paths absolute, so that a saved config runs from any folder."""
        require(self.outputs >= 0, "outputs", self.outputs, "at least 0")
        length = 1 <= self.max_new_tokens <= MOST_NEW_TOKENS
        require(length, "max_new_tokens", self.max_new_tokens, f"from 1 to {MOST_NEW_TOKENS:,}")
        require(self.samples_every >= 0, "samples_every", self.samples_every, "at least 0 (optimizer steps; 0: none)")
        require(self.batch_tokens >= 1, "batch_tokens", self.batch_tokens, "at least 1")
        require(self.objective in OBJECTIVES, "objective", self.objective, f"one of {', '.join(OBJECTIVES)}")
        asked = self.objective.partition("/")[0]
        require(
            asked not in ("general", "domain") or asked in self.sets(),
            "objective",
            self.objective,
            f"of a set that is asked; give evaluation.{asked}=FILE",
        )
        for name, path in self.sets().items():
            setattr(self, name, saved_path(path))

    def sets(self) -> dict[str, str]:
        """Give the files of questions that are asked, by name."""
        return {name: path for name in ("general", "domain") if (path := getattr(self, name)) is not None}

    def check(self) -> list[str]:
        """The files of questions are there."""
        problems = []
        for name, path in self.sets().items():
            if missing := missing_package(path):
                problems.append(f"evaluation.{name}={path}: {missing}")
            elif not package_path(path).is_file():
                problems.append(f"evaluation.{name}={path}: no such file; give questions with answers, or null")
        return problems


OBJECTIVES = (
    "eval/bits_per_byte", "eval/loss", "best_eval_loss", "train/loss", "train/probe_loss", "gap",
    "general/loss", "domain/loss",
)  # fmt: skip
