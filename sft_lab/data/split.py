"""The split: which rows are held out.

A row's side depends only on the content of its group: not on the seed, a filter, dedup, ``dataset.limit`` or the order
of the rows. So every job of a sweep over data is measured on the same rows.
"""

from __future__ import annotations

import abc
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from sft_lab.core.bounds import Bounded, bounded
from sft_lab.core.errors import ConfigError, require
from sft_lab.core.io import digest
from sft_lab.core.packages import absolute_path
from sft_lab.core.stage import UsesContext
from sft_lab.core.text import count_of
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

MAX_ADVISED_SHARE = 0.5  # of rows to hold out; with more, there would be too few left to train on
MANY_TOO_LONG = 0.2  # share of the held-out rows that may be too long to be measured without a notice


@dataclass(frozen=True)
class Sides:
    """The two sides of a split.

    Attributes:
        side: of all loaded rows, those on the training side; reasons: ``held_out``, ``test`` and ``over_limit``.
        train: the training rows.
        held_out_rows: every row on the held-out side.
        held_out_selection: which of them are used, and why the others are not.
        test_rows: every row on the test side, on which only a chosen run is scored.
        test_selection: as for the held-out side.
        shortage: why the held-out rows are too few to judge a run, and what to do; empty if they are enough.
    """

    side: Selection
    train: Rows
    held_out_rows: Rows
    held_out_selection: Selection
    test_rows: Rows
    test_selection: Selection
    shortage: str = ""

    def __repr__(self) -> str:
        sides = {"training": self.train, "held-out": self.held_out, "test": self.test}
        return f"Sides({', '.join(f'{len(rows):,} {name} rows' for name, rows in sides.items())})"

    @property
    def held_out(self) -> Rows:
        """The held-out rows that are used."""
        return self.held_out_selection.drop_rows(self.held_out_rows)

    @property
    def test(self) -> Rows:
        """The test rows that are used."""
        return self.test_selection.drop_rows(self.test_rows)

    @property
    def measured(self) -> Rows:
        """Every row on the held-out or the test side, to which no training row may be equal."""
        import numpy as np

        from sft_lab.core.rows import Rows

        both = np.sort(np.concatenate([self.held_out_rows.positions, self.test_rows.positions]))
        return Rows(self.held_out_rows.table, both, self.held_out_rows.table_key)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the held-out rows in use, by content: a row's id contains the hash of its content."""
        return digest(sorted(row_id.split("-", 1)[-1] for row_id in self.held_out.ids))


def group_hash(group: str) -> float:
    """Return a group's fixed position in [0, 1), evenly distributed."""
    return int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


