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

from sft_lab.core.bounds import Bounded, bounded
from sft_lab.core.context import StageContext
from sft_lab.core.errors import SourceError, require
from sft_lab.core.io import digest, read_json, write_json
from sft_lab.core.params import result_params
from sft_lab.core.plugins import version_of
from sft_lab.core.text import content_group
from sft_lab.data.formats import TEXT, Format, Reader, Turn, Unreadable, Watched, find_reader, without_surrogates

if TYPE_CHECKING:
    import numpy as np

    from sft_lab.core.rows import Rows, Selection
    from sft_lab.core.store import Store

Record = dict[str, Any]


class Turns(Enum):
    """How much of a conversation is a training row: its first exchange, or every assistant turn."""

    first = "first"
    all = "all"


class LeadingAssistant(Enum):
    """What becomes of a conversation that begins with the assistant: drop it, or cut to the first user turn."""

    drop = "drop"
    cut = "cut"


class OnError(Enum):
    """What is done about a broken place of a file: stop and name it, or leave it out and count it."""

    fail = "fail"
    skip = "skip"


@dataclass(frozen=True)
class Loaded:
    """A loaded source.

    Attributes:
        rows: the usable rows.
        selection: what load decided about every raw record.
        grouped_by: which rule made the groups.
        groups: how many there are.
    """

    rows: Rows
    selection: Selection
    grouped_by: str
    groups: int


@dataclass
class Dataset(Bounded, abc.ABC):
    """What every source has: how its records are read."""

    version: ClassVar[int] = 7
    needs_answers: ClassVar[bool] = True

    format: Format = Format.auto
    columns: dict[str, str] = field(default_factory=dict)
    turns: Turns = Turns.first
    leading_assistant: LeadingAssistant = LeadingAssistant.drop
    group: str = "auto"
    on_error: OnError = OnError.fail
    shuffle_seed: int | None = bounded(None, at_least=0, limit="at least 0, or null for the order of the source")
    limit: int | None = bounded(  # applied by the split
        None, at_least=1, limit="at least 1, or null for all rows", changes_result=False
    )
    max_record_mb: float = bounded(  # stops a run, changes no row
        64.0, above=0, at_most=2047, limit="above 0 and at most 2047, in MiB", changes_result=False
    )

    def __post_init__(self) -> None:
        """Refuse columns that no record can have."""
        super().__post_init__()
        refuse_columns(self.columns)

    @abc.abstractmethod
    def fingerprint(self, store: Store) -> str:
        """A key of the source's content; the store knows the hashes of files it has seen."""

    @abc.abstractmethod
    def records(self, store: Store) -> Iterator[tuple[str, Record | None]]:
        """Every raw record with the name of its split (``""`` where the source has none); None when unreadable."""

    @abc.abstractmethod
    def named(self) -> str:
        """Say for a message which source this is, by the key that chose it."""

    def check(self) -> list[str]:
        """Say what is wrong with the world as this source needs it; empty when nothing is."""
        return []

    def is_known(self, store: Store) -> bool:  # noqa: ARG002 - a hub set names its commit
        """Whether the fingerprint is known without reading the source."""
        return True

    def parts(self) -> dict[str, Dataset]:
        """The sources this one is made of, by name; one without a name unless it is a mixture."""
        return {"": self}

    def surplus(self, train: Rows) -> np.ndarray:
        """True for each training-side row beyond ``limit``: bool, shape (rows,)."""
        import numpy as np

        return np.arange(len(train)) >= (len(train) if self.limit is None else self.limit)

    def __call__(self, context: StageContext, held_out: Dataset | None = None) -> Loaded:
        """Read the source into a table, or find the stored one.

        Args:
            context: for the store.
            held_out: a source whose rows are all held out; they are put behind those of this one.
        """
        import numpy as np

        from sft_lab.core.rows import Rows, Selection, load_table

        if held_out is not None:
            held_out.max_record_mb = self.max_record_mb
        sources = [self] if held_out is None else [self, held_out]

        def recipe() -> dict[str, Any] | None:
            if not all(source.is_known(context.store) for source in sources):
                return None  # reading a file tells its hash too
            inputs = [source.fingerprint(context.store) for source in sources]
            beside = {} if held_out is None else {"held_out": result_params(held_out)}
            return {"version": version_of(self), "params": result_params(self) | beside, "input": inputs}

        def compute(folder: Path) -> None:
            _load(self, held_out, context.store, folder)

        name = digest([source.named() for source in sources])[:32]
        entry = context.note(context.store.entry_once_read("load", name, recipe, compute))
        table = load_table(entry.path)
        told = read_json(entry.path / "load.json")
        if unread := told.get("unread"):  # a plug-in's version may be older than this notice
            most = sorted(unread.items(), key=lambda item: (-item[1], item[0]))
            named = ", ".join(f"`{name}` in {count:,} row{'s' * (count > 1)}" for name, count in most[:12])
            named += f" and {len(most) - 12:,} more" if len(most) > 12 else ""
            context.notice(f"load: not read: {named}; docs/data.md has what each format reads")
        rows = Rows(table, np.arange(len(table)), entry.key)
        return Loaded(rows, Selection.load(entry.path), told["grouped_by"], told["groups"])


