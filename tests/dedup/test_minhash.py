"""MinHash dedup compared with sets of substrings, pair by pair."""

from __future__ import annotations

import math

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError
from sft_lab.core.rows import Rows
from sft_lab.core.text import On, normalize
from sft_lab.dedup import shingles as sets
from sft_lab.dedup.exact import Keep
from sft_lab.dedup.minhash import NGRAM, NUM_PERM, MinHash, band_rows, missed
from sft_lab.dedup.shingles import build, jaccard, nearest_across, shingles
from sft_lab.dedup.texts import Texts, nodes_of

MANY = 10**9
SENTENCE = "plants turn sunlight, water and carbon dioxide into sugar and oxygen."

quick = settings(max_examples=60, deadline=None)


def rows(answers: list[str]) -> Rows:
    prompts = [f"question {number}" for number in range(len(answers))]
    return Rows.of(datasets.Dataset.from_dict({"prompt": prompts, "answer": answers}))


def by_substrings(one: str, other: str, ngram: int) -> float:
    """The Jaccard similarity as written."""
    first, second = (
        {text[start : start + ngram] for start in range(max(1, len(text) - ngram + 1))}
        for text in map(normalize, (one, other))
    )
    return len(first & second) / len(first | second)


# Few letters, so that texts share shingles; of several scripts, one of them outside Unicode's first plane.
TEXTS = st.lists(st.text(st.sampled_from("abc 中国ب\U00010400"), max_size=12), max_size=25)


@quick
@given(TEXTS, st.sampled_from([1, 2, 3, 5]), st.sampled_from([0.4, 0.5, 0.7, 0.8, 0.9, 1.0]))
def test_all_pairs_and_only_those(texts: list[str], ngram: int, floor: float) -> None:
    distinct = list(nodes_of(Texts.of_list(texts))[0])
    graph = build(Texts.of_list(distinct), ngram, NUM_PERM, floor, MANY)
    found = {(a, b): s for a, b, s in zip(graph.left.tolist(), graph.right.tolist(), graph.score.tolist(), strict=True)}
    expected = {
        (a, b): float(np.float32(by_substrings(distinct[a], distinct[b], ngram)))
        for b in range(len(distinct))
        for a in range(b)
        if by_substrings(distinct[a], distinct[b], ngram) >= floor
    }
    assert found.items() <= expected.items()
    # What is missed is missed by chance: what lies well above the floor never in practice.
    sure = [pair for pair, score in expected.items() if missed(NUM_PERM, band_rows(NUM_PERM, floor), score) < 1e-6]
    assert not [pair for pair in sure if pair not in found and expected[pair] > floor + 0.05]
    assert list(found) == sorted(found, key=lambda pair: (pair[1], pair[0]))
    assert [graph.left.dtype.name, graph.right.dtype.name, graph.score.dtype.name] == ["int32", "int32", "float32"]


@pytest.mark.parametrize(
    ("one", "other", "ngram", "expected"),
    [
        ("abcdef", "abcdeg", 5, 1 / 3),  # abcde | bcdef, bcdeg
        ("abc", "abcd", 5, 0),  # shorter than a shingle: one as a whole
        ("abc", "ABC ", 5, 1),
        ("", "a", 5, 0),
        ("中国的首都是北京。", "中国的首都是南京。", 2, 6 / 10),  # 8 pairs of characters each, 2 of them changed
        ("عاصمة فرنسا", "عَاصِمَة فرنسا", 5, 1),
        ("aaaaaaaa", "aaaaaaaaaaaa", 5, 1),  # sets: how often does not count
    ],
)
def test_what_a_shingle_is(one: str, other: str, ngram: int, expected: float) -> None:
    assert jaccard(shingles(one, ngram), shingles(other, ngram)) == by_substrings(one, other, ngram) == expected


def made_pairs(pairs: int, share: float, size: int = 300) -> list[str]:
    """Texts of random ideographs, 2i and 2i + 1 with ``share`` of their characters in common, at the start."""
    rng = np.random.default_rng(7)
    letters = rng.integers(0x4E00, 0x9F00, (2 * pairs, size))
    common = round(share * size)
    letters[1::2, :common] = letters[::2, :common]
    return ["".join(map(chr, line)) for line in letters.tolist()]


@pytest.mark.slow
def test_pairs_near_the_floor_are_found_and_none_below() -> None:
    """3,000 pairs with Jaccards of 0.70: each is missed with a chance of 1.5e-4, so half a pair in all."""
    texts = made_pairs(3000, 0.8276)
    graph = build(Texts.of_list(texts), NGRAM, NUM_PERM, 0.7, MANY)
    true = [by_substrings(texts[2 * pair], texts[2 * pair + 1], NGRAM) for pair in range(3000)]
    assert 0.7 <= min(true) <= max(true) < 0.71
    assert (graph.right - graph.left == 1).all()
    assert (graph.left % 2 == 0).all()
    assert 2995 <= len(graph.left) <= 3000
    assert len(build(Texts.of_list(texts), NGRAM, NUM_PERM, 0.71, MANY).left) == 0


@pytest.mark.parametrize("rows_in_band", [4, 6, 8, 12])
def test_the_chance_to_miss_a_pair_is_what_is_stated(rows_in_band: int) -> None:
    """Of 2,000 pairs with a Jaccard of 0.70 none, 7%, 37% and 86% share no band: the formula, within 4 deviations."""
    texts = made_pairs(2000, 0.8276)
    keys = sets.band_keys(sets.signatures_of(Texts.of_list(texts), NGRAM, NUM_PERM), rows_in_band)
    found = sum(int((right - left == 1).sum()) for left, right in sets.pairs_of(keys))
    chance = missed(NUM_PERM, rows_in_band, 0.703)
    assert abs((2000 - found) / 2000 - chance) <= 4 * math.sqrt(chance * (1 - chance) / 2000) + 1 / 2000


