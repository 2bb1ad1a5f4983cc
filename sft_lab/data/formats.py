"""Row formats: how a raw record becomes turns.

A reader takes a raw record (a dict) and returns its turns as ``(role, text)`` with the roles ``system``, ``user`` and
``assistant``, or raises ``Unreadable``. A row of plain text is a single turn of the role ``text``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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
    """This record does not have the format.

    Attributes:
        reason: why the row is dropped.
    """

    def __init__(self, reason: str = "unreadable") -> None:
        super().__init__(reason)
        self.reason = reason


class Watched(dict[str, Any]):
    """A record, or a turn in it, that remembers which of its fields a reader accessed."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self._read: set[str] = set()
        self._turns: dict[str, list[Watched]] = {}

    def __getitem__(self, key: str) -> Any:
        self._read.add(key)
        value = super().__getitem__(key)
        if isinstance(value, list) and any(type(item) is dict for item in value):
            value = [Watched(item) if type(item) is dict else item for item in value]
            self[key] = value  # readers access a field more than once
            self._turns[key] = [item for item in value if isinstance(item, Watched)]
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field's value as ``[]`` does."""
        return self[key] if key in self else default  # noqa: SIM401 - get is defined by []

    def unread(self) -> set[str]:
        """Return the non-empty fields that were never accessed; those of turns as ``messages[].name``."""
        fields = {key for key in self.keys() - self._read if self._is_filled(super(Watched, self).get(key))}
        turns = ((key, turn) for key, turns in self._turns.items() for turn in turns)
        return fields.union(*({f"{key}[].{name}" for name in turn.unread()} for key, turn in turns))

    @staticmethod
    def _is_filled(value: Any) -> bool:
        return value not in (None, "", [], {})


def find_reader(
    wanted: Format, columns: dict[str, str], present: Iterable[str], *, needs_answers: bool = True
) -> Reader:
    """Return the reader: own columns first, then the named format, then the first that fits the columns.

    Readers that read alike are equal.

    Args:
        wanted: ``auto`` or a format by name.
        columns: own column names by part (``prompt``, ``answer``, ``context``, ``system``, or ``text`` alone); may be
            empty.
        present: the columns of the source.
        needs_answers: whether a table of prompts alone is refused.

    Raises:
        SourceError: if no format fits, or a named column is missing.
    """
    present = list(dict.fromkeys(present))
    if columns:
        if missing := [name for name in columns.values() if name not in present]:
            raise SourceError(f"dataset.columns={columns}: no column {missing} in the source; it has {present}")
        return OwnColumns(tuple(columns.items()))
    fitting = [name for name, needed in COLUMNS_OF.items() if any(set(keys) <= set(present) for keys in needed)]
    if wanted is not Format.auto:
        if present and wanted not in fitting:
            raise SourceError(
                f"dataset.format={wanted.name}: needs the columns {_needs(wanted)}; the source has {present}"
            )
        return READERS[wanted]
    if not fitting and not needs_answers and (prompt := next(filter(present.__contains__, PROMPT_COLUMNS), None)):
        return PromptColumn(prompt)
    if not fitting:
        separator = "a CSV file's fields must be separated by commas; " if any(";" in name for name in present) else ""
        known = "; ".join(f"{name.name} {_needs(name)}" for name in COLUMNS_OF)
        raise SourceError(
            f"dataset.format=auto: the source's columns {present} fit no known format ({known}); "
            f"{separator}name your own with 'dataset.columns={{prompt: ..., answer: ...}}' or '{{text: ...}}'"
        )
    return READERS[fitting[0]]


def _needs(wanted: Format) -> str:
    return " or ".join("+".join(keys) for keys in COLUMNS_OF[wanted])


def _conversation(record: dict[str, Any]) -> list[Turn]:
    """ShareGPT and chat messages: a list of turns under one of their key variants."""
    return _turns(_any_of(record, CONVERSATION_KEYS))


def _any_of(record: dict[str, Any], keys: Iterable[str]) -> Any:
    """Return the value under one of ``keys``, of which the record must have at least one."""
    if not record.keys() & set(keys):
        raise Unreadable
    return _first(record, keys)


