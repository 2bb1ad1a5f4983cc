"""The filter for rows in given languages."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sft_lab.core.bounds import bounded
from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError
from sft_lab.core.text import On
from sft_lab.data.filters import Filter
from sft_lab.data.languages import LANGUAGE_NAMES, languages_of

if TYPE_CHECKING:
    from sft_lab.core.rows import Rows
    from sft_lab.core.selection import Selection


@dataclass
class Language(Filter):
    """Drop rows in a language that is not in ``keep``.

    Prompt and answer are judged together, by the language of most of their text: an Arabic answer to a short English
    request makes an Arabic row.
    """

    keep: list[str] = bounded([], holds=bool, limit="a list of language codes, as in [ar] or [ar,en]")
    on: On = On.both
    min_confidence: float = bounded(0.3, at_least=0, at_most=1)

    def __post_init__(self) -> None:
        """Refuse codes that the detector does not know."""
        super().__post_init__()
        for code in self.keep:
            if code not in LANGUAGE_NAMES:
                raise ConfigError(f"keep={code}: unknown language code; {_nearest(code)}")

    def select(self, rows: Rows, context: StageContext) -> Selection:
        """Reasons: ``language_unclear``, ``other_language``; score: confidence."""
        import numpy as np

        from sft_lab.core.selection import Selection

        codes, confidences = languages_of(rows, context, self.on)
        is_unclear = np.array([not code for code in codes], bool) | (confidences < self.min_confidence)
        is_other = np.array([code not in self.keep for code in codes], bool)
        reasons = np.select([is_unclear, is_other], ["language_unclear", "other_language"], "")
        return Selection.of(rows, reasons.tolist(), confidences)


def _nearest(wanted: str) -> str:
    """Return a hint at the code that was probably meant, from a language's name, a region suffix or a typing error."""
    code_of = {name.casefold(): code for code, name in LANGUAGE_NAMES.items()} | {code: code for code in LANGUAGE_NAMES}
    name = wanted.casefold()
    near = difflib.get_close_matches(name, [known for known in code_of if len(known) > 3], n=1, cutoff=0.7)
    code = code_of.get(name) or code_of.get(name.split("-")[0].split("_")[0]) or (code_of[near[0]] if near else None)
    if code:
        return f"did you mean {code} ({LANGUAGE_NAMES[code]})?"
    return f"give a two-letter code: {', '.join(sorted(c for c in LANGUAGE_NAMES if len(c) == 2)[:8])}, ..."
