"""Decontamination: drops training rows equal or near to a held-out or benchmark row, before dedup.

The stage does not depend on the dedup option, so every job of a sweep over dedup trains on rows checked in the same
way. Embeddings are shared with dedup.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from sft_lab.core.bounds import Bounded, bounded
from sft_lab.core.context import StageContext
from sft_lab.core.errors import JobError
from sft_lab.core.packages import absolute_path
from sft_lab.core.params import result_params
from sft_lab.core.remote import missing_file
from sft_lab.core.stage import UsesContext
from sft_lab.core.text import On, count_of
from sft_lab.dedup.embed import Embedder, embed
from sft_lab.dedup.minhash import JACCARD_LIMIT, LOWEST_JACCARD, NGRAM, NUM_PERM
from sft_lab.dedup.semantic import Fallback, known_nodes

if TYPE_CHECKING:
    import datasets
    import numpy as np

    from sft_lab.core.rows import Rows
    from sft_lab.core.selection import Selection
    from sft_lab.dedup.texts import Texts

BLOCK = 4096  # rows of the product in memory at once


class Method(Enum):
    """How training and held-out rows are compared."""

    none = "none"
    exact = "exact"
    semantic = "semantic"


class Action(Enum):
    """What is done about a training row near a held-out one: drop it, fail the job, or only report it."""

    drop = "drop"
    fail = "fail"
    report = "report"


@dataclass
class Decontaminate(Bounded, UsesContext):
    """Drops training rows equal or near to a benchmark row or a held-out row, whether this run uses that row or not.

    Attributes:
        against: benchmark files; the caller reads them.
    """

    version: ClassVar[int] = 2

    method: Method = Method.semantic
    threshold: float = bounded(0.95, above=0, at_most=1, limit="a cosine similarity above 0 and at most 1")
    action: Action = Action.drop
    on: On = On.answer
    against: list[str] = field(default_factory=list, metadata={"changes_result": False})  # the rows in them do
    fallback: Fallback = Fallback.exact
    fallback_threshold: float = bounded(0.8, at_least=LOWEST_JACCARD, at_most=1, limit=JACCARD_LIMIT)
    embedder: Embedder = field(default_factory=Embedder)

    def __post_init__(self) -> None:
        """Make paths absolute, so that a saved config runs from any folder."""
        super().__post_init__()
        self.against = [absolute_path(path) for path in self.against]

    def check(self) -> list[str]:
        """Return an error for each benchmark file that is missing."""
        problems = [(path, problem) for path in self.against if (problem := missing_file(path))]
        return [
            f"decontaminate.against={path}: {problem}; give the paths of benchmark files" for path, problem in problems
        ]

    def __call__(
        self,
        train: Rows | datasets.Dataset,
        held_out: Rows | datasets.Dataset,
        context: StageContext | None = None,
        against: Rows | None = None,
    ) -> Selection:
        """Return the selection of the training rows, stored or computed.

        Args:
            train: the rows to judge.
            held_out: the rows on the held-out side.
            context: store and log; None: the run's.
            against: the rows of the benchmarks. One without an answer is compared by its prompt with the training rows'
                prompts, whatever ``on`` is.

        Returns:
            Reasons: ``equals_held_out``, ``near_held_out`` or, if neither applies, ``equals_benchmark``,
            ``near_benchmark``; score: cosine (Jaccard if the fallback compared); nearest: that row's id.

        Raises:
            JobError: with ``action=fail``, if there is such a row.
        """
        from sft_lab.core.rows import Rows
        from sft_lab.core.selection import Selection

        context = self.context_for(context)
        source = train
        train, held_out = Rows.of(train), Rows.of(held_out)
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
        selection = replace(Selection.load(entry.path, train.ids), source=source)
        near = len(selection.reason) - int(selection.kept.sum())
        if near and self.action is Action.fail:
            reasons = ("near_held_out", "equals_held_out", "near_benchmark", "equals_benchmark")
            raise JobError(
                f"decontaminate.action=fail: {count_of(near, 'training row')} too close to held-out or benchmark rows "
                f"({', '.join(f'{count} {reason}' for reason, count in selection.dropped.items())}), "
                f"for example {next(filter(None, (selection.examples(reason, 2) for reason in reasons)))}; "
                "decontaminate.action=drop removes them"
            )
        if near and self.action is Action.report:
            close = count_of(near, "training row")
            context.notice(f"decontaminate: {close} too close to held-out or benchmark rows, kept (action=report)")
            return replace(selection, reason=[""] * len(selection.ids), cause=[])
        return selection

    def _compare(self, train: Rows, held_out: Rows, against: Rows | None, context: StageContext) -> Selection:
        import numpy as np

        from sft_lab.core.selection import Selection
        from sft_lab.dedup.texts import Texts

        size = len(train)
        score, nearest, reasons = np.full(size, np.nan, np.float32), [""] * size, [""] * size
        benchmarks = [("benchmark", rows, on) for rows, on in _parts(against, self.on)]
        for side, rows, on in [*benchmarks, ("held_out", held_out, self.on)]:  # held-out rows last: their reason wins
            if self.method is Method.none or not len(rows) or not size:
                continue
            best, match, equal = self._nearest(Texts.of(train, on), Texts.of(rows, on), context)
            for index in np.flatnonzero(best > 0).tolist():
                score[index], nearest[index] = best[index], rows.ids[int(match[index])]
                reasons[index] = f"{'equals' if equal[index] else 'near'}_{side}"
        return Selection.of(train, reasons, score, nearest)

    def _nearest(
        self, texts: Texts, references: Texts, context: StageContext
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compare each text with every reference.

        Returns:
            The score of the nearest reference, 0 if none is near (float32), its index (int64), and whether it is equal
            (bool): each of shape (texts,).
        """
        import numpy as np

        from sft_lab.dedup.texts import normal_hash

        best, match = np.zeros(len(texts), np.float32), np.zeros(len(texts), np.int64)
        if self.method is Method.semantic:
            knows = np.zeros(len(references) + len(texts), bool)
            knows[known_nodes(references + texts, self.embedder, self.fallback, "decontaminate", context)] = True
            compare = {True: self._by_vectors}
            if self.fallback is Fallback.minhash:
                compare[False] = self._by_shingles
            for known, nearest in compare.items():
                against, rows = (np.flatnonzero(part == known) for part in np.split(knows, [len(references)]))
                if len(rows) and len(against):
                    best[rows], index = nearest(texts.take(rows), references.take(against), context)
                    match[rows] = against[index]
        index_of = {normal_hash(text): index for index, text in enumerate(references)}
        same = np.fromiter((index_of.get(normal_hash(text), -1) for text in texts), np.int64, len(texts))
        equal = same >= 0  # the nearest reference may be a different one
        return np.where(equal, np.float32(1), best), np.where(equal, same, match), equal

    def _by_vectors(self, texts: Texts, references: Texts, context: StageContext) -> tuple[np.ndarray, np.ndarray]:
        """Return each text's highest cosine, 0 below the threshold, and the index of that reference."""
        import numpy as np

        best, match = np.empty(len(texts), np.float32), np.empty(len(texts), np.int64)
        reference_vectors = embed(references, self.embedder, context)
        vectors = embed(texts, self.embedder, context)
        for start in range(0, len(texts), BLOCK):
            block = slice(start, start + BLOCK)
            cosines = vectors[block] @ reference_vectors.T
            best[block], match[block] = cosines.max(axis=1), cosines.argmax(axis=1)
        return np.where(best >= np.float32(self.threshold), best, np.float32(0)), match

    def _by_shingles(
        self,
        texts: Texts,
        references: Texts,
        context: StageContext,  # noqa: ARG002
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return each text's highest Jaccard similarity, 0 below the threshold, and the index of that reference."""
        from sft_lab.dedup.shingles import nearest_across

        return nearest_across(texts, references, NGRAM, NUM_PERM, self.fallback_threshold)


def _parts(against: Rows | None, on: On) -> list[tuple[Rows, On]]:
    """Return the benchmark rows, grouped by the text by which they are compared; rows without any text are left out."""
    import numpy as np

    if against is None:
        return []
    has_answer, has_prompt = (
        np.array([bool(text.strip()) for text in against.column(name)], bool) for name in ("answer", "prompt")
    )
    if on is On.prompt:
        return [(against.take(has_prompt), on)]
    return [(against.take(has_prompt & ~has_answer), On.prompt), (against.take(has_answer), on)]
