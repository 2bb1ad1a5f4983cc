"""Load: raw records become one immutable table.

Calling a data set reads every record, turns it into messages, a prompt and an answer, and puts rows that belong
together into a group. A record that cannot be used is dropped with a reason.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sft_lab.core.bounds import Bounded, bounded
from sft_lab.core.context import StageContext
from sft_lab.core.errors import require
from sft_lab.core.io import digest, read_json
from sft_lab.core.params import result_params
from sft_lab.core.plugins import version_of
from sft_lab.core.text import count_of
from sft_lab.data.formats import Format
from sft_lab.data.trained_turns import Reasoning, TrainOn

if TYPE_CHECKING:
    import numpy as np

    from sft_lab.core.rows import Rows
    from sft_lab.core.selection import Selection
    from sft_lab.core.store import Store

Record = dict[str, Any]


class Turns(Enum):
    """How much of a conversation is a training row: its first exchange, or every assistant turn."""

    first = "first"
    all = "all"


class LeadingAssistant(Enum):
    """What is done with a conversation that begins with the assistant: drop it, or cut it to the first user turn."""

    drop = "drop"
    cut = "cut"


class Consecutive(Enum):
    """What is done with two turns of one role in a row: join them, keep them apart, or drop the conversation."""

    join = "join"
    keep = "keep"
    drop = "drop"


class BadAnswers(Enum):
    """What is done with a row whose ``label`` or ``kto_tag`` is false, which marks its answer as bad."""

    drop = "drop"
    keep = "keep"


class OnError(Enum):
    """What is done about a broken part of a file: stop and name it, or leave it out and count it."""

    fail = "fail"
    skip = "skip"


@dataclass(frozen=True)
class Loaded:
    """A loaded source.

    Attributes:
        rows: the usable rows.
        selection: the decision on every raw record.
        grouped_by: the rule that made the groups.
        groups: their number.
        record_of_row: the index of the record from which each row was made: int64, shape (rows,).
        turns: the number of assistant turns read, and by reason of those that are not used or not as they are.
    """

    rows: Rows
    selection: Selection
    grouped_by: str
    groups: int
    record_of_row: np.ndarray
    turns: dict[str, int] = field(default_factory=dict)


@dataclass
class Dataset(Bounded, abc.ABC):
    """The base of all sources: how records are read."""

    version: ClassVar[int] = 9
    needs_answers: ClassVar[bool] = True

    format: Format = Format.auto
    columns: dict[str, str] = field(default_factory=dict)
    turns: Turns = Turns.all
    leading_assistant: LeadingAssistant = LeadingAssistant.drop
    consecutive: Consecutive = bounded(Consecutive.join, added=True)
    bad_answers: BadAnswers = bounded(BadAnswers.drop, added=True)
    train_on: TrainOn = bounded(TrainOn.all, added=True, changes_result=False)  # applied when rows are encoded
    reasoning: Reasoning = bounded(Reasoning.keep, added=True, changes_result=False)
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
        """Return a key of the source's content; the store keeps the hashes of files."""

    @abc.abstractmethod
    def records(self, store: Store) -> Iterator[tuple[str, Record | None]]:
        """Yield the split's name (``""`` without splits) and the raw record, None if unreadable, of every record."""

    @abc.abstractmethod
    def named(self) -> str:
        """Return the key and value that chose it, for messages."""

    def check(self) -> list[str]:
        """Return what is missing or wrong for this source."""
        return []

    def is_known(self, store: Store) -> bool:  # noqa: ARG002 - a hub set names its commit
        """Return whether the fingerprint is known without reading the source."""
        return True

    def parts(self) -> dict[str, Dataset]:
        """Return the sources of a mixture by name; of any other source, itself under an empty name."""
        return {"": self}

    def surplus(self, train: Rows) -> np.ndarray:
        """Return which training-side rows are beyond ``limit``: bool, shape (rows,)."""
        import numpy as np

        return np.arange(len(train)) >= (len(train) if self.limit is None else self.limit)

    def __call__(self, context: StageContext, held_out: Dataset | None = None) -> Loaded:
        """Return the source as a table, stored or read.

        Args:
            context: for the store.
            held_out: a source whose rows are all held out; they are appended to this one's.
        """
        import numpy as np

        from sft_lab.core.rows import Rows, load_table
        from sft_lab.core.selection import Selection

        if held_out is not None:
            held_out.max_record_mb = self.max_record_mb
        sources = [self] if held_out is None else [self, held_out]

        def recipe() -> dict[str, Any] | None:
            if not all(source.is_known(context.store) for source in sources):
                return None  # files are hashed while they are read
            inputs = [source.fingerprint(context.store) for source in sources]
            beside = {} if held_out is None else {"held_out": result_params(held_out)}
            return {"version": version_of(self), "params": result_params(self) | beside, "input": inputs}

        def compute(folder: Path) -> None:
            from sft_lab.data.table import write_table

            write_table(self, held_out, context, folder)

        name = digest([source.named() for source in sources])[:32]
        entry = context.note(context.store.entry_once_read("load", name, recipe, compute))
        table = load_table(entry.path)
        notes = read_json(entry.path / "load.json")
        if unread := notes.get("unread"):  # a table stored by an older version may have none
            context.notice(f"load: {describe_unread(unread)}; docs/data.md lists what each format reads")
        for text in notes.get("notices", []):
            context.notice(text)
        rows = Rows(table, np.arange(len(table)), entry.key)
        record_of_row = np.load(entry.path / "records.npy", mmap_mode="r")
        selection, turns = Selection.load(entry.path), self._without_trained(notes.get("turns", {}))
        return Loaded(rows, selection, notes["grouped_by"], notes["groups"], record_of_row, turns)

    def _without_trained(self, turns: dict[str, int]) -> dict[str, int]:
        """Return the counts of turns without those that train under this ``train_on``."""
        reasons = {WEIGHT_0: TrainOn.marked, BEFORE_LAST: TrainOn.last}
        return {name: count for name, count in turns.items() if reasons.get(name, self.train_on) is self.train_on}


def describe_unread(fields: dict[str, int]) -> str:
    """Return the fields that are not read, the commonest first, from the rows that have each."""
    by_count = sorted(fields.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"`{name}` in {count_of(count, 'row')}" for name, count in by_count[:12])
    return f"not read: {named}" + (f" and {len(by_count) - 12:,} more" if len(by_count) > 12 else "")


# The parts of a row that ``columns`` may name: those required, and those optional.
_FORMS = (
    ({"prompt", "answer"}, {"context", "system", "tools"}),
    ({"messages"}, {"system", "tools"}),
    ({"text"}, set[str]()),
)


def refuse_columns(columns: dict[str, str]) -> None:
    """Refuse ``columns`` that do not name the parts of a row."""
    limit = (
        "a mapping of prompt and answer (optionally context, system, tools), of messages (optionally system, tools), "
        "or of text alone to your columns"
    )
    parts = set(columns)
    is_form = any(needed <= parts <= needed | optional for needed, optional in _FORMS)
    require(not parts or is_form, "columns", columns, limit)


# Turns that one choice of ``train_on`` leaves out. They are counted for every choice, since load does not depend on it.
WEIGHT_0, BEFORE_LAST = "weight_0", "before_last_turn"
HELD_OUT = "held_out"  # the split of a held-out source's rows
