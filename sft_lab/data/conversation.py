"""Cutting conversations to rows: a system text, and messages from a user's turn to an assistant's."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import dataclass

from sft_lab.data.formats import TEXT
from sft_lab.data.load import BEFORE_LAST, WEIGHT_0, Consecutive, LeadingAssistant, Turns
from sft_lab.data.messages import SYSTEM_ROLES, Message, Unreadable, is_silent

# The counts of turns: all of the assistant's, and why some are not trained or not turns of their own.
READ, LATER, EMPTY, BEFORE_USER = "read", "after_first_exchange", "empty_turn", "before_first_user_turn"
UNUSED = (LATER, EMPTY, BEFORE_USER, BEFORE_LAST, WEIGHT_0)
TRAILING = {"user": "trailing_user_turn", "tool": "trailing_tool_result"}
JOINED, KEPT_APART = "joined_turn", "consecutive_turn"


@dataclass(frozen=True)
class Cutter:
    """Cuts conversations to what is trained.

    Attributes:
        turns: how much of a conversation is a row.
        leading: what is done with a conversation that begins with the assistant.
        consecutive: what is done with two turns of one role in a row.
    """

    turns: Turns
    leading: LeadingAssistant
    consecutive: Consecutive

    def __call__(self, messages: list[Message], counts: Counter[str]) -> tuple[list[Message], list[Message]]:
        """Return at most one system message, and messages that end with the assistant.

        Plain text is one message of the role ``text``.

        Args:
            messages: of the conversation.
            counts: of turns; updated if the conversation can be used.

        Raises:
            Unreadable: if it cannot be used.
        """
        if not messages:
            raise Unreadable("no turns and no text", "empty")
        if messages[0]["role"] == TEXT:
            return [], messages
        start = next((i for i, message in enumerate(messages) if message["role"] not in SYSTEM_ROLES), len(messages))
        system, talk = messages[:start], messages[start:]
        lost: dict[str, int] = {}
        if talk and talk[0]["role"] == "assistant":
            if self.leading is LeadingAssistant.drop:
                raise Unreadable("an assistant turn comes before any user turn", "begins_with_assistant")
            talk = list(itertools.dropwhile(lambda message: message["role"] == "assistant", talk))
            lost[BEFORE_USER] = len(messages) - start - len(talk)
        if self.turns is Turns.first and (end := _first_exchange(talk)) < len(talk):
            lost[LATER] = _count_answers(talk[end:])
            talk = talk[:end]
        if [message["role"] for message in talk] != ["user", "assistant"] * (len(talk) // 2) or not talk:
            talk = self._joined(_answered(talk, lost), lost)
        answers = [message for message in talk if message["role"] == "assistant"]
        if len(talk) > 2:  # a single answer is left to the filters
            lost[EMPTY] = len(answers)
            answers = [message for message in answers if not is_silent(message)]
            lost[EMPTY] -= len(answers)
            lost[BEFORE_LAST] = max(0, len(answers) - 1)
        lost[WEIGHT_0] = len([message for message in answers if len(message) > 2 and message.get("weight") == 0])
        counts[READ] += _count_answers(messages)
        for reason, count in lost.items():
            if count:
                counts[reason] += count
        return _joined_system(system), talk

    def _joined(self, talk: list[Message], counts: dict[str, int]) -> list[Message]:
        """Return the turns with those of one role in a row joined, since few chat templates accept two of them."""
        joined = [talk[0]]
        for message in talk[1:]:
            last = joined[-1]
            if message["role"] != last["role"] or message["role"] == "tool":  # each call has its own result
                joined.append(message)
            elif _goes_on(last, message):
                joined[-1] = _both(last, message)
            elif self.consecutive is Consecutive.drop:
                raise Unreadable(f"two turns of the {message['role']} in a row", "consecutive_turns")
            elif self.consecutive is Consecutive.join and _can_join(last, message):
                counts[JOINED] = counts.get(JOINED, 0) + 1
                joined[-1] = _both(last, message)
            else:
                counts[KEPT_APART] = counts.get(KEPT_APART, 0) + 1
                joined.append(message)
        return joined


def _answered(talk: list[Message], lost: dict[str, int]) -> list[Message]:
    """Return the turns up to the last answer, checked by ``_check``."""
    while talk and (reason := TRAILING.get(talk[-1]["role"])):
        lost[reason] = lost.get(reason, 0) + 1
        talk = talk[:-1]
    _check(talk)
    return talk


def _count_answers(messages: list[Message]) -> int:
    return [message["role"] for message in messages].count("assistant")


def _first_exchange(talk: list[Message]) -> int:
    """Return the number of messages in the first exchange, which ends before the next user turn after an answer."""
    has_answer = False
    for index, message in enumerate(talk):
        has_answer = has_answer or message["role"] == "assistant"
        if has_answer and message["role"] not in ("assistant", "tool"):
            return index
    return len(talk)


def _check(talk: list[Message]) -> None:
    """Refuse turns that no template could write, or in which nothing is answered."""
    if len(talk) < 2:
        raise Unreadable("no assistant turn answers a user turn", "no_answer")
    roles = {message["role"] for message in talk}
    if not roles.isdisjoint(SYSTEM_ROLES):
        raise Unreadable("a system turn in the middle of a conversation")
    if "tool" in roles:
        _check_results(talk)


def _check_results(talk: list[Message]) -> None:
    """Refuse a tool result for which there was no call; a call may be text, as in Hermes."""
    ids: set[str | None] = set()
    for before, message in itertools.pairwise([{"role": ""}, *talk]):
        if "tool_calls" in message:
            ids.update(call.get("id") for call in json.loads(message["tool_calls"]))
        if message["role"] != "tool":
            continue
        if before["role"] not in ("assistant", "tool"):
            raise Unreadable("a tool result without a call", "bad_tool_call")
        if ids and None not in ids and message.get("tool_call_id") not in {None, *ids}:
            raise Unreadable("a tool result's tool_call_id matches no earlier call", "bad_tool_call")


def _joined_system(system: list[Message]) -> list[Message]:
    if not system:
        return []
    content = "\n\n".join(message["content"] for message in system if message["content"])
    if not content.strip():
        return []
    roles = {message["role"] for message in system}
    return [{"role": roles.pop() if len(roles) == 1 else "system", "content": content}]


def _goes_on(first: Message, second: Message) -> bool:
    """Return whether an assistant's turn only adds calls to the assistant's turn before it."""
    return "tool_calls" in second and not second["content"] and _can_join(first, second)


def _can_join(first: Message, second: Message) -> bool:
    """Return whether two turns in a row can become one with the same content in the same order."""
    if "reasoning_content" in second or ("tool_calls" in first and second["content"]):
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
    """Return the texts of each role's messages, joined by line breaks; a tool call is part of an answer."""
    texts: dict[str, list[str]] = {"user": [], "assistant": [], TEXT: []}
    for message in messages:
        if message["role"] in texts:
            texts[message["role"]].append(_text_with_calls(message))
    return {role: "\n".join(parts) for role, parts in texts.items()}


def answers_of(messages: list[Message]) -> list[str]:
    """Return the text of each assistant turn, without empty ones, which do not train."""
    return [
        text if (text := _text_with_calls(message)).strip() else message["reasoning_content"]
        for message in messages
        if message["role"] == "assistant" and not is_silent(message)
    ]


def _text_with_calls(message: Message) -> str:
    calls = message.get("tool_calls")
    return "\n".join(filter(None, (message["content"], calls))) if calls else str(message["content"])
