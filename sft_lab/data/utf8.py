"""Text that is not UTF-8: which encoding it may have, and how to convert it."""

from __future__ import annotations

import codecs

from sft_lab.core.errors import SourceError


class OtherEncoding(SourceError):
    """Nothing shows that a file is UTF-8 at all, so leaving out its broken parts may leave next to nothing."""


def not_utf8(location: str, error: UnicodeDecodeError, *, is_file: bool, has_position: bool = True) -> SourceError:
    """Return the error for text that is not UTF-8, with the command that converts it.

    Args:
        location: file, and line if known.
        error: of decoding.
        is_file: whether the file as a whole may have another encoding; else it is UTF-8 except for this part.
        has_position: whether the error's position is one in the line or file.
    """
    if problem := utf16_problem(location, error.object):
        return problem
    kind = OtherEncoding if is_file else SourceError
    position = f", byte {error.start + 1}" if has_position else ""
    return kind(
        f"{location}: not UTF-8 ({error.reason}{position}); save it as UTF-8, or convert it from its encoding, for "
        "Arabic perhaps `iconv -f windows-1256 -t utf-8 FILE > NEW`"
    )


def utf16_problem(location: str, beginning: bytes) -> OtherEncoding | None:
    """Return the error for a text in UTF-16, None if it does not begin like one."""
    if encoding := _utf16_of(beginning):
        remedy = f"convert it with `iconv -f {encoding} -t utf-8 FILE > NEW`"
        return OtherEncoding(f"{location}: is UTF-16, which Excel and Notepad can write; {remedy}")
    return None


def _utf16_of(data: bytes) -> str:
    """Return the name of the UTF-16 encoding in which a text begins; empty if it begins in none."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for first, encoding in enumerate(("utf-16be", "utf-16le")):
        # ASCII, such as commas and quotes, has a zero in every other byte; binary data has some anywhere.
        if 0 in data[first::2] and 0 not in data[1 - first :: 2]:
            text = data.decode(encoding, "ignore").replace("\t", " ").strip()
            return encoding if text.isprintable() else ""
    return ""
