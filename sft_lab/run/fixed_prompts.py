"""The fixed prompts: what the base model, the prompted base model and the tuned model are all asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sft_lab.core.rows import Rows

COUNT = 3
MAX_CHARACTERS = 400  # of a held-out prompt that is used: the answers are to be read side by side


class FixedPrompt(NamedTuple):
    """A user's text, and JSON text of the tools that the model is given with it; None without any."""

    text: str
    tools: str | None = None


def fixed_prompts(chosen: list[str] | None, held_out: Rows) -> list[FixedPrompt]:
    """Return the prompts that were chosen; where none were, the first short ones of the held-out rows."""
    if chosen is not None:
        return [*map(FixedPrompt, chosen)]
    first: dict[str, FixedPrompt] = {}
    for prompt in _short(held_out):
        if len(first) == COUNT:
            break
        first.setdefault(prompt.text, prompt)
    return [*first.values()]


def _short(held_out: Rows) -> Iterator[FixedPrompt]:
    names = ["messages", *(["tools"] if "tools" in held_out.table.column_names else [])]
    for conversations, *tools in held_out.batches(*names):
        for messages, schemas in zip(conversations, tools[0] if tools else [None] * len(conversations), strict=True):
            first = next((message["content"] for message in messages if message["role"] == "user"), "")
            if len(first.strip()) > 0 and len(first) <= MAX_CHARACTERS:
                yield FixedPrompt(first, schemas)