def test_bands_are_as_wide_as_the_chance_to_miss_allows() -> None:
    assert [band_rows(NUM_PERM, floor) for floor in (0.4, 0.5, 0.7, 0.8, 0.9, 1.0)] == [2, 2, 4, 5, 8, 128]
    assert missed(NUM_PERM, 4, 0.7) == pytest.approx(1.5e-4, rel=0.05)
    assert missed(NUM_PERM, 4, 0.8) == pytest.approx(5e-8, rel=0.06)


def test_each_pair_is_a_candidate_once() -> None:
    keys = np.array([[1, 5, 0], [1, 5, 1], [2, 5, 1], [1, 6, 2]], np.uint64)
    pairs = [pair for left, right in sets.pairs_of(keys) for pair in zip(left.tolist(), right.tolist(), strict=True)]
    assert sorted(pairs) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]


def test_many_alike_are_all_pairs_or_raise_the_floor() -> None:
    texts = [f"{SENTENCE} {SENTENCE.upper()[:30]} number {number}" for number in range(80)]
    whole = build(Texts.of_list(texts), NGRAM, NUM_PERM, 0.7, MANY)
    assert len(whole.left) == math.comb(80, 2)
    few = build(Texts.of_list(texts), NGRAM, NUM_PERM, 0.7, 1000)
    assert few.floor > 0.8
    np.testing.assert_array_equal(few.score, whole.at(few.floor).score)


@quick
@given(TEXTS, TEXTS, st.sampled_from([0.5, 0.8]))
def test_nearest_across_two_sides(texts: list[str], others: list[str], floor: float) -> None:
    best, where = nearest_across(Texts.of_list(texts), Texts.of_list(others), 3, NUM_PERM, floor)
    assert (best.dtype, where.dtype) == (np.float32, np.int64)
    for text, score, place in zip(texts, best.tolist(), where.tolist(), strict=True):
        true = [by_substrings(text, other, 3) for other in others]
        if score:
            assert np.float32(true[place]) == np.float32(score) >= np.float32(floor)
        assert score >= np.float32(max((value for value in true if value > 0.95), default=0))


ANSWERS = [
    SENTENCE,  # 0
    SENTENCE.replace("turn", "change"),  # 1: a Jaccard of 0.76 to 0
    SENTENCE + " Really.",  # 2: 0.9 to 0
    SENTENCE.upper() + " ",  # 3: equal to 0
    "ok",  # 4: shorter than a shingle
    "no",  # 5
    "Ok",  # 6: equal to 4
    "中国的首都是北京，法国的首都是巴黎，西班牙的首都是马德里。",  # 7
    "中国的首都是北京，法国的首都是巴黎，西班牙的首都是马德里！",  # 8: 0.92 to 7
]


def test_near_and_equal_rows_go_and_alike_ones_stay(context: StageContext) -> None:
    selection = MinHash()(rows(ANSWERS), context)
    assert selection.reason == ["", "", "near_duplicate", "duplicate", "", "", "duplicate", "", "near_duplicate"]
    assert [selection.nearest[index] for index in (2, 3, 6, 8)] == ["0", "0", "4", "7"]
    for row, nearest in ((2, 0), (8, 7)):
        assert selection.score[row] == np.float32(by_substrings(ANSWERS[row], ANSWERS[nearest], NGRAM))
    assert MinHash(keep=Keep.singletons)(rows(ANSWERS), context).kept.tolist() == [
        False, True, False, False, False, True, False, False, False,
    ]  # fmt: skip
    prompts = MinHash(on=On.prompt, threshold=0.7)(rows(ANSWERS), context)  # "question 0", "question 1": 5/7
    assert prompts.dropped == {"near_duplicate": 8}


def test_another_threshold_or_keep_rule_searches_nothing(context: StageContext) -> None:
    def work() -> list[str]:
        return [entry.stage for entry in context.take_new_entries() if not entry.hit]

    view = rows(ANSWERS)
    MinHash()(view, context)
    assert work() == ["neighbors", "dedup.minhash"]
    assert MinHash(threshold=0.7, keep=Keep.longest)(view, context).dropped["near_duplicate"] == 3
    assert work() == ["dedup.minhash"]
    for other in (MinHash(ngram=3), MinHash(num_perm=256), MinHash(threshold=0.5)):
        other(view, context)
        assert work() == ["neighbors", "dedup.minhash"]


def test_the_graph_is_whole_and_names_its_measure(context: StageContext) -> None:
    graph, node_of_row, texts = MinHash(threshold=0.9).graph(rows(ANSWERS), context)
    assert (MinHash.measure, graph.floor, graph.nodes) == ("jaccard", 0.7, len(texts))
    assert [list(texts)[node] for node in node_of_row] == [ANSWERS[row] for row in (0, 1, 2, 0, 4, 5, 4, 7, 8)]
    assert len(graph.left) > len(graph.at(0.9).left)


def test_no_row_and_one_row(context: StageContext) -> None:
    assert MinHash()(rows(["one"]), context).reason == [""]
    empty = rows(["one"]).take(np.array([False]))
    assert MinHash()(empty, context).reason == []


def test_what_is_refused_says_why() -> None:
    with pytest.raises(ConfigError, match=r"threshold=0\.3: must be a Jaccard similarity from 0\.4 to 1"):
        MinHash(threshold=0.3)
    with pytest.raises(ConfigError, match="ngram=0: must be from 1 to 100 characters"):
        MinHash(ngram=0)
    with pytest.raises(ConfigError, match="num_perm=8: must be from 16"):
        MinHash(num_perm=8)