def _first(record: dict[str, Any], keys: Iterable[str]) -> Any:
    """Return the first value under ``keys`` that is not None: tables fill up with None what a record lacks."""
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
    """Return turns that an export wrote as JSON text, as it does where a table cannot hold lists."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable from None


def _from_columns(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the turns in a mapping of equally long lists, which is how ``datasets`` writes a list of mappings."""
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
    """Return a text as it is, None as an empty text, chat parts of type text joined; refuse all else."""
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
    """Replace lone surrogates: broken JSON escapes leave them, and neither tokenizers nor Arrow tables accept them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _alpaca(record: dict[str, Any]) -> list[Turn]:
    context = _text(_first(record, ("input", "context")))
    prompt = "\n\n".join(part for part in (_text(record["instruction"]), context) if part)
    return _single(prompt, _text(_any_of(record, ("output", "response"))), _text(record.get("system")))


def _prompt_completion(record: dict[str, Any]) -> list[Turn]:
    prompt, completion = record["prompt"], _any_of(record, ("completion", "response"))
    if isinstance(prompt, list) and isinstance(completion, list):
        return _turns(prompt) + _turns(completion)
    return _single(_text(prompt), _text(completion))


def _question_answer(record: dict[str, Any]) -> list[Turn]:
    context = _text(record.get("context"))
    question = _text(_any_of(record, ("question", "prompt")))
    prompt = "\n\n".join(part for part in (context, question) if part)
    return _single(prompt, _text(record["answer"]))


def _preference(record: dict[str, Any]) -> list[Turn]:
    """Return a conversation that ends with the chosen answer; the rejected answer is left out.

    Reads the forms of TRL (a prompt beside two answers, or two full conversations), of LLaMA-Factory (a conversation,
    and two turns that could end it), and of Anthropic (two transcripts, each a single text).
    """
    prompt = _first(record, (*PROMPT_COLUMNS, *CONVERSATION_KEYS))
    before = _turns(prompt) if isinstance(prompt, list) else [("user", _text(prompt))] if prompt is not None else []
    if isinstance(prompt, str) and (context := _text(record.get("input"))):
        before = [("user", f"{prompt}\n\n{context}")]
    chosen = record["chosen"]
    if isinstance(chosen, str):
        turns = [("assistant", without_surrogates(chosen))] if before else _transcript(chosen)
    else:
        turns = _turns([chosen] if isinstance(chosen, dict) else chosen)
    is_whole = bool(turns) and turns[0][0] != "assistant"
    system = _text(record.get("system"))
    return [*([("system", system)] if system.strip() else []), *([] if is_whole else before), *turns]


_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def _transcript(text: str) -> list[Turn]:
    opening, *turns = _SPEAKER.split(without_surrogates(text))
    if not turns or opening.strip():
        raise Unreadable
    return [(ROLES[role.lower()], content) for role, content in zip(turns[::2], turns[1::2], strict=True)]


def _plain_text(record: dict[str, Any]) -> list[Turn]:
    return _only_text(_text(record["text"]))


def _only_text(text: str) -> list[Turn]:
    return [(TEXT, text)] if text.strip() else []


@dataclass(frozen=True)
class OwnColumns:
    """Reads the columns that a config names: of a pair, or of plain text.

    Attributes:
        columns: part and column.
    """

    columns: tuple[tuple[str, str], ...]

    def __call__(self, record: dict[str, Any]) -> list[Turn]:
        part = {name: _text(record.get(column)) for name, column in self.columns}
        if TEXT in part:
            return _only_text(part[TEXT])
        prompt = "\n\n".join(text for text in (part.get("context", ""), part["prompt"]) if text)
        return _single(prompt, part["answer"], part.get("system", ""))


@dataclass(frozen=True)
class PromptColumn:
    """Reads a table of prompts alone."""

    column: str

    def __call__(self, record: dict[str, Any]) -> list[Turn]:
        return _single(_text(record.get(self.column)), "")


def _single(prompt: str, answer: str, system: str = "") -> list[Turn]:
    turns = [("user", prompt), ("assistant", answer)]
    return [("system", system), *turns] if system.strip() else turns


# In order of precedence: an Alpaca table may also have a text column, and a preference set a conversation beside
# the chosen answer.
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
    Format.sharegpt: lambda record: _turns(_any_of(record, ("conversations", "conversation", "messages"))),
    Format.alpaca: _alpaca,
    Format.prompt_completion: _prompt_completion,
    Format.question_answer: _question_answer,
    Format.preference: _preference,
    Format.text: _plain_text,
}
