"""The waterfall: rows and tokens through each stage, and why each dropped row was dropped."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sft_lab.core import parquet
from sft_lab.core.context import StageContext
from sft_lab.core.errors import SourceError
from sft_lab.core.hardware import rank
from sft_lab.core.io import write_json
from sft_lab.core.log import log
from sft_lab.core.notebook import html_table
from sft_lab.core.text import count_of
from sft_lab.data.conversation import UNUSED
from sft_lab.data.drop_advice import BY_REASON, advice_for

if TYPE_CHECKING:
    from sft_lab.core.rows import Rows
    from sft_lab.core.run_dir import RunDir
    from sft_lab.core.selection import Selection
    from sft_lab.core.store import Entry


NAMED_CAUSES = 3  # of a stage, in its notice
WATERFALL_COLUMNS = ("stage", "rows", "tokens", "details")


@dataclass(frozen=True)
class Sources:
    """The source of each row in a mixture.

    Attributes:
        names: of the sources; empty outside a mixture.
        of_row: the index of each row's source: int16, shape (rows of the table,).
    """

    names: list[str]
    of_row: np.ndarray

    @classmethod
    def of(cls, rows: Rows) -> Sources:
        """Return the sources of all rows of a table."""
        sources = rows.arrow("source").dictionary_encode().unify_dictionaries()
        names = sources.chunk(0).dictionary.to_pylist() if len(rows) else []
        of_row = [chunk.indices.to_numpy().astype(np.int16) for chunk in sources.chunks]
        return cls(names if any(names) else [], np.concatenate([np.zeros(0, np.int16), *of_row]))


class Waterfall:
    """Follows one side of the split through the stages.

    At every stage, tokens are those of prompt and answer without template tokens, so that stages can be compared; a
    record that load could not use has none.

    Args:
        context: whose stored results show whether a stage was computed.
        tokens: of each loaded row: int32, shape (rows of the table,).
        sources: of the loaded rows.
        side: its name in the log; empty for the training side.
    """

    def __init__(self, context: StageContext, tokens: np.ndarray, sources: Sources, side: str = "") -> None:
        self.stages: list[dict[str, Any]] = []
        self._context = context
        self._tokens = tokens
        self._sources = sources
        self._side = side
        self._dropped: list[pa.Table] = []
        self.causes: dict[str, str] = {}  # the most common ones of each stage that has any

    def __repr__(self) -> str:
        rows = [f"{stage['stage']} {stage['rows_kept']:,}" for stage in self.stages]
        return f"Waterfall({', '.join(rows)})"

    def _repr_html_(self) -> str:
        return stages_html(self.stages)

    def step(self, stage: str, rows: Rows, selection: Selection) -> Rows:
        """Record a stage's decision on ``rows`` and return those kept."""
        self.record(stage, selection, rows.positions)
        return selection.drop_rows(rows)

    def record(
        self, stage: str, selection: Selection, positions: np.ndarray, entries: list[Entry] | None = None
    ) -> None:
        """Record a stage's selection and log its line.

        Args:
            stage: its name.
            selection: its decision.
            positions: of those rows in the table: int64, shape (rows,); -1 for a record that load could not use.
            entries: the stored results it made or used; None: all recorded since the last stage's line.
        """
        is_row = positions >= 0
        tokens = np.where(is_row, self._tokens[positions], 0) if len(self._tokens) else np.zeros(len(positions), int)
        kept = selection.kept
        self.stages.append(
            {
                "stage": stage,
                "rows_in": len(kept),
                "rows_kept": int(kept.sum()),
                "tokens_in": int(tokens.sum()),
                "tokens_kept": int(tokens[kept].sum()),
                "dropped": selection.dropped,
                **self._by_source(positions[is_row], kept[is_row]),
            }
        )
        self._dropped.append(_dropped(stage, selection))
        if causes := commonest_causes(selection):
            self.causes[stage] = causes
            self._context.notice(f"{self.titled(stage)}: {causes}; dropped.parquet has the cause for every row")
        self._log(stage, selection, self._context.take_new_entries() if entries is None else entries)

    def record_turns(self, turns: dict[str, int]) -> None:
        """Record and log how many assistant turns load read and used, if these differ.

        Args:
            turns: the number ``read``, and by reason of those not used or not as they are.
        """
        reasons = {reason: count for reason, count in turns.items() if reason != "read"}
        if not reasons:
            return
        used = turns["read"] - sum(reasons.get(reason, 0) for reason in UNUSED)
        rows, tokens = self.stages[-1]["rows_kept"], self.stages[-1]["tokens_kept"]
        unchanged = {"rows_in": rows, "rows_kept": rows, "tokens_in": tokens, "tokens_kept": tokens, "dropped": {}}
        counts = {"read": turns["read"], "used": used, **reasons}
        self.stages.append({"stage": "load.turns", **unchanged, "turns": counts})
        remark = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        log_stage("load.turns", [], f"used {used:,} of {turns['read']:,} assistant turns", remark)

    def _by_source(self, positions: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
        """Return the rows of each source in a mixture; a record that load could not use has no source."""
        if not self._sources.names:
            return {}
        sources = self._sources.of_row[positions]
        size = len(self._sources.names)
        seen, stay = np.bincount(sources, minlength=size), np.bincount(sources[kept], minlength=size)
        _, first = np.unique(sources, return_index=True)
        in_order = sources[np.sort(first)]
        rows = {
            self._sources.names[source]: {"rows_in": int(seen[source]), "rows_kept": int(stay[source])}
            for source in in_order
            if self._sources.names[source]
        }
        return {"sources": rows} if rows else {}

    def _log(self, stage: str, selection: Selection, entries: list[Entry]) -> None:
        name = self.titled(stage)
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in selection.dropped.items())
        kept, seen = f"{int(selection.kept.sum()):,}", f"{len(selection.ids):,}"
        log_stage(name, entries, f"kept {kept:>6} of {seen:>6}", reasons)

    def titled(self, stage: str) -> str:
        """Return a stage's name, with the side unless it is the training side."""
        return f"{stage} ({self._side})" if self._side else stage

    def dropped(self) -> pa.Table:
        """Return every dropped row, stage by stage, with the columns of ``dropped.parquet``."""
        return pa.concat_tables([parquet.arrow_schema(parquet.DROPPED).empty_table(), *self._dropped])


