"""JSON arrays, read one record at a time: a file of gigabytes does not fit into memory as Python objects."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

from sft_lab.core.characters import at_error, with_character_hint
from sft_lab.core.errors import SourceError
from sft_lab.data.utf8 import not_utf8

_CHUNK = 2**20  # bytes
_SPACE = re.compile(r"[ \t\r\n]*")


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a JSON object.

    Raises:
        ValueError: if two have the same name; only the last one could be read.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        duplicates = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise ValueError(f"more than one field named {', '.join(duplicates)}")
    return fields


def read_array(name: str, stream: IO[bytes], max_record_mb: float) -> Iterator[dict[str, Any] | SourceError | None]:
    """Yield the records of a JSON array, None for a value that is not an object, and an error where it is broken.

    Args:
        name: of the file, for messages.
        stream: its content.
        max_record_mb: the longest record allowed, in Mi characters.
    """
    text = _Text(stream, int(max_record_mb * 2**20))
    try:
        opening = text.next_character()
        if opening == "[":
            yield from _elements(text)
        elif not opening:
            yield SourceError(f"{name}: is empty; a .json file must be a list of records")
        else:
            value = text.value()
            text.expect("")
            yield SourceError(f"{name}: must be a list of records, not a {type(value).__name__}; make it a list")
    except UnicodeDecodeError as error:
        is_ascii = error.object[: error.start].isascii()
        yield not_utf8(f"{name}, line {text.line_of(error)}", error, is_file=is_ascii, has_position=False)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        problem = with_character_hint(f"{name}, line {text.line_of(error)}: not JSON ({reason})", at_error(error))
        yield SourceError(f"{problem}; fix it, or name the file .jsonl if it has one object per line")


def _elements(text: _Text) -> Iterator[dict[str, Any] | None]:
    text.expect("[")
    if text.next_character() != "]":
        while True:
            value = text.value()
            yield value if isinstance(value, dict) else None
            if text.next_character() != ",":
                break
            text.expect(",")
    text.expect("]")
    text.expect("")


class _Text:
    """The text of a stream; only the part being decoded is in memory.

    Attributes:
        line: the number of the line at which that part begins, from 1.
    """

    def __init__(self, stream: IO[bytes], max_length: int) -> None:
        self._stream, self._utf8 = stream, codecs.getincrementaldecoder("utf-8-sig")()
        self._decoder = json.JSONDecoder(object_pairs_hook=unique_fields)
        self._max_length = max_length
        self._text, self._position, self.line = "", 0, 1

    def next_character(self) -> str:
        """Return the next character that is not white space without consuming it; empty at the end."""
        while True:
            space = _SPACE.match(self._text, self._position)
            assert space is not None
            self._position = space.end()
            if self._position < len(self._text) or not self._read_more():
                return self._text[self._position : self._position + 1]

    def expect(self, character: str) -> None:
        """Consume a character; empty: expect the end.

        Raises:
            JSONDecodeError: if another character is next.
        """
        if self.next_character() != character:
            message = f"{character} expected" if character else "extra data"
            raise json.JSONDecodeError(message, self._text, self._position)
        self._position += len(character)

    def value(self) -> Any:
        """Return the next value, decoded.

        Raises:
            ValueError: if it is not JSON, or too long.
            RecursionError: if it is nested too deep.
        """
        self.next_character()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:  # broken, or not complete yet
                if len(self._text) - self._position > self._max_length:
                    limit = f"dataset.max_record_mb={self._max_length / 2**20:g}"
                    raise json.JSONDecodeError(f"{error.msg}, or longer than {limit}", error.doc, error.pos) from error
                if not self._read_more():
                    raise
                continue
            if end < len(self._text) or not self._read_more():  # or else a number may continue
                self._position = end
                return value

    def line_of(self, error: Exception) -> int:
        """Return the number of the line at which an error was raised."""
        if isinstance(error, UnicodeDecodeError):  # in the bytes about to be appended
            return self.line + self._text.count("\n") + error.object.count(b"\n", 0, error.start)
        end = error.pos if isinstance(error, json.JSONDecodeError) else self._position
        return self.line + self._text.count("\n", 0, end)

    def _read_more(self) -> bool:
        """Drop the text that was consumed and append at least as much as is left; return false at the stream's end."""
        while not (chunk := self._utf8.decode(data := self._read(), final=not data)):
            if not data:
                return False
        self.line += self._text.count("\n", 0, self._position)
        self._text, self._position = self._text[self._position :] + chunk, 0
        return True

    def _read(self) -> bytes:
        return self._stream.read(max(_CHUNK, len(self._text) - self._position))
