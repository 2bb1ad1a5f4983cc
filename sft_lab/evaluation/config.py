"""The options of evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from sft_lab.core.bounds import Bounded, bounded
from sft_lab.core.errors import ConfigError
from sft_lab.core.packages import missing_package, saved_path
from sft_lab.core.remote import missing_file
from sft_lab.evaluation.verdict import Limits

MOST_NEW_TOKENS = 131_072  # of an answer: no model is made for longer ones
OBJECTIVES = (
    "eval/bits_per_byte",
    "eval/loss",
    "best_eval_loss",
    "train/loss",
    "train/probe_loss",
    "gap",
    "general/loss",
    "domain/loss",
)


@dataclass
class Baseline(Bounded):
    """The prompted base model: would a good prompt have been enough, without tuning?

    Attributes:
        system_prompt: its system prompt; null: none.
        examples: the number of training rows that it sees as earlier turns.
    """

    system_prompt: str | None = "Answer correctly and briefly."
    examples: int = bounded(2, at_least=0)


@dataclass
class Evaluation(Bounded):
    """What is measured, and the limits of the verdict.

    Attributes:
        objective: the summary key by which jobs of a sweep are compared; lower is better.
        prompts: answered by the base, the prompted base and the tuned model; null: the first three short ones of the
            held-out rows, unless there are messages.
        messages: a file of conversations for them to continue, in the form of ``sft-lab generate --messages``.
        outputs: the number of held-out prompts that the base and the tuned model answer as well, those with the
            shortest reference answers.
        max_new_tokens: in an answer.
        samples_every: optimizer steps between answers to the prompts during training; 0: none.
        watch_probe: measure a sample of the training rows as well at each held-out measurement.
        baseline: the prompted base model.
        domain: a file of your own questions with expected answers; null: none.
        general: a file of general questions, whose loss before and after training shows forgetting; null: none.
        batch_tokens: in a held-out batch, padding included.
    """

    objective: str = bounded("eval/bits_per_byte", choices=OBJECTIVES)
    prompts: list[str] | None = None
    messages: str | None = bounded(None, added=True)
    outputs: int = bounded(8, at_least=0)
    max_new_tokens: int = bounded(40, at_least=1, at_most=MOST_NEW_TOKENS)
    samples_every: int = bounded(0, at_least=0, limit="at least 0 (optimizer steps; 0: none)")
    watch_probe: bool = True
    baseline: Baseline = field(default_factory=Baseline)
    domain: str | None = None
    general: str | None = "package:sft_lab/evaluation/general.jsonl"
    batch_tokens: int = bounded(4096, at_least=1, changes_result=False)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Refuse an objective without its file; make paths absolute, so that a saved config runs from any folder."""
        super().__post_init__()

        name = self.objective.partition("/")[0]
        if name in ("general", "domain") and name not in self.sets():
            raise ConfigError(f"objective={self.objective}: needs a question file; set evaluation.{name}=FILE")

        for name, path in self.files().items():
            setattr(self, name, saved_path(path))

    def sets(self) -> dict[str, str]:
        """Return the question files that are set, by name."""
        return {name: path for name in ("general", "domain") if (path := getattr(self, name)) is not None}

    def files(self) -> dict[str, str]:
        """Return all files that are set, by name."""
        return self.sets() | ({"messages": self.messages} if self.messages is not None else {})

    def check(self) -> list[str]:
        """Return an error for each file that is missing."""
        problems = []
        for name, path in self.files().items():
            content = "conversations" if name == "messages" else "questions with answers"
            if problem := missing_package(path):
                problems.append(f"evaluation.{name}={path}: {problem}")
            elif problem := missing_file(path):
                problems.append(f"evaluation.{name}={path}: {problem}; give {content}, or null")
        return problems
