"""The neighbor graph compared with all pairs in float64, and its indices, precisions and blocks with each other."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_lab.core.errors import ConfigError, ModelError
from sft_lab.dedup import ivf, vector_search
from sft_lab.dedup import neighbor_graph as graphs
from sft_lab.dedup.graph_options import Index
from sft_lab.dedup.neighbor_graph import NeighborGraph
from sft_lab.dedup.vector_search import build

MANY = 10**9
WAYS: dict[str, dict[str, Any]] = {
    "bf16": {"bf16": True},
    "float32": {"bf16": False},
    "flat": {"index": Index.flat},
}
FLOORS = st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.83, 0.9, 0.95, 0.99, 1.0])

quick = settings(max_examples=40, deadline=None)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; zero rows stay zero."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    units: np.ndarray = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    return units.astype(np.float32)


@st.composite
def vector_sets(draw: st.DrawFn) -> np.ndarray:
    """Random rows, some of them near or equal copies of others, some zero."""
    nodes, dim = draw(st.integers(0, 90)), draw(st.sampled_from([1, 2, 7, 33, 64]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = rng.standard_normal((nodes, dim))
    if nodes:
        copies = rng.random(nodes) < draw(st.sampled_from([0.0, 0.3, 1.0]))
        noise = rng.choice([0.0, 0.01, 0.2, 0.5, 1.0], (nodes, 1)) * rng.standard_normal((nodes, dim))
        rows[copies] = (rows[rng.integers(min(nodes, 5), size=nodes)] + noise)[copies]
        rows[rng.random(nodes) < draw(st.sampled_from([0.0, 0.1]))] = 0
    return unit(rows)


@contextmanager
def blocks(height: int, width: int, flat: int) -> Iterator[None]:
    """Blocks small enough that small sets have many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_search, "CPU_BLOCK", (height, width))
        patch.setattr(vector_search, "FLAT_ROWS", flat)
        patch.setattr(vector_search, "SCORED", 64 * flat)
        yield


def same(one: NeighborGraph, other: NeighborGraph) -> None:
    """Equal to the bit."""
    assert (one.nodes, one.floor) == (other.nodes, other.floor)
    for name in graphs.ARRAYS:
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs, err_msg=name)


@quick
@given(vector_sets(), FLOORS, st.sampled_from([(8, 16, 5), (40, 24, 32), (512, 8192, 512)]))
def test_all_pairs_and_only_those(vectors: np.ndarray, floor: float, sizes: tuple[int, int, int]) -> None:
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    with blocks(*sizes):
        found = {name: build(vectors, floor, MANY, **way) for name, way in WAYS.items()}
    graph = found["float32"]
    same(found["bf16"], graph)
    same(found["flat"], graph)

    np.testing.assert_array_equal(np.lexsort((graph.left, graph.right)), np.arange(len(graph.left)))
    edges = np.zeros((len(vectors), len(vectors)), bool)
    edges[graph.left, graph.right] = True
    assert edges.sum() == len(graph.left), "an edge is there twice"
    assert not np.tril(edges).any(), "left is not below right"
    sure = np.triu(np.abs(exact - floor) > 1e-6, 1)
    np.testing.assert_array_equal(edges[sure], (exact >= floor)[sure])
    np.testing.assert_allclose(graph.score, np.minimum(exact, 1)[graph.left, graph.right], atol=1e-6)
    assert [getattr(graph, name).dtype.name for name in graphs.ARRAYS] == ["int32", "int32", "float32"]
    assert (graph.score <= 1).all()


@quick
@given(vector_sets(), FLOORS, FLOORS)
def test_a_cut_is_the_graph_of_that_threshold(vectors: np.ndarray, one: float, other: float) -> None:
    floor, threshold = sorted([one, other])
    same(build(vectors, floor, MANY).at(threshold), build(vectors, threshold, MANY))


