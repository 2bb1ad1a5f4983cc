"""Embedding: texts become unit vectors, each text once in the life of a store.

Vectors are kept in blocks, each block an entry of the store, looked up by the hash of the text. A file that grew
embeds only its new rows, a killed run resumes after its last block, and all stages that compare texts share the
vectors. A stage gets them gathered into a memory-mapped file.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import queue
import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core.bounds import Bounded, bounded
from sft_lab.core.context import StageContext
from sft_lab.core.errors import ModelError
from sft_lab.core.hardware import encoding_on_every_core
from sft_lab.core.hub import fall_back_on_cache
from sft_lab.core.io import digest, read_json, sha256_file
from sft_lab.core.log import log
from sft_lab.core.model_files import loaded_files
from sft_lab.core.packages import missing_package, package_path, saved_path
from sft_lab.core.store import RECIPE
from sft_lab.core.text import scripts

if TYPE_CHECKING:
    import numpy as np

SMALL = 2**30  # bytes of weights; a larger embedder is not copied for a second thread
LARGE = 2**20  # bytes; the hash of a larger file is kept, since each stage that compares texts needs it
BLOCK = 2048  # texts; the most work a killed run loses
VERSION = 2


@dataclass
class Embedder(Bounded):
    """A sentence-transformers model.

    Attributes:
        name_or_path: a hub name, a folder, or ``package:<module>/<path>``.
        revision: of the hub.
        scripts: Unicode scripts it was trained on (``LATIN``, ``ARABIC``, ...); empty: all of them. Rows of other
            scripts are not compared by it: unrelated Arabic sentences have a mean cosine of 0.69 in MiniLM.
        prompt: text put before each text, as some embedders want it.
        sha256: of model.safetensors; another file is refused.
        batch_tokens: most tokens in a batch, padding included; a longer text is a batch of its own.
    """

    name_or_path: str = "???"
    revision: str = "main"
    scripts: list[str] = field(default_factory=lambda: ["LATIN"])
    prompt: str = ""
    sha256: str | None = None
    batch_tokens: int = bounded(2048, at_least=1, changes_result=False)

    def __post_init__(self) -> None:
        """Write scripts in capitals, as Unicode does, and a folder as a saved path."""
        super().__post_init__()
        self.name_or_path = saved_path(self.name_or_path, or_hub_name=True)
        self.scripts = [script.upper() for script in self.scripts]

    def check(self, key: str) -> list[str]:
        """Return what keeps the model from being loaded; ``key``: the config key of this embedder."""
        missing = missing_package(self.name_or_path)
        if missing:
            return [f"{key}.name_or_path={self.name_or_path}: {missing}"]
        path = package_path(self.name_or_path)
        if path.is_dir() and not any(file.suffix == ".safetensors" for file in loaded_files(path, deep=True)):
            return [
                f"{key}.name_or_path={self.name_or_path}: the folder has no .safetensors file, and pickles are not read"
            ]
        if (path / "adapter_config.json").is_file():
            problem = "is an adapter without its base model; give a merged model"
            return [f"{key}.name_or_path={self.name_or_path}: {problem}"]
        return []

    def knows_script(self, text: str) -> bool:
        """Return whether at least half of the letters are of the embedder's scripts; True for no letters."""
        shares = scripts(text)
        return not self.scripts or not shares or sum(shares.get(script, 0.0) for script in self.scripts) >= 0.5

    def key(self) -> str:
        """Return a key of what decides the vectors: the files by content or commit, prompt, precision."""
        path = package_path(self.name_or_path)
        if not path.is_dir():
            return digest([VERSION, f"{self.name_or_path}@{self._commit()}", self.prompt, _precision()])
        files = {file.relative_to(path).as_posix(): _sha256(file) for file in loaded_files(path, deep=True)}
        weights = files.get("model.safetensors")
        if self.sha256 and weights != self.sha256:
            raise ModelError(
                f"{path / 'model.safetensors'}: SHA-256 is {weights}, must be {self.sha256}; "
                "reinstall the package it came from"
            )
        return digest([VERSION, files, self.prompt, _precision()])

    def _commit(self) -> str:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return str(HfApi().model_info(self.name_or_path, revision=self.revision, timeout=20).sha)
        except (HfHubHTTPError, OSError) as error:
            try:  # the hub cannot be reached: a downloaded snapshot still has a commit
                return Path(snapshot_download(self.name_or_path, revision=self.revision, local_files_only=True)).name
            except (LocalEntryNotFoundError, OSError):
                raise ModelError(
                    f"embedder {self.name_or_path}: not on this machine and the hub cannot be reached "
                    f"({type(error).__name__}); give a folder, or dedup/embedder=minilm_bundled"
                ) from error

    def _source(self) -> str:
        """Return the folder, or the Hub name after checking whether the Hub can be reached."""
        path = package_path(self.name_or_path)
        if path.is_dir():
            return str(path)
        fall_back_on_cache()
        return self.name_or_path

    def tokenizer(self) -> Any:
        """Return the tokenizer without loading the weights; None for a model without a Transformers tokenizer."""
        from transformers import AutoTokenizer
        from transformers.utils import cached_file

        source = self._source()
        optional = {"revision": self.revision, "_raise_exceptions_for_missing_entries": False}
        try:
            modules = cached_file(source, "modules.json", **optional)
            first = json.loads(Path(modules).read_text(encoding="utf-8"))[0]["path"] if modules else ""
            return AutoTokenizer.from_pretrained(
                source, subfolder=first, revision=self.revision, trust_remote_code=False
            )
        except (OSError, ValueError, LookupError, TypeError) as error:
            log.info("embedder %s: no tokenizer, so unknown tokens are not counted (%s)", self.name_or_path, error)
            return None

    def load(self) -> Any:
        """Return the loaded model."""
        import torch
        from sentence_transformers import SentenceTransformer

        device = "cuda" if torch.cuda.is_available() else "cpu"
        return SentenceTransformer(
            self._source(),
            revision=self.revision,
            device=device,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},  # a pickle could run code
        )


