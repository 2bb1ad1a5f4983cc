"""Characters that get into an override by mistake: invisible ones, and those that look like a sign of its grammar."""

from __future__ import annotations

import unicodedata

_MEANT = dict(zip("،，٫＝–—−“”„‘’\xa0", ',,.=---"""\'\' ', strict=True))
_JOINERS = "\u200c\u200d"  # belong to the spelling of Persian and of Indian languages


def character_hint(text: str) -> str:
    """Return which character of a text was hardly meant, with its code, and what to type; empty if there is none."""
    for character in text:
        name = code_of(character)
        if meant := _MEANT.get(character):
            sign = {" ": "a space", ".": "a point"}.get(meant, meant)
            return f"it contains {character} {name}; type {sign} instead"
        if unicodedata.category(character) == "Cf" and character not in _JOINERS:
            return f"it contains an invisible character {name}; delete it, or retype the text"
    return ""


def code_of(character: str) -> str:
    """Return a character's code and name: ``(U+060C ARABIC COMMA)``."""
    return f"(U+{ord(character):04X} {unicodedata.name(character, 'without a name')})"
