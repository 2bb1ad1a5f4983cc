"""The waterfall: rows and tokens through each stage, and why each dropped row went."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sft_lab.core import parquet
from sft_lab.core.context import StageContext
from sft_lab.core.hardware import rank
from sft_lab.core.io import write_json
from sft_lab.core.log import log

if TYPE_CHECKING:
    from sft_lab.core.rows import Rows, Selection
    from sft_lab.core.run_dir import RunDir


class Waterfall:
    """Follows one side of the split through the stages.

    Tokens are those of prompt and answer as texts, without template tokens, at every stage, so that they can be
    compared; a row that load could not use has none.

    Args:
        context: its list of stored results says whether a stage was computed.
        tokens: of each loaded row, by row id.
        sources: of each loaded row of a mixture, by row id; empty for a source alone.
        side: named in the log where it is not the training side.
    """

    def __init__(self, context: StageContext, tokens: dict[str, int], sources: dict[str, str], side: str = "") -> None:
        self.stages: list[dict[str, Any]] = []
        self._bench = context
        self._tokens = tokens
        self._sources = sources
        self._side = side
        self._dropped: dict[str, list[Any]] = {name: [] for name in parquet.DROPPED}

    def step(self, stage: str, rows: Rows, selection: Selection) -> Rows:
        """Record what a stage decided about ``rows`` and give the rows that stay."""
        self.record(stage, selection)
        return rows.take(selection.kept)

    def record(self, stage: str, selection: Selection) -> None:
        """Record a stage's selection and log its line."""
        tokens = [self._tokens.get(row_id, 0) for row_id in selection.ids]
        kept = selection.kept
        self.stages.append(
            {
                "stage": stage,
                "rows_in": len(kept),
                "rows_kept": int(kept.sum()),
                "tokens_in": sum(tokens),
                "tokens_kept": sum(count for count, stays in zip(tokens, kept, strict=True) if stays),
                "dropped": selection.dropped,
                **self._by_source(selection),
            }
        )
        for index, reason in enumerate(selection.reason):
            if reason:
                found = (selection.ids[index], stage, reason, float(selection.score[index]), selection.nearest[index])
                for column, value in zip(self._dropped.values(), found, strict=True):
                    column.append(value)
        self._log(stage, selection)

    def _by_source(self, selection: Selection) -> dict[str, Any]:
        """Rows of each source in a mixture; a record that load could not use is of none."""
        found: dict[str, dict[str, int]] = {}
        for row_id, reason in zip(selection.ids, selection.reason, strict=True) if self._sources else ():
            if name := self._sources.get(row_id):
                rows = found.setdefault(name, {"rows_in": 0, "rows_kept": 0})
                rows["rows_in"] += 1
                rows["rows_kept"] += not reason
        return {"sources": found} if found else {}

    def _log(self, stage: str, selection: Selection) -> None:
        new = self._bench.take_new_entries()
        how = "" if not new else "stored" if all(entry.hit for entry in new) else "computed"
        key = new[-1].key[:8] if new else ""
        seconds = sum(entry.seconds for entry in new)
        name = f"{stage} ({self._side})" if self._side else stage
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in selection.dropped.items())
        kept, seen = f"{int(selection.kept.sum()):,}", f"{len(selection.ids):,}"
        line = f"{name:<24} {key:<8} {how:<8} kept {kept:>6} of {seen:>6}  {seconds:5.1f} s  {reasons}"
        # Where several processes train, the stages were told by the one that filled the store.
        log.log(logging.INFO if rank() is None else logging.DEBUG, "%s", line.rstrip())

    def dropped(self) -> dict[str, list[Any]]:
        """Every dropped row, as columns."""
        return self._dropped


def write(folder: RunDir, train: Waterfall, held_out: Waterfall) -> None:
    """Write ``waterfall.json`` and ``dropped.parquet`` of both sides."""
    write_json(folder.waterfall, {"stages": train.stages, "held_out": held_out.stages})
    # A row dropped as held out is no loss of the training side's own; it is listed all the same, with its reason.
    columns = {name: train.dropped()[name] + held_out.dropped()[name] for name in train.dropped()}
    parquet.write(folder.dropped, columns, parquet.DROPPED)
