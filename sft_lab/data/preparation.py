"""The data stages in order, with the waterfall that follows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_lab.core.errors import JobError, SourceError
from sft_lab.core.io import digest
from sft_lab.core.log import log
from sft_lab.core.ratio import share
from sft_lab.core.rows import Rows, Selection
from sft_lab.data.split import Sides, Split, group_hash
from sft_lab.data.tokenization import tokenize
from sft_lab.data.waterfall import Waterfall

if TYPE_CHECKING:
    import datasets

    from sft_lab.core.context import StageContext
    from sft_lab.data.chat_template import Template
    from sft_lab.data.filters import Filter
    from sft_lab.data.load import Loaded

MANY_HELD_OUT = 0.2  # share of the held-out rows that a training filter may drop without a word
MANY_TOKENS = 1 / 3  # the same of the training tokens, where they are of few rows


@dataclass(frozen=True)
class Ready:
    """Rows ready for a model.

    Attributes:
        rows: the rows as loaded.
        tokens: ``id``, ``input_ids`` and ``labels``, row by row the same.
        rendered: the folder of the template stage, whose table holds the text of each row by ``id``.
    """

    rows: Rows
    tokens: datasets.Dataset
    rendered: Path

    @property
    def answer_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each row's answer: int64, shape (rows,)."""
        return np.array([len(answer.encode()) for answer in self.rows.column("answer")], np.int64)


@dataclass(frozen=True)
class Prepared:
    """What the data stages leave.

    Attributes:
        train: what is trained.
        held_out: what the run is judged by; answers alone are labelled.
        probe: as many training rows, labelled like the held-out ones.
        sides: the split.
        train_flow: the waterfall of the training side.
        held_out_flow: the waterfall of the held-out side.
        grouped_by: which rule made the groups.
        steps: the rows that each stage of the training side between split and template saw, and what it decided.
    """

    train: Ready
    held_out: Ready
    probe: Ready
    sides: Sides
    train_flow: Waterfall
    held_out_flow: Waterfall
    grouped_by: str
    steps: dict[str, tuple[Rows, Selection]]

    @property
    def train_fingerprint(self) -> str:
        """A key of which rows are trained, by their ids in order."""
        return digest(self.train.rows.column("id"))


