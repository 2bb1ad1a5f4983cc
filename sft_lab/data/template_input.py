"""The inputs of chat templates: messages with tool calls and thoughts, tools, documents and variables."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sft_lab.core.types import MESSAGE
from sft_lab.data.messages import Message, without_surrogates
from sft_lab.data.template_layout import MAX_CAUSE, CannotRender, RenderReason

# A thought at the beginning of an answer; its opening tag may be in the generation prompt.
THOUGHT = re.compile(r"\A\s*(?:<think>)?(.*?)</think>\n*(.*)\Z", re.DOTALL)
OPENED = re.compile(r"\A\s*<think>")
PLAIN_FIELDS = {"role", "content"}


@dataclass(frozen=True)
class Conversation:
    """The input of a chat template.

    Attributes:
        messages: with only the fields that templates know; tool calls are lists, not JSON text.
        inputs: ``tools``, ``documents`` and the row's template variables.
    """

    messages: list[Message]
    inputs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, messages: list[Message], tools: str | None = None, documents: str | None = None,
           template_kwargs: str | None = None) -> Conversation:  # fmt: skip
        """Return the input from a row's columns.

        Raises:
            CannotRender: if JSON text in them does not fit a template.
        """
        if not (tools or documents or template_kwargs) and all(message.keys() <= PLAIN_FIELDS for message in messages):
            return cls(messages)
        inputs: dict[str, Any] = {}
        if template_kwargs:
            inputs |= _load(template_kwargs, dict, "template_kwargs_unreadable")
            if inputs.keys() & _reserved():
                raise CannotRender("template_kwargs_reserved")
        lists: list[tuple[str, str | None, RenderReason]] = [
            ("tools", tools, "tools_unreadable"), ("documents", documents, "documents_unreadable"),
        ]  # fmt: skip
        for name, text, reason in lists:
            if text and (values := _load(text, list, reason)):
                inputs[name] = values
                if not all(isinstance(value, dict) for value in values):
                    raise CannotRender(reason)
        return cls([*map(_message, messages)], inputs)


def arguments_as_text(message: Message) -> Message:
    """Return a message with the arguments of its tool calls as JSON text."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(arguments, ensure_ascii=False)}}
        for call in message["tool_calls"]
        for arguments in (call["function"]["arguments"],)
    ]
    return {**message, "tool_calls": calls}


def thought_of(message: Message) -> str:
    """Return the thought of an assistant's message, from its own field or the content; empty without one."""
    if message.get("reasoning_content"):
        return str(message["reasoning_content"]).strip()
    match = THOUGHT.match(message["content"]) if "</think>" in message["content"] else None
    return match.group(1).strip() if match else ""


def split_thought(message: Message) -> Message:
    """Return an assistant's message with the thought moved from its content to ``reasoning_content``.

    Raises:
        CannotRender: if the thought is opened and never closed.
    """
    content = message["content"]
    if message.get("reasoning_content") or not ("</think>" in content or OPENED.match(content)):
        return message
    if not (match := THOUGHT.match(content)):
        raise CannotRender("thought_not_closed")
    return {**message, "reasoning_content": match.group(1).strip("\n"), "content": match.group(2)}


def without_thought(message: Message) -> Message:
    """Return a message without its thought; a thought that is never closed stays."""
    if message["role"] != "assistant":
        return message
    rest = {name: value for name, value in message.items() if name != "reasoning_content"}
    match = THOUGHT.match(message["content"]) if _has_thought_inside(message) else None
    return {**rest, "content": match.group(2)} if match else rest


def with_thought_inside(message: Message) -> Message:
    """Return an assistant's message with its thought at the beginning of its content."""
    rest = {name: value for name, value in message.items() if name != "reasoning_content"}
    thought = message.get("reasoning_content", "").strip()
    if not thought or _has_thought_inside(message):
        return rest
    separator = "\n\n" if message["content"] else ""
    return {**rest, "content": f"<think>\n{thought}\n</think>{separator}{message['content']}"}


def _has_thought_inside(message: Message) -> bool:
    """Return whether the content begins with a thought, namely that in ``reasoning_content`` if it has one."""
    head, closing, _ = message["content"].partition("</think>")
    return bool(closing) and message.get("reasoning_content", "").strip() in head


def _message(message: Message) -> Message:
    """Return a message as templates take it, still with its weight; see ``Conversation``."""
    cleaned = {name: value for name, value in message.items() if name in MESSAGE and value is not None}
    cleaned["content"] = message.get("content") or ""
    if calls := cleaned.pop("tool_calls", None):
        calls = _load(calls, list, "tool_calls_unreadable") if isinstance(calls, str) else calls
        cleaned["tool_calls"] = [*map(_call, calls)]
    if not cleaned.get("tool_calls"):
        cleaned.pop("tool_calls", None)
    return cleaned


def _call(call: Any) -> dict[str, Any]:
    """Return a tool call in OpenAI's form, with its arguments as an object."""
    if isinstance(call, dict) and "function" not in call and "name" in call:
        call = {"type": "function", "function": call}
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise CannotRender("tool_calls_unreadable")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = _load(arguments, dict, "tool_arguments_not_json")
    elif not isinstance(arguments, dict):
        raise CannotRender("tool_arguments_not_json", repr(arguments))
    return {**call, "function": {**function, "arguments": arguments}}


def _load(text: str, kind: type, reason: RenderReason) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CannotRender(reason, text[:MAX_CAUSE]) from error
    if not isinstance(value, kind):
        raise CannotRender(reason, text[:MAX_CAUSE])
    if "\\ud" in text.lower():  # half of a character, which neither tokenizers nor Arrow tables accept
        value = json.loads(without_surrogates(json.dumps(value, ensure_ascii=False)))
    return value


@cache
def _reserved() -> frozenset[str]:
    """Return the variables that a row must not set: those that Transformers or the conversation sets."""
    from transformers import PreTrainedTokenizerBase

    parameters = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    return frozenset({*parameters, *PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES, "messages"} - {"kwargs"})
