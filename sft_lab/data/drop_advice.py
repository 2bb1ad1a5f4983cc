"""Advice for a stage that drops many rows: the keys that keep them, by reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sft_lab.core.columns import gather, values_of
from sft_lab.core.text import On, normalize

if TYPE_CHECKING:
    from sft_lab.core.context import StageContext
    from sft_lab.core.rows import Rows
    from sft_lab.core.selection import Selection

INTENDED = ("held_out", "test", "over_limit")  # rows that a user asked to leave out
MAX_COMPARED = 500  # dropped rows whose prompts are compared
COVERED = 95  # percent of the rows that the advised length has room for
TEMPLATE_ROOM = 256  # tokens of the template, which a filter does not count and training does
NO_LIMIT = 2**30  # tokenizers without a limit on the length report a larger number

_TOO_SIMILAR = ("equals_held_out", "near_held_out", "equals_benchmark", "near_benchmark", "duplicate", "near_duplicate")
_TOO_LONG = ("over_max_tokens", "over_max_length")

BY_REASON = {
    "begins_with_assistant": "dataset.leading_assistant=cut keeps them from the first user turn on",
    "bad_answer": "dataset.bad_answers=keep trains on them",
    "consecutive_turns": "dataset.consecutive=join joins such turns",
    "over_limit": "dataset.limit=null takes all rows",
    "held_out": "lower split.eval_share",
    "test": "lower split.test_share",
    "empty_prompt": "check that prompts and answers are under keys that are read (docs/data.md)",
    "empty_answer": "check that prompts and answers are under keys that are read (docs/data.md)",
    "short_prompt": "lower {stage}.min_prompt_chars",
    "short_answer": "lower {stage}.min_answer_chars",
    "under_min_tokens": "lower {stage}.min_tokens",
    "under_min_answer_tokens": "lower {stage}.min_answer_tokens",
    "other_language": "add their languages to {stage}.keep",
    "language_unclear": "lower {stage}.min_confidence",
    "no_pattern_matches": "change {stage}.keep",
    "pattern_matches": "change {stage}.drop",
    "equals_held_out": "decontaminate.action=report keeps these copies of held-out rows",
    "near_held_out": "raise decontaminate.threshold",
    "equals_benchmark": "decontaminate.action=report keeps these copies of benchmark rows",
    "near_benchmark": "raise decontaminate.threshold",
    "duplicate": "dedup=none keeps copies",
    "near_duplicate": "raise dedup.threshold",
}
_BY_STAGE = {"template": "choose another template with template=..."}


@dataclass(frozen=True)
class DropAdvice:
    """The settings of a run that the advice depends on.

    Attributes:
        compared: by stage, decontaminate or dedup, the text by which it compares rows; None if it compares none.
        max_length: of a training row, template included.
        max_eval_tokens: of a held-out row.
        first_exchange: whether rows are first exchanges already.
    """

    compared: Mapping[str, On | None] = field(default_factory=dict)
    max_length: int = 0
    max_eval_tokens: int = 0
    first_exchange: bool = False

    def about(self, stage: str, reason: str, rows: Rows, selection: Selection, context: StageContext) -> str:
        """Return what to change if a stage should not drop so many rows for a reason.

        Args:
            stage: its name in the waterfall.
            reason: the most common one.
            rows: that the stage saw.
            selection: its decisions on them.
            context: for the longest row that the model accepts.
        """
        if reason in _TOO_LONG:
            return self._longer(stage, reason, selection, context)
        if reason in _TOO_SIMILAR and (keys := self._compare_both()) and _differ_in_prompt(rows, selection):
            return f"{keys} compares prompts too (most of these rows share only their answer with another row)"
        return advice_for(reason, stage)

    def _compare_both(self) -> str:
        return " ".join(f"{stage}.on=both" for stage, on in self.compared.items() if on is On.answer)

    def _longer(self, stage: str, reason: str, selection: Selection, context: StageContext) -> str:
        tokens = selection.score
        needed = int(max(np.percentile(tokens, COVERED), np.median(tokens[~selection.kept])))
        accepted = int(min(context.tokenizer.model_max_length, NO_LIMIT))
        length = min(1 << (needed - 1).bit_length(), accepted)
        if reason == "over_max_length":  # template included
            keys = [f"trainer.max_length={length}"]
        else:
            longer = min(length + TEMPLATE_ROOM, accepted)
            keys = [f"{stage}.max_tokens={length}"]
            keys += [f"trainer.max_length={longer}"] if self.max_length < longer else []
            keys += [f"split.max_eval_tokens={length}"] if self.max_eval_tokens < length else []
        share = f"{np.mean(tokens <= length):.0%}"
        shorter = "" if self.first_exchange else "; dataset.turns=first shortens a row to its first exchange"
        return f"{' '.join(keys)} keeps {share} of the rows{shorter}"


def advice_for(reason: str, stage: str) -> str:
    """Return what to change if a stage should not drop so many rows for a reason, whatever the rows are."""
    return BY_REASON.get(reason, _BY_STAGE.get(stage, f"loosen {stage}")).format(stage=stage)


def _differ_in_prompt(rows: Rows, selection: Selection) -> bool:
    """Return whether most dropped rows have another prompt than the row they are too similar to.

    A row that is similar to a benchmark row counts as different: benchmarks are not in the rows' table.
    """
    dropped = np.flatnonzero(~selection.kept)
    sample = dropped[np.unique(np.linspace(0, len(dropped) - 1, min(len(dropped), MAX_COMPARED)).astype(np.int64))]
    nearest = pa.array([selection.nearest[index] for index in sample], pa.string())
    position = pc.index_in(nearest, value_set=rows.table.data.column("id").cast(pa.string()))
    in_table = position.is_valid().to_numpy(zero_copy_only=False)
    prompts = rows.take(sample[in_table]).column("prompt")
    similar = values_of(gather(rows.table.data.column("prompt"), position.drop_null().to_numpy().astype(np.int64)))
    equal = sum(normalize(prompt) == normalize(other) for prompt, other in zip(prompts, similar, strict=True))
    return equal < len(sample) / 2
