"""Row formats: how a raw record becomes messages.

A reader takes a raw record (a dict) and returns its messages, with the roles ``system``, ``developer``, ``user``,
``assistant`` and ``tool``, or raises ``Unreadable``. A row of plain text is a single message with the role ``text``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sft_lab.core.characters import with_character_hint
from sft_lab.core.errors import SourceError
from sft_lab.data.messages import (
    ROLES,
    SYSTEM_ROLES,
    Message,
    Unreadable,
    first_given,
    parsed_json,
    parsed_turns,
    read_messages,
    read_row_fields,
    read_text,
    refuse_bad_answer,
    without_surrogates,
)

Reader = Callable[[dict[str, Any]], list[Message]]

CONVERSATION_KEYS = ("messages", "conversations", "conversation")
PROMPT_COLUMNS = ("prompt", "question", "instruction")
TEXT = "text"  # the role of a row that is not a conversation


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


def find_reader(
    wanted: Format, columns: dict[str, str], present: Iterable[str], *, needs_answers: bool = True
) -> Reader:
    """Return the reader for the user's own columns, for the named format, or for the first format that fits.

    Equal readers compare equal.

    Args:
        wanted: ``auto`` or a format.
        columns: the user's column names by part (``prompt``, ``answer``, ``context``, or ``messages``, with ``system``
            and ``tools``; or ``text`` alone); may be empty.
        present: the columns of the source.
        needs_answers: refuse a table of prompts alone.

    Raises:
        SourceError: if no format fits, or a named column is missing.
    """
    present = list(dict.fromkeys(present))
    if columns:
        if missing := [name for name in columns.values() if name not in present]:
            problem = f"dataset.columns={columns}: the source has no column {missing}, only {present}"
            only = present[0] if len(present) == 1 else ""  # perhaps several, with another sign between them
            raise SourceError(with_character_hint(problem, "".join([*missing, only])))
        return OwnColumns(tuple(columns.items()))
    fitting = [name for name, needed in COLUMNS_OF.items() if any(set(keys) <= set(present) for keys in needed)]
    if wanted is not Format.auto:
        if present and wanted not in fitting:
            raise SourceError(
                f"dataset.format={wanted.name}: needs the columns {_needs(wanted)}; the source's columns are {present}"
            )
        return READERS[wanted]
    if not fitting and not needs_answers and (prompt := next(filter(present.__contains__, PROMPT_COLUMNS), None)):
        return PromptColumn(prompt)
    if not fitting:
        known = "; ".join(f"{name.name} {_needs(name)}" for name in COLUMNS_OF)
        raise SourceError(
            f"dataset.format=auto: the source's columns {present} match no known format ({known}); "
            f"name yours with 'dataset.columns={_suggest(present)}' or '{{text: ...}}'"
        )
    return READERS[fitting[0]]


# Usual names of columns that no format has, by the part that they may be.
_USUAL = {
    "prompt": (*PROMPT_COLUMNS, "input", "query", "user", "human", "q"),
    "answer": ("completion", "answer", "output", "response", "answers", "reply", "target", "assistant", "gpt", "a"),
}


def _suggest(present: list[str]) -> str:
    """Return ``dataset.columns`` for a pair: the columns with usual names, or the only two."""
    names = {name.strip().casefold(): name for name in reversed(present)}
    pair = [next((names[usual] for usual in usuals if usual in names), "") for usuals in _USUAL.values()]
    if not all(pair):
        pair = present if len(present) == 2 else ["...", "..."]
    prompt, answer = (name if re.fullmatch(r"\w+|\.{3}", name) else json.dumps(name) for name in pair)
    return f"{{prompt: {prompt}, answer: {answer}}}"


def _needs(wanted: Format) -> str:
    return " or ".join("+".join(keys) for keys in COLUMNS_OF[wanted])


def describe_reader(reader: Reader, present: Iterable[str]) -> str:
    """Return the name of a reader's format and the columns that it reads, of those that are present."""
    if isinstance(reader, OwnColumns):
        return f"your columns {', '.join(f'{part}={column}' for part, column in reader.columns)}"
    name = next(name for name, known in READERS.items() if known == reader)
    columns = next((keys for keys in COLUMNS_OF[name] if set(keys) <= set(present)), ())
    return f"{name.name} ({'+'.join(columns)})" if columns else name.name


def _conversation(record: dict[str, Any], keys: tuple[str, ...] = CONVERSATION_KEYS) -> list[Message]:
    """Return the messages of a ShareGPT or chat record: a list of turns under one of ``keys``."""
    if not record.keys() & set(keys):
        raise Unreadable(f"no {' or '.join(keys)}")
    key = next((key for key in keys if record.get(key) is not None), None)
    return [] if key is None else _turns_at(record, key)


def _turns_at(record: dict[str, Any], key: str) -> list[Message]:
    """Return the messages of a conversation in one of the record's columns."""
    if isinstance(turns := record[key], str | dict):
        record[key] = parsed_turns(turns)
    return read_messages(record[key])


