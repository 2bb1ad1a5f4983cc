"""Embedding a block of texts."""

from __future__ import annotations

import copy
import queue
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core.context import StageContext
from sft_lab.core.hardware import fast_bf16
from sft_lab.core.store import Store

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from sft_lab.dedup.embed import Embedder

GPU_BATCHES = 8  # times batch_tokens: a batch that keeps two cores busy leaves a GPU idle
SMALL = 2**30  # bytes of weights; a larger embedder is not copied for a second thread


def precision() -> str:
    """Return the precision of embedding on this machine: bf16 if the hardware is fast at it, else fp32."""
    import torch

    return "bf16" if fast_bf16("cuda" if torch.cuda.is_available() else "cpu") else "fp32"


def batches(lengths: list[int], budget: int) -> list[slice]:
    """Return descending lengths split into batches within the token budget, padding included, or of a single text."""
    slices, start = [], 0
    while start < len(lengths):
        stop = start + max(1, budget // max(1, lengths[start]))
        slices.append(slice(start, min(stop, len(lengths))))
        start = stop
    return slices


class EmbedBlock:
    """Embeds a block of texts: in this process with a loaded model, in another one with a model loaded there.

    Args:
        embedder: to use.
        store: root of the store, which may have a distilled model.
        model: that ``embedder`` loaded.
        precision: of every worker, whatever its processor is fast at.
        done: called with the number of texts after each batch.
    """

    def __init__(
        self, embedder: Embedder, store: Path, model: Any, precision: str, done: Callable[[int], object]
    ) -> None:
        self._embedder, self._store, self._model = embedder, store, model
        self._precision, self._done = precision, done

    def __reduce__(self) -> tuple[Any, ...]:
        return _in_worker, (self._embedder, self._store, self._precision)

    def __call__(self, block: tuple[list[str], list[int]]) -> pa.Table:
        import pyarrow as pa

        texts, lengths = block
        vectors = encode_texts(self._model, texts, lengths, self._embedder, self._precision, self._done)
        return pa.table({"vector": pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])})


def vectors_of(table: pa.Table) -> np.ndarray:
    """Return the vectors of a block: float32, shape (texts, dim)."""
    column = table["vector"].combine_chunks()
    vectors: np.ndarray = column.flatten().to_numpy().reshape(len(column), -1)
    return vectors


_loaded: dict[str, EmbedBlock] = {}  # in a worker, whose model is kept for the next block


def _in_worker(embedder: Embedder, store: Path, precision: str) -> EmbedBlock:
    key = repr((embedder, store, precision))
    if key not in _loaded:
        model = embedder.load(StageContext(Store(store)))
        _loaded[key] = EmbedBlock(embedder, store, model, precision, lambda count: None)  # noqa: ARG005
    return _loaded[key]


def encode_texts(
    model: Any, texts: list[str], lengths: list[int], embedder: Embedder, precision: str, done: Callable[[int], object]
) -> np.ndarray:
    """Return the unit vectors of texts sorted by descending length: float32, shape (texts, dim)."""
    import numpy as np

    from sft_lab.dedup import static

    if module := static.static_module(model):
        vectors = static.mean_vectors(module, texts, embedder.prompt)
        done(len(texts))
    else:
        vectors = _encode_in_batches(model, texts, lengths, embedder, precision, done)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def _encode_in_batches(
    model: Any, texts: list[str], lengths: list[int], embedder: Embedder, precision: str, done: Callable[[int], object]
) -> np.ndarray:
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    import torch

    # The matrices of a small embedder are too small to split over cores, so on a CPU two threads encode a batch each.
    # Each thread has its own copy of the model, since two threads must not use a tokenizer at the same time.
    threads = torch.get_num_threads()
    share = model.device.type == "cpu" and threads > 1 and sum(p.nbytes for p in model.parameters()) < SMALL
    free: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for copied in (model, copy.deepcopy(model)) if share else (model,):
        free.put(copied)

    def encode(batch: slice) -> np.ndarray:
        own, chunk = free.get(), texts[batch]
        try:
            if share:
                torch.set_num_threads(max(1, threads // 2))
            with torch.autocast(own.device.type, torch.bfloat16, enabled=precision == "bf16"):
                # The model's own encode, which applies its prompts, pooling and other modules.
                raw = own.encode(chunk, prompt=embedder.prompt or None, batch_size=len(chunk), show_progress_bar=False)
        finally:
            free.put(own)
        done(len(chunk))
        return np.asarray(raw, np.float32)

    budget = embedder.batch_tokens * (GPU_BATCHES if model.device.type == "cuda" else 1)
    try:
        with ThreadPoolExecutor(2 if share else 1) as pool:
            return np.concatenate(list(pool.map(encode, batches(lengths, budget))))
    finally:
        torch.set_num_threads(threads)
