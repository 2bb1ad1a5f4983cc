"""The filter by length in tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sft_lab.core.bounds import bounded
from sft_lab.core.context import StageContext
from sft_lab.core.errors import require
from sft_lab.data.filters import Filter

if TYPE_CHECKING:
    from sft_lab.core.rows import Rows
    from sft_lab.core.selection import Selection


@dataclass
class Length(Filter):
    """Drop rows by the number of tokens in prompt and answer, by the model's tokenizer, without template tokens."""

    max_tokens: int = bounded(1024, at_least=1)
    min_tokens: int = 0
    min_answer_tokens: int = 0

    def __post_init__(self) -> None:
        """Refuse lower limits above the upper one."""
        super().__post_init__()
        for name in ("min_tokens", "min_answer_tokens"):
            tokens = getattr(self, name)
            require(0 <= tokens <= self.max_tokens, name, tokens, f"from 0 to max_tokens={self.max_tokens}")

    def depends_on(self, context: StageContext) -> dict[str, Any]:
        """Return the tokenizer's key."""
        return {"tokenizer": context.tokenizer_key}

    def select(self, rows: Rows, context: StageContext) -> Selection:
        """Reasons: ``over_max_tokens``, ``under_min_tokens``, ``under_min_answer_tokens``; score: tokens."""
        import numpy as np

        from sft_lab.core.selection import Selection

        counts = context.token_counts(rows)
        total = counts.sum(axis=1)
        reasons = np.select(
            [total > self.max_tokens, total < self.min_tokens, counts[:, 1] < self.min_answer_tokens],
            ["over_max_tokens", "under_min_tokens", "under_min_answer_tokens"],
            "",
        )
        return Selection.of(rows, reasons.tolist(), total)