def _any_of(record: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """Return the value under one of ``keys``, of which the record must have at least one."""
    if not record.keys() & set(keys):
        raise Unreadable(f"no {' or '.join(keys)}")
    return first_given(record, keys)


def _alpaca(record: dict[str, Any]) -> list[Message]:
    context = read_text(first_given(record, ("input", "context")))
    prompt = "\n\n".join(part for part in (read_text(record["instruction"]), context) if part)
    return [*_history(record), *_exchange(prompt, read_text(_any_of(record, ("output", "response"))))]


def _history(record: dict[str, Any]) -> list[Message]:
    """Return the earlier turns: pairs of a user's text and its answer, in LLaMA-Factory's form."""
    history = parsed_json(record.get("history") or [], "history")
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise Unreadable("history is not a list of pairs")
    return [message for pair in history for message in _exchange(*map(read_text, pair))]


def _prompt_completion(record: dict[str, Any]) -> list[Message]:
    prompt, completion = record["prompt"], _any_of(record, ("completion", "response"))
    if isinstance(prompt, list) and isinstance(completion, list):
        return read_messages(prompt) + read_messages(completion)
    return _exchange(read_text(prompt), read_text(completion))


def _question_answer(record: dict[str, Any]) -> list[Message]:
    context = read_text(record.get("context"))
    question = read_text(_any_of(record, ("question", "prompt")))
    prompt = "\n\n".join(part for part in (context, question) if part)
    return _exchange(prompt, read_text(record["answer"]))


def _preference(record: dict[str, Any]) -> list[Message]:
    """Return a conversation that ends with the chosen answer; the rejected one is left out.

    Reads the forms of TRL (a prompt and two answers, or two full conversations), of LLaMA-Factory (a conversation and
    two possible last turns), and of Anthropic (two transcripts as text).
    """
    prompt = first_given(record, (*PROMPT_COLUMNS, *CONVERSATION_KEYS))
    before = read_messages(prompt) if isinstance(prompt, list) else []
    if prompt is not None and not isinstance(prompt, list):
        context = read_text(record.get("input")) if isinstance(prompt, str) else ""
        before = [_message("user", f"{prompt}\n\n{context}" if context else read_text(prompt))]
    chosen = record["chosen"]
    if isinstance(chosen, str):
        messages = [_message("assistant", chosen)] if before else _transcript(chosen)
    else:
        messages = read_messages([chosen] if isinstance(chosen, dict) else chosen)
    is_complete = bool(messages) and messages[0]["role"] != "assistant"
    return messages if is_complete else [*before, *messages]


_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def _transcript(text: str) -> list[Message]:
    opening, *turns = _SPEAKER.split(without_surrogates(text))
    if not turns or opening.strip():
        raise Unreadable("an answer without a prompt, and not a transcript with Human: and Assistant:")
    return [_message(ROLES[role.lower()], content) for role, content in zip(turns[::2], turns[1::2], strict=True)]


def _plain_text(record: dict[str, Any]) -> list[Message]:
    return _only_text(read_text(record["text"]))


def _only_text(text: str) -> list[Message]:
    return [_message(TEXT, text)] if text.strip() else []


_BESIDE = ("system", "tools")  # parts that any conversation may have


@dataclass(frozen=True)
class OwnColumns:
    """Reads the columns that a config names: of a pair, a conversation, or plain text.

    Attributes:
        columns: pairs of part and column.
    """

    columns: tuple[tuple[str, str], ...]

    def __call__(self, record: dict[str, Any]) -> list[Message]:
        columns = dict(self.columns)
        if "messages" in columns:
            return _turns_at(record, columns["messages"]) if columns["messages"] in record else []
        part = {name: read_text(record.get(column)) for name, column in self.columns if name not in _BESIDE}
        if TEXT in part:
            return _only_text(part[TEXT])
        prompt = "\n\n".join(text for text in (part.get("context", ""), part["prompt"]) if text)
        return _exchange(prompt, part["answer"])


@dataclass(frozen=True)
class PromptColumn:
    """Reads a table of prompts alone."""

    column: str

    def __call__(self, record: dict[str, Any]) -> list[Message]:
        return _exchange(read_text(record.get(self.column)), "")


def _exchange(prompt: str, answer: str) -> list[Message]:
    return [_message("user", prompt), _message("assistant", answer)]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": without_surrogates(content)}


def read_record(
    reader: Reader, record: dict[str, Any], *, drops_bad_answers: bool = True
) -> tuple[list[Message], dict[str, str]]:
    """Return a record's messages, beginning with the text of its column ``system``, and its tools and other inputs.

    Raises:
        Unreadable: if the record does not have the reader's format, or its answer is marked as bad.
    """
    try:
        messages = reader(record)
    except KeyError as error:
        raise Unreadable(f"no {error.args[0]}") from None
    if not messages or messages[0]["role"] == TEXT:
        return messages, {}
    if drops_bad_answers:
        refuse_bad_answer(record)
    own = dict(reader.columns) if isinstance(reader, OwnColumns) else {}
    system = read_text(record.get(own.get("system", "system")))
    if system.strip() and (messages[0]["role"] not in SYSTEM_ROLES or messages[0]["content"] != system):
        messages = [_message("system", system), *messages]
    return messages, read_row_fields(record, own.get("tools", "tools"))


# In order of precedence: an Alpaca table may also have a text column, and a preference set may have a conversation
# besides the chosen answer.
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
    Format.sharegpt: lambda record: _conversation(record, ("conversations", "conversation", "messages")),
    Format.alpaca: _alpaca,
    Format.prompt_completion: _prompt_completion,
    Format.question_answer: _question_answer,
    Format.preference: _preference,
    Format.text: _plain_text,
}
