"""Embedding: texts become unit vectors, each text only once per store.

Vectors are stored in blocks, each an entry of the store, and looked up by the hash of the text. If a file grows, only
its new rows are embedded; a killed run resumes after its last block; all stages that compare texts share the vectors. A
stage gets them gathered into a memory-mapped file.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
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
from sft_lab.core.integrity import RECIPE
from sft_lab.core.io import digest, read_json, sha256_file, write_array
from sft_lab.core.log import log
from sft_lab.core.model_files import loaded_files
from sft_lab.core.packages import missing_package, package_path, saved_path
from sft_lab.core.store import blocks_folder
from sft_lab.core.text import one_line, scripts
from sft_lab.dedup.embed_batches import EmbedBlock, precision, vectors_of

if TYPE_CHECKING:
    import numpy as np

    from sft_lab.core.blocks import Block
    from sft_lab.dedup.texts import Texts

LARGE = 2**20  # bytes; hashes of larger files are cached, since each stage that compares texts needs them
BLOCK = 2048  # texts; the most that a killed run loses
MAX_REASON = 200  # characters of a library's error in a message
MANY_CUT = 1 / 3  # share of texts that are cut, above which there is a notice
BGE_M3_TOKENS = 8192
_REMEDY = (
    "; dedup=minhash decontaminate.method=exact compares whole texts; dedup/embedder=bge_m3 "
    f"dedup/embedder@decontaminate.embedder=bge_m3 compares the first {BGE_M3_TOKENS:,} tokens"
)
VERSION = 2
STATIC_VERSION = 1  # of distillation and of encoding by a static embedder


@dataclass
class Embedder(Bounded):
    """A sentence-transformers model.

    Attributes:
        name_or_path: a hub name, a folder, or ``package:<module>/<path>``.
        revision: of the hub.
        scripts: Unicode scripts on which it was trained (``LATIN``, ``ARABIC``, ...); empty: all. It does not compare
            rows in other scripts: in MiniLM, unrelated Arabic sentences have a mean cosine of 0.69.
        prompt: prepended to each text, as some embedders expect.
        sha256: of model.safetensors; another file is refused.
        batch_tokens: the most tokens in a batch, padding included, and on a GPU 8 times as many; a longer text is a
            batch by itself.
        distill: dimensions of a static embedder that is distilled from the model and used instead: at least 50 times as
            fast, but less accurate; null: the model itself.
    """

    name_or_path: str = "???"
    revision: str = "main"
    scripts: list[str] = field(default_factory=lambda: ["LATIN"])
    prompt: str = ""
    sha256: str | None = None
    batch_tokens: int = bounded(2048, at_least=1, changes_result=False)
    distill: int | None = bounded(None, at_least=8, at_most=4096, added=True)

    def __post_init__(self) -> None:
        """Put scripts in capitals, as in Unicode, and make a folder's path absolute."""
        super().__post_init__()
        self.name_or_path = saved_path(self.name_or_path, or_hub_name=True)
        self.scripts = [script.upper() for script in self.scripts]

    def check(self, key: str) -> list[str]:
        """Return what prevents loading the model; ``key``: the config key of this embedder."""
        missing = missing_package(self.name_or_path)
        if missing:
            return [f"{key}.name_or_path={self.name_or_path}: {missing}"]
        path = package_path(self.name_or_path)
        if path.is_dir() and not any(file.suffix == ".safetensors" for file in loaded_files(path, deep=True)):
            return [f"{key}.name_or_path={self.name_or_path}: no .safetensors file there, and pickles are not loaded"]
        if (path / "adapter_config.json").is_file():
            problem = "is an adapter without its base model; give a merged model"
            return [f"{key}.name_or_path={self.name_or_path}: {problem}"]
        return []

    def knows_script(self, text: str) -> bool:
        """Return whether at least half of a text's letters, if any, are in the embedder's scripts."""
        shares = scripts(text)
        return not self.scripts or not shares or sum(shares.get(script, 0.0) for script in self.scripts) >= 0.5

    def key(self) -> str:
        """Return a key of what determines the vectors: model, prompt, and precision or distillation."""
        method = ["static", STATIC_VERSION, self.distill] if self.distill else precision()
        return digest([VERSION, self._content(), self.prompt, method])

    def _content(self) -> str | dict[str, str]:
        """Return the hash of each file of a folder, or the commit of a model on the Hub."""
        path = package_path(self.name_or_path)
        if not path.is_dir():
            return f"{self.name_or_path}@{self._commit()}"
        files = {file.relative_to(path).as_posix(): _sha256(file) for file in loaded_files(path, deep=True)}
        weights = files.get("model.safetensors")
        if self.sha256 and weights != self.sha256:
            raise ModelError(
                f"{path / 'model.safetensors'}: SHA-256 is {weights}, not {self.sha256}; "
                "reinstall the package it came from"
            )
        return files

    def _commit(self) -> str:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        fall_back_on_cache()
        try:
            return str(HfApi().model_info(self.name_or_path, revision=self.revision, timeout=20).sha)
        except Exception as error:  # noqa: BLE001 - whatever the client raises, a downloaded snapshot has a commit
            try:
                return Path(snapshot_download(self.name_or_path, revision=self.revision, local_files_only=True)).name
            except (LocalEntryNotFoundError, OSError):
                raise ModelError(
                    f"embedder {self.name_or_path}: not on this machine, and the Hub cannot be reached "
                    f"({type(error).__name__}); give a folder, or dedup/embedder=minilm_bundled"
                ) from error

    def _source(self) -> str:
        """Return the folder, or the Hub name after checking whether the Hub answers."""
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
            reason = one_line(error, MAX_REASON)
            log.info("embedder %s: no tokenizer, so unknown tokens are not counted (%s)", self.name_or_path, reason)
            return None

    def load(self, context: StageContext) -> Any:
        """Return the loaded model; a static one is distilled first if it is not in the store."""
        if not self.distill:
            return self._load()
        from sft_lab.dedup import static

        dim = self.distill
        recipe = {"version": STATIC_VERSION, "params": {"dim": dim}, "input": digest(self._content())}
        entry = context.stage("distill", recipe, lambda folder: static.distill(self._load(), dim, folder))
        return static.load(entry.path)

    def _load(self) -> Any:
        """Load the model itself.

        Raises:
            ModelError: if the folder or the Hub has no such model.
        """
        import torch
        from safetensors import SafetensorError
        from sentence_transformers import SentenceTransformer

        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            return SentenceTransformer(
                self._source(),
                revision=self.revision,
                device=device,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},  # a pickle could run code
            )
        except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
            if isinstance(error, OSError) and error.errno:  # of the system, such as a full disk
                raise
            reason = f"{type(error).__name__}: {one_line(error, MAX_REASON)}"
            raise ModelError(
                f"embedder {self.name_or_path}: cannot be loaded ({reason}); give a sentence-transformers model with "
                "weights in safetensors, or dedup/embedder=minilm_bundled"
            ) from error


