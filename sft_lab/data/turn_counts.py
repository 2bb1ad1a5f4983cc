"""Counts of conversations, made in Arrow: turns, tools, thoughts, tokens that train."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sft_lab.core.columns import BATCH, gather, release, stretches
from sft_lab.core.types import IGNORED

if TYPE_CHECKING:
    import pyarrow as pa

    from sft_lab.core.rows import Rows
    from sft_lab.data.preparation import Ready


class TurnCounts(NamedTuple):
    """For each row, the number of user and assistant turns, and whether it has tools and thoughts: shape (rows,)."""

    turns: np.ndarray
    tools: np.ndarray
    thoughts: np.ndarray


def count_turns(rows: Rows) -> TurnCounts:
    """Return the counts of each row; plain text has no turns."""
    import pyarrow as pa

    table, size = rows.table.data, len(rows)
    counts = TurnCounts(np.zeros(size, np.int64), np.zeros(size, bool), np.zeros(size, bool))
    messages = table.column("messages")
    if not pa.types.is_list(messages.type):  # no row has a message
        return counts
    columns = [messages, *([table.column("tools")] if "tools" in table.column_names else [])]
    for part in stretches(columns, size, BATCH):
        chunks = [gather(column, rows.positions[part]).combine_chunks() for column in columns]
        counts.turns[part], calls, counts.thoughts[part] = _count(chunks[0])
        counts.tools[part] = calls | _is_given(chunks[1]) if len(chunks) > 1 else calls
    release(columns)
    return counts


def _count(conversations: pa.ListArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each conversation's number of turns, whether it has a tool call, and whether it has a thought."""
    import pyarrow as pa
    import pyarrow.compute as pc

    flat, size = conversations.flatten(), len(conversations)
    of_message = np.repeat(np.arange(size), pc.fill_null(conversations.value_lengths(), 0).to_numpy())
    role = flat.field("role")
    is_assistant = pc.equal(role, "assistant").to_numpy(zero_copy_only=False)
    thinks = pc.match_substring(flat.field("content"), "</think>").fill_null(fill_value=False)
    has_thought = is_assistant & thinks.to_numpy(zero_copy_only=False)
    fields = [field.name for field in flat.type]
    if "reasoning_content" in fields:
        has_thought |= _is_given(flat.field("reasoning_content"))
    has_call = _is_given(flat.field("tool_calls")) if "tool_calls" in fields else np.zeros(len(flat), bool)
    is_turn = is_assistant | pc.is_in(role, pa.array(["user"])).to_numpy(zero_copy_only=False)
    turns, calls, thoughts = (
        np.bincount(of_message[marked], minlength=size) for marked in (is_turn, has_call, has_thought)
    )
    return turns, calls > 0, thoughts > 0


def _is_given(values: pa.Array) -> np.ndarray:
    is_valid: np.ndarray = values.is_valid().to_numpy(zero_copy_only=False)
    return is_valid


def count_trained_tokens(ready: Ready) -> tuple[int, int]:
    """Return the number of tokens of all examples, template included, and of those that train."""
    tokens = ready.tokens.select_columns("labels").with_format("arrow")
    column = ready.encoded.table.data.column("labels")
    total = trained = 0
    for part in stretches([column], len(tokens), BATCH):
        for chunk in tokens[part].column("labels").chunks:
            labels = chunk.flatten().to_numpy()
            total += len(labels)
            trained += int((labels != IGNORED).sum())
    release([column])
    return total, trained
