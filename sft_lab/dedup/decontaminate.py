"""Decontaminate: training rows equal or near to a held-out row, or to one of a benchmark, go, before dedup.

Independent of the dedup option, so that every job of a sweep over dedup trains on rows checked the same way; the
embeddings are the shared ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sft_lab.core.context import StageContext
from sft_lab.core.errors import JobError, require
from sft_lab.core.packages import package_path
from sft_lab.core.params import result_params
from sft_lab.core.text import On, normalize
from sft_lab.dedup.embed import Embedder, embed
from sft_lab.dedup.minhash import NGRAM, NUM_PERM
from sft_lab.dedup.semantic import Fallback, known_nodes, require_jaccard

if TYPE_CHECKING:
    import numpy as np

    from sft_lab.core.rows import Rows, Selection

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
    """Find training rows equal or near to a row on the held-out side, used by this run or not, or of a benchmark.

    Attributes:
        against: files of benchmarks; who calls the stage reads them.
    """

    version: ClassVar[int] = 2

    method: Method = Method.semantic
    threshold: float = 0.95
    action: Action = Action.drop
    on: On = On.answer
    against: list[str] = field(default_factory=list, metadata={"changes_result": False})  # the rows in them do
    fallback: Fallback = Fallback.exact
    fallback_threshold: float = 0.8
    embedder: Embedder = field(default_factory=Embedder)

    def __post_init__(self) -> None:
        """Refuse impossible values; make paths absolute, so that a saved config runs from any folder."""
        require(0 < self.threshold <= 1, "threshold", self.threshold, "a cosine above 0 and at most 1")
        require_jaccard(self.fallback_threshold)
        self.against = [str(package_path(path)) for path in self.against]

    def check(self) -> list[str]:
        """Every benchmark file is there."""
        missing = [path for path in self.against if not Path(path).is_file()]
        return [f"decontaminate.against={path}: no such file; give the paths of benchmark files" for path in missing]

    def __call__(self, train: Rows, held_out: Rows, context: StageContext, against: Rows | None = None) -> Selection:
        """Answer the stored selection of the training rows, or make it.

        Args:
            train: the rows to judge.
            held_out: the rows on the held-out side.
            context: the run's tools.
            against: the rows of the benchmarks. One without an answer is compared by its prompt with the training
                rows' prompts, whatever ``on`` is.

        Returns:
            Reasons: ``equals_held_out``, ``near_held_out``, and where neither holds ``equals_benchmark`` and
            ``near_benchmark``; score: cosine (Jaccard where the fallback compared); nearest: that row's id.

        Raises:
            JobError: with ``action=fail``, when there is such a row.
        """
        from sft_lab.core.rows import Selection

        semantic = self.method is Method.semantic
        params = result_params(self)
        if not semantic:
            params = {name: params[name] for name in ("method", "on")}
        params.pop("action", None)
        recipe = {
            "version": self.version,
            "params": params,
            "embedder": self.embedder.key() if semantic else None,
            "input": [rows.key for rows in (train, held_out, against) if rows is not None],
        }
        entry = context.stage(
            "decontaminate", recipe, lambda folder: self._compare(train, held_out, against, context).save(folder)
        )
        found = Selection.load(entry.path)
        near = len(found.reason) - int(found.kept.sum())
        if near and self.action is Action.fail:
            reasons = ("near_held_out", "equals_held_out", "near_benchmark", "equals_benchmark")
            raise JobError(
                f"decontaminate.action=fail: {near} training rows are equal or near to rows kept for measuring "
                f"({', '.join(f'{count} {reason}' for reason, count in found.dropped.items())}), "
                f"among them {next(filter(None, (found.examples(reason, 2) for reason in reasons)))}; "
                "decontaminate.action=drop removes them"
            )
        if near and self.action is Action.report:
            context.notice(f"decontaminate: {near} training rows are equal or near to rows kept for measuring and stay")
            return Selection(found.ids, [""] * len(found.ids), found.score, found.nearest)
        return found

    def _compare(self, train: Rows, held_out: Rows, against: Rows | None, context: StageContext) -> Selection:
        import numpy as np

        from sft_lab.core.rows import Selection

        size = len(train)
        score, nearest, reasons = np.full(size, np.nan, np.float32), [""] * size, [""] * size
        benchmarks = [("benchmark", rows, on) for rows, on in _parts(against, self.on)]
        for side, rows, on in [*benchmarks, ("held_out", held_out, self.on)]:  # held-out rows have the last word
            if self.method is Method.none or not len(rows) or not size:
                continue
            best, where, equal = self._nearest(train.texts(on), rows.texts(on), context)
            ids = rows.column("id")
            for index in np.flatnonzero(best > 0).tolist():
                score[index], nearest[index] = best[index], ids[where[index]]
                reasons[index] = f"{'equals' if equal[index] else 'near'}_{side}"
        return Selection.of(train, reasons, score, nearest)

    def _nearest(
        self, texts: list[str], others: list[str], context: StageContext
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compare each text with all others.

        Returns:
            The score of the nearest one, 0 where none is near: float32; which one: int64; whether it is equal: bool;
            each of shape (texts,).
        """
        import numpy as np

        best, where = np.zeros(len(texts), np.float32), np.zeros(len(texts), np.int64)
        if self.method is Method.semantic:
            knows = np.zeros(len(others) + len(texts), bool)
            knows[known_nodes([*others, *texts], self.embedder, self.fallback, "decontaminate", context)] = True
            compare = {True: self._by_vectors}
            if self.fallback is Fallback.minhash:
                compare[False] = self._by_shingles
            for known, nearest in compare.items():
                theirs, mine = (np.flatnonzero(part == known) for part in np.split(knows, [len(others)]))
                if len(mine) and len(theirs):
                    best[mine], place = nearest([texts[row] for row in mine], [others[row] for row in theirs], context)
                    where[mine] = theirs[place]
        place_of = {normalize(text): place for place, text in enumerate(others)}
        same = np.fromiter((place_of.get(normalize(text), -1) for text in texts), np.int64, len(texts))
        equal = same >= 0  # the near one may be another
        return np.where(equal, np.float32(1), best), np.where(equal, same, where), equal

    def _by_vectors(self, texts: list[str], others: list[str], context: StageContext) -> tuple[np.ndarray, np.ndarray]:
        """Highest cosine, 0 below the threshold, and which text has it."""
        import numpy as np

        best, where = np.empty(len(texts), np.float32), np.empty(len(texts), np.int64)
        other_vectors = embed(others, self.embedder, context)
        vectors = embed(texts, self.embedder, context)
        for start in range(0, len(texts), BLOCK):
            block = slice(start, start + BLOCK)
            cosines = vectors[block] @ other_vectors.T
            best[block], where[block] = cosines.max(axis=1), cosines.argmax(axis=1)
        return np.where(best >= np.float32(self.threshold), best, np.float32(0)), where

    def _by_shingles(self, texts: list[str], others: list[str], context: StageContext) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG002
        """Highest Jaccard similarity, 0 below the fallback's threshold, and which text has it."""
        from sft_lab.dedup.shingles import nearest_across

        return nearest_across(texts, others, NGRAM, NUM_PERM, self.fallback_threshold)


def _parts(against: Rows | None, on: On) -> list[tuple[Rows, On]]:
    """Give the rows of the benchmarks with what each is compared by; what is blank is compared with nothing."""
    import numpy as np

    if against is None:
        return []
    answered, asked = (
        np.array([bool(text.strip()) for text in against.column(name)], bool) for name in ("answer", "prompt")
    )
    if on is On.prompt:
        return [(against.take(asked), on)]
    return [(against.take(asked & ~answered), On.prompt), (against.take(answered), on)]
