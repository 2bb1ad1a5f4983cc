"""Files of conversations for a model to continue: JSON, or JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft_lab.core.characters import at_error, not_json, with_character_hint
from sft_lab.core.errors import UserError
from sft_lab.core.io import SMALL
from sft_lab.data.json_array import unique_fields
from sft_lab.data.messages import Unreadable, parsed_turns, read_messages, read_row_fields
from sft_lab.data.template_input import Conversation
from sft_lab.data.template_layout import CannotRender
from sft_lab.data.utf8 import not_utf8

_FORMS = "a JSON list of messages, or an object with messages and optional tools, or one of these per line"


def read_conversations(file: Path, name: str) -> dict[str, Conversation]:
    """Return the conversations in a file, a single one or one per line, by their names in messages.

    Args:
        file: to read.
        name: of the file in messages, with the option that names it.

    Raises:
        UserError: if one cannot be read or answered, naming the file and, if there are several, the line.
    """
    if not file.is_file() or file.stat().st_size > SMALL:
        kinds = {"a folder": file.is_dir(), "too large": file.is_file(), "a device or a pipe": file.exists()}
        problem = next((kind for kind, applies in kinds.items() if applies), "no such file")
        raise UserError(f"{name}: {problem}; give a file with {_FORMS}")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror}); give another file") from error
    except UnicodeDecodeError as error:
        raise not_utf8(name, error, is_file=True) from error
    if not text.strip():
        raise UserError(f"{name}: is empty; give {_FORMS}")
    return {at: _conversation(value, at) for at, value in _values(text, name)}


def _values(text: str, at: str) -> Iterator[tuple[str, Any]]:
    """Yield the JSON values in a text, a single one or one per line, each with its location."""
    try:
        yield at, _parsed(text)
    except ValueError as error:
        lines = [(f"{at}, line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) < 2 or not _is_json(lines[0][1]):
            problem = with_character_hint(f"{at}: not JSON ({error})", at_error(error))
            raise UserError(f"{problem}; give {_FORMS}") from error
    else:
        return
    for at_line, line in lines:
        try:
            value = _parsed(line)
        except ValueError as error:
            raise UserError(f"{at_line}: {not_json(error)}; fix the line") from error
        yield at_line, value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique_fields)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _is_json(text: str) -> bool:
    try:
        _parsed(text)
    except ValueError:
        return False
    return True


def _conversation(value: Any, at: str) -> Conversation:
    record = {"messages": value} if isinstance(value, list) else value
    if not isinstance(record, dict) or "messages" not in record:
        raise UserError(f"{at}: is neither a list of messages nor an object with messages; give {_FORMS}")
    try:
        messages = read_messages(parsed_turns(record["messages"]))
        conversation = Conversation.of(messages, **read_row_fields(record))
    except (Unreadable, CannotRender) as error:
        raise UserError(f"{at}: {error.cause or error.reason}; docs/data.md describes messages") from error
    if not messages:
        raise UserError(f"{at}: has no messages; give {_FORMS}")
    if messages[-1]["role"] not in ("user", "tool"):
        raise UserError(
            f"{at}: ends with a message from the {messages[-1]['role']}, so there is nothing to answer; end it with a "
            "user or tool message"
        )
    weightless = [{key: item for key, item in message.items() if key != "weight"} for message in conversation.messages]
    return Conversation(weightless, conversation.inputs)
