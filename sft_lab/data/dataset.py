"""Load: raw records become one immutable table.

Calling a dataset reads every record, turns it into messages, a prompt and an answer, and puts rows that belong
together into a group; a record that cannot be used is dropped with a reason.
"""

from __future__ import annotations

import abc
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sft_lab.bench import Bench, log, result_params
from sft_lab.data.formats import Format, Reader, Turn, Unreadable, find_reader, without_surrogates
from sft_lab.errors import SourceError, require
from sft_lab.files import digest, read_json, write_json
from sft_lab.text import content_group

if TYPE_CHECKING:
    from sft_lab.rows import Rows, Selection

Record = dict[str, Any]


class Turns(Enum):
    """How much of a conversation is a training row: its first exchange, or every assistant turn."""

    first = "first"
    all = "all"


class LeadingAssistant(Enum):
    """What becomes of a conversation that begins with the assistant: drop it, or cut to the first user turn."""

    drop = "drop"
    cut = "cut"


@dataclass(frozen=True)
class Loaded:
    """A loaded source.

    Attributes:
        rows: the usable rows.
        selection: what load decided about every raw record.
        grouped_by: which rule made the groups.
    """

    rows: Rows
    selection: Selection
    grouped_by: str


@dataclass
class Dataset(abc.ABC):
    """What every source has: how its records are read."""

    version: ClassVar[int] = 2

    format: Format = Format.auto
    columns: dict[str, str] = field(default_factory=dict)
    turns: Turns = Turns.first
    leading_assistant: LeadingAssistant = LeadingAssistant.drop
    group: str = "auto"
    limit: int | None = field(default=None, metadata={"changes_result": False})  # applied by the split

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require(self.limit is None or self.limit >= 1, "limit", self.limit, "at least 1, or null for all rows")
        unknown = set(self.columns) - {"prompt", "answer", "context", "system"}
        require(not unknown, "columns", self.columns, "a mapping of prompt, answer, context and system to your columns")
        if self.columns:
            require({"prompt", "answer"} <= set(self.columns), "columns", self.columns, "given with prompt and answer")

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """A key of the source's content, found with the standard library alone where the source is local."""

    @abc.abstractmethod
    def records(self) -> Iterator[tuple[str, Record | None]]:
        """Every raw record with the name of its split (``""`` where the source has none); None when unreadable."""

    @abc.abstractmethod
    def named(self) -> str:
        """Say for a message which source this is, by the key that chose it."""

    def check(self) -> list[str]:
        """Say what is wrong with the world as this source needs it; empty when nothing is."""
        return []

    def __call__(self, bench: Bench) -> Loaded:
        """Read the source into a table, or find the stored one."""
        import numpy as np

        from sft_lab.rows import Rows, Selection, load_table

        recipe = {"version": self.version, "params": result_params(self), "input": self.fingerprint()}
        entry = bench.stage("load", recipe, self._load)
        table = load_table(entry.path)
        grouped_by = read_json(entry.path / "load.json")["grouped_by"]
        rows = Rows(table, np.arange(len(table)), entry.key)
        return Loaded(rows, Selection.load(entry.path), grouped_by)

    def _load(self, folder: Path) -> None:
        import numpy as np

        from sft_lab.rows import Selection, save_table

        raw = list(self.records())
        if not raw:
            raise SourceError(f"{self.named()}: holds no record; give a source with rows")
        found = list(dict.fromkeys(key for _, record in raw if record for key in record))
        reader = find_reader(self.format, self.columns, found)
        if self.group not in ("auto", "id_prefix", "content", *found):
            raise SourceError(
                f"dataset.group={self.group}: must be auto, id_prefix, content or a column of the source; "
                f"it has {found}"
            )
        rows: list[Record] = []
        ids, reasons = [], []
        for position, (split, record) in enumerate(raw):
            turns, reason = _read_turns(reader, record)
            # The hash is of what was read, not of the record: the same rows as CSV and as JSON have the same ids.
            ids.append(f"{position}-{reason or digest(turns)[:12]}")
            try:
                system, messages = _exchange(turns, self.turns, self.leading_assistant)
            except _Unusable as error:
                reasons.append(reason or error.reason)
                continue
            reasons.append("")
            rows.append(_row(ids[-1], split, record or {}, system, messages))
        grouped_by = _put_groups(rows, raw, self.group)
        columns = {name: [row[name] for row in rows] for name in _FEATURES}
        save_table(columns, _features(), folder)
        Selection(ids, reasons, np.full(len(ids), np.nan, np.float32), [""] * len(ids)).save(folder)
        groups = Counter(row["group"] for row in rows)
        write_json(folder / "load.json", {"grouped_by": grouped_by, "groups": len(groups)})
        log.info("load: %d groups by %s", len(groups), grouped_by)


