"""Messages, made from turns in their many forms, with tool calls, thoughts and weights.

A message is a dict of ``role``, ``content`` and, optionally, ``name``, ``tool_calls``, ``tool_call_id``,
``reasoning_content`` and ``weight``. Tool calls and schemas are JSON text, since an Arrow struct would give
every tool the fields of all others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, Literal

from sft_lab.core.text import one_line

Message = dict[str, Any]
# Why a record does not become a row; docs/data.md says what each means.
RecordReason = Literal[
    "unreadable", "not_text", "nan_for_text", "bad_tool_call", "bad_tools", "bad_answer", "empty", "no_answer",
    "begins_with_assistant", "consecutive_turns",
]  # fmt: skip

ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "function_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),  # an assistant turn whose text is the call
    "system": "system",
    "developer": "developer",
}
SYSTEM_ROLES = ("system", "developer")
ROLE_KEYS = ("from", "role", "user")
TEXT_KEYS = ("value", "text", "content")
THOUGHT_KEYS = ("reasoning_content", "thinking")
NAMED_KEYS = 4  # of a turn without a role, in the cause
_TEXT_PARTS = ("text", "input_text", "output_text")


class Unreadable(Exception):
    """A record does not have the format.

    Attributes:
        reason: why the row is dropped.
        cause: the details.
    """

    def __init__(self, cause: str, reason: RecordReason = "unreadable") -> None:
        super().__init__(cause)
        self.reason: RecordReason = reason
        self.cause = cause


class Watched(dict[str, Any]):
    """A record, or a turn in it, that records which of its fields were read."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self._read: set[str] = set()
        self._turns: dict[str, list[Watched]] = {}

    def __getitem__(self, key: str) -> Any:
        self._read.add(key)
        value = super().__getitem__(key)
        if isinstance(value, list) and any(type(item) is dict for item in value):
            value = [Watched(item) if type(item) is dict else item for item in value]
            self[key] = value  # for the next access
            self._turns[key] = [item for item in value if isinstance(item, Watched)]
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field's value as ``[]`` does."""
        return self[key] if key in self else default  # noqa: SIM401 - get is defined by []

    def take(self, key: str) -> Any:
        """Return a field's value as it is; everything in it counts as read."""
        if key not in self:
            return None
        self._read.add(key)
        return super().__getitem__(key)

    def unread(self) -> set[str]:
        """Return the non-empty fields that were never read; those of turns as ``messages[].name``."""
        fields = set[str]()
        if len(self._read) < len(self):
            fields = {key for key in self.keys() - self._read if self._is_filled(super(Watched, self).get(key))}
        for key, turns in self._turns.items():
            fields.update(f"{key}[].{name}" for turn in turns for name in turn.unread())
        return fields

    @staticmethod
    def _is_filled(value: Any) -> bool:
        return value not in (None, "", [], {})


def first_given(record: dict[str, Any], keys: Iterable[str]) -> Any:
    """Return the first value under ``keys`` that is not None, with which tables fill missing fields."""
    for key in keys:
        if (value := record.get(key)) is not None:
            return value
    return None


def _taken(fields: dict[str, Any], key: str) -> Any:
    return fields.take(key) if isinstance(fields, Watched) else fields.get(key)


def is_silent(message: Message) -> bool:
    """Return whether a message is an assistant turn with nothing that a model could learn to write."""
    if message["content"] and not message["content"].isspace():
        return False
    return message["role"] == "assistant" and not message.keys() & {"tool_calls", "reasoning_content"}


def read_messages(turns: Any) -> list[Message]:
    """Return the messages of a list of turns; empty for None."""
    if turns is None:
        return []
    if not isinstance(turns, list):
        raise Unreadable(f"a conversation is {_kind(turns)}, not a list of turns")
    return [_message(turn) for turn in turns]


