"""Split: which rows are held out. They never move.

A row's side depends on the content of its group alone: not on the seed, a filter, dedup, ``dataset.limit`` or the
order of the rows. So every job of a sweep over data is measured on the same rows.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from sft_lab.core.bounds import Bounded, bounded
from sft_lab.core.errors import ConfigError, require
from sft_lab.core.io import digest
from sft_lab.core.packages import absolute_path
from sft_lab.core.stage import UsesContext
from sft_lab.data.filters import Filter
from sft_lab.data.formats import Format
from sft_lab.data.load import HELD_OUT, Dataset
from sft_lab.data.sources import File

if TYPE_CHECKING:
    import datasets
    import numpy as np

    from sft_lab.core.context import StageContext
    from sft_lab.core.rows import Rows
    from sft_lab.core.selection import Selection

MANY_TOO_LONG = 0.2  # share of the held-out rows that may be too long to be measured without a word


@dataclass(frozen=True)
class Sides:
    """The two sides of a split.

    Attributes:
        side: the split of all loaded rows, for the training side: reasons ``held_out``, ``test`` and ``over_limit``.
        train: the training rows.
        held_out_rows: every row on the held-out side.
        held_out_selection: which of them are used, and why the others are not.
        test_rows: every row on the test side, on which a chosen run alone is scored.
        test_selection: as for the held-out side.
    """

    side: Selection
    train: Rows
    held_out_rows: Rows
    held_out_selection: Selection
    test_rows: Rows
    test_selection: Selection

    def __repr__(self) -> str:
        sides = {"training": self.train, "held-out": self.held_out, "test": self.test}
        return f"Sides({', '.join(f'{len(rows):,} {name} rows' for name, rows in sides.items())})"

    @property
    def held_out(self) -> Rows:
        """The held-out rows that are used."""
        return self.held_out_rows.take(self.held_out_selection.kept)

    @property
    def test(self) -> Rows:
        """The test rows that are used."""
        return self.test_rows.take(self.test_selection.kept)

    @property
    def measured(self) -> Rows:
        """Every row that is kept for measuring: what no training row may equal."""
        import numpy as np

        from sft_lab.core.rows import Rows

        both = np.sort(np.concatenate([self.held_out_rows.positions, self.test_rows.positions]))
        return Rows(self.held_out_rows.table, both, self.held_out_rows.table_key)

    @cached_property
    def fingerprint(self) -> str:
        """A key of the held-out rows in use, by content: the id of a row holds its content's hash."""
        return digest(sorted(row_id.split("-", 1)[-1] for row_id in self.held_out.ids))


def group_hash(group: str) -> float:
    """Place a group in [0, 1), evenly and for ever."""
    return int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


@dataclass
class Split(Bounded, UsesContext, abc.ABC):
    """What every split has: which held-out rows are used, and how many.

    Attributes:
        filter: what a held-out row must be, by the filters' names. It says what the model is for, and so is the same
            for every job of a sweep; the training side has filters of its own.
    """

    version: ClassVar[int] = 1

    filter: dict[str, Filter] = field(default_factory=dict)
    min_eval_rows: int = bounded(8, at_least=1)
    max_eval_rows: int = 128
    max_eval_tokens: int = bounded(1024, at_least=1)

    def __post_init__(self) -> None:
        """Refuse fewer rows at most than at least."""
        super().__post_init__()
        require(
            self.max_eval_rows >= self.min_eval_rows,
            "max_eval_rows",
            self.max_eval_rows,
            f"at least min_eval_rows={self.min_eval_rows}",
        )

    @abc.abstractmethod
    def is_held_out(self, rows: Rows) -> np.ndarray:
        """True for each row on the held-out side: bool, shape (rows,)."""

    def is_test(self, rows: Rows) -> np.ndarray:
        """True for each row on the test side: bool, shape (rows,)."""
        import numpy as np

        return np.zeros(len(rows), bool)

    def wants_held_out(self) -> bool:
        """Whether there are held-out rows at all."""
        return True

    def remedy(self) -> str:
        """Return what a user can do about too few held-out rows."""
        return "give more held-out rows, or lower split.min_eval_rows"

    def source(self) -> Dataset | None:
        """The source of the held-out rows, where they have one of their own."""
        return None

    def check(self) -> list[str]:
        """Say what is wrong with the world as this split needs it."""
        problems = [problem for keep in self.filter.values() for problem in keep.check()]
        return [f"split.{problem}" if problem.startswith("filter.") else problem for problem in problems]

    def __call__(
        self,
        rows: Rows | datasets.Dataset,
        context: StageContext | None = None,
        surplus: Callable[[Rows], np.ndarray] | None = None,
    ) -> Sides:
        """Put every loaded row on its side.

        Args:
            rows: the loaded rows.
            context: for the tokenizer; None: the run's.
            surplus: which training rows are more than asked for (``Dataset.surplus``).

        Raises:
            ConfigError: when too few held-out rows can be used to judge anything.
        """
        import numpy as np

        from sft_lab.core.rows import Rows
        from sft_lab.core.selection import Selection

        context = self.context_for(context)
        rows = Rows.of(rows)
        held_out, test = self.is_held_out(rows), self.is_test(rows)
        measured = held_out | test
        over = np.zeros(len(rows), bool)
        if surplus is not None:
            over[~measured] = surplus(rows.take(~measured))
        reasons = np.select([held_out, test, over], ["held_out", "test", "over_limit"], "").tolist()
        held_out_rows, test_rows = rows.take(held_out), rows.take(test)
        sides = Sides(
            Selection.of(rows, reasons),
            rows.take(~measured & ~over),
            held_out_rows,
            self._usable(held_out_rows, context),
            test_rows,
            self._usable(test_rows, context),
        )
        if self.wants_held_out() and len(sides.held_out) < self.min_eval_rows:
            unused = "".join(f", {count} {reason}" for reason, count in sides.held_out_selection.dropped.items())
            raise ConfigError(
                f"split.min_eval_rows={self.min_eval_rows}: only {len(sides.held_out)} held-out rows can be used "
                f"({len(held_out_rows)} of {len(rows)} rows are held out{unused}); {self.remedy()}"
            )
        long = sides.held_out_selection.dropped.get("over_max_eval_tokens", 0)
        if long > MANY_TOO_LONG * len(held_out_rows):
            context.notice(
                f"split: {long} of {len(held_out_rows)} held-out rows have more than split.max_eval_tokens="
                f"{self.max_eval_tokens} tokens and are not measured; raise it (up to trainer.max_length) to judge by "
                "long rows too"
            )
        return sides

    def _usable(self, rows: Rows, context: StageContext) -> Selection:
        import numpy as np

        from sft_lab.core.selection import Selection

        if not len(rows):
            return Selection.of(rows, [])
        tokens = context.token_counts(rows).sum(axis=1)
        unanswered = [
            not (answer.strip() and (prompt.strip() or not messages))  # plain text asks nothing
            for batch in rows.batches("prompt", "answer", "messages")
            for prompt, answer, messages in zip(*batch, strict=True)
        ]
        reasons = np.select(
            [np.array(unanswered, bool), tokens > self.max_eval_tokens], ["unanswered", "over_max_eval_tokens"], ""
        ).tolist()
        for keep in self.filter.values():
            reasons = [reason or new for reason, new in zip(reasons, keep(rows, context).reason, strict=True)]
        # The rows with the smallest hash are used, not the first ones: row order must not enter.
        names = (named for batch in rows.batches("group", "id") for named in zip(*batch, strict=True))
        positions = [(group_hash(group), row_id.split("-", 1)[-1]) for group, row_id in names]
        usable = sorted((position, index) for index, position in enumerate(positions) if not reasons[index])
        for _, index in usable[self.max_eval_rows :]:
            reasons[index] = "over_max_eval_rows"
        return Selection.of(rows, reasons, np.asarray(tokens, np.float32))


