"""The dedup options none and exact."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from sft_lab.core.context import StageContext
from sft_lab.core.stage import Selector
from sft_lab.core.text import On

if TYPE_CHECKING:
    from sft_lab.core.rows import Rows
    from sft_lab.core.selection import Selection


class Keep(Enum):
    """Which rows of a group of duplicates are kept.

    ``first``: in source order, a row is dropped if it duplicates an earlier kept row. ``longest``: the same in
    descending order of answer length, ties in source order. ``singletons``: a row is dropped if it duplicates any other
    row, so that no member of a group is kept.
    """

    first = "first"
    longest = "longest"
    singletons = "singletons"


@dataclass
class Dedup(Selector):
    """A stage that drops duplicate rows."""

    group: ClassVar[str] = "dedup"


@dataclass
class Nothing(Dedup):
    """No dedup."""

    def select(self, rows: Rows, context: StageContext) -> Selection:  # noqa: ARG002
        """Return all rows as kept."""
        from sft_lab.core.selection import Selection

        return Selection.of(rows, [""] * len(rows))


@dataclass
class Exact(Dedup):
    """Rows with equal normalized text are duplicates."""

    keep: Keep = Keep.first
    on: On = On.answer

    def select(self, rows: Rows, context: StageContext) -> Selection:  # noqa: ARG002
        """Reason: ``duplicate``; score: 1."""
        from sft_lab.dedup.keep_rules import selection
        from sft_lab.dedup.neighbor_graph import NeighborGraph
        from sft_lab.dedup.texts import Texts, nodes_of

        distinct, node_of_row = nodes_of(Texts.of(rows, self.on))
        return selection(rows, NeighborGraph.empty(len(distinct)), node_of_row, self.keep)