def refuse_columns(columns: dict[str, str]) -> None:
    """Refuse own column names that are no row form."""
    limit = "a mapping of prompt and answer, with context and system if wanted, or of text alone, to your columns"
    parts = set(columns)
    is_pair = {"prompt", "answer"} <= parts <= {"prompt", "answer", "context", "system"}
    require(not parts or is_pair or parts == {"text"}, "columns", columns, limit)


HELD_OUT = "held_out"  # the split that rows of a held-out source have


def _load(dataset: Dataset, held_out: Dataset | None, store: Store, folder: Path) -> None:
    """Read every part and write the table, the selection and what is to be known of both."""
    import numpy as np

    from sft_lab.core.rows import Selection, save_table

    ids: list[str] = []
    reasons: list[str] = []
    rows: list[Record] = []
    rules: list[str] = []
    unread = Counter[str]()
    parts = [(name, part, None) for name, part in dataset.parts().items()]
    for name, part, split in [*parts, *([("", held_out, HELD_OUT)] if held_out else [])]:
        read = _Part(name, part, dataset, split, first=len(ids))
        read(store)
        ids += read.ids
        reasons += read.reasons
        rows += read.rows
        unread += read.unread
        rules += [read.grouped_by] if read.rows else []
    if dataset.shuffle_seed is not None:
        rows = [rows[index] for index in np.random.default_rng(dataset.shuffle_seed).permutation(len(rows))]
    columns = {name: [row[name] for row in rows] for name in _FEATURES}
    save_table(columns, _features(), folder)
    Selection(ids, reasons, np.full(len(ids), np.nan, np.float32), [""] * len(ids)).save(folder)
    grouped_by = "+".join(dict.fromkeys(rules))
    groups = len({row["group"] for row in rows})
    write_json(folder / "load.json", {"grouped_by": grouped_by, "groups": groups, "unread": dict(unread)})


class _Part:
    """One source's records on their way to rows.

    Args:
        name: of the source in a mixture; ``""`` for a source alone.
        part: gives the records, and how they are read.
        whole: what the rows of every part have in common.
        split: put on every row, whatever the source says.
        first: the position of its first record among those of all parts.
    """

    def __init__(self, name: str, part: Dataset, whole: Dataset, split: str | None, first: int) -> None:
        self._name, self._part, self._whole, self._split, self._first = name, part, whole, split, first
        self.ids: list[str] = []
        self.reasons: list[str] = []
        self.rows: list[Record] = []
        self.grouped_by = ""
        self.unread = Counter[str]()  # rows by the field that holds something and is not read

    def __call__(self, store: Store) -> None:
        part, whole = self._part, self._whole
        raw = list(part.records(store))
        if not raw:
            raise SourceError(f"{part.named()}: holds no record; give a source with rows")
        found = list(dict.fromkeys(key for _, record in raw if record for key in record))
        if not found:
            raise SourceError(
                f"{part.named()}: none of its {len(raw)} records has columns; a record is a JSON object, or a line of "
                "a table with as many fields as the header"
            )
        reader = find_reader(part.format, part.columns, found, needs_answers=whole.needs_answers)
        group = whole.group if self._split is None else "content"
        if group not in ("auto", "id_prefix", "content", *found):
            raise SourceError(
                f"dataset.group={group}: must be auto, id_prefix, content or a column of the source; it has {found}"
            )
        for position, (split, record) in enumerate(raw, start=self._first):
            watched = Watched(record) if record else None
            turns, reason = _read_turns(reader, watched)
            if watched and not reason:
                self.unread.update(watched.unread() - {"id", group})
            # The hash is of what was read, not of the record: the same rows as CSV and as JSON have the same ids.
            self.ids.append(f"{position}-{reason or digest(turns)[:12]}")
            try:
                system, messages = _exchange(turns, whole.turns, whole.leading_assistant)
            except _Unusable as error:
                self.reasons.append(reason or error.reason)
                continue
            self.reasons.append("")
            row = _row(self.ids[-1], record or {}, system, messages)
            self.rows.append(row | {"source": self._name, "source_split": self._split or split})
        records = {f"{position}": record or {} for position, (_, record) in enumerate(raw, start=self._first)}
        self.grouped_by = _put_groups(self.rows, records, group, self._name)


