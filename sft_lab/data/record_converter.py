"""A block of raw records becomes rows: messages, a prompt and an answer, or the reason why a record is dropped."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from sft_lab.core.blocks import with_notes
from sft_lab.core.columns import message_array, message_type
from sft_lab.core.io import digest
from sft_lab.core.text import content_group
from sft_lab.core.types import TEMPLATE_INPUTS
from sft_lab.data.conversation import Cutter, texts_of
from sft_lab.data.formats import TEXT, Reader, read_record
from sft_lab.data.load import BadAnswers, Dataset, Record
from sft_lab.data.messages import Message, Unreadable, Watched, without_surrogates

Batch = list[tuple[str, Record | None]]  # split and record; None: a record that cannot be read
COLUMNS = (
    "id", "source_id", "system", "prompt", "answer", "messages", *TEMPLATE_INPUTS, "group", "source", "source_split",
)  # fmt: skip
SCHEMA = pa.schema([(name, message_type() if name == "messages" else pa.string()) for name in COLUMNS])
BLOCK_SCHEMA = pa.schema([*SCHEMA, *((name, pa.string()) for name in ("reason", "cause", "group_value"))])
NUMBERED = re.compile(r"^(.+)_\d+$", re.DOTALL)
RULES = ("auto", "id_prefix", "content")


class Converter:
    """Turns a block of records into a table with a row for each record; for a dropped one, the reason."""

    def __init__(self, reader: Reader, mixture: Dataset, source: str, split: str | None, group: str, rule: str) -> None:
        self._reader, self._drops_bad = reader, mixture.bad_answers is BadAnswers.drop
        self._cutter = Cutter(mixture.turns, mixture.leading_assistant, mixture.consecutive)
        self._source, self._split, self._group, self._rule = source, split, group, rule

    def __call__(self, payload: tuple[str, int, Batch]) -> pa.Table:
        _, first, batch = payload
        unread, turns = Counter[str](), Counter[str]()
        rows = []
        for position, (split, record) in enumerate(batch, start=first):
            name = ""
            try:
                if not record:
                    raise Unreadable("not a record: a broken line, or a value that is not an object")  # noqa: TRY301
                watched = Watched(record)
                messages, fields = read_record(self._reader, watched, drops_bad_answers=self._drops_bad)
                # A hash of what was read, not of the record, so that the same rows in CSV and JSON have the same ids.
                name = _digest(messages, fields)
                unread.update(watched.unread() - {"id", self._group})
                system, messages = self._cutter(messages, turns)
            except Unreadable as error:
                rows.append({"id": f"{position}-{name or error.reason}", "reason": error.reason, "cause": error.cause})
                continue
            value = as_text(record.get(self._group)) if self._group not in RULES else ""
            sources = {"source": self._source, "source_split": self._split or split, "group_value": value}
            rows.append(_row(f"{position}-{name}", record, system, messages) | fields | sources)
        table = _table(rows)
        groups = pa.array(groups_of(table, self._rule, self._source), pa.string())
        table = table.set_column(BLOCK_SCHEMA.get_field_index("group"), "group", groups)
        columns = union(*(record for _, record in batch if record))
        notes = {"columns": columns, "unread": dict(unread), "turns": dict(turns)}
        return with_notes(table, notes)


def groups_of(table: pa.Table, rule: str, source: str) -> list[str | None]:
    """Return each row's group, which must stay on one side of the split; None for a dropped record."""
    within = f"{source}:" if source else ""
    names = ("reason", "source_id", "prompt", "answer", "group_value")
    groups: list[str | None] = []
    for reason, source_id, prompt, answer, value in zip(*(table[name].to_pylist() for name in names), strict=True):
        if reason:
            groups.append(None)
        elif rule == "id_prefix" and (match := NUMBERED.match(source_id)):
            groups.append(f"id_prefix:{within}{match.group(1)}")
        elif rule not in RULES and value:
            groups.append(f"{rule}:{within}{value}")
        else:  # rows whose group column is empty do not belong together: each is grouped by its content
            groups.append(content_group(prompt, answer))
    return groups


def union(*columns: Iterable[str]) -> list[str]:
    """Return every name once, in order of first occurrence."""
    return list(dict.fromkeys(itertools.chain.from_iterable(columns)))


def _digest(messages: list[Message], fields: dict[str, str]) -> str:
    """Return a hash of what was read; for messages with role and content alone, the one that ids have always had."""
    content: Any = [[*message.values()] if len(message) == 2 else message for message in messages]
    return digest([content, fields] if fields else content)[:12]


def _row(row_id: str, record: Record, system: list[Message], messages: list[Message]) -> Record:
    """Return a table's row without group and source; plain text has neither prompt nor messages."""
    texts = texts_of(messages)
    return {
        "id": row_id,
        "source_id": as_text(record.get("id")),
        "system": system[0]["content"] if system else "",
        "prompt": texts["user"],
        "answer": texts["assistant"] or texts[TEXT],
        "messages": [] if texts[TEXT] else [*system, *messages],
        "reason": "",
        "cause": "",
    }


def _table(rows: list[Record]) -> pa.Table:
    columns = {name: [row.get(name) for row in rows] for name in BLOCK_SCHEMA.names}
    columns["messages"] = message_array([messages or [] for messages in columns["messages"]])
    return pa.table(columns, BLOCK_SCHEMA)


def as_text(value: Any) -> str:
    """Return a value as the text of an id or a group; empty for null."""
    return "" if value is None else without_surrogates(str(value))
