"""Row formats: how a raw record becomes turns.

Each reader takes one raw record (a dict) and answers its turns as ``(role, text)`` with the roles ``system``,
``user`` and ``assistant``, or raises ``Unreadable``. A row of plain text is one turn of the role ``text``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

from sft_lab.core.errors import SourceError

Turn = tuple[str, str]
Reader = Callable[[dict[str, Any]], list[Turn]]

ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    "system": "system",
}
ROLE_KEYS = ("from", "role", "user")
TEXT_KEYS = ("value", "text", "content")
CONVERSATION_KEYS = ("messages", "conversations", "conversation")
PROMPT_COLUMNS = ("prompt", "question", "instruction")
TEXT = "text"  # the role of a row that is no conversation


class Format(Enum):
    """Row formats by their names in the config."""

    auto = "auto"
    sharegpt = "sharegpt"
    messages = "messages"
    alpaca = "alpaca"
    prompt_completion = "prompt_completion"
    question_answer = "question_answer"
    preference = "preference"
    text = "text"


class Unreadable(Exception):
    """This record is not of the format.

    Attributes:
        reason: of the dropped row.
    """

    def __init__(self, reason: str = "unreadable") -> None:
        super().__init__(reason)
        self.reason = reason


class Watched(dict[str, Any]):
    """A record, or a turn of one, that remembers which of its fields a reader looked at."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self._read: set[str] = set()
        self._turns: dict[str, list[Watched]] = {}

    def __getitem__(self, key: str) -> Any:
        self._read.add(key)
        value = super().__getitem__(key)
        if isinstance(value, list) and any(type(item) is dict for item in value):
            value = [Watched(item) if type(item) is dict else item for item in value]
            self[key] = value  # readers ask for a field more than once
            self._turns[key] = [item for item in value if isinstance(item, Watched)]
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field's value as ``[]`` does."""
        return self[key] if key in self else default  # noqa: SIM401 - get is defined by []

    def unread(self) -> set[str]:
        """Return the fields that hold something and were not looked at; those of turns as ``messages[].name``."""
        fields = {key for key in self.keys() - self._read if self._holds_something(super(Watched, self).get(key))}
        turns = ((key, turn) for key, turns in self._turns.items() for turn in turns)
        return fields.union(*({f"{key}[].{name}" for name in turn.unread()} for key, turn in turns))

    @staticmethod
    def _holds_something(value: Any) -> bool:
        return value not in (None, "", [], {})


def find_reader(wanted: Format, columns: dict[str, str], found: Iterable[str], *, needs_answers: bool = True) -> Reader:
    """Choose the reader: own columns first, then the named format, then the first that fits the columns found.

    Args:
        wanted: ``auto`` or a format by name.
        columns: own column names by part (``prompt``, ``answer``, ``context``, ``system``, or ``text`` alone); may be
            empty.
        found: the columns of the source.
        needs_answers: whether a table of prompts alone is no row form.

    Raises:
        SourceError: when no format fits, or a named column is not there.
    """
    present = list(dict.fromkeys(found))
    if columns:
        if missing := [name for name in columns.values() if name not in present]:
            raise SourceError(f"dataset.columns={columns}: no column {missing} in the source; it has {present}")
        return _own_columns(columns)
    fitting = [name for name, needed in COLUMNS_OF.items() if any(set(keys) <= set(present) for keys in needed)]
    if wanted is not Format.auto:
        if present and wanted not in fitting:
            raise SourceError(
                f"dataset.format={wanted.name}: needs the columns {_needs(wanted)}; the source has {present}"
            )
        return READERS[wanted]
    if not fitting and not needs_answers and (prompt := next(filter(present.__contains__, PROMPT_COLUMNS), None)):
        return lambda record: _single(_text(record.get(prompt)), "")
    if not fitting:
        parted = "a CSV file's fields must be parted by commas; " if any(";" in name for name in present) else ""
        known = "; ".join(f"{name.name} {_needs(name)}" for name in COLUMNS_OF)
        raise SourceError(
            f"dataset.format=auto: the source's columns {present} fit no known format ({known}); "
            f"{parted}name your own with 'dataset.columns={{prompt: ..., answer: ...}}' or '{{text: ...}}'"
        )
    return READERS[fitting[0]]


def _needs(wanted: Format) -> str:
    return " or ".join("+".join(keys) for keys in COLUMNS_OF[wanted])


def _conversation(record: dict[str, Any]) -> list[Turn]:
    """ShareGPT and chat messages: a list of turns under one of their key variants."""
    return _turns(_one_of(record, CONVERSATION_KEYS))


def _one_of(record: dict[str, Any], keys: Iterable[str]) -> Any:
    """The value under one of ``keys``, of which the record must have one."""
    if not record.keys() & set(keys):
        raise Unreadable
    return _first(record, keys)


def _first(record: dict[str, Any], keys: Iterable[str]) -> Any:
    """The first value under one of ``keys`` that is not None: tables fill up with None what a record lacks."""
    return next((record[key] for key in keys if record.get(key) is not None), None)


def _turns(turns: Any) -> list[Turn]:
    if turns is None:
        return []
    if isinstance(turns, str):
        turns = _from_json(turns)
    if isinstance(turns, dict):
        turns = _from_columns(turns)
    if not isinstance(turns, list):
        raise Unreadable
    return [_turn(turn) for turn in turns]