_FEATURES = ("id", "source_id", "system", "prompt", "answer", "messages", "group", "source", "source_split")


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
    except Unreadable as error:
        return [], error.reason
    except KeyError:
        return [], "unreadable"


def _exchange(turns: list[Turn], wanted: Turns, leading: LeadingAssistant) -> tuple[str, list[dict[str, str]]]:
    """Cut a conversation to what is trained: optional system text, and messages that end with the assistant.

    Turns of one role in a row are joined by a blank line, since no chat template knows two of them. Plain text is one
    message of the role ``text``.
    """
    if not turns:
        raise _Unusable("empty")
    if turns[0][0] == TEXT:
        return "", [{"role": TEXT, "content": turns[0][1]}]
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


def _row(row_id: str, record: Record, system: str, messages: list[dict[str, str]]) -> Record:
    """Give a table's row, its group and source left open; plain text is an answer to nothing and no conversation."""
    by_role = {
        role: "\n".join(message["content"] for message in messages if message["role"] == role)
        for role in ("user", "assistant", TEXT)
    }
    if by_role[TEXT]:
        messages = []
    head = [{"role": "system", "content": system}] if system.strip() else []
    return {
        "id": row_id,
        "source_id": _as_text(record.get("id")),
        "system": system,
        "prompt": by_role["user"],
        "answer": by_role["assistant"] or by_role[TEXT],
        "messages": head + messages,
        "group": "",
    }


def _as_text(value: Any) -> str:
    return "" if value is None else without_surrogates(str(value))


_NUMBERED = re.compile(r"^(.+)_\d+$", re.DOTALL)


def _put_groups(rows: list[Record], records: dict[str, Record], wanted: str, source: str) -> str:
    """Give each row the group that must stay on one side of the split; answer the rule that was used.

    ``auto`` trusts numbered ids only where every row has one and no conversation holds more than a tenth of the rows:
    ``identity_0`` to ``identity_999`` are a thousand rows, not one.

    Args:
        rows: of one source.
        records: what they were read from, by position.
        wanted: ``dataset.group``.
        source: two sources number their conversations each for itself.
    """
    within = f"{source}:" if source else ""
    if wanted in ("auto", "id_prefix"):
        prefixes = [match.group(1) if (match := _NUMBERED.match(row["source_id"])) else None for row in rows]
        numbered = bool(rows) and all(prefixes)
        largest = Counter(prefixes).most_common(1)[0][1] if numbered else 0
        if numbered and (wanted == "id_prefix" or largest <= len(rows) / 10):
            for row, prefix in zip(rows, prefixes, strict=True):
                row["group"] = f"id_prefix:{within}{prefix}"
            return "id_prefix"
        if wanted == "id_prefix":
            raise SourceError("dataset.group=id_prefix: not every id of the source ends in _<number>; use content")
    by_content = wanted in ("auto", "content")
    for row in rows:
        value = "" if by_content else _as_text(records[row["id"].split("-")[0]].get(wanted))
        # Rows whose column is empty do not belong together: each is grouped by what it says.
        row["group"] = f"{wanted}:{within}{value}" if value else content_group(row["prompt"], row["answer"])
    return "content" if by_content else wanted
