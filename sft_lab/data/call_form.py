"""How a template writes tool calls, learned by rendering two of them, and parsing calls in a model's answer."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sft_lab.data.messages import Message
from sft_lab.data.template_input import arguments_as_text
from sft_lab.data.template_layout import CannotRender, Rendered

if TYPE_CHECKING:
    from sft_lab.data.renderer import Renderer

Call = tuple[str, dict[str, Any]]  # the function's name, and its arguments

_ID = "abcdefghi"  # nine characters, as Mistral's templates require
_NAMES = ("alpha", "gamma")
_NAME = r'([^\s"<>{}\[\]]+)'
_MAX_CALLS = 100  # in an answer


@dataclass(frozen=True)
class CallForm:
    """The text that a template writes around the names and arguments of calls.

    Attributes:
        opening: before the first name.
        following: before each further name.
        between: between a name and its arguments.
        closing: after the arguments.
        end: the token that ends a turn with calls.
    """

    opening: str
    following: str
    between: str
    closing: str
    end: str

    @classmethod
    def of(cls, renderer: Renderer) -> CallForm | None:
        """Return a template's form; None if it writes no calls, or writes arguments in another form than JSON."""
        end = renderer.call_style[0]
        if (first := _written(renderer, 1)) is None or (pieces := _around(first, 1)) is None:
            return None
        opening, between, behind = pieces
        opening = opening.rpartition("</think>")[2]
        following, closing = opening, behind.partition(end)[0]
        if (both := _written(renderer, 2)) and (pieces := _around(both, 2)):
            _, middle, behind = pieces
            common = _common_start(opening[::-1], middle[::-1])[::-1]
            following = common if common.strip() else opening
            closing = _common_start(middle, behind.partition(end)[0])
        return cls(opening, following, between, closing, end)

    def parse(self, text: str) -> list[Call]:
        """Return the calls in an answer; none if any of them is not written as the template writes it.

        Args:
            text: of the answer, including control tokens.
        """
        text = text.rpartition("</think>")[2]
        calls: list[Call] = []
        opening, position = _pattern(self.opening, _NAME, self.between), 0
        while (match := opening.search(text, position)) and len(calls) < _MAX_CALLS:
            try:
                arguments, position = json.JSONDecoder().raw_decode(text, match.end())
            except (ValueError, RecursionError):
                return []
            closed = _pattern("", self.closing).match(text, position)
            if not isinstance(arguments, dict) or not closed:
                return []
            calls.append((match[1], arguments))
            opening, position = _pattern(self.following, _NAME, self.between), closed.end()
        return [] if _pattern(self.following).search(text, position) else calls


def _written(renderer: Renderer, count: int) -> str | None:
    """Return a turn with ``count`` calls as the template writes it; None if it cannot."""
    calls = [
        {"id": _ID, "type": "function", "function": {"name": name, "arguments": {f"{name}_key": "value"}}}
        for name in _NAMES[:count]
    ]
    tools = [
        {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}}
        for name in _NAMES
    ]
    turn: Message = {"role": "assistant", "content": "", "tool_calls": calls}
    if renderer.call_style[1]:
        turn = arguments_as_text(turn)
    messages = [{"role": "user", "content": "a"}, turn]
    try:
        rendered, turns, _ = renderer.turns(messages, {"tools": tools}, [1])
        return _trained(rendered if turns else renderer.last_turn(messages, {"tools": tools}))
    except CannotRender:
        return None


def _trained(rendered: Rendered) -> str:
    start, end = rendered.spans[0]
    return rendered.text[start:end]


def _around(text: str, count: int) -> tuple[str, str, str] | None:
    """Return the text around calls.

    For one call: before its name, between name and arguments, after the arguments. For two calls: before the first
    name, between the first arguments and the second name, after the second arguments.
    """
    ends = [0]
    pieces: list[str] = []
    for name in _NAMES[:count]:
        key = text.find(f'"{name}_key"')
        start = text.rfind("{", 0, key)
        at = text.rfind(name, ends[-1], max(start, 0))
        try:
            _, end = json.JSONDecoder().raw_decode(text, start if key >= 0 else len(text))
        except ValueError:
            return None
        if at < 0:
            return None
        pieces += [text[ends[-1] : at], text[at + len(name) : start]]
        ends.append(end)
    opening, between = pieces[:2] if count == 1 else (pieces[0], pieces[2])
    return opening, between, text[ends[-1] :]


def _common_start(left: str, right: str) -> str:
    return "".join(
        pair[0] for pair in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))
    )


def _pattern(*pieces: str) -> re.Pattern[str]:
    """Return a pattern of pieces of text that allows for other white space and another call id."""
    return re.compile("".join(rf"{piece if piece == _NAME else _flexible(piece)}\s*" for piece in pieces))


def _flexible(text: str) -> str:
    return r"\s*".join(map(re.escape, text.split())).replace(_ID, r"[\w-]*")