def _message(turn: Any) -> Message:
    if isinstance(turn, str):
        turn = parsed_json(turn, "a turn")
    if not isinstance(turn, dict):
        raise Unreadable(f"a turn is {_kind(turn)}, not an object with role and content")
    name = first_given(turn, ROLE_KEYS)
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        keys = ", ".join(map(_shortened, list(turn)[:NAMED_KEYS])) or "no keys"
        raise Unreadable(f"a turn with {keys} has no role" if name is None else f"unknown role {_shortened(name)}")
    content = first_given(turn, TEXT_KEYS)
    if role == "call":
        message: Message = {"role": "assistant", "content": ""}
        if content is not None:
            message["tool_calls"] = _calls(parsed_json(content, "a function-call turn", "bad_tool_call"))
    else:
        message = {"role": role, "content": read_text(content)}
    if len(turn) > 2 or content is None:
        message |= _extras(turn)
    if role == "call" and "tool_calls" not in message:
        raise Unreadable("a function-call turn has no call", "bad_tool_call")
    return message


def _extras(turn: dict[str, Any]) -> Message:
    """Return the optional fields of a message."""
    extras: Message = {}
    for key in ("name", "tool_call_id"):
        if turn.get(key) not in (None, ""):
            extras[key] = without_surrogates(str(turn[key]))
    if calls := _taken(turn, "tool_calls") or _taken(turn, "function_call"):
        extras["tool_calls"] = _calls(parsed_json(calls, "tool_calls", "bad_tool_call"))
    if thought := read_text(first_given(turn, THOUGHT_KEYS)):
        extras["reasoning_content"] = thought
    weights = [_weight(key, turn[key]) for key in ("train", "weight") if turn.get(key) is not None]
    if weights:
        extras["weight"] = weights[-1] if all(weights) else 0.0
    return extras


def _weight(key: str, value: Any) -> float:
    """Return a turn's weight; ``train`` may be true or false."""
    if not isinstance(value, int | float) or not (0 <= value < math.inf):
        raise Unreadable(f"{key} is {_shortened(value)}, not a number of at least 0")
    return float(value)


def _calls(calls: Any) -> str:
    """Return tool calls as JSON text, in OpenAI's form."""
    return _json_text([_call(call) for call in (calls if isinstance(calls, list) else [calls])], "a tool call")


def _call(call: Any) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise Unreadable(f"a tool call is {_kind(call)}, not an object", "bad_tool_call")
    call = dict(without_nulls(call))
    function = call.pop("function", None)
    if function is None:  # its fields are not nested
        function = {key: call.pop(key) for key in ("name", "arguments", "parameters") if key in call}
    if isinstance(function, dict) and "parameters" in function:  # Llama 3's name for the arguments
        function = {"arguments": function["parameters"], **function}
        del function["parameters"]
    if not isinstance(function, dict) or not (isinstance(function.get("name"), str) and function["name"].strip()):
        raise Unreadable("a tool call names no function", "bad_tool_call")
    arguments = function.get("arguments") or {}
    parsed = parsed_json(arguments, "the arguments of a tool call", "bad_tool_call")
    if not isinstance(parsed, dict):
        raise Unreadable(f"the arguments of a tool call are {_kind(parsed)}, not an object", "bad_tool_call")
    return {"type": "function", **call, "function": {**function, "arguments": arguments}}


def read_row_fields(record: dict[str, Any], tools_column: str = "tools") -> dict[str, str]:
    """Return a record's other inputs for the template, such as tools, as JSON text by column of the table."""
    fields = {}
    if tools := _taken(record, tools_column):
        schemas = parsed_json(tools, "tools", "bad_tools")
        schemas = schemas if isinstance(schemas, list) else [schemas]
        if schemas:
            fields["tools"] = _json_text([_schema(schema) for schema in schemas], "tools")
    if kwargs := _taken(record, "chat_template_kwargs"):
        kwargs = parsed_json(kwargs, "chat_template_kwargs")
        if not isinstance(kwargs, dict):
            raise Unreadable(f"chat_template_kwargs is {_kind(kwargs)}, not an object")
        fields["template_kwargs"] = _json_text(without_nulls(kwargs), "chat_template_kwargs")
    documents = dict.get(record, "documents")  # counts as read only below, if it is a template's list of objects
    if isinstance(documents, list) and documents and all(isinstance(document, dict) for document in documents):
        fields["documents"] = _json_text(without_nulls(_taken(record, "documents")), "documents")
    return fields


