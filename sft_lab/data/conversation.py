"""What of a conversation becomes a row: a system text, and messages from a user's turn to an assistant's."""

from __future__ import annotations

import itertools
from typing import Any

from sft_lab.data.formats import TEXT
from sft_lab.data.load import LeadingAssistant, Turns
from sft_lab.data.messages import SYSTEM_ROLES, Message


class Unusable(Exception):
    """A conversation that cannot become a row.

    Attributes:
        reason: why it is dropped.
        cause: what exactly is wrong with it; may be empty.
    """

    def __init__(self, reason: str, cause: str = "") -> None:
        super().__init__(reason)
        self.reason, self.cause = reason, cause


def cut(messages: list[Message], turns: Turns, leading: LeadingAssistant) -> tuple[list[Message], list[Message]]:
    """Cut a conversation to what is trained: at most one system message, and messages that end with the assistant.

    Turns of one role in a row are joined by a blank line, since few chat templates know two of them. Plain text is one
    message of the role ``text``.
    """
    if not messages:
        raise Unusable("empty")
    if messages[0]["role"] == TEXT:
        return [], messages
    system = list(itertools.takewhile(lambda message: message["role"] in SYSTEM_ROLES, messages))
    talk = messages[len(system) :]
    if talk and talk[0]["role"] == "assistant":
        if leading is LeadingAssistant.drop:
            raise Unusable("begins_with_assistant")
        talk = list(itertools.dropwhile(lambda message: message["role"] == "assistant", talk))
    if turns is Turns.first:
        talk = talk[: _first_exchange(talk)]
    while talk and talk[-1]["role"] != "assistant":
        talk.pop()
    if len(talk) < 2:
        raise Unusable("no_answer")
    if any(message["role"] in SYSTEM_ROLES for message in talk):
        raise Unusable("unreadable", "a system turn in the middle of a conversation")
    if talk[0]["role"] == "tool":
        raise Unusable("bad_tool_call", "a tool result without a call")
    return _joined_system(system), _joined(talk)


def _first_exchange(talk: list[Message]) -> int:
    """Return how many messages the first exchange has: up to the next user turn behind an answer."""
    has_answer = False
    for index, message in enumerate(talk):
        has_answer = has_answer or message["role"] == "assistant"
        if has_answer and message["role"] not in ("assistant", "tool"):
            return index
    return len(talk)


def _joined_system(system: list[Message]) -> list[Message]:
    content = "\n\n".join(message["content"] for message in system if message["content"])
    if not content.strip():
        return []
    roles = {message["role"] for message in system}
    return [{"role": roles.pop() if len(roles) == 1 else "system", "content": content}]


def _joined(talk: list[Message]) -> list[Message]:
    joined = [talk[0]]
    for message in talk[1:]:
        if _can_join(joined[-1], message):
            joined[-1] = _both(joined[-1], message)
        else:
            joined.append(message)
    return joined


def _can_join(first: Message, second: Message) -> bool:
    """Return whether two messages in a row can become one that says the same in the same order."""
    if first["role"] != second["role"] or first["role"] == "tool" or "reasoning_content" in second:
        return False
    if "tool_calls" in first and second["content"]:
        return False
    return first.get("name") == second.get("name") and first.get("weight") == second.get("weight")


def _both(first: Message, second: Message) -> Message:
    content = "\n\n".join(text for text in (first["content"], second["content"]) if text)
    both = {**first, "content": content}
    if "tool_calls" in second:
        calls = [first["tool_calls"][1:-1]] if "tool_calls" in first else []
        both["tool_calls"] = f"[{', '.join([*calls, second['tool_calls'][1:-1]])}]"
    return both


def texts_of(messages: list[Message]) -> dict[str, str]:
    """Return what the messages of each role say, a line break between; a tool call is part of an answer."""
    texts: dict[str, list[str]] = {"user": [], "assistant": [], TEXT: []}
    for message in messages:
        if message["role"] in texts:
            texts[message["role"]].append(_text_with_calls(message))
    return {role: "\n".join(parts) for role, parts in texts.items()}


def _text_with_calls(message: Message) -> str:
    calls: Any = message.get("tool_calls")
    return "\n".join(filter(None, (message["content"], calls))) if calls else str(message["content"])
