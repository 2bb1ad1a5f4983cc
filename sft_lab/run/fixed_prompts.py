"""The fixed prompts: what the base model, the prompted base model and the tuned model are all asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sft_lab.data.template_input import Conversation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sft_lab.core.rows import Rows

COUNT = 3
MAX_CHARACTERS = 400  # of a held-out prompt that is used: the answers are to be read side by side


class FixedPrompt(NamedTuple):
    """What is asked: the conversation, and the text of its last message."""

    text: str
    conversation: Conversation

    @classmethod
    def of(cls, text: str, tools: str | None = None) -> FixedPrompt:
        """Return a user's text, with JSON text of the tools that the model is given with it."""
        return cls(text, Conversation.of([{"role": "user", "content": text}], tools))


def fixed_prompts(
    chosen: list[str] | None, held_out: Rows, conversations: Iterable[Conversation] | None = None
) -> list[FixedPrompt]:
    """Return the prompts and conversations that were chosen; without any, the first short prompts of held-out rows."""
    prompts = [FixedPrompt.of(text) for text in chosen or []]
    prompts += [FixedPrompt(each.messages[-1]["content"], each) for each in conversations or []]
    if chosen is not None or conversations is not None:
        return prompts
    first: dict[str, str | None] = {}
    for text, tools in _short(held_out):
        if len(first) == COUNT:
            break
        first.setdefault(text, tools)
    return [FixedPrompt.of(text, tools) for text, tools in first.items()]


def _short(held_out: Rows) -> Iterator[tuple[str, str | None]]:
    names = ["messages", *(["tools"] if "tools" in held_out.table.column_names else [])]
    for conversations, *tools in held_out.batches(*names):
        for messages, schemas in zip(conversations, tools[0] if tools else [None] * len(conversations), strict=True):
            first = next((message["content"] for message in messages if message["role"] == "user"), "")
            if len(first.strip()) > 0 and len(first) <= MAX_CHARACTERS:
                yield first, schemas