def _sha256(file: Path) -> str:
    """Return a file's SHA-256; a large file is hashed once per process unless it is touched."""
    stat = file.stat()
    return sha256_file(file) if stat.st_size < LARGE else _sha256_of_large(file, stat.st_mtime_ns, stat.st_size)


@cache
def _sha256_of_large(file: Path, mtime_ns: int, size: int) -> str:  # noqa: ARG001 - keys of the cache
    return sha256_file(file)


def embed(texts: Texts, embedder: Embedder, context: StageContext) -> np.ndarray:
    """Return the unit vector of each text, zero for one without tokens: float32, shape (texts, dim), memory-mapped.

    Equal texts are embedded once, stored ones not at all. The embedder truncates texts longer than its limit; their
    number is logged, and a notice if it is large.
    """
    import numpy as np

    key = embedder.key()
    hashes, first, index = np.unique(texts.hashes, return_index=True, return_inverse=True)
    with context.store.lock(f"embed-{key[:32]}"):
        stored = _stored(context, key, hashes)
        missing = stored.block < 0
        if missing.any():
            method = "with a static embedder" if embedder.distill else f"in {precision()}"
            log.info("embed: %d of %d texts are new, embedding them %s", missing.sum(), len(texts), method)
            _embed_blocks(texts.take(first[missing]), embedder, key, context)
            stored = _stored(context, key, hashes)
        return _gathered(stored, index, context.store.root)


@dataclass(frozen=True)
class _Stored:
    """Where the vectors of texts are stored.

    Attributes:
        blocks: the folders of the blocks.
        block: the index of each text's block, -1 if it is not stored: int32, shape (texts,).
        row: the text's row in its block: int32, shape (texts,).
    """

    blocks: list[Path]
    block: np.ndarray
    row: np.ndarray


