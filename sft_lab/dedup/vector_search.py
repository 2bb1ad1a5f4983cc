"""The search for near vectors: every pair with a cosine at or above a floor.

Each index collects candidates down to a proven margin below the floor. A float32 score of the two rows decides, so that
all indices return the same edges, bit for bit.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_lab.core.blocks import Compute, in_memory, notes_of, with_notes
from sft_lab.core.errors import ModelError, require
from sft_lab.core.hardware import fast_bf16
from sft_lab.core.packages import FAISS_REMEDY
from sft_lab.dedup.graph_options import LOWEST, Index
from sft_lab.dedup.neighbor_graph import Edges, NeighborGraph

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

LENGTH_SLACK = 1e-3  # how far a row's length may be from 1 (float16 embedders)

# Tuned on an AMD EPYC (Zen 4, 2 cores): the products of a block stay in the shared cache until they are compared.
CPU_BLOCK, CUDA_BLOCK = (512, 8192), (4096, 16384)  # rows x columns
EXACT_ROWS = 8192  # rows in an engine's block, compared with all rows before them: the most that a killed search loses
GROUP = 32  # rows of a block whose maximum is tested first, column by column
FLAT_ROWS = 512  # rows per range search, which returns up to rows x nodes hits if all texts are alike; 256 is 4x slower
NEAREST = (16, 128, 2048)  # numbers of neighbors to try in turn on a GPU, where FAISS returns no more
SCORED = 2**19  # numbers gathered at a time for the float32 score: 2 MiB, so that both sides stay in a core's cache

Pairs = Iterator[tuple[np.ndarray, np.ndarray]]


def build(
    vectors: np.ndarray,
    floor: float,
    max_edges: int,
    index: Index = Index.exact,
    *,
    bf16: bool | None = None,
    compute: Compute = in_memory,
) -> NeighborGraph:
    """Return the graph of every pair of rows with a cosine of at least ``floor``.

    Args:
        vectors: float32, shape (nodes, dim), in memory or memory-mapped; each row of length 1, or all zero.
        floor: from 0.1 to 1. If more than ``max_edges`` pairs reach it, the graph's floor is the lowest hundredth above
            it that few enough pairs reach, which depends on the vectors alone.
        max_edges: the most edges to keep, 12 bytes each; the search takes a few times as much memory.
        index: the search for candidates; ``ivf`` may miss pairs, the others find all of them.
        bf16: whether ``Index.exact`` multiplies in bf16; None: if the hardware is fast at it. It changes no score.
        compute: computes the blocks of ``Index.exact``, rows with all rows before them.

    Raises:
        ConfigError: if floor or max_edges is out of range, or the edges do not fit even at a floor of 0.99.
        ModelError: if a row is neither of length 1 nor zero.
        ValueError: if vectors are not a float32 matrix.
    """
    require(LOWEST <= floor <= 1, "floor", floor, f"from {LOWEST} to 1")  # the bits of bf16 limits need it above 0
    require(max_edges > 0, "max_edges", max_edges, "positive")
    vectors = _checked(vectors)
    edges = Edges(len(vectors), lambda left, right: cosine(vectors, left, right), floor, max_edges)
    if index is Index.exact:
        blocks = ((len(rows), (rows, edges.floor)) for rows in _ranges(len(vectors)))
        for table in compute(_ExactBlock(vectors, max_edges, bf16), blocks, "neighbors"):
            edges.add_scored(table["pair"].to_numpy(), table["score"].to_numpy(), notes_of(table.schema)["floor"])
    else:
        for left, right in (_flat if index is Index.flat else _ivf)(vectors, edges):
            edges.add(left, right)
    graph = edges.graph()
    if index is Index.ivf:
        from sft_lab.dedup import ivf

        return replace(graph, sample=ivf.measure_recall(vectors, graph, edges.score))
    return graph


def cosine(vectors: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the cosine of pairs of rows of length 1: float32, shape (pairs,), at most 1.

    A score depends only on its two rows, not on other pairs or their order.
    """
    score = np.empty(len(left), np.float32)
    pairs = max(1, SCORED // max(1, vectors.shape[1]))
    for start in range(0, len(left), pairs):
        part = slice(start, start + pairs)
        rows, columns = vectors.take(left[part], axis=0), vectors.take(right[part], axis=0)
        np.einsum("pd,pd->p", rows, columns, out=score[part])
    return np.minimum(score, np.float32(1), out=score)


def _checked(vectors: np.ndarray) -> np.ndarray:
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise ValueError(f"vectors of shape {vectors.shape} and type {vectors.dtype}: must be a float32 matrix")
    for start in range(0, len(vectors), 4096):
        part = vectors[start : start + 4096]
        length = np.sqrt(np.einsum("nd,nd->n", part, part))
        wrong = np.flatnonzero(~((np.abs(length - 1) <= LENGTH_SLACK) | (length == 0)))
        if len(wrong):
            raise ModelError(
                f"vector {start + wrong[0]} has length {length[wrong[0]]}: must be 1, or 0 for an empty text; "
                "normalize the embedder's output"
            )
    return np.ascontiguousarray(vectors)  # copies only if it is a slice with gaps


# How far below the floor a candidate's product may be, for rows x, y of length at most 1 + s, s = LENGTH_SLACK:
#
# Inputs rounded to bf16 (8 significant bits, u = 2^-8) are x_i (1 + a), y_i (1 + b) with |a|, |b| <= u, so their
# product moves by at most sum |x_i y_i| (2u + u^2) <= (2u + u^2) (1 + s)^2, by Cauchy-Schwarz: 0.0078. (Numbers too
# small for bf16's exponent move it by less than dim * 2^-126.) TF32 and float32 inputs are rounded less.
#
# A sum of dim products in float32, in whatever order, is within dim * 2^-24 / (1 - dim * 2^-24) times sum |x_i y_i| of
# the true one: the candidate's own sum and that of its score. Together they are below dim * 2^-22 * (1 + s)^2, with
# room to spare for the rounded inputs and for fused operations.
#
# Rounding a sum to bf16 at the end keeps order and needs no margin: what is not below a limit is rounded to no less
# than the limit cut to bf16.


def _limit(floor: float, dim: int) -> float:
    """Return the lowest product of a candidate, at which no pair at or above the floor is missed."""
    return floor - (2 * 2**-8 + 2**-16 + dim * 2**-22) * (1 + LENGTH_SLACK) ** 2


def _ranges(nodes: int) -> Iterator[range]:
    for top in range(0, nodes, EXACT_ROWS):
        yield range(top, min(top + EXACT_ROWS, nodes))


class _ExactBlock:
    """Searches the edges between some rows and all rows before them; called with the rows and the floor."""

    def __init__(self, vectors: np.ndarray, max_edges: int, bf16: bool | None) -> None:
        self._vectors, self._max_edges, self._bf16 = vectors, max_edges, bf16

    @cached_property
    def _product(self) -> _Product:
        return _Product(self._vectors, self._bf16)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_product"}

    def __call__(self, block: tuple[range, float]) -> pa.Table:
        import pyarrow as pa

        rows, floor = block
        edges = Edges(len(self._vectors), partial(cosine, self._vectors), floor, self._max_edges)
        for left, right in self._candidates(rows, edges):
            edges.add(left, right)
        pair, score = edges.collected()
        return with_notes(pa.table({"pair": pair, "score": score}), {"floor": edges.floor})

    def _candidates(self, rows: range, edges: Edges) -> Pairs:
        height, width = self._product.height, self._product.width
        for top in range(rows.start, rows.stop, height):
            bottom = min(top + height, rows.stop)
            for start in range(0, bottom, width):
                stop = min(start + width, bottom)
                right, left = _at_least(*self._product.block(slice(top, bottom), slice(start, stop), edges.floor))
                right, left = right + top, left + start
                once = left < right
                yield left[once], right[once]


def _ivf(vectors: np.ndarray, edges: Edges) -> Pairs:
    """Yield candidates from an inverted file: products of the rows that probe a list with its members."""
    import torch

    from sft_lab.dedup import ivf

    # Not in bf16: blocks have many shapes, and oneDNN sets up the product again for each.
    product = _Product(vectors, bf16=False)
    nearest = ivf.probes(product.table) if len(vectors) else np.empty((0, 1), np.int64)
    for rows, members in ivf.blocks(nearest):
        for top, start in itertools.product(range(0, len(rows), product.height), range(0, len(members), product.width)):
            row, member = rows[top : top + product.height], members[start : start + product.width]
            hit, near = _at_least(*product.block(torch.from_numpy(row), torch.from_numpy(member), edges.floor))
            row, member = row[hit], member[near]
            kept = ivf.keep_once(row, member, nearest)
            yield np.minimum(row, member)[kept], np.maximum(row, member)[kept]


def _at_least(block: torch.Tensor, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of the numbers at or above a limit; ``block``: shape (a multiple of GROUP, columns)."""
    groups = block.view(-1, GROUP, block.shape[1])
    # Candidates are rare: the maximum of each group, computed at memory speed, leaves few groups to search.
    group, column = _nonzero(groups.amax(1) >= limit)
    hit, member = _nonzero(groups[group, :, column] >= limit)
    return (group[hit] * GROUP + member).cpu().numpy(), column[hit].cpu().numpy()


def _nonzero(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows and columns of the true values; on a CPU by NumPy, which finds rare ones ten times as fast."""
    import torch

    if mask.is_cuda:
        row, column = mask.nonzero(as_tuple=True)
        return row, column
    row, column = np.divmod(np.flatnonzero(mask.numpy()), mask.shape[1])
    return torch.from_numpy(row), torch.from_numpy(column)


class _Product:
    """Products of rows with rows, one block at a time, in a buffer that is reused."""

    def __init__(self, vectors: np.ndarray, bf16: bool | None) -> None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        kind = torch.bfloat16 if (fast_bf16(device) if bf16 is None else bf16) else torch.float32
        self.height, self.width = (
            max(1, min(size, len(vectors))) for size in (CUDA_BLOCK if device == "cuda" else CPU_BLOCK)
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is never written
            # Shares memory unless device or type changes.
            self.table = torch.from_numpy(vectors).to(device, kind)
        size = math.ceil(self.height / GROUP) * GROUP * self.width
        self.buffer = torch.empty(size, dtype=kind, device=device)

    def block(
        self, rows: slice | torch.Tensor, columns: slice | torch.Tensor, floor: float
    ) -> tuple[torch.Tensor, float]:
        """Return the products of some rows with others, and the limit with which to compare them.

        Rows are padded to a multiple of GROUP with numbers below any limit. Products in bf16 are returned as int16 with
        the same bits, which has the same order among positive numbers and is compared much faster.
        """
        import torch

        upper, lower = self.table[rows], self.table[columns]
        padded = math.ceil(len(upper) / GROUP) * GROUP
        block = self.buffer[: padded * len(lower)].view(padded, len(lower))
        block[len(upper) :].fill_(-1)
        with _float32_sums(self.table.device.type):
            torch.mm(upper, lower.T, out=block[: len(upper)])
        limit = _limit(floor, self.table.shape[1])
        if block.dtype == torch.bfloat16:
            return block.view(torch.int16), int(np.float32(limit).view(np.int32)) >> 16
        return block, limit


@contextmanager
def _float32_sums(device: str) -> Iterator[None]:
    """Make CUDA sum bf16 products in float32, as the proof above assumes; by default it may use bf16 for parts."""
    import torch

    if device != "cuda":
        yield
        return
    settings = torch.backends.cuda.matmul
    before = settings.allow_bf16_reduced_precision_reduction
    settings.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        settings.allow_bf16_reduced_precision_reduction = before


def _flat(vectors: np.ndarray, edges: Edges) -> Pairs:
    """Yield candidates from FAISS; each block of rows is searched among itself and the rows before it."""
    faiss = _faiss()
    index = faiss.IndexFlatIP(vectors.shape[1])
    gpu = _gpu_index(vectors.shape[1])
    for top in range(0, len(vectors), FLAT_ROWS):
        block = np.array(vectors[top : top + FLAT_ROWS])
        index.add(block)
        limit = np.float32(_limit(edges.floor, vectors.shape[1]))
        if gpu is None:
            row, left = _in_range(index, block, limit)
        else:
            gpu.add(block)
            row, left = _nearest_in_range(gpu, index, block, limit)
        right = top + row
        once = left < right
        yield left[once], right[once]


def _faiss() -> Any:
    """Import and return FAISS.

    Raises:
        ModelError: if neither of its builds is installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ModelError(f"dedup.index=flat: FAISS cannot be imported ({error}); {FAISS_REMEDY}") from error
    return faiss


def gpus() -> int:
    """Return the number of GPUs that FAISS can search on; 0 for its CPU build."""
    faiss = _faiss()
    return int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0


def _gpu_index(dim: int) -> Any | None:
    """Return an empty index on the first GPU; None without a GPU or with the CPU build of FAISS."""
    if not gpus():
        return None
    faiss = _faiss()
    return faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), dim)


def _in_range(index: Any, rows: np.ndarray, limit: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Return row and node of every hit of at least ``limit``; both int64, shape (hits,)."""
    # A range search returns only hits strictly above its radius (faiss 1.15).
    bounds, _, node = index.range_search(rows, np.nextafter(limit, np.float32(0)))
    return np.repeat(np.arange(len(rows)), np.diff(bounds.astype(np.int64))), node


def _nearest_in_range(gpu: Any, cpu: Any, rows: np.ndarray, limit: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Return the same as ``_in_range`` from a GPU index, which can only search the k nearest.

    k grows until a row's last neighbor is below the limit; rows for which no k is enough go to the CPU index.
    """
    waiting = np.arange(len(rows))
    hits: list[tuple[np.ndarray, np.ndarray]] = []
    for size in NEAREST:
        if len(waiting):
            k = min(size, gpu.ntotal)
            score, node = gpu.search(rows[waiting], k)
            done = (score[:, -1] < limit) | (k == gpu.ntotal)
            row, rank = np.nonzero((score >= limit) & done[:, None])
            hits.append((waiting[row], node[row, rank]))
            waiting = waiting[~done]
    if len(waiting):
        row, node = _in_range(cpu, rows[waiting], limit)
        hits.append((waiting[row], node))
    return np.concatenate([row for row, _ in hits]), np.concatenate([node for _, node in hits])