@dataclass
class Hash(Split):
    """Held out by the hash of the group.

    Attributes:
        test_share: a third side beside the held-out one: jobs are compared on held-out rows, and the best of many looks
            better there than it is; the test rows have seen no comparison.
    """

    eval_share: float = bounded(0.1, at_least=0, below=1, limit="a share from 0 (none) to below 1")
    test_share: float = 0.0

    def __post_init__(self) -> None:
        """Refuse shares that leave no training rows."""
        super().__post_init__()
        limit = f"a share from 0 (none) to below {1 - self.eval_share:.3g}, what eval_share={self.eval_share} leaves"
        require(0 <= self.test_share < 1 - self.eval_share, "test_share", self.test_share, limit)

    def wants_held_out(self) -> bool:
        """No held-out rows at a share of 0."""
        return self.eval_share > 0

    def remedy(self) -> str:
        """A larger share, or none."""
        return (
            "raise split.eval_share, to 0.2 say, give more rows, or set split.eval_share=0 to train without held-out "
            "rows"
        )

    def is_held_out(self, rows: Rows) -> np.ndarray:
        """A row is held out iff its group's hash lies below the share."""
        return _positions(rows) < self.eval_share

    def is_test(self, rows: Rows) -> np.ndarray:
        """A row is of the test side iff its group's hash lies in the share above the held-out one."""
        positions = _positions(rows)
        return (positions >= self.eval_share) & (positions < self.eval_share + self.test_share)


def _positions(rows: Rows) -> np.ndarray:
    """Where the hash of each row's group lies in [0, 1): float64, shape (rows,)."""
    import numpy as np

    groups = (group for (groups,) in rows.batches("group") for group in groups)
    return np.fromiter(map(group_hash, groups), np.float64, len(rows))


@dataclass
class Source(Split):
    """Held out by the source: its own test split."""

    def is_held_out(self, rows: Rows) -> np.ndarray:
        """A row is held out iff it comes from another split than the first row's.

        Raises:
            ConfigError: if the source has one split only.
        """
        import numpy as np

        from sft_lab.core.selection import shared_strings

        splits = shared_strings(rows.arrow("source_split"))
        if len(set(splits)) < 2:
            raise ConfigError("split=source: this source has no test split of its own; use split=hash")
        return np.fromiter((split != splits[0] for split in splits), bool, len(rows))


@dataclass
class FromFile(Split):
    """Held out by you: a file of its own, beside the training data."""

    path: str = field(default="???", metadata={"changes_result": False})  # the bytes do: see Dataset.fingerprint
    format: Format = Format.auto
    columns: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the path absolute, so that a saved config runs from any folder."""
        super().__post_init__()
        self.path = absolute_path(self.path)

    def source(self) -> File:
        """The file."""
        return File(self.format, self.columns, path=self.path)

    def check(self) -> list[str]:
        """The file is there and of a kind that can be read."""
        return [*super().check(), *(f"split.{problem.removeprefix('dataset.')}" for problem in self.source().check())]

    def remedy(self) -> str:
        """More rows in the file."""
        return f"give more rows in split.path={self.path}, or lower split.min_eval_rows"

    def is_held_out(self, rows: Rows) -> np.ndarray:
        """A row is held out iff it comes from the file."""
        import numpy as np

        from sft_lab.core.selection import shared_strings

        splits = shared_strings(rows.arrow("source_split"))
        return np.fromiter((split == HELD_OUT for split in splits), bool, len(rows))
