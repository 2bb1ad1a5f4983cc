"""How long the neighbor graph takes, beside FAISS and the bare matrix product, all in one run.

    python benchmarks/neighbor_graph.py
    python benchmarks/neighbor_graph.py --vectors embeddings.npy --sizes 11000 50000 --rounds 9

Goals: bf16 at most 0.30 and float32 at most 0.90 of the time of FAISS's two-neighbor search, at least half the rate of
the bare bf16 product, a cut at 50,000 in less than 20 ms. On a shared machine only ratios mean something, so the
contenders take turns; ratios are those of the best times and the median over rounds of neighbors in time. Beside busy
neighbors ``--threads 1`` is fairer: two threads wait for whichever is put aside.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch

from sft_lab.dedup import graph as graphs
from sft_lab.dedup.graph import NeighborGraph, build
from sft_lab.dedup.keep import Keep, representatives

MAX_EDGES = 50_000_000
DIM = 384
OURS_BF16, OURS_FP32, FAISS_K2, FAISS_RANGE, BARE = (
    "ours, bf16 and recheck",
    "ours, float32",
    "IndexFlatIP k=2",
    "IndexFlatIP range_search",
    "bare bf16 product",
)


def made_vectors(size: int, rng: np.random.Generator) -> np.ndarray:
    """Random directions; half of the rows are copies in groups of about eight, with cosines from 0.6 to 1."""
    rows = rng.standard_normal((size, DIM), np.float32)
    copies = rng.permutation(size)[: size // 2]
    source = rng.integers(max(1, size // 16), size=len(copies))
    bases = rng.standard_normal((max(1, size // 16), DIM), np.float32)
    rows[copies] = bases[source] + rows[copies] * rng.uniform(0, 0.8, (len(copies), 1)).astype(np.float32)
    return normalized(rows)


def given_vectors(path: Path, size: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of a file: the first ``size``, and beyond its end rows drawn again with noise."""
    rows = np.load(path, mmap_mode="r", allow_pickle=False)[:size].astype(np.float32)
    drawn = rows[rng.integers(len(rows), size=size - len(rows))]
    noise = rng.standard_normal(drawn.shape, np.float32) * np.float32(0.7 / math.sqrt(rows.shape[1]))
    return normalized(np.concatenate([rows, drawn + noise]))