@quick
@given(vector_sets(), st.integers(1, 300), st.sampled_from([0.3, 0.555, 0.7]), st.sampled_from(list(WAYS)))
def test_floor_rises_until_the_edges_fit(vectors: np.ndarray, max_edges: int, floor: float, way: str) -> None:
    whole = build(vectors, floor, MANY)
    steps = [floor, *(step / 100 for step in range(100) if step / 100 > floor)]
    fitting = [step for step in steps if (whole.score >= np.float32(step)).sum() <= max_edges]
    for sizes in ((8, 16, 5), (512, 8192, 512)):
        with blocks(*sizes):
            if fitting:
                same(build(vectors, floor, max_edges, **WAYS[way]), whole.at(fitting[0]))
            else:
                with pytest.raises(ConfigError, match=rf"max_edges={max_edges}: .*raise max_edges"):
                    build(vectors, floor, max_edges, **WAYS[way])


@quick
@given(vector_sets(), st.randoms(use_true_random=False))
def test_every_way_finds_the_edge_that_lies_on_the_floor(vectors: np.ndarray, random: Random) -> None:
    whole = build(vectors, 0.1, MANY)
    for score in random.sample(whole.score.tolist(), min(3, len(whole.score))):
        for way in WAYS.values():
            same(build(vectors, score, MANY, **way), whole.at(score))


def test_the_last_floors_before_giving_up() -> None:
    """Cosines 0.996, 0.982 and 0.961, of angles 5, 11 and 16 degrees."""
    angles = np.radians([0, 5, 16])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert [build(vectors, 0.7, edges).floor for edges in (1, 2, 3)] == [0.99, 0.97, 0.7]
    assert build(vectors, 0.995, 1).floor == 0.995
    with pytest.raises(ConfigError, match=r"score of 0\.995"):
        build(vectors[[0, 0, 0]], 0.995, 1)


@quick
@given(vector_sets(), FLOORS, st.sampled_from([(1,), (1, 3, 8), (4, 2048)]), st.sampled_from([5, 32]))
def test_an_index_without_range_search_is_asked_for_more_neighbors(
    vectors: np.ndarray, floor: float, nearest: tuple[int, ...], rows: int
) -> None:
    """What GPUs are searched by, with an index of the processor in their place: their indexes answer the same calls."""
    with pytest.MonkeyPatch.context() as patch, blocks(8, 16, rows):
        patch.setattr(vector_search, "NEAREST", nearest)
        patch.setattr(vector_search, "_gpu_index", faiss.IndexFlatIP)
        found = build(vectors, floor, MANY, Index.flat)
    same(found, build(vectors, floor, MANY))


def test_without_a_gpu_faiss_searches_on_the_processor() -> None:
    assert hasattr(faiss, "GpuIndexFlatIP") == (vector_search._gpu_index(3) is not None)


@pytest.mark.parametrize("way", WAYS)
def test_no_row_one_row_and_rows_of_zeros_have_no_edge(way: str) -> None:
    for vectors in (np.empty((0, 0)), np.empty((0, 8)), np.ones((1, 8)), np.zeros((1, 8)), np.zeros((9, 8))):
        graph = build(unit(vectors), 0.1, MANY, **WAYS[way])
        assert (graph.nodes, len(graph.left)) == (len(vectors), 0)
    beside_zeros = build(unit(np.array([[0.0, 0], [1, 0], [0, 0], [1, 0]])), 0.1, MANY, **WAYS[way])
    assert (beside_zeros.left.tolist(), beside_zeros.right.tolist(), beside_zeros.score.tolist()) == ([1], [3], [1.0])


@pytest.mark.parametrize("way", WAYS)
def test_equal_rows_are_all_pairs(way: str) -> None:
    rows = unit(np.random.default_rng(0).standard_normal((500, 384)))
    length = np.einsum("nd,nd->n", rows, rows)
    assert length.max() > 1  # by rounding; a cosine is not
    vectors = np.repeat(rows[[length.argmax()]], 70, axis=0)
    with blocks(32, 32, 16):
        graph = build(vectors, 1.0, MANY, **WAYS[way])
        assert len(graph.left) == math.comb(70, 2)
        assert set(graph.score.tolist()) == {1.0}
        with pytest.raises(ConfigError, match="max_edges=2414"):
            build(vectors, 0.9, math.comb(70, 2) - 1, **WAYS[way])