def _sha256(file: Path) -> str:
    """Return a file's SHA-256; a large file is hashed once in a process unless it was touched."""
    stat = file.stat()
    return sha256_file(file) if stat.st_size < LARGE else _sha256_of_large(file, stat.st_mtime_ns, stat.st_size)


@cache
def _sha256_of_large(file: Path, mtime_ns: int, size: int) -> str:  # noqa: ARG001 - a touched file is read again
    return sha256_file(file)


def _precision() -> str:
    import torch

    from sft_lab.core.hardware import fast_bf16

    return "bf16" if fast_bf16("cuda" if torch.cuda.is_available() else "cpu") else "fp32"


def text_hashes(texts: list[str]) -> list[str]:
    """Return the SHA-256 of each text."""
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts]


def embed(texts: list[str], embedder: Embedder, context: StageContext) -> np.ndarray:
    """Return the unit vector of each text: float32, shape (texts, dim), memory-mapped; zero for a text without tokens.

    Equal texts are embedded once, stored texts not at all. The embedder cuts texts longer than its limit; their number
    is logged.
    """
    key = embedder.key()
    hashes = text_hashes(texts)
    with context.store.lock(f"embed-{key[:32]}"):
        known = _stored(context, key, hashes)
        missing = {name: text for name, text in zip(hashes, texts, strict=True) if name not in known}
        if missing:
            log.info("embed: %d of %d texts are new, embedding them in %s", len(missing), len(texts), _precision())
            _embed_blocks(missing, embedder, key, context)
            known = _stored(context, key, hashes)
        return _gathered([known[name] for name in hashes], context.store.root)


def _stored(context: StageContext, key: str, hashes: list[str]) -> dict[str, tuple[Path, int]]:
    """Return the block folder and row of each stored vector of these texts, by text hash."""
    wanted = set(hashes)
    stored: dict[str, tuple[Path, int]] = {}
    for recipe in sorted((context.store.root / "embed").glob(f"[!.]*/{RECIPE}")):
        if read_json(recipe)["params"]["embedder"] == key:
            names = (recipe.parent / "hashes.txt").read_text().split()
            stored.update({name: (recipe.parent, row) for row, name in enumerate(names) if name in wanted})
    return stored


