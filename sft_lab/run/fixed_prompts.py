"""The fixed prompts: what the base model, the prompted base model and the tuned model are all asked."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sft_lab.core.rows import Rows

COUNT = 3
MAX_CHARACTERS = 400  # of a held-out prompt that is used: the answers are to be read side by side


def fixed_prompts(chosen: list[str] | None, held_out: Rows) -> list[str]:
    """Return the prompts that were chosen; where none were, the first short ones of the held-out rows."""
    return chosen if chosen is not None else [*islice(dict.fromkeys(_short(held_out)), COUNT)]


def _short(held_out: Rows) -> Iterator[str]:
    for (conversations,) in held_out.batches("messages"):
        for messages in conversations:
            first = next((message["content"] for message in messages if message["role"] == "user"), "")
            if len(first.strip()) > 0 and len(first) <= MAX_CHARACTERS:
                yield first