@dataclass
class Split(Bounded, UsesContext, abc.ABC):
    """The base of all splits: which held-out rows are used, and how many.

    Attributes:
        filter: for held-out rows, by name. It expresses what the model is for and so is the same for every job of a
            sweep; the training side has its own filters.
    """

    version: ClassVar[int] = 1

    filter: dict[str, Filter] = field(default_factory=dict)
    min_eval_rows: int = bounded(8, at_least=1)
    max_eval_rows: int = 128
    max_eval_tokens: int = bounded(1024, at_least=1)

    def __post_init__(self) -> None:
        """Refuse a maximum below the minimum."""
        super().__post_init__()
        require(
            self.max_eval_rows >= self.min_eval_rows,
            "max_eval_rows",
            self.max_eval_rows,
            f"at least split.min_eval_rows={self.min_eval_rows}",
        )

    @abc.abstractmethod
    def is_held_out(self, rows: Rows) -> np.ndarray:
        """Return which rows are on the held-out side: bool, shape (rows,)."""

    def is_test(self, rows: Rows) -> np.ndarray:
        """Return which rows are on the test side: bool, shape (rows,)."""
        import numpy as np

        return np.zeros(len(rows), bool)

    def wants_held_out(self) -> bool:
        """Return whether rows are to be held out at all."""
        return True

    def remedy(self, rows: Rows, needed: int) -> str:  # noqa: ARG002
        """Return what a user can do about too few held-out rows.

        Args:
            rows: all rows.
            needed: rows on the held-out side, of which enough can probably be used.
        """
        return "give more held-out rows, or lower split.min_eval_rows"

    def source(self) -> Dataset | None:
        """Return the source of the held-out rows, if they have one of their own."""
        return None

    def check(self) -> list[str]:
        """Return what is missing or wrong for this split."""
        problems = [problem for keep in self.filter.values() for problem in keep.check()]
        return [f"split.{problem}" if problem.startswith("filter.") else problem for problem in problems]

    def __call__(
        self,
        rows: Rows | datasets.Dataset,
        context: StageContext | None = None,
        surplus: Callable[[Rows], np.ndarray] | None = None,
    ) -> Sides:
        """Return the sides of all loaded rows.

        Args:
            rows: the loaded rows.
            context: for the tokenizer; None: the run's.
            surplus: returns which training rows are beyond the limit (``Dataset.surplus``).
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
        long = sides.held_out_selection.dropped.get("over_max_eval_tokens", 0)
        if long > MANY_TOO_LONG * len(held_out_rows):
            context.notice(
                f"split: {long} of {len(held_out_rows)} held-out rows have more than split.max_eval_tokens="
                f"{self.max_eval_tokens} tokens and are not measured; raise it (up to trainer.max_length) to measure "
                "them too"
            )
        return replace(sides, shortage=self._shortage(rows, sides))

    def _shortage(self, rows: Rows, sides: Sides) -> str:
        usable = len(sides.held_out)
        if not self.wants_held_out() or usable >= self.min_eval_rows:
            return ""
        needed = math.ceil(self.min_eval_rows * max(1, len(sides.held_out_rows) / max(1, usable)))
        unused = "".join(f", {count} {reason}" for reason, count in sides.held_out_selection.dropped.items())
        return (
            f"split.min_eval_rows={self.min_eval_rows}: only {count_of(usable, 'held-out row')} can be used "
            f"({len(sides.held_out_rows):,} of {count_of(len(sides.side.ids), 'row')} held out{unused}); "
            f"{self.remedy(rows, needed)}"
        )

    def _usable(self, rows: Rows, context: StageContext) -> Selection:
        import numpy as np

        from sft_lab.core.selection import Selection

        if not len(rows):
            return Selection.of(rows, [])
        tokens = context.token_counts(rows).sum(axis=1)
        unanswered = [
            not (answer.strip() and (prompt.strip() or not messages))  # plain text has no prompt
            for batch in rows.batches("prompt", "answer", "messages")
            for prompt, answer, messages in zip(*batch, strict=True)
        ]
        reasons = np.select(
            [np.array(unanswered, bool), tokens > self.max_eval_tokens], ["unanswered", "over_max_eval_tokens"], ""
        ).tolist()
        for keep in self.filter.values():
            reasons = [reason or new for reason, new in zip(reasons, keep(rows, context).reason, strict=True)]
        # The rows with the smallest hashes are used, not the first ones: row order must not matter.
        names = (named for batch in rows.batches("group", "id") for named in zip(*batch, strict=True))
        positions = [(group_hash(group), row_id.split("-", 1)[-1]) for group, row_id in names]
        usable = sorted((position, index) for index, position in enumerate(positions) if not reasons[index])
        for _, index in usable[self.max_eval_rows :]:
            reasons[index] = "over_max_eval_rows"
        return Selection.of(rows, reasons, np.asarray(tokens, np.float32))


@dataclass
class Hash(Split):
    """Rows are held out by the hash of their group.

    Attributes:
        test_share: of a third side: jobs are compared on held-out rows, where the best of many looks better than it
            is; test rows are not used for comparing.
    """

    eval_share: float = bounded(0.1, at_least=0, below=1, limit="at least 0 (none) and below 1")
    test_share: float = 0.0

    def __post_init__(self) -> None:
        """Refuse shares that leave no training rows."""
        super().__post_init__()
        limit = f"at least 0 (none) and below {1 - self.eval_share:.3g}, the rest after eval_share={self.eval_share}"
        require(0 <= self.test_share < 1 - self.eval_share, "test_share", self.test_share, limit)

    def wants_held_out(self) -> bool:
        """Return false if the share is 0."""
        return self.eval_share > 0

    def remedy(self, rows: Rows, needed: int) -> str:
        """Return the advice of a share that holds out enough of these rows, or none."""
        positions = _positions(rows)
        shares = (step / 20 for step in range(1, int(20 * MAX_ADVISED_SHARE) + 1))
        enough = next((share for share in shares if needed <= (positions < share).sum() < len(positions)), None)
        raised = f"raise split.eval_share to {enough:g}, give" if enough else "give"
        return f"{raised} more rows, or set split.eval_share=0 to train without held-out rows"

    def is_held_out(self, rows: Rows) -> np.ndarray:
        """Return which groups' hashes are below the share."""
        return _positions(rows) < self.eval_share

    def is_test(self, rows: Rows) -> np.ndarray:
        """Return which groups' hashes are in the share above the held-out one."""
        positions = _positions(rows)
        return (positions >= self.eval_share) & (positions < self.eval_share + self.test_share)


def _positions(rows: Rows) -> np.ndarray:
    """Return the position of each row's group in [0, 1): float64, shape (rows,)."""
    import numpy as np

    groups = (group for (groups,) in rows.batches("group") for group in groups)
    return np.fromiter(map(group_hash, groups), np.float64, len(rows))


@dataclass
class Source(Split):
    """The source's own test split is held out."""

    def is_held_out(self, rows: Rows) -> np.ndarray:
        """Return which rows are from another split than the first row.

        Raises:
            ConfigError: if the source has only one split.
        """
        import numpy as np

        from sft_lab.core.selection import shared_strings

        splits = shared_strings(rows.arrow("source_split"))
        if len(set(splits)) < 2:
            raise ConfigError("split=source: this source has no test split of its own; use split=hash")
        return np.fromiter((split != splits[0] for split in splits), bool, len(rows))


@dataclass
class FromFile(Split):
    """The held-out rows are those of a separate file."""

    path: str = field(default="???", metadata={"changes_result": False})  # the bytes do: see Dataset.fingerprint
    format: Format = Format.auto
    columns: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the path absolute, so that a saved config runs from any folder."""
        super().__post_init__()
        self.path = absolute_path(self.path)

    def source(self) -> File:
        """Return the file."""
        return File(self.format, self.columns, path=self.path)

    def check(self) -> list[str]:
        """Return an error if the file is missing or cannot be read."""
        return [*super().check(), *(f"split.{problem.removeprefix('dataset.')}" for problem in self.source().check())]

    def remedy(self, rows: Rows, needed: int) -> str:  # noqa: ARG002
        """Return the advice of more rows in the file."""
        return f"give more rows in split.path={self.path}, or lower split.min_eval_rows"

    def is_held_out(self, rows: Rows) -> np.ndarray:
        """Return which rows come from the file."""
        import numpy as np

        from sft_lab.core.selection import shared_strings

        splits = shared_strings(rows.arrow("source_split"))
        return np.fromiter((split == HELD_OUT for split in splits), bool, len(rows))
