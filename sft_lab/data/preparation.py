"""The data stages in order, and the waterfall that records them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_lab.core.errors import ConfigError, JobError
from sft_lab.core.io import digest
from sft_lab.core.log import log
from sft_lab.core.rows import Rows
from sft_lab.core.selection import Selection
from sft_lab.core.store_view import NotStored
from sft_lab.core.text import count_of
from sft_lab.data.drop_advice import INTENDED, DropAdvice, advice_for
from sft_lab.data.languages import unfamiliar_share
from sft_lab.data.split import Sides, Split, group_hash
from sft_lab.data.tokens_and_labels import Encoded, encode, tokenize
from sft_lab.data.waterfall import Sources, Waterfall, log_stage, none_usable, stages_html

if TYPE_CHECKING:
    import datasets

    from sft_lab.core.context import StageContext
    from sft_lab.data.chat_template import Template
    from sft_lab.data.filters import Filter
    from sft_lab.data.load import Loaded

MANY_HELD_OUT = 0.2  # share of the held-out rows that a training filter may drop without a notice
MANY_TOKENS = 1 / 3  # the same for training tokens, if they belong to few rows
MANY_ROWS = 1 / 3  # the same for training rows


@dataclass(frozen=True)
class Ready:
    """Rows ready for a model.

    Attributes:
        rows: as loaded.
        tokens: ``id``, ``input_ids`` and ``labels`` of the rows' examples: one each, or several if the template hides
            the thoughts of earlier turns.
        encoded: a table with the texts of these and other rows.
    """

    rows: Rows
    tokens: datasets.Dataset
    encoded: Encoded

    @property
    def first_examples(self) -> np.ndarray:
        """The index of each row's first example in ``tokens``: int64, shape (rows,)."""
        return np.flatnonzero(np.diff(self.encoded.row_of_example(self.rows), prepend=-1))

    @property
    def answer_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each row's answer: int64, shape (rows,)."""
        return np.array([len(answer.encode()) for answer in self.rows.column("answer")], np.int64)


@dataclass(frozen=True)
class Prepared:
    """The result of the data stages.

    Attributes:
        train: the training rows.
        held_out: the rows by which the run is judged; only answers are labelled.
        probe: as many training rows, labelled like the held-out ones.
        sides: the split.
        train_flow: the waterfall of the training side.
        held_out_flow: the waterfall of the held-out side.
        grouped_by: the rule that made the groups.
        steps: by training stage between split and template, the rows it saw and its decisions.
    """

    train: Ready
    held_out: Ready
    probe: Ready
    sides: Sides
    train_flow: Waterfall
    held_out_flow: Waterfall
    grouped_by: str
    steps: dict[str, tuple[Rows, Selection]]

    def __repr__(self) -> str:
        return f"Prepared({len(self.train.rows):,} training rows, {len(self.held_out.rows):,} held-out rows)"

    def _repr_html_(self) -> str:
        return stages_html(self.train_flow.stages)

    @cached_property
    def train_fingerprint(self) -> str:
        """A hash of the ids of the training rows, in order."""
        return digest([*self.train.rows.ids])


