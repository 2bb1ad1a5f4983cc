"""Properties of texts: normal form, script, control tokens. Nothing here changes what a data set holds."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from enum import Enum
from functools import cache

# Arabic: tatweel and the short-vowel marks carry no letters, and the alef forms are written interchangeably.
_ARABIC_MARKS = re.compile("[\u0640\u0610-\u061a\u064b-\u065f\u0670]")
_ALEF_FORMS = str.maketrans({"\u0622": "\u0627", "\u0623": "\u0627", "\u0625": "\u0627", "\u0671": "\u0627"})

# How model families mark the ends of turns and texts. A model that spells one out as ordinary text has not learned its
# template.
CONTROL_TOKENS = (
    "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<|eot_id|>", "<|end_of_text|>",
    "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|assistant|>", "<|user|>", "<｜end▁of▁sentence｜>",
)  # fmt: skip


# A reader does not see these: control characters, zero-width ones, and those that turn the direction of a text.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


class On(Enum):
    """Which text of a row is judged or compared; ``both``: prompt and answer as one text, in this order."""

    answer = "answer"
    prompt = "prompt"
    both = "both"


def normalize(text: str) -> str:
    """Return the form by which texts are compared.

    Unicode NFKC, case folded, white space collapsed; in Arabic also without tatweel and vowel marks, and with one
    form of alef.
    """
    # NFKC comes first, so that a letter and its hamza mark become one letter, and again last, since what was on both
    # sides of a removed mark, or comes from case folding, may compose.
    bare = _ARABIC_MARKS.sub("", unicodedata.normalize("NFKC", text)).translate(_ALEF_FORMS)
    return " ".join(unicodedata.normalize("NFKC", bare.casefold()).split())


def content_group(prompt: str, answer: str) -> str:
    """Return the name of the group of rows with this content."""
    content = normalize(f"{prompt}\n{answer}")
    return f"content:{hashlib.sha256(content.encode()).hexdigest()}"


def scripts(text: str) -> dict[str, float]:
    """Return the share of each script among a text's letters (``{"LATIN": 0.9, "GREEK": 0.1}``); empty without any."""
    letters: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if script := _script(character):
            letters[script] += count
    total = sum(letters.values())
    return {script: count / total for script, count in letters.most_common()}


@cache
def _script(character: str) -> str:
    """Return the first word of a letter's Unicode name, which is its script for all common scripts; else empty."""
    if not character.isalpha():
        return ""
    return unicodedata.name(character, "UNKNOWN").split()[0].removesuffix("-1")


def visible(text: str) -> str:
    r"""Return a text with the characters that cannot be seen spelled out, such as ``\x1b`` and ``\u202e``."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8: the name of a file may not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def one_line(text: object, limit: int) -> str:
    """Return a text, such as an error of a library, on one line and cut to so many characters."""
    return " ".join(str(text).split())[:limit]


def count_of(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural unless it is one."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