class Preparation:
    """Carries rows from stage to stage and keeps the waterfall.

    Args:
        context: the run's tools.
        max_length: in tokens, template included.
        loss_on_all: whether every token is trained.
    """

    def __init__(self, context: StageContext, max_length: int, *, loss_on_all: bool) -> None:
        self._bench = context
        self._max_length = max_length
        self._loss_on_all = loss_on_all
        self._steps: dict[str, tuple[Rows, Selection]] = {}
        self.flow = Waterfall(context, {}, {})

    def split(self, loaded: Loaded, split: Split, surplus: Callable[[Rows], np.ndarray] | None = None) -> Sides:
        """Put each loaded row on its side.

        Raises:
            SourceError: if load could use no row at all.
        """
        if not len(loaded.rows):
            why = ", ".join(f"{count} {reason}" for reason, count in loaded.selection.dropped.items())
            raise SourceError(
                f"dataset: none of its {len(loaded.selection.ids)} records can be used ({why}); "
                "docs/data.md has the row formats"
            )
        counts = self._bench.token_counts(loaded.rows).sum(axis=1)
        ids = loaded.rows.column("id")
        tokens = dict(zip(ids, map(int, counts), strict=True))
        sources = {row_id: name for row_id, name in zip(ids, loaded.rows.column("source"), strict=True) if name}
        self.flow = Waterfall(self._bench, tokens, sources)
        self.held_out_flow = Waterfall(self._bench, tokens, sources, side="held out")
        self.grouped_by = loaded.grouped_by
        self.sides = sides = split(loaded.rows, self._bench, surplus)
        self.flow.record("load", _with_limit(loaded.selection, sides.side))
        log.info("load: %d groups by %s", loaded.groups, loaded.grouped_by)
        self.flow.record("split", _without_limit(sides.side))
        self.held_out_flow.record("split", sides.held_out_selection)
        if begun := loaded.selection.dropped.get("begins_with_assistant", 0):
            part = share(begun, len(loaded.selection.ids))
            if part > 0.1:
                self._bench.notice(
                    f"load: {part:.0%} of the rows begin with the assistant and are dropped; "
                    "dataset.leading_assistant=cut keeps what follows the first user turn"
                )
        return sides

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The waterfall of the training side so far."""
        return self.flow.stages

    def filter(self, name: str, keep: Filter, rows: Rows) -> Rows:
        """Filter the training side; the held-out side stays, and it is said when the two grow apart."""
        stays = self.step(f"filter.{name}", rows, keep(rows, self._bench))
        lost = 1 - share(self.stages[-1]["tokens_kept"], self.stages[-1]["tokens_in"])
        lost_rows = 1 - share(len(stays), len(rows))
        if lost > MANY_TOKENS and lost > 2 * lost_rows:
            self._bench.notice(
                f"filter.{name} drops {lost_rows:.0%} of the rows and with them {lost:.0%} of the tokens: the long "
                f"conversations go; loosen filter.{name} if the model is to learn from them"
            )
        if keep.judges_by_id:
            return stays
        held_out = self.sides.held_out
        missed = share(len(held_out) - int(keep(held_out, self._bench).kept.sum()), len(held_out))
        self._bench.take_new_entries()
        if missed > MANY_HELD_OUT:
            self._bench.notice(
                f"filter.{name} would drop {missed:.0%} of the held-out rows too: the model is judged on rows unlike "
                f"those it is trained on; if it is not for such rows, say so with split.filter=[{name}]"
            )
        return stays

    def step(self, stage: str, rows: Rows, selection: Selection) -> Rows:
        """Record a stage of the training side and give the rows that stay."""
        self._steps[stage.partition(".")[0] if stage.startswith("dedup.") else stage] = (rows, selection)
        return self.flow.step(stage, rows, selection)

    def finish(self, template: Template, train: Rows, held_out: Rows) -> Prepared:
        """Template and tokenize both sides.

        Raises:
            JobError: if no training row is left.
        """
        ready_held_out = self._ready(template, held_out, self.held_out_flow, loss_on_all=False)
        # Rendered before dedup decides, so that every threshold of a sweep finds the texts and tokens.
        whole = self._steps["dedup"][0] if "dedup" in self._steps else train
        ready = self._ready(template, train, self.flow, loss_on_all=self._loss_on_all, whole=whole)
        if not len(ready.rows):
            went = "; ".join(
                f"{stage['stage']} dropped "
                + ", ".join(f"{rows} {reason}" for reason, rows in stage["dropped"].items())
                for stage in self.flow.stages
                if stage["dropped"]
            )
            most = max(self.flow.stages, key=lambda stage: sum(stage["dropped"].values()))["stage"]
            remedy = "choose another template with template=..." if most == "template" else "loosen what took most"
            raise JobError(f"no training row is left ({went}); {remedy}, or give more rows")
        probe_rows = _probe(ready.rows, max(len(ready_held_out.rows), 1))
        probe = self._ready(template, probe_rows, None, loss_on_all=False, whole=None if self._loss_on_all else whole)
        return Prepared(
            ready, ready_held_out, probe, self.sides, self.flow, self.held_out_flow, self.grouped_by,
            self._steps,
        )  # fmt: skip

    def held_out_as(self, template: Template, rows: Rows) -> Ready:
        """Give held-out rows under another template, outside the waterfall."""
        return self._ready(template, rows, None, loss_on_all=False)

    def _ready(
        self, template: Template, rows: Rows, flow: Waterfall | None, *, loss_on_all: bool, whole: Rows | None = None
    ) -> Ready:
        """Template and tokenize rows; ``whole``: a wider view of their table that is worked on in their stead."""
        whole = rows if whole is None else whole
        rendering, rendered = template(whole, self._bench)
        rows = self._narrowed("template", whole, rendering, rows, flow)
        whole = whole.take(rendering.kept)
        fitting, tokens = tokenize(
            whole, rendered, template, self._bench, max_length=self._max_length, loss_on_all=loss_on_all
        )
        rows = self._narrowed("tokenize", whole, fitting, rows, flow)
        whole = whole.take(fitting.kept)
        if len(rows) < len(whole):
            places = np.searchsorted(whole.positions, rows.positions)
            tokens = tokens.select(places, new_fingerprint=digest([tokens._fingerprint, rows.key]))  # noqa: SLF001
        return Ready(rows, tokens, rendered)

    def _narrowed(self, stage: str, whole: Rows, decided: Selection, rows: Rows, flow: Waterfall | None) -> Rows:
        """Record what was decided about ``rows`` among the ``whole``, and give those that stay."""
        selection = decided.take(np.searchsorted(whole.positions, rows.positions))  # both are in source order
        if flow:
            flow.record(stage, selection)
            if over := selection.dropped.get("over_max_length"):
                log.warning(
                    "tokenize: %d rows are longer than trainer.max_length=%d and dropped", over, self._max_length
                )
        return rows.take(selection.kept)


def _with_limit(load: Selection, side: Selection) -> Selection:
    """Give what load decided, with the rows that ``dataset.limit`` leaves out."""
    late = {row_id for row_id, reason in zip(side.ids, side.reason, strict=True) if reason == "over_limit"}
    reasons = [
        reason or ("over_limit" if row_id in late else "") for row_id, reason in zip(load.ids, load.reason, strict=True)
    ]
    return Selection(load.ids, reasons, load.score, load.nearest)


def _without_limit(side: Selection) -> Selection:
    kept = [index for index, reason in enumerate(side.reason) if reason != "over_limit"]
    return side.take(np.array(kept, np.int64))


def _probe(rows: Rows, size: int) -> Rows:
    """Choose training rows by hash, so that the probe is the same in every job that trains on them."""
    places = [group_hash(f"probe:{row_id.split('-', 1)[-1]}") for row_id in rows.column("id")]
    chosen = np.zeros(len(rows), bool)
    chosen[np.argsort(places, kind="stable")[:size]] = True
    return rows.take(chosen)
