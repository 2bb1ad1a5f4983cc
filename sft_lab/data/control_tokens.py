"""Control tokens in the text of messages: each gets a mark inside, so that it is encoded as ordinary text."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from sft_lab.data.messages import Message
from sft_lab.data.template_layout import PRIVATE_USE, CannotRender, Rendered


def refuse_missing(messages: list[Message], text: str) -> None:
    """Refuse a text in which the content, the thought or a call of a message is missing."""
    for message in messages:
        content = message["content"].strip()
        # Some templates write a tool's result as JSON.
        if content not in text and not (message["role"] == "tool" and _is_written(content, text)):
            raise CannotRender("message_not_rendered")
        if message.get("reasoning_content", "").strip() not in text:
            raise CannotRender("thought_not_rendered")
        for call in message.get("tool_calls", []):
            if not all(_is_written(value, text) for value in _leaves(call["function"])):
                raise CannotRender("tool_call_not_rendered")


def refuse_missing_tools(inputs: dict[str, Any], text: str) -> None:
    """Refuse a text in which a tool is missing."""
    for tool in inputs.get("tools", []):
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str):
            raise CannotRender("tools_unreadable")
        if name not in text:
            raise CannotRender("tools_not_rendered", f"the template does not write the tool {name}")


def _leaves(value: Any) -> Iterator[Any]:
    """Yield the texts, numbers and booleans in plain data."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _is_written(value: Any, text: str) -> bool:
    """Return whether a text contains a value, as it is or as JSON."""
    if str(value) in text:
        return True
    return any(json.dumps(value, ensure_ascii=ascii_only).strip('"') in text for ascii_only in (False, True))


def unused_characters(messages: list[Message], inputs: dict[str, Any] | None) -> tuple[str, str]:
    """Return two characters that do not occur in a conversation, not even as JSON escapes."""
    text = "".join(message["content"] for message in messages)
    if inputs or any(len(message) > 2 for message in messages):
        text = json.dumps([messages, inputs], ensure_ascii=False)
    used = set(text)
    private_use = itertools.chain(PRIVATE_USE, map(chr, range(0xF0000, 0xFFFFE)))
    unused = (character for character in private_use if character not in used and escaped(character) not in text)
    mark, blank = itertools.islice(unused, 2)
    return mark, blank


def escaped(character: str) -> str:
    """Return a character as ASCII-only JSON writes it."""
    return json.dumps(character)[1:-1]


def marked_values(value: Any, control: re.Pattern[str] | None, mark: str) -> Any:
    """Return plain data with ``mark`` inside every control token in its texts."""
    if isinstance(value, str):
        return control.sub(rf"\g<0>{mark}", value) if control else value
    if isinstance(value, dict):
        return {marked_values(key, control, mark): marked_values(item, control, mark) for key, item in value.items()}
    if isinstance(value, list):
        return [marked_values(item, control, mark) for item in value]
    return value


def control_pattern(tokens: set[str]) -> re.Pattern[str] | None:
    """Return a pattern for the first character of every control token, overlapping ones too; the mark follows it."""
    longer = sorted(token for token in tokens if len(token) > 1)  # a single character cannot be split
    return re.compile(f"(?={'|'.join(map(re.escape, longer))}).", re.DOTALL) if longer else None


def unmarked(text: str, spans: list[tuple[int, int]], mark: str) -> Rendered:
    """Return a text without its marks, whose positions become cuts."""
    cuts = [match.start() - earlier for earlier, match in enumerate(re.finditer(mark, text))]

    def moved(position: int) -> int:
        return position - text.count(mark, 0, position)

    return Rendered(text.replace(mark, ""), [(moved(start), moved(end)) for start, end in spans], cuts)