class Preparation:
    """Takes rows from stage to stage and records the waterfall.

    Args:
        context: of the run.
        max_length: in tokens, template included.
        loss_on_all: whether every token trains.
        to_train: refuse rows that no run could train on or be judged by; else they are only looked at.
        advice: for stages that drop many rows; None: without the run's settings.
    """

    def __init__(
        self,
        context: StageContext,
        max_length: int,
        *,
        loss_on_all: bool,
        to_train: bool = True,
        advice: DropAdvice | None = None,
    ) -> None:
        self._context = context
        self._advice = advice or DropAdvice()
        self._to_train = to_train
        self._max_length = max_length
        self._loss_on_all = loss_on_all
        self._steps: dict[str, tuple[Rows, Selection]] = {}
        self._advice_of: dict[tuple[str, str], str] = {}  # by stage and reason
        self.shortage = ""  # of held-out rows; see ``Sides``
        self.flow = Waterfall(context, np.zeros(0, np.int32), Sources([], np.zeros(0, np.int16)))

    def split(self, loaded: Loaded, split: Split, surplus: Callable[[Rows], np.ndarray] | None = None) -> Sides:
        """Return the sides of the loaded rows, recorded in the waterfall.

        Raises:
            SourceError: if load could use no row at all.
            ConfigError: if too few held-out rows can be used to judge a run.
        """
        if not len(loaded.rows):
            raise none_usable(loaded.selection)
        loading = self._context.take_new_entries()
        tokens = self._context.token_counts(loaded.rows).sum(axis=1)
        encoding = self._context.take_new_entries()
        sources = Sources.of(loaded.rows)
        self.flow = Waterfall(self._context, tokens, sources)
        self.held_out_flow = Waterfall(self._context, tokens, sources, side="held out")
        self.grouped_by = loaded.grouped_by
        self.sides = sides = split(loaded.rows, self._context, surplus)
        self.shortage = sides.shortage
        if self._to_train and self.shortage:
            raise ConfigError(self.shortage)
        position_of_record = np.full(len(loaded.selection.ids), -1)
        position_of_record[loaded.record_of_row] = np.arange(len(loaded.rows))
        self.flow.record("load", _with_limit(loaded, sides.side), position_of_record, loading)
        self.flow.record_turns(loaded.turns)
        if share := unfamiliar_share(loaded.rows, tokens):
            self._context.notice(
                f"load: {share:.0%} of the rows are in a script that the model's tokenizer splits into very short "
                "tokens, so the model has hardly read it: held-out loss will fall as it learns the form of the "
                "answers, and the answers may still be wrong; choose a model that knows the language"
            )
        log.info("load: %s by %s", count_of(loaded.groups, "group"), loaded.grouped_by)
        for entry in encoding:
            amount = f"{int(tokens.sum()):,} tokens" if entry.stage in ("encode", "tokens") else "converted"
            if entry.stage != "model" or not entry.hit:
                log_stage(entry.stage, [entry], amount)
        within_limit = np.flatnonzero(np.array(sides.side.reason, object) != "over_limit")
        self.flow.record("split", sides.side.take(within_limit), within_limit)
        self.held_out_flow.record("split", sides.held_out_selection, sides.held_out_rows.positions)
        if begun := loaded.selection.dropped.get("begins_with_assistant", 0):
            part = begun / len(loaded.selection.ids)
            if part > 0.1:
                self._context.notice(
                    f"load: {part:.0%} of the rows begin with the assistant and are dropped; "
                    + advice_for("begins_with_assistant", "load")
                )
        return sides

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The waterfall of the training side so far."""
        return self.flow.stages

    def filter(self, name: str, keep: Filter, rows: Rows) -> Rows:
        """Filter the training side; notice a filter that makes it very different from the held-out side."""
        selection = keep(rows, self._context)
        stays = self.step(f"filter.{name}", rows, selection)
        lost = 1 - _share(self.stages[-1]["tokens_kept"], self.stages[-1]["tokens_in"])
        lost_rows = 1 - _share(len(stays), len(rows))
        if lost > MANY_TOKENS and lost > 2 * lost_rows and lost_rows <= MANY_ROWS:
            self._context.notice(
                f"filter.{name} drops {lost_rows:.0%} of the rows but {lost:.0%} of the tokens, since they are long "
                "conversations; if the model should learn from them, " + self._advise(f"filter.{name}", rows, selection)
            )
        if keep.judges_by_id:
            return stays
        held_out = self.sides.held_out
        missed = 0.0
        with suppress(NotStored):  # a plan, which can do without
            missed = _share(len(held_out) - int(keep(held_out, self._context).kept.sum()), len(held_out))
        self._context.take_new_entries()
        if missed > MANY_HELD_OUT:
            self._context.notice(
                f"filter.{name} would also drop {missed:.0%} of the held-out rows, so the model is judged on rows "
                f"unlike its training rows; if it is not meant for such rows, set split.filter=[{name}]"
            )
        return stays

    def step(self, stage: str, rows: Rows, selection: Selection) -> Rows:
        """Record a stage of the training side and return the rows kept."""
        self._steps[stage.partition(".")[0] if stage.startswith("dedup.") else stage] = (rows, selection)
        kept = self.flow.step(stage, rows, selection)
        self._notice_loss(stage, rows, selection)
        return kept

    def _notice_loss(self, stage: str, rows: Rows, selection: Selection) -> None:
        """Notice a stage that drops many rows, with the keys that keep them."""
        lost = 1 - _share(int(selection.kept.sum()), len(rows))
        if lost > MANY_ROWS and selection.dropped:  # a stage without rows drops none
            self._context.notice(
                f"{stage} drops {lost:.0%} of the rows, most of them as {_commonest(selection)}; if "
                "that was not intended, " + self._advise(stage, rows, selection)
            )

    def _advise(self, stage: str, rows: Rows, selection: Selection) -> str:
        """Return which keys keep the rows that a stage drops for its most common reason."""
        reason = _commonest(selection)
        advice = self._advice.about(stage, reason, rows, selection, self._context)
        self._advice_of[stage, reason] = advice
        return advice

    def finish(self, train: Rows, held_out: Rows) -> Prepared:
        """Return both sides, rendered and tokenized.

        Raises:
            JobError: if no training rows are left.
        """
        ready_held_out = self._ready(held_out, self.held_out_flow, loss_on_all=False)
        ready = self._ready(train, self.flow, loss_on_all=self._loss_on_all)
        if self._to_train and not len(ready.rows):
            raise self.nothing_left()
        probe_rows = _probe(ready.rows, max(len(ready_held_out.rows), 1))
        probe = self._ready(probe_rows, None, loss_on_all=False)
        return Prepared(
            ready, ready_held_out, probe, self.sides, self.flow, self.held_out_flow, self.grouped_by,
            self._steps,
        )  # fmt: skip

    def nothing_left(self) -> JobError:
        """Return the error of a job without a training row: what each stage dropped, and what to do."""
        losses = "; ".join(
            f"{stage['stage']} dropped "
            + self.flow.causes.get(
                stage["stage"], ", ".join(f"{rows} {reason}" for reason, rows in stage["dropped"].items())
            )
            for stage in self.flow.stages
            if stage["dropped"]
        )
        # A user asked for the split and for a limit; their rows matter only if nothing else was dropped.
        losses_by_reason = [
            (stage["stage"], reason, rows) for stage in self.flow.stages for reason, rows in stage["dropped"].items()
        ]
        stage, reason, _ = max(losses_by_reason, key=lambda loss: (loss[1] not in INTENDED, loss[2]))
        remedy = self._advice_of.get((stage, reason)) or advice_for(reason, stage)
        return JobError(f"no training rows are left ({losses}); {remedy}, or give more rows")

    def held_out_as(self, template: Template, rows: Rows) -> Ready:
        """Return held-out rows under another template, outside the waterfall."""
        as_texts = self._context.encode or partial(encode, context=self._context)
        return self._as_tokens(as_texts(rows, template), rows, None, loss_on_all=False)

    def _ready(self, rows: Rows, flow: Waterfall | None, *, loss_on_all: bool) -> Ready:
        """Return some of the loaded rows, rendered and tokenized."""
        return self._as_tokens(self._context.encoded(rows), rows, flow, loss_on_all=loss_on_all)

    def _as_tokens(self, encoded: Encoded, rows: Rows, flow: Waterfall | None, *, loss_on_all: bool) -> Ready:
        rows = self._narrowed("template", rows, encoded.selection(rows), flow)
        fitting, tokens = tokenize(rows, encoded, max_length=self._max_length, loss_on_all=loss_on_all)
        rows = self._narrowed("tokenize", rows, fitting, flow)
        if flow and len(tokens) > len(rows):
            flow.stages[-1]["examples"] = len(tokens)
            self._context.notice(
                f"{flow.titled('template')}: {len(rows):,} rows became {len(tokens):,} examples, since the template "
                "hides parts of earlier turns; each is written as the model sees it when it answers "
                "(template.unroll=auto)"
            )
        return Ready(rows, tokens, encoded)

    def _narrowed(self, stage: str, rows: Rows, selection: Selection, flow: Waterfall | None) -> Rows:
        """Record the decision on rows, and return those kept."""
        if flow:
            flow.record(stage, selection, rows.positions)
            if flow is self.flow:
                self._notice_loss(stage, rows, selection)
            if over := selection.dropped.get("over_max_length"):
                log.warning(
                    "tokenize: %d rows are longer than trainer.max_length=%d and dropped", over, self._max_length
                )
        return selection.drop_rows(rows)


def _commonest(selection: Selection) -> str:
    """Return the most common reason of a selection that drops rows."""
    return next(iter(selection.dropped))


def _share(part: int, total: int) -> float:
    return part / total if total else 0.0


def _with_limit(loaded: Loaded, side: Selection) -> Selection:
    """Return load's decisions, with the rows beyond ``dataset.limit`` dropped."""
    reasons = list(loaded.selection.reason)
    for row, reason in enumerate(side.reason):
        if reason == "over_limit":
            reasons[loaded.record_of_row[row]] = reason
    return replace(loaded.selection, reason=reasons)


def _probe(rows: Rows, size: int) -> Rows:
    """Return training rows chosen by hash, so that the probe is the same in every job that trains on them."""
    hashes = [group_hash(f"probe:{row_id.split('-', 1)[-1]}") for row_id in rows.ids]
    chosen = np.zeros(len(rows), bool)
    chosen[np.argsort(hashes, kind="stable")[:size]] = True
    return rows.take(chosen)