def _stored(context: StageContext, key: str, hashes: np.ndarray) -> _Stored:
    """Return where the vectors of texts are stored; ``hashes``: distinct and ascending."""
    import numpy as np

    stored = _Stored([], np.full(len(hashes), -1, np.int32), np.zeros(len(hashes), np.int32))
    for recipe in sorted((context.store.root / "embed").glob(f"[!.]*/{RECIPE}")):
        if read_json(recipe)["params"]["embedder"] != key or not len(hashes):
            continue
        names = np.frombuffer(bytes.fromhex((recipe.parent / "hashes.txt").read_text()), hashes.dtype)
        index = np.searchsorted(hashes, names).clip(max=len(hashes) - 1)
        row = np.flatnonzero(hashes[index] == names)
        stored.block[index[row]], stored.row[index[row]] = len(stored.blocks), row
        stored.blocks.append(recipe.parent)
    return stored


def _gathered(stored: _Stored, index: np.ndarray, root: Path) -> np.ndarray:
    """Return stored vectors in the order of ``index``, in an unnamed memory-mapped file below ``root``.

    The file takes disk space only while the vectors are in use. As a store entry it would save the time of gathering
    (seconds for 200,000 rows), but each filter setting of a sweep would leave another copy. The graph made from the
    vectors is stored.
    """
    import numpy as np

    if not len(index):
        return np.empty((0, 0), np.float32)
    block, row = stored.block[index], stored.row[index]
    order = np.argsort(block, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(block[order])) + 1)
    dim = np.load(stored.blocks[block[0]] / "vectors.npy", mmap_mode="r").shape[1]
    with tempfile.TemporaryFile(dir=root) as file:
        vectors = np.memmap(file, np.float32, "w+", shape=(len(index), dim))
    for group in groups:
        folder = stored.blocks[block[group[0]]]
        vectors[group] = np.load(folder / "vectors.npy")[row[group]]
        with suppress(OSError):  # a read-only store
            os.utime(folder / RECIPE)  # marks the block as used, for prune
    return vectors


def _embed_blocks(texts: Texts, embedder: Embedder, key: str, context: StageContext) -> None:
    """Embed texts block by block; ``texts``: distinct, in the order of their hashes."""
    import numpy as np

    from sft_lab.core.blocks import run_blocks
    from sft_lab.core.progress import progress
    from sft_lab.dedup.texts import hex_names

    model = embedder.load(context)
    lengths = _lengths(model, texts, embedder.prompt, context)
    # Sorted by length, since every text of a batch is padded to the longest.
    order = np.argsort(-lengths, kind="stable")
    parts = np.split(order, range(BLOCK, len(order), BLOCK))
    payloads = ((len(part), (list(texts.take(part)), lengths[part].tolist())) for part in parts)
    folder = context.store.root / "embed" / f".{key[:32]}"
    folder.parent.mkdir(exist_ok=True)
    with progress("embed", len(texts), "texts") as done:
        work = EmbedBlock(embedder, context.store.root, model, precision(), done)
        blocks = run_blocks(work, payloads, folder, "embed", context.engine.of_torch)
        for part, block in zip(parts, blocks, strict=True):
            _keep(block, hex_names(texts.hashes[part]), key, context)
    shutil.rmtree(blocks_folder(folder))


def _keep(block: Block, names: list[str], key: str, context: StageContext) -> None:
    """Store the vectors of a block under the hashes of their texts."""

    def compute(folder: Path) -> None:
        write_array(folder / "vectors.npy", vectors_of(block.read()))
        (folder / "hashes.txt").write_text("\n".join(names))

    context.stage("embed", {"version": VERSION, "params": {"embedder": key}, "input": digest(names)}, compute)
    block.path.unlink()


def _lengths(model: Any, texts: Texts, prompt: str, context: StageContext) -> np.ndarray:
    """Return the number of tokens that the model reads of each text, prompt included; estimated without a tokenizer."""
    import numpy as np

    limit = model.max_seq_length or math.inf
    counts: list[int] = []
    for batch in texts.batches():
        if callable(model.tokenizer):
            with encoding_on_every_core():
                encoded = model.tokenizer([prompt + text for text in batch], truncation=False, verbose=False)
            counts += [len(ids) for ids in encoded["input_ids"]]
        else:
            counts += [1 + len(text) // 4 for text in batch]
    lengths = np.array(counts, np.int64)
    cut = int((lengths > limit).sum()) if callable(model.tokenizer) else 0
    if cut:
        report = context.notice if cut > MANY_CUT * len(lengths) else log.info
        report(
            f"embed: {cut} of {len(lengths)} texts are truncated to the embedder's {limit} tokens; what follows is not "
            f"compared{_REMEDY if limit < BGE_M3_TOKENS else ''}"
        )
    return np.minimum(lengths, limit).astype(np.int64)
