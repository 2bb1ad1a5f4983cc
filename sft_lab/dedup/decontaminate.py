"""Decontaminate: training rows equal or near to a held-out row go, before dedup.

Independent of the dedup option, so that every job of a sweep over dedup trains on rows checked the same way; the
embeddings are the shared ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from sft_lab.bench import Bench, log, result_params
from sft_lab.dedup.embedding import Embedder, embed
from sft_lab.dedup.exact import On, compared_texts
from sft_lab.dedup.semantic import Fallback, known_nodes
from sft_lab.errors import JobError, require
from sft_lab.text import normalize

if TYPE_CHECKING:
    import numpy as np

    from sft_lab.rows import Rows, Selection

BLOCK = 4096  # rows of the product held at once


class Method(Enum):
    """How training and held-out rows are compared."""

    none = "none"
    exact = "exact"
    semantic = "semantic"


class Action(Enum):
    """What is done about a training row near a held-out one: drop it, fail the job, or only report."""

    drop = "drop"
    fail = "fail"
    report = "report"


@dataclass
class Decontaminate:
    """Find training rows equal or near to a row on the held-out side, used by this run or not."""

    version: ClassVar[int] = 1

    method: Method = Method.semantic
    threshold: float = 0.95
    action: Action = Action.drop
    on: On = On.answer
    fallback: Fallback = Fallback.exact
    embedder: Embedder = field(default_factory=Embedder)

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require(0 < self.threshold <= 1, "threshold", self.threshold, "a cosine above 0 and at most 1")

    def __call__(self, train: Rows, held_out: Rows, bench: Bench) -> Selection:
        """Answer the stored selection of the training rows, or make it.

        Reasons: ``equals_held_out`` and ``near_held_out``; score: cosine; nearest: the held-out row's id.

        Raises:
            JobError: with ``action=fail``, when there is such a row.
        """
        from sft_lab.rows import Selection

        semantic = self.method is Method.semantic
        params = result_params(self)
        if not semantic:
            params = {name: params[name] for name in ("method", "on")}
        params.pop("action", None)
        recipe = {
            "version": self.version,
            "params": params,
            "embedder": self.embedder.key() if semantic else None,
            "input": [train.key, held_out.key],
        }
        entry = bench.stage("decontaminate", recipe, lambda folder: self._compare(train, held_out, bench).save(folder))
        found = Selection.load(entry.path)
        near = len(found.reason) - int(found.kept.sum())
        if near and self.action is Action.fail:
            raise JobError(
                f"decontaminate.action=fail: {near} training rows are equal or near to held-out rows, "
                f"among them {found.examples('near_held_out', 2) or found.examples('equals_held_out', 2)}; "
                "decontaminate.action=drop removes them"
            )
        if near and self.action is Action.report:
            log.warning("decontaminate: %d training rows are equal or near to held-out rows and stay", near)
            return Selection(found.ids, [""] * len(found.ids), found.score, found.nearest)
        return found

    def _compare(self, train: Rows, held_out: Rows, bench: Bench) -> Selection:
        import numpy as np

        from sft_lab.rows import Selection

        size = len(train)
        score, nearest, reasons = np.full(size, np.nan, np.float32), [""] * size, [""] * size
        if self.method is Method.none or not len(held_out) or not size:
            return Selection.of(train, reasons)
        texts, held_texts = compared_texts(train, self.on), compared_texts(held_out, self.on)
        held_ids = held_out.column("id")
        if self.method is Method.semantic:
            best, where = self._nearest(texts, held_texts, bench)
            for index in np.flatnonzero(best >= np.float32(self.threshold)).tolist():
                score[index], nearest[index], reasons[index] = best[index], held_ids[where[index]], "near_held_out"
        equal = {normalize(text): row_id for text, row_id in zip(held_texts, held_ids, strict=True)}
        for index, text in enumerate(texts):
            if row_id := equal.get(normalize(text)):
                score[index], nearest[index], reasons[index] = (
                    1.0,
                    row_id,
                    "equals_held_out",
                )  # the near one may be another
        return Selection.of(train, reasons, score, nearest)

    def _nearest(self, texts: list[str], held_texts: list[str], bench: Bench) -> tuple[np.ndarray, np.ndarray]:
        """Highest cosine to a held-out text and which one; -1 where the embedder does not know the script."""
        import numpy as np

        best, where = np.full(len(texts), -1, np.float32), np.zeros(len(texts), np.int64)
        known = known_nodes(texts, self.embedder, self.fallback, "decontaminate")
        held_known = known_nodes(held_texts, self.embedder, self.fallback, "decontaminate")
        if not len(known) or not len(held_known):
            return best, where
        held_vectors = embed([held_texts[index] for index in held_known], self.embedder, bench)
        vectors = embed([texts[index] for index in known], self.embedder, bench)
        for start in range(0, len(known), BLOCK):
            cosines = vectors[start : start + BLOCK] @ held_vectors.T
            rows = known[start : start + BLOCK]
            best[rows], where[rows] = cosines.max(axis=1), held_known[cosines.argmax(axis=1)]
        return best, where