def stages_html(stages: list[dict[str, Any]]) -> str:
    """Return the stages of a waterfall as a table for a notebook."""
    return html_table(WATERFALL_COLUMNS, waterfall_rows(stages), "Waterfall")


def waterfall_rows(stages: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of a waterfall's table, whose columns are ``WATERFALL_COLUMNS``."""
    is_limited = any("over_limit" in stage["dropped"] for stage in stages)
    rows: list[tuple[str, ...]] = []
    for stage in stages:
        counts = stage.get("turns") or stage["dropped"]
        details = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
        if stage.get("turns") and is_limited:  # else the turns used would seem to be those of the rows kept
            details += "; before dataset.limit"
        rows.append((stage["stage"], f"{stage['rows_kept']:,}", f"{stage['tokens_kept']:,}", details))
    return rows


def commonest_causes(selection: Selection) -> str:
    """Return the most common causes of dropped rows, each with its count and first row; empty without any."""
    first: dict[tuple[str, str], int] = {}
    counts = Counter[tuple[str, str]]()
    for index, decision in enumerate(zip(selection.reason, selection.cause, strict=True)):
        if all(decision):
            counts[decision] += 1
            first.setdefault(decision, index)
    causes = [
        f"{count:,} {reason} ({cause}; e.g. row {selection.ids[first[reason, cause]]})"
        for (reason, cause), count in counts.most_common(NAMED_CAUSES)
    ]
    return ", ".join([*causes, f"{rarer:,} rarer causes"] if (rarer := len(counts) - NAMED_CAUSES) > 0 else causes)


def none_usable(selection: Selection) -> SourceError:
    """Return the error of a data set of which load drops every record."""
    remedies = [advice_for(reason, "load") for reason in selection.dropped if reason in BY_REASON]
    return SourceError(
        f"dataset: no usable record ({count_of(len(selection.ids), 'record')} read): "
        + "; ".join([commonest_causes(selection), *remedies, "docs/data.md has the row formats"])
    )


def _dropped(stage: str, selection: Selection) -> pa.Table:
    """Return the rows that a stage dropped, with the columns of ``dropped.parquet``."""
    gone = np.flatnonzero(~selection.kept)
    columns = {
        "id": selection.ids.select(gone).array(),
        "stage": [stage] * len(gone),
        "reason": [selection.reason[index] for index in gone],
        "score": selection.score[gone],
        "nearest": [selection.nearest[index] for index in gone],
        "cause": [selection.cause[index] for index in gone],
    }
    return pa.table(columns, schema=parquet.arrow_schema(parquet.DROPPED))


def log_stage(name: str, entries: list[Entry], amount: str, remark: str = "") -> None:
    """Log a stage's line: whether its results were computed or stored, what it did, how long it took."""
    origin = "" if not entries else "stored" if all(entry.hit for entry in entries) else "computed"
    key = entries[-1].key[:8] if entries else ""
    seconds = sum(entry.seconds for entry in entries)
    line = f"{name:<24} {key:<8} {origin:<8} {amount}  {seconds:5.1f} s  {remark}"
    # In distributed training, the process that filled the store has logged the stages already.
    log.log(logging.INFO if rank() is None else logging.DEBUG, "%s", line.rstrip())


def write(folder: RunDir, train: Waterfall, held_out: Waterfall) -> None:
    """Write ``waterfall.json`` and ``dropped.parquet`` of both sides."""
    write_json(folder.waterfall, {"stages": train.stages, "held_out": held_out.stages})
    # Rows that the split holds out are listed too, with that reason.
    parquet.write(folder.dropped, pa.concat_tables([train.dropped(), held_out.dropped()]), parquet.DROPPED)