_FEATURES = ("id", "source_id", "system", "prompt", "answer", "messages", "group", "source_split")


def _features() -> Any:
    import datasets

    text = datasets.Value("string")
    return datasets.Features(
        {name: [{"role": text, "content": text}] if name == "messages" else text for name in _FEATURES}
    )


class _Unusable(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _read_turns(reader: Reader, record: Record | None) -> tuple[list[Turn], str]:
    """Give a record's turns, or none and the reason."""
    try:
        return (reader(record), "") if record else ([], "unreadable")
    except (Unreadable, KeyError):
        return [], "unreadable"


def _exchange(turns: list[Turn], wanted: Turns, leading: LeadingAssistant) -> tuple[str, list[dict[str, str]]]:
    """Cut a conversation to what is trained: optional system text, and messages that end with the assistant.

    Turns of one role in a row are joined by a blank line, since no chat template knows two of them.
    """
    if not turns:
        raise _Unusable("empty")
    joined = [
        {"role": role, "content": "\n\n".join(text for _, text in said if text)}
        for role, said in itertools.groupby(turns, key=itemgetter(0))
    ]
    system = joined.pop(0)["content"] if joined[0]["role"] == "system" else ""
    if joined and joined[0]["role"] == "assistant":
        if leading is LeadingAssistant.drop:
            raise _Unusable("begins_with_assistant")
        joined = joined[1:]
    if len(joined) < 2:
        raise _Unusable("no_answer")
    joined = joined[: 2 if wanted is Turns.first else len(joined) - len(joined) % 2]
    if any(message["role"] == "system" for message in joined):
        raise _Unusable("unreadable")  # an order given in the middle of a talk belongs to no row form we know
    return system, joined


def _row(row_id: str, split: str, record: Record, system: str, messages: list[dict[str, str]]) -> Record:
    by_role = {
        role: "\n".join(message["content"] for message in messages if message["role"] == role)
        for role in ("user", "assistant")
    }
    head = [{"role": "system", "content": system}] if system.strip() else []
    return {
        "id": row_id,
        "source_id": _as_text(record.get("id")),
        "system": system,
        "prompt": by_role["user"],
        "answer": by_role["assistant"],
        "messages": head + messages,
        "group": "",
        "source_split": split,
    }


def _as_text(value: Any) -> str:
    return "" if value is None else without_surrogates(str(value))


_NUMBERED = re.compile(r"^(.+)_\d+$", re.DOTALL)


def _put_groups(rows: list[Record], raw: list[tuple[str, Record | None]], wanted: str) -> str:
    """Give each row the group that must stay on one side of the split; answer the rule that was used.

    ``auto`` trusts numbered ids only where every row has one and no conversation holds more than a tenth of the rows:
    ``identity_0`` to ``identity_999`` are a thousand rows, not one.
    """
    if wanted in ("auto", "id_prefix"):
        prefixes = [match.group(1) if (match := _NUMBERED.match(row["source_id"])) else None for row in rows]
        numbered = bool(rows) and all(prefixes)
        largest = Counter(prefixes).most_common(1)[0][1] if numbered else 0
        if numbered and (wanted == "id_prefix" or largest <= len(rows) / 10):
            for row, prefix in zip(rows, prefixes, strict=True):
                row["group"] = f"id_prefix:{prefix}"
            return "id_prefix"
        if wanted == "id_prefix":
            raise SourceError("dataset.group=id_prefix: not every id of the source ends in _<number>; use content")
    by_content = wanted in ("auto", "content")
    for row in rows:
        record = raw[int(row["id"].split("-")[0])][1] or {}
        value = "" if by_content else _as_text(record.get(wanted))
        # Rows whose column is empty do not belong together: each is grouped by what it says.
        row["group"] = f"{wanted}:{value}" if value else content_group(row["prompt"], row["answer"])
    return "content" if by_content else wanted