def _gathered(rows: list[tuple[Path, int]], root: Path) -> np.ndarray:
    """Return the vectors of these rows of blocks, in order, in an unnamed memory-mapped file below ``root``.

    The file takes disk space while the vectors are in use and disappears with the process. As a store entry it would
    save gathering (seconds for 200 thousand rows), but each filter setting of a sweep would leave another copy of its
    vectors; the graph made from them is stored.
    """
    import numpy as np

    if not rows:
        return np.empty((0, 0), np.float32)
    rows_of_block: dict[Path, list[tuple[int, int]]] = defaultdict(list)
    for index, (block, row) in enumerate(rows):
        rows_of_block[block].append((index, row))
    dim = np.load(rows[0][0] / "vectors.npy", mmap_mode="r").shape[1]
    with tempfile.TemporaryFile(dir=root) as file:
        vectors = np.memmap(file, np.float32, "w+", shape=(len(rows), dim))
    for block, pairs in rows_of_block.items():
        index, row = np.array(pairs).T
        vectors[index] = np.load(block / "vectors.npy")[row]
        with suppress(OSError):  # a read-only store
            os.utime(block / RECIPE)  # marks the block as used, for prune
    return vectors


def _embed_blocks(missing: dict[str, str], embedder: Embedder, key: str, context: StageContext) -> None:
    import numpy as np

    from sft_lab.core.progress import progress

    model = embedder.load()
    names = sorted(missing)
    lengths = dict(zip(names, _lengths(model, [missing[name] for name in names], embedder.prompt), strict=True))
    # Sorted by length, since every text of a batch is padded to the longest.
    names.sort(key=lambda name: -lengths[name])
    with progress("embed", len(names), "texts") as done:
        for start in range(0, len(names), BLOCK):
            block = names[start : start + BLOCK]

            def compute(folder: Path, block: list[str] = block) -> None:
                texts, tokens = [missing[name] for name in block], [lengths[name] for name in block]
                np.save(folder / "vectors.npy", _encode(model, texts, tokens, embedder, done))
                (folder / "hashes.txt").write_text("\n".join(block))

            context.stage("embed", {"version": VERSION, "params": {"embedder": key}, "input": digest(block)}, compute)


def _lengths(model: Any, texts: list[str], prompt: str) -> list[int]:
    """Return the tokens the model reads of each text, prompt included; estimated if the tokenizer is not callable."""
    limit = model.max_seq_length or math.inf
    if not callable(model.tokenizer):
        return [int(min(limit, 1 + len(text) // 4)) for text in texts]
    counts: list[int] = []
    for start in range(0, len(texts), BLOCK):  # the tokens of all texts would take more memory than their vectors
        some = [prompt + text for text in texts[start : start + BLOCK]]
        with encoding_on_every_core():
            encoded = model.tokenizer(some, truncation=False, verbose=False)
        counts += [len(ids) for ids in encoded["input_ids"]]
    cut = sum(length > limit for length in counts)
    if cut:
        log.info("embed: %d of %d texts are cut at %d tokens by the embedder", cut, len(counts), limit)
    return [int(min(limit, length)) for length in counts]


def _batches(lengths: list[int], budget: int) -> list[slice]:
    """Split descending lengths into batches that fit the token budget, padding included; at least one text each."""
    batches, start = [], 0
    while start < len(lengths):
        stop = start + max(1, budget // max(1, lengths[start]))
        batches.append(slice(start, min(stop, len(lengths))))
        start = stop
    return batches


def _encode(
    model: Any, texts: list[str], lengths: list[int], embedder: Embedder, done: Callable[[int], object]
) -> np.ndarray:
    """Return the unit vectors of texts sorted by descending length: float32, shape (texts, dim)."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    import torch

    # The matrices of a small embedder are too small to split over two cores: on a CPU, two threads encode a batch
    # each. Each thread has its own copy of the model, since a tokenizer must not be used by two threads at once.
    threads = torch.get_num_threads()
    share = model.device.type == "cpu" and threads > 1 and sum(p.nbytes for p in model.parameters()) < SMALL
    free: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for copied in (model, copy.deepcopy(model)) if share else (model,):
        free.put(copied)

    def encode(batch: slice) -> np.ndarray:
        own, some = free.get(), texts[batch]
        try:
            if share:
                torch.set_num_threads(max(1, threads // 2))
            with torch.autocast(own.device.type, torch.bfloat16, enabled=_precision() == "bf16"):
                # The model's own encode, which applies its prompts, pooling and other modules.
                raw = own.encode(some, prompt=embedder.prompt or None, batch_size=len(some), show_progress_bar=False)
        finally:
            free.put(own)
        done(len(some))
        return np.asarray(raw, np.float32)

    batches = _batches(lengths, embedder.batch_tokens)
    try:
        with ThreadPoolExecutor(2 if share else 1) as pool:
            vectors = np.concatenate(list(pool.map(encode, batches)))
    finally:
        torch.set_num_threads(threads)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)