def normalized(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def bare_product(vectors: np.ndarray) -> Callable[[], None]:
    """The multiplications of ``Index.exact`` in bf16 and nothing else."""
    table = torch.from_numpy(vectors).to(torch.bfloat16)
    height, width = graphs.CPU_BLOCK
    buffer = torch.empty(height * width, dtype=torch.bfloat16)

    def multiply() -> None:
        for top in range(0, len(table), height):
            bottom = min(top + height, len(table))
            for start in range(0, bottom, width):
                stop = min(start + width, bottom)
                out = buffer[: (bottom - top) * (stop - start)].view(bottom - top, stop - start)
                torch.mm(table[top:bottom], table[start:stop].T, out=out)

    return multiply


def measure(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round; who goes first changes from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(-1, rounds):  # the first round warms up
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = time.perf_counter()
            contenders[name]()
            if number >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def check(vectors: np.ndarray, floor: float, index: faiss.IndexFlatIP) -> tuple[NeighborGraph, str]:
    """Both precisions find the pairs FAISS finds, but for its rounding at the floor."""
    graph, other = (build(vectors, floor, MAX_EDGES, bf16=bf16) for bf16 in (True, False))
    for name in graphs.ARRAYS:
        assert np.array_equal(getattr(graph, name), getattr(other, name)), f"bf16 and float32 differ in {name}"
    assert graph.floor == floor, f"the floor was raised to {graph.floor}"

    size = len(vectors)
    ours = graph.right * np.int64(size) + graph.left
    theirs = []
    for top in range(0, size, 1024):
        bounds, _, found = index.range_search(vectors[top : top + 1024], np.nextafter(np.float32(floor), np.float32(0)))
        row = top + np.repeat(np.arange(len(bounds) - 1), np.diff(bounds.astype(np.int64)))
        theirs.append((row * size + found)[found < row])
    different = np.setxor1d(ours, np.concatenate(theirs))
    score = graphs.cosine(vectors, different % size, different // size)
    assert (np.abs(score - floor) < 1e-6).all(), f"{len(different)} pairs differ from FAISS, away from the floor"

    best = np.full(size, -1, np.float32)
    np.maximum.at(best, graph.left, graph.score)
    np.maximum.at(best, graph.right, graph.score)
    nearest = np.sort(index.search(vectors, 2)[0], axis=1)[:, 0]  # the other of the two is the row itself
    assert np.allclose(best[nearest > floor + 1e-6], nearest[nearest > floor + 1e-6], atol=1e-6), "k=2 differs"
    return graph, f"{len(ours)} pairs, the same in bf16 and float32; {len(different)} differ from FAISS (at the floor)"


def cut_times(graph: NeighborGraph) -> tuple[float, float]:
    """Milliseconds of a cut of the stored graph, and of a cut with its keep rule; medians over thresholds."""
    cuts, kept = [], []
    rows = np.arange(graph.nodes)
    with tempfile.TemporaryDirectory() as folder:
        graph.save(Path(folder))
        stored = NeighborGraph.load(Path(folder))
        for threshold in np.linspace(graph.floor, 0.99, 20):
            began = time.perf_counter()
            cut = stored.at(float(threshold))
            cuts.append(time.perf_counter() - began)
            representatives(cut, rows, rows, Keep.first)
            kept.append(time.perf_counter() - began)
    return 1000 * statistics.median(cuts), 1000 * statistics.median(kept)


def report(vectors: np.ndarray, floor: float, rounds: int) -> None:
    """Measure and print one size."""
    size, dim = vectors.shape
    index = faiss.IndexFlatIP(dim)
    index.add(vectors)
    graph, checked = check(vectors, floor, index)
    print(f"\n{size} x {dim}, cosine >= {floor}: {checked}")
    contenders: dict[str, Callable[[], object]] = {
        OURS_BF16: lambda: build(vectors, floor, MAX_EDGES, bf16=True),
        FAISS_K2: lambda: index.search(vectors, 2),
        OURS_FP32: lambda: build(vectors, floor, MAX_EDGES, bf16=False),
        BARE: bare_product(vectors),
    }
    if size <= 20_000:  # no goal hangs on it
        contenders[FAISS_RANGE] = lambda: index.range_search(vectors, floor)
    seconds = measure(contenders, rounds)
    best = {name: min(times) for name, times in seconds.items()}
    print(f"{'':26}{'seconds':>18}{'of k=2':>18}{'rate of bare':>18}")
    print(f"{'':26}" + f"{'best':>9}{'median':>9}" * 3)
    for name, times in seconds.items():
        of_k2 = statistics.median(mine / k2 for mine, k2 in zip(times, seconds[FAISS_K2], strict=True))
        of_bare = statistics.median(bare / mine for mine, bare in zip(times, seconds[BARE], strict=True))
        print(
            f"{name:26}{best[name]:9.3f}{statistics.median(times):9.3f}"
            f"{best[name] / best[FAISS_K2]:9.2f}{of_k2:9.2f}{best[BARE] / best[name]:9.2f}{of_bare:9.2f}"
        )
    cut, kept = cut_times(graph)
    print(f"next threshold: cut {cut:.2f} ms, cut and keep rule {kept:.2f} ms")


def machine() -> str:
    """Processor, its bf16 flags, threads and versions."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in about.get("flags", about.get("Features", "")).split() if "bf16" in flag]
    processor = f"{about.get('model name', 'unknown processor')} (family {about.get('cpu family')})"
    return (
        f"{processor}, bf16 flags: {' '.join(flags) or 'none'}, {torch.get_num_threads()} threads\n"
        f"torch {torch.__version__}, faiss {faiss.__version__}, numpy {np.__version__}"
    )


def main() -> None:
    """Read the command line and measure each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, help="float matrix, a row per text; default: made up, 384 wide")
    parser.add_argument("--sizes", type=int, nargs="+", default=[11_000, 50_000])
    parser.add_argument("--floor", type=float, default=0.8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    print(machine())
    rng = np.random.default_rng(0)
    for size in arguments.sizes:
        vectors = given_vectors(arguments.vectors, size, rng) if arguments.vectors else made_vectors(size, rng)
        report(vectors, arguments.floor, arguments.rounds)


if __name__ == "__main__":
    main()