@pytest.mark.parametrize("dim", [255, 1017, 4065])
def test_bf16_misses_nothing_where_every_number_rounds_the_same_way(dim: int) -> None:
    """1/sqrt(4065) loses 0.0038 of itself in bf16, nearly the most there is, so a product loses 0.0076."""
    row = np.full(dim, 1 / math.sqrt(dim), np.float32)
    for flipped in range(1, 1 + dim // 8, 1 + dim // 1000):
        other = row.copy()
        other[:flipped] *= -1
        vectors = np.stack([row, other])
        (score,) = vector_search.cosine(vectors, np.array([0]), np.array([1]))
        assert len(build(vectors, float(score), MANY, bf16=True).left) == 1, f"missed at {score}"
        above = np.nextafter(score, np.float32(2))
        assert len(build(vectors, float(above), MANY, bf16=True).left) == 0, f"not at {above}"


@quick
@given(vector_sets().filter(len), st.integers(0, 2**32))
def test_a_score_depends_on_its_two_rows_alone(vectors: np.ndarray, seed: int) -> None:
    left, right = np.random.default_rng(seed).integers(len(vectors), size=(2, 40))
    score = vector_search.cosine(vectors, left, right)
    alone = [
        vector_search.cosine(vectors[[a, b]], np.array([1]), np.array([0]))[0] for a, b in zip(left, right, strict=True)
    ]
    np.testing.assert_array_equal(score, alone)


@pytest.mark.parametrize("way", WAYS)
def test_memory_mapped_and_reversed_rows_will_do(way: str, tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(1).standard_normal((60, 4)))
    expected = build(vectors, 0.7, MANY, **WAYS[way])
    assert len(expected.left) > 10
    np.save(tmp_path / "vectors.npy", vectors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(build(np.load(tmp_path / "vectors.npy", mmap_mode="r"), 0.7, MANY, **WAYS[way]), expected)
    same(build(vectors[::-1].copy()[::-1], 0.7, MANY, **WAYS[way]), expected)


@pytest.mark.parametrize("vectors", [np.empty((0, 8), np.float32), unit(np.ones((1, 8))), unit(np.eye(8))])
def test_a_graph_comes_back_from_disk(vectors: np.ndarray, tmp_path: Path) -> None:
    for floor, graph in ((0.7, build(vectors, 0.7, MANY)), (0.1, build(unit(vectors + 0.1), 0.1, MANY))):
        graph.save(tmp_path)
        loaded = NeighborGraph.load(tmp_path)
        same(loaded, graph)
        assert (loaded.nodes, loaded.floor) == (len(vectors), floor)
        assert isinstance(loaded.score, np.memmap)
        same(loaded.at(0.9), graph.at(0.9))


def test_renumbered_edges_are_those_of_the_named_nodes() -> None:
    vectors = unit(np.random.default_rng(2).standard_normal((40, 3)))
    known = np.arange(0, 80, 2)
    spread = np.zeros((81, 3), np.float32)
    spread[known] = vectors
    same(build(vectors, 0.7, MANY).renumbered(known, 81), build(spread, 0.7, MANY))
    same(NeighborGraph.empty(5), build(np.zeros((5, 3), np.float32), 1.0, MANY))


def test_fixed_edges_are_not_cut() -> None:
    """Nodes 0, 1, 2 have cosines; 3, 4 were compared by something else, and cut at its own threshold."""
    empty = NeighborGraph.empty(5)
    cosines = NeighborGraph(5, 0.7, *(np.array(ends, np.int32) for ends in ([0, 1], [2, 2])),
                            np.array([0.96, 0.75], np.float32))  # fmt: skip
    other = NeighborGraph(5, 0.8, np.array([3], np.int32), np.array([4], np.int32), np.array([0.85], np.float32))
    both = cosines.with_fixed(other)
    assert (both.floor, both.left.tolist(), both.right.tolist()) == (0.7, [0, 1, 3], [2, 2, 4])
    assert both.fixed is not None
    assert both.fixed.tolist() == [False, False, True]
    cut = both.at(0.95)
    assert (cut.left.tolist(), cut.right.tolist(), cut.floor) == ([0, 3], [2, 4], 0.95)
    assert cut.at(1.0).score.tolist() == pytest.approx([0.85])
    same(both.cuttable, cosines)
    same(cosines.with_fixed(empty).at(0.9), cosines.at(0.9))
    first = NeighborGraph(5, 0.8, np.array([0], np.int32), np.array([1], np.int32), np.array([0.85], np.float32))
    assert cosines.with_fixed(first).right.tolist() == [1, 2, 2]  # edges stay in order


def test_what_is_refused_says_why() -> None:
    good = unit(np.eye(4))
    for bad in (np.nan, 0.5, 2.0):
        wrong = good.copy()
        wrong[2, 2] = bad
        with pytest.raises(ModelError, match="vector 2 has length"):
            build(wrong, 0.7, MANY)
    for floor in (0.0, 1.01, math.nan):
        with pytest.raises(ConfigError, match=r"floor=.*from 0\.1 to 1"):
            build(good, floor, MANY)
    with pytest.raises(ConfigError, match="max_edges=0: must be positive"):
        build(good, 0.7, 0)
    with pytest.raises(ValueError, match="float64"):
        build(good.astype(np.float64), 0.7, MANY)
    graph = build(good, 0.7, MANY)
    for threshold in (0.69, math.nan):
        with pytest.raises(ConfigError, match=r"threshold=.*floor, 0\.7"):
            graph.at(threshold)


@quick
@given(vector_sets(), st.sampled_from([0.5, 0.8, 0.95]), st.sampled_from([True, False]))
def test_an_inverted_file_finds_edges_of_the_exact_graph(vectors: np.ndarray, floor: float, bf16: bool) -> None:
    exact = build(vectors, floor, MANY)
    with blocks(8, 16, 5), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ivf, "PROBES", 3)
        graph = build(vectors, floor, MANY, Index.ivf, bf16=bf16)
        patch.setattr(ivf, "PROBES", len(vectors) + 1)
        patch.setattr(ivf, "MARGIN", 3)
        same(build(vectors, floor, MANY, Index.ivf, bf16=bf16), exact)
    edges, subset = (set(zip(part.left.tolist(), part.right.tolist(), strict=True)) for part in (exact, graph))
    assert subset <= edges
    assert len(subset) == len(graph.left), "an edge is there twice"
    assert graph.sample is not None
    assert graph.sample.at(floor) == (len(edges), len(subset))  # fewer rows than a sample: all are searched exactly
    assert exact.sample is None


def test_an_inverted_file_finds_nearly_all_near_pairs(tmp_path: Path) -> None:
    """20,000 rows about 300 topics, a tenth of them near copies: of the pairs at 0.9 at least 99.9% are found."""
    rng = np.random.default_rng(5)
    topics = unit(rng.standard_normal((300, 96)))
    rows = unit(topics[rng.integers(300, size=20_000)] + rng.standard_normal((20_000, 96)) * 0.09)
    copies = rng.permutation(20_000)[:2_000]
    rows[copies] = unit(rows[(copies + 1) % 20_000] + rng.standard_normal((2_000, 96)) * 0.03)
    exact, graph = build(rows, 0.7, MANY), build(rows, 0.7, MANY, Index.ivf)
    assert len(graph.at(0.9).left) >= 0.999 * len(exact.at(0.9).left) > 1_500
    assert graph.sample is not None
    pairs, hits = graph.sample.at(0.7)
    assert abs(hits / pairs - len(graph.left) / len(exact.left)) < 0.02
    graph.save(tmp_path)
    assert NeighborGraph.load(tmp_path).renumbered(np.arange(20_000), 20_000).sample == graph.sample
