"""The filter for rows with a question and an answer."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sft_lab.core.bounds import bounded
from sft_lab.core.context import StageContext
from sft_lab.data.conversation import answers_of
from sft_lab.data.filters import Filter

if TYPE_CHECKING:
    from sft_lab.core.rows import Rows
    from sft_lab.core.selection import Selection


@dataclass
class Answered(Filter):
    """Drop rows whose prompt or answer is blank or shorter than the limits, in characters without surrounding space.

    In a conversation with several answers, the shortest one that is not empty counts, whichever train. A blank text has
    only white space and Unicode's format characters (category Cf: zero-width space, byte order mark, direction marks).
    """

    version: ClassVar[int] = 3

    min_prompt_chars: int = bounded(1, at_least=1)
    min_answer_chars: int = bounded(1, at_least=1)

    def select(self, rows: Rows, context: StageContext) -> Selection:  # noqa: ARG002
        """Reasons: ``empty_prompt``, ``short_prompt``, ``empty_answer``, ``short_answer``; score: characters."""
        from sft_lab.core.selection import Selection

        reasons, scores = [], []
        columns = rows.batches("prompt", "answer", "messages")
        for prompt, answer, messages in (row for batch in columns for row in zip(*batch, strict=True)):
            prompt_size, answer_size = _size(prompt), min(map(_size, answers_of(messages) or [answer]))
            if prompt_size < self.min_prompt_chars and messages:
                reasons.append("short_prompt" if prompt_size else "empty_prompt")
                scores.append(float(prompt_size))
            elif answer_size < self.min_answer_chars:
                reasons.append("short_answer" if answer_size else "empty_answer")
                scores.append(float(answer_size))
            else:
                reasons.append("")
                scores.append(float(answer_size))
        return Selection.of(rows, reasons, scores)


def _size(text: str) -> int:
    """Return the number of characters without surrounding space; 0 for a blank text."""
    blank = all(character.isspace() or unicodedata.category(character) == "Cf" for character in text)
    return 0 if blank else len(text.strip())
