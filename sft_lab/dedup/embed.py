"""Embedding: texts become unit vectors, each text once in the life of a store.

Vectors are kept in blocks, each block an entry of the store, looked up by the text's hash. So a grown file embeds
its new rows only, a killed run goes on from its last block, and every stage that compares texts shares them. What a
stage gets is gathered into a mapped file, so memory does not grow with the rows but for their texts and hashes.
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

from sft_lab.core.context import StageContext
from sft_lab.core.errors import ModelError, require
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

SMALL = 2**30  # bytes of weights; a larger embedder is not held twice
LARGE = 2**20  # bytes of a file; every stage that compares texts asks for its hash
BLOCK = 2048  # texts; what a killed run loses at most
VERSION = 2


@dataclass
class Embedder:
    """A sentence-transformers model.

    Attributes:
        name_or_path: a hub name, a folder, or ``package:<module>/<path>``.
        revision: of the hub.
        scripts: Unicode scripts it was trained on (``LATIN``, ``ARABIC``, ...); empty: all of them. Rows of other
            scripts are not compared by it: unrelated Arabic sentences have a mean cosine of 0.69 in MiniLM.
        prompt: text put before each text, as some embedders want it.
        sha256: of model.safetensors; another file is refused.
        batch_tokens: of a batch, padding included; a longer text is a batch of its own.
    """

    name_or_path: str = "???"
    revision: str = "main"
    scripts: list[str] = field(default_factory=lambda: ["LATIN"])
    prompt: str = ""
    sha256: str | None = None
    batch_tokens: int = field(default=2048, metadata={"changes_result": False})

    def __post_init__(self) -> None:
        """Refuse impossible values; scripts are written in capitals, as Unicode does, and a folder as a saved path."""
        self.name_or_path = saved_path(self.name_or_path, or_hub_name=True)
        require(self.batch_tokens >= 1, "batch_tokens", self.batch_tokens, "at least 1")
        self.scripts = [script.upper() for script in self.scripts]

    def check(self, where: str) -> list[str]:
        """The package that carries the model is installed."""
        missing = missing_package(self.name_or_path)
        if missing:
            return [f"{where}.name_or_path={self.name_or_path}: {missing}"]
        place = package_path(self.name_or_path)
        if place.is_dir() and not any(file.suffix == ".safetensors" for file in loaded_files(place, deep=True)):
            return [
                f"{where}.name_or_path={self.name_or_path}: the folder has no model.safetensors, and no pickle is read"
            ]
        if (place / "adapter_config.json").is_file():
            problem = "is an adapter, whose base model could be any; give a merged one"
            return [f"{where}.name_or_path={self.name_or_path}: {problem}"]
        return []

    def knows_script(self, text: str) -> bool:
        """Whether at least half of the text's letters are of the embedder's scripts; True for texts without letters."""
        shares = scripts(text)
        return not self.scripts or not shares or sum(shares.get(script, 0.0) for script in self.scripts) >= 0.5

    def key(self) -> str:
        """A key of what the embedder does: its files by content or commit, prompt, precision."""
        place = package_path(self.name_or_path)
        if not place.is_dir():
            return digest([VERSION, f"{self.name_or_path}@{self._commit()}", self.prompt, _precision()])
        files = {file.relative_to(place).as_posix(): _sha256(file) for file in loaded_files(place, deep=True)}
        weights = files.get("model.safetensors")
        if self.sha256 and weights != self.sha256:
            raise ModelError(
                f"{place / 'model.safetensors'}: SHA-256 is {weights}, must be {self.sha256}; "
                "reinstall the package it came from"
            )
        return digest([VERSION, files, self.prompt, _precision()])

    def _commit(self) -> str:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return str(HfApi().model_info(self.name_or_path, revision=self.revision, timeout=20).sha)
        except (HfHubHTTPError, OSError) as error:
            try:  # the hub is away: what was downloaded before still has a commit
                return Path(snapshot_download(self.name_or_path, revision=self.revision, local_files_only=True)).name
            except (LocalEntryNotFoundError, OSError):
                raise ModelError(
                    f"embedder {self.name_or_path}: not on this machine and the hub cannot be reached "
                    f"({type(error).__name__}); give a folder, or dedup/embedder=minilm_bundled"
                ) from error

    def _source(self) -> str:
        """Return the folder, or the Hub name once the Hub was asked whether it answers."""
        place = package_path(self.name_or_path)
        if place.is_dir():
            return str(place)
        fall_back_on_cache()
        return self.name_or_path

    def tokenizer(self) -> Any:
        """Load the tokenizer without the weights; None for a model that has none of the usual kind."""
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
            log.info("embedder %s: has no tokenizer to ask for unknown tokens (%s)", self.name_or_path, error)
            return None

    def load(self) -> Any:
        """Load the model."""
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
    found = file.stat()
    return sha256_file(file) if found.st_size < LARGE else _sha256_of_large(file, found.st_mtime_ns, found.st_size)


@cache
def _sha256_of_large(file: Path, mtime_ns: int, size: int) -> str:  # noqa: ARG001 - a touched file is read again
    return sha256_file(file)


def _precision() -> str:
    import torch

    from sft_lab.core.hardware import fast_bf16

    return "bf16" if fast_bf16("cuda" if torch.cuda.is_available() else "cpu") else "fp32"


def text_hashes(texts: list[str]) -> list[str]:
    """SHA-256 of each text."""
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts]


def embed(texts: list[str], embedder: Embedder, context: StageContext) -> np.ndarray:
    """Give the unit vector of each text: float32, shape (texts, dim); a text without any token has a zero vector.

    Equal texts are embedded once, stored ones not at all. Texts longer than the embedder reads are cut by it, as it
    does by itself; how many is logged. The vectors are memory-mapped.
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
    """Where the vectors of these texts are, as far as they are stored: block folder and row."""
    wanted = set(hashes)
    found: dict[str, tuple[Path, int]] = {}
    for recipe in sorted((context.store.root / "embed").glob(f"[!.]*/{RECIPE}")):
        if read_json(recipe)["params"]["embedder"] == key:
            names = (recipe.parent / "hashes.txt").read_text().split()
            found.update({name: (recipe.parent, row) for row, name in enumerate(names) if name in wanted})
    return found