def _from_json(text: str) -> Any:
    """Read turns that an export wrote as text, as it does where a table's cell holds no list."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable from None


def _from_columns(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Turn a mapping of equally long lists, as ``datasets`` writes a list of mappings, into its turns."""
    lists = list(columns.values())
    if not all(isinstance(values, list) for values in lists) or len({len(values) for values in lists}) > 1:
        raise Unreadable
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def _turn(turn: Any) -> Turn:
    if not isinstance(turn, dict):
        raise Unreadable
    role = _first(turn, ROLE_KEYS)
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise Unreadable
    return known, _text(_first(turn, TEXT_KEYS))


def _text(value: Any) -> str:
    """A text as it is, nothing as an empty text; chat parts of type text are joined; all else is unreadable."""
    if value is None:
        return ""
    if isinstance(value, list):
        parts = [part.get("text") for part in value if isinstance(part, dict) and part.get("type") == "text"]
        if len(parts) == len(value) and all(isinstance(part, str) for part in parts):
            return "\n".join(parts)  # type: ignore[arg-type]
    if not isinstance(value, str):
        raise Unreadable("nan_for_text" if isinstance(value, float) and math.isnan(value) else "unreadable")
    return without_surrogates(value)


def without_surrogates(text: str) -> str:
    """Replace lone surrogates: they come out of broken JSON escapes, and no tokenizer and no Arrow table takes them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _alpaca(record: dict[str, Any]) -> list[Turn]:
    context = _text(_first(record, ("input", "context")))
    prompt = "\n\n".join(part for part in (_text(record["instruction"]), context) if part)
    return _single(prompt, _text(_one_of(record, ("output", "response"))), _text(record.get("system")))


def _prompt_completion(record: dict[str, Any]) -> list[Turn]:
    prompt, completion = record["prompt"], _one_of(record, ("completion", "response"))
    if isinstance(prompt, list) and isinstance(completion, list):
        return _turns(prompt) + _turns(completion)
    return _single(_text(prompt), _text(completion))


def _question_answer(record: dict[str, Any]) -> list[Turn]:
    context = _text(record.get("context"))
    question = _text(_one_of(record, ("question", "prompt")))
    prompt = "\n\n".join(part for part in (context, question) if part)
    return _single(prompt, _text(record["answer"]))


def _preference(record: dict[str, Any]) -> list[Turn]:
    """What was chosen, as the answer; what was rejected is left out.

    The forms of TRL (a prompt beside two answers, or two whole conversations), of LLaMA-Factory (a conversation, and
    two turns that could end it), and Anthropic's two transcripts in one text each.
    """
    asked = _first(record, (*PROMPT_COLUMNS, *CONVERSATION_KEYS))
    before = _turns(asked) if isinstance(asked, list) else [("user", _text(asked))] if asked is not None else []
    if isinstance(asked, str) and (more := _text(record.get("input"))):
        before = [("user", f"{asked}\n\n{more}")]
    chosen = record["chosen"]
    if isinstance(chosen, str):
        said = [("assistant", without_surrogates(chosen))] if before else _transcript(chosen)
    else:
        said = _turns([chosen] if isinstance(chosen, dict) else chosen)
    is_whole = bool(said) and said[0][0] != "assistant"
    system = _text(record.get("system"))
    return [*([("system", system)] if system.strip() else []), *([] if is_whole else before), *said]


_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def _transcript(text: str) -> list[Turn]:
    opening, *said = _SPEAKER.split(without_surrogates(text))
    if not said or opening.strip():
        raise Unreadable
    return [(ROLES[role.lower()], words) for role, words in zip(said[::2], said[1::2], strict=True)]


def _plain_text(record: dict[str, Any]) -> list[Turn]:
    return _only_text(_text(record["text"]))


def _only_text(text: str) -> list[Turn]:
    return [(TEXT, text)] if text.strip() else []


def _own_columns(columns: dict[str, str]) -> Reader:
    if TEXT in columns:
        return lambda record: _only_text(_text(record.get(columns[TEXT])))

    def read(record: dict[str, Any]) -> list[Turn]:
        part = {name: _text(record.get(column)) for name, column in columns.items()}
        prompt = "\n\n".join(text for text in (part.get("context", ""), part["prompt"]) if text)
        return _single(prompt, part["answer"], part.get("system", ""))

    return read


def _single(prompt: str, answer: str, system: str = "") -> list[Turn]:
    turns = [("user", prompt), ("assistant", answer)]
    return [("system", system), *turns] if system.strip() else turns


# In the order in which they are looked for: an Alpaca table may have a text column too, and a preference set a
# conversation beside what was chosen.
COLUMNS_OF: dict[Format, list[tuple[str, ...]]] = {
    Format.preference: [("chosen", "rejected")],
    Format.messages: [("messages",)],
    Format.sharegpt: [("conversations",), ("conversation",)],
    Format.alpaca: [("instruction", "output"), ("instruction", "response")],
    Format.prompt_completion: [("prompt", "completion"), ("prompt", "response")],
    Format.question_answer: [("question", "answer"), ("prompt", "answer")],
    Format.text: [("text",)],
}
READERS: dict[Format, Reader] = {
    Format.messages: _conversation,
    Format.sharegpt: lambda record: _turns(_one_of(record, ("conversations", "conversation", "messages"))),
    Format.alpaca: _alpaca,
    Format.prompt_completion: _prompt_completion,
    Format.question_answer: _question_answer,
    Format.preference: _preference,
    Format.text: _plain_text,
}
