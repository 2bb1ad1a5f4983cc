"""The filter by regular expressions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sft_lab.core.bounds import bounded
from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError, SourceError, require
from sft_lab.core.log import log
from sft_lab.core.text import On
from sft_lab.data.filters import Filter

if TYPE_CHECKING:
    from sft_lab.core.rows import Rows
    from sft_lab.core.selection import Selection


@dataclass
class Pattern(Filter):
    """Keep rows that match a pattern in ``keep`` (all rows, if it is empty) and none in ``drop``.

    Patterns are those of Python's ``re``, matched by the library ``regex``, which has a time limit: some patterns take
    exponential time on some texts.
    """

    keep: list[str] = field(default_factory=list)
    drop: list[str] = field(default_factory=list)
    on: On = On.both
    ignore_case: bool = True
    time_limit: float = bounded(10.0, above=0, limit="above 0 (seconds)", changes_result=False)

    def __post_init__(self) -> None:
        """Refuse empty lists and invalid patterns."""
        super().__post_init__()
        if not self.keep and not self.drop:
            raise ConfigError(
                "keep=[] and drop=[]: give a regular expression in one of them, or leave pattern out of filter"
            )
        self._compiled("keep")
        self._compiled("drop")

    def _compiled(self, name: str) -> dict[str, Any]:
        """Return the compiled patterns of a list by their key, such as ``drop[0]``."""
        import regex

        compiled = {}
        for number, pattern in enumerate(getattr(self, name)):
            require(bool(pattern), f"{name}[{number}]", repr(pattern), "a regular expression; an empty one matches all")
            try:
                compiled[f"{name}[{number}]"] = regex.compile(pattern, regex.IGNORECASE if self.ignore_case else 0)
            except regex.error as error:
                raise ConfigError(
                    f"{name}[{number}]={pattern!r}: not a regular expression ({error}); put a backslash before a "
                    "character to match it literally"
                ) from error
        return compiled

    def select(self, rows: Rows, context: StageContext) -> Selection:  # noqa: ARG002
        """Reasons: ``no_pattern_matches``, ``pattern_matches``; score: the index of the first pattern that matched."""
        import numpy as np

        from sft_lab.core.selection import Selection

        keep, drop = self._compiled("keep"), self._compiled("drop")
        reasons, scores = [], []
        matched: Counter[str] = Counter()
        texts = (text for batch in rows.text_batches(self.on) for text in batch)
        for row_id, text in zip(rows.ids, texts, strict=True):
            wanted = self._first(keep, text, row_id)
            unwanted = self._first(drop, text, row_id) if wanted or not keep else None
            match = unwanted or wanted
            reasons.append("pattern_matches" if unwanted else "" if wanted or not keep else "no_pattern_matches")
            scores.append(float(list(drop if unwanted else keep).index(match)) if match else np.nan)
            matched.update([match] if match else [])
        for key, pattern in (keep | drop).items():
            log.info("pattern: %s=%r decided %d of %d rows", key, pattern.pattern, matched[key], len(rows))
        return Selection.of(rows, reasons, scores)

    def _first(self, patterns: dict[str, Any], text: str, row_id: str) -> str | None:
        """Return the key of the first pattern that matches; None if none does.

        Raises:
            SourceError: if a pattern takes longer than ``time_limit`` on this text.
        """
        for key, pattern in patterns.items():
            try:
                if pattern.search(text, timeout=self.time_limit):
                    return key
            except TimeoutError as error:
                raise SourceError(
                    f"pattern: {key}={pattern.pattern!r} took more than time_limit={self.time_limit:g} s on row "
                    f"{row_id} ({len(text)} characters); rewrite it without ambiguous repetition as in (a|aa)+, or "
                    "raise time_limit"
                ) from error
        return None