def _gathered(rows: list[tuple[Path, int]], root: Path) -> np.ndarray:
    """The vectors of these rows of blocks, in order, in a mapped file below ``root`` that has no name.

    Such a file takes disk for as long as the vectors are in use, and is gone with the process however that ends. Kept
    as an entry it would be found again faster, but every other set of texts, so every filter setting of a sweep, would
    leave a second copy of its vectors; gathering 200 thousand takes seconds, and their graph is stored.
    """
    import numpy as np

    if not rows:
        return np.empty((0, 0), np.float32)
    places: dict[Path, list[tuple[int, int]]] = defaultdict(list)
    for place, (block, row) in enumerate(rows):
        places[block].append((place, row))
    dim = np.load(rows[0][0] / "vectors.npy", mmap_mode="r").shape[1]
    with tempfile.TemporaryFile(dir=root) as file:
        vectors = np.memmap(file, np.float32, "w+", shape=(len(rows), dim))
    for block, pairs in places.items():
        to, row = np.array(pairs).T
        vectors[to] = np.load(block / "vectors.npy")[row]
        with suppress(OSError):  # of a store that may only be read
            os.utime(block / RECIPE)  # marks the block as used, for prune
    return vectors


def _embed_blocks(missing: dict[str, str], embedder: Embedder, key: str, context: StageContext) -> None:
    import numpy as np

    from sft_lab.core.progress import progress

    model = embedder.load()
    names = sorted(missing)
    lengths = dict(zip(names, _lengths(model, [missing[name] for name in names], embedder.prompt), strict=True))
    # Texts of alike length side by side: a batch is as slow as its longest text.
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
    """Tokens the model reads of each text, prompt included; of a model whose tokenizer cannot be asked, a guess."""
    limit = model.max_seq_length or math.inf
    if not callable(model.tokenizer):
        return [int(min(limit, 1 + len(text) // 4)) for text in texts]
    whole: list[int] = []
    for start in range(0, len(texts), BLOCK):  # the tokens of all texts would take more memory than their vectors
        some = [prompt + text for text in texts[start : start + BLOCK]]
        with encoding_on_every_core():
            encoded = model.tokenizer(some, truncation=False, verbose=False)
        whole += [len(ids) for ids in encoded["input_ids"]]
    cut = sum(length > limit for length in whole)
    if cut:
        log.info("embed: %d of %d texts are cut at %d tokens by the embedder", cut, len(whole), limit)
    return [int(min(limit, length)) for length in whole]


def _batches(lengths: list[int], budget: int) -> list[slice]:
    """Cut falling lengths into runs whose tokens, padding included, fit the budget; at least one text each."""
    batches, start = [], 0
    while start < len(lengths):
        stop = start + max(1, budget // max(1, lengths[start]))
        batches.append(slice(start, min(stop, len(lengths))))
        start = stop
    return batches


def _encode(
    model: Any, texts: list[str], lengths: list[int], embedder: Embedder, done: Callable[[int], object]
) -> np.ndarray:
    """Unit vectors of texts of falling lengths: float32, shape (texts, dim)."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    import torch

    # Matrices of a small embedder are too small for two cores to share well: on a processor each of two threads has
    # batches and a copy of the model of its own, since a tokenizer must not be used by two at once.
    threads = torch.get_num_threads()
    share = model.device.type == "cpu" and threads > 1 and sum(p.nbytes for p in model.parameters()) < SMALL
    free: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for one in (model, copy.deepcopy(model)) if share else (model,):
        free.put(one)

    def encode(batch: slice) -> np.ndarray:
        own, some = free.get(), texts[batch]
        try:
            if share:
                torch.set_num_threads(max(1, threads // 2))
            with torch.autocast(own.device.type, torch.bfloat16, enabled=_precision() == "bf16"):
                # The model's own encode: its prompts, pooling and other modules are its business.
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
