"""Characters that get into typed text by mistake: invisible ones, and those that look like a sign of a grammar."""

from __future__ import annotations

import re
import unicodedata
from json import JSONDecodeError

# By the sign that is meant. Word, Telegram and the like replace quotes and hyphens as they are typed.
_MEANT = {
    wrong: sign
    for sign, group in {
        ",": "،，",
        ".": "٫",
        "=": "＝",
        "-": "‐‑‒–—―−",
        '"': "“”„‟″",
        "'": "‘’‚‛′",
        " ": "\xa0",
    }.items()
    for wrong in group
}
_DASHES = "".join(wrong for wrong, sign in _MEANT.items() if sign == "-")
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


def meant_option(text: str) -> str:
    """Return what to type for an option whose hyphens became dashes: ``–m`` and ``—base``; empty for other texts."""
    match = re.fullmatch(rf"-?([{_DASHES}])[-{_DASHES}]?([A-Za-z][\w-]*(?:=.*)?)", text, re.DOTALL)
    if match is None:
        return ""
    dash, option = match.groups()
    hyphens = "-" if len(option.partition("=")[0]) <= 2 else "--"  # -m, -cn
    return f"{dash} {code_of(dash)} is a dash, not a hyphen; type {hyphens}{option}"


def not_json(error: Exception) -> str:
    """Return why a text is not JSON, with the position in it, and the character there if it was hardly meant.

    The caller names the line, so that the line within the text, always the first, would be a second number.
    """
    if not isinstance(error, JSONDecodeError):
        return f"not JSON ({error})"
    reason = f"{error.msg.removesuffix(' starting at')} at character {error.pos + 1}"
    return with_character_hint(f"not JSON ({reason})", at_error(error))


def at_error(error: Exception) -> str:
    """Return the character at which a text is not JSON; empty for errors without a position."""
    return error.doc[error.pos : error.pos + 1] if isinstance(error, JSONDecodeError) else ""


def with_character_hint(message: str, text: str) -> str:
    """Return a message, followed by the hint at a character of a text that was hardly meant, if there is one."""
    hint = character_hint(text)
    return f"{message}; {hint}" if hint else message