def refuse_bad_answer(record: dict[str, Any]) -> None:
    """Refuse a row whose answer is marked as a bad example."""
    for key in ("label", "kto_tag"):
        value = dict.get(record, key)  # counts as read only below: other values are another kind of label
        if value is None or str(value).strip().lower() not in ("true", "false"):
            continue
        if str(_taken(record, key)).strip().lower() == "false":
            raise Unreadable(f"{key} is false: its answer is a bad example", "bad_answer")


def _schema(schema: Any) -> Any:
    schema = parsed_json(schema, "a tool", "bad_tools")
    if not isinstance(schema, dict):
        raise Unreadable(f"a tool is {_kind(schema)}, not a JSON schema", "bad_tools")
    schema = without_nulls(schema)
    function = schema.get("function", schema)
    if not isinstance(function, dict) or not (isinstance(function.get("name"), str) and function["name"].strip()):
        raise Unreadable("a tool has no name", "bad_tools")
    if not isinstance(function.get("parameters", {}), dict):
        raise Unreadable("a tool's parameters are not a JSON schema", "bad_tools")
    return schema


def without_nulls(value: Any) -> Any:
    """Return plain data without null fields: an Arrow struct gives each tool the fields of all others, as nulls."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def parsed_json(value: Any, owner: str, reason: RecordReason = "unreadable") -> Any:
    """Return the value of a JSON text; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise Unreadable(f"{owner}: not JSON ({_shortened(value)})", reason) from None


def _json_text(value: Any, owner: str) -> str:
    try:
        return without_surrogates(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError):  # a date of a Parquet file, NaN
        raise Unreadable(f"{owner}: contains a value that JSON cannot represent") from None


def parsed_turns(value: Any) -> Any:
    """Return a conversation as a list of turns, also from the forms of some exports: JSON text, or lists by field."""
    if isinstance(value, str):
        value = parsed_json(value, "a conversation")
    if isinstance(value, dict):
        value = _from_columns(value)
    return value


def _from_columns(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the turns in a mapping of equally long lists, the form in which ``datasets`` may write a list of dicts."""
    lists = list(columns.values())
    if not all(isinstance(values, list) for values in lists) or len({len(values) for values in lists}) > 1:
        raise Unreadable("a conversation is a mapping of lists that differ in length")
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def read_text(value: Any) -> str:
    """Return a text, an empty one for None, or joined chat parts of type text; refuse anything else."""
    if isinstance(value, str):
        return without_surrogates(value)
    if value is None:
        return ""
    if isinstance(value, list):
        return "\n".join(map(_part, value))
    if isinstance(value, float) and math.isnan(value):
        raise Unreadable("NaN where text belongs", "nan_for_text")
    raise Unreadable(f"{_kind(value)} where text belongs")


def _part(part: Any) -> str:
    if not isinstance(part, dict):
        raise Unreadable(f"content is a list with {_kind(part)} in it, not only parts of type text")
    if part.get("type") not in _TEXT_PARTS:
        raise Unreadable(f"content has a part of type {_shortened(part.get('type'))}", "not_text")
    if not isinstance(part.get("text"), str):
        raise Unreadable("a part of type text has no text")
    return without_surrogates(part["text"])


def without_surrogates(text: str) -> str:
    """Replace lone surrogates, left by broken JSON escapes, which neither tokenizers nor Arrow tables accept."""
    return text.encode("utf-8", "replace").decode("utf-8")


_KINDS = {
    "NoneType": "null", "bool": "true or false", "int": "a number", "float": "a number", "str": "text",
    "list": "a list", "dict": "an object", "Watched": "an object",
}  # fmt: skip


def _kind(value: Any) -> str:
    name = type(value).__name__
    return _KINDS.get(name, name)


def _shortened(value: Any) -> str:
    return one_line(repr(value), 40)
