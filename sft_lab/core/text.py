"""Properties of texts: normal form, script, control tokens. Nothing here changes a data set."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from enum import Enum
from functools import cache

# Arabic: tatweel and short-vowel marks are not letters, and the forms of alef are used interchangeably.
_ARABIC_MARKS = re.compile("[\u0640\u0610-\u061a\u064b-\u065f\u0670]")
_ALEF_FORMS = str.maketrans({"\u0622": "\u0627", "\u0623": "\u0627", "\u0625": "\u0627", "\u0671": "\u0627"})

# The tokens with which model families mark turns and ends of text. A model that writes one out as ordinary text has not
# learned its template.
CONTROL_TOKENS = (
    "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<|eot_id|>", "<|end_of_text|>",
    "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|assistant|>", "<|user|>", "<｜end▁of▁sentence｜>",
)  # fmt: skip


# Invisible to a reader: control characters, zero-width characters, and those that change the direction of text.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


class On(Enum):
    """Which text of a row is judged or compared; ``both``: the prompt followed by the answer."""

    answer = "answer"
    prompt = "prompt"
    both = "both"


def normalize(text: str) -> str:
    """Return the form in which texts are compared.

    Unicode NFKC, case-folded, white space collapsed; in Arabic also without tatweel and vowel marks, and with one
    form of alef.
    """
    # NFKC comes first, so that a letter and its hamza mark become one letter, and again last, since characters around a
    # removed mark, or from case folding, may compose.
    bare = _ARABIC_MARKS.sub("", unicodedata.normalize("NFKC", text)).translate(_ALEF_FORMS)
    return " ".join(unicodedata.normalize("NFKC", bare.casefold()).split())


def content_group(prompt: str, answer: str) -> str:
    """Return the name of the group of all rows with this content."""
    content = normalize(f"{prompt}\n{answer}")
    return f"content:{hashlib.sha256(content.encode()).hexdigest()}"


def scripts(text: str) -> dict[str, float]:
    """Return each script's share of a text's letters, largest first: ``{"LATIN": 0.9, "GREEK": 0.1}``."""
    letters: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if script := _script(character):
            letters[script] += count
    total = sum(letters.values())
    return {script: count / total for script, count in letters.most_common()}


@cache
def _script(character: str) -> str:
    """Return a letter's script, the first word of its Unicode name; empty for what is not a letter."""
    if not character.isalpha():
        return ""
    return unicodedata.name(character, "UNKNOWN").split()[0].removesuffix("-1")


def visible(text: str) -> str:
    r"""Return a text with invisible characters as escapes, such as ``\x1b`` and ``\u202e``."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8; the name of a file may not be."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def one_line(text: object, limit: int) -> str:
    """Return a text, such as a library's error, on one line of at most ``limit`` characters."""
    return " ".join(str(text).split())[:limit]


def count_of(count: int, noun: str) -> str:
    """Return a count and its noun, in the plural unless the count is 1."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
