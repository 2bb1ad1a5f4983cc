"""Embedding: texts become unit vectors, each text once in the life of a store.

Vectors are kept in blocks, each block an entry of the store, looked up by the text's hash. So a grown file embeds
its new rows only, a killed run goes on from its last block, and every stage that compares texts shares them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.bench import Bench, log, missing_package, package_path
from sft_lab.errors import ModelError, require
from sft_lab.files import digest, read_json, sha256_file
from sft_lab.store import RECIPE
from sft_lab.text import scripts

if TYPE_CHECKING:
    import numpy as np

BLOCK = 2048  # texts; what a killed run loses at most
VERSION = 1


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
        batch_size: texts at once.
    """

    name_or_path: str = "???"
    revision: str = "main"
    scripts: list[str] = field(default_factory=lambda: ["LATIN"])
    prompt: str = ""
    sha256: str | None = None
    batch_size: int = field(default=32, metadata={"changes_result": False})

    def __post_init__(self) -> None:
        """Refuse impossible values; scripts are written in capitals, as Unicode does."""
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        self.scripts = [script.upper() for script in self.scripts]

    def check(self, where: str) -> list[str]:
        """The package that carries the model is installed."""
        missing = missing_package(self.name_or_path)
        return [f"{where}.name_or_path={self.name_or_path}: {missing}"] if missing else []

    def knows(self, text: str) -> bool:
        """Whether at least half of the text's letters are of the embedder's scripts; True for texts without letters."""
        shares = scripts(text)
        return not self.scripts or not shares or sum(shares.get(script, 0.0) for script in self.scripts) >= 0.5

    def key(self) -> str:
        """A key of what the embedder does: weights by content or commit, prompt, precision."""
        place = package_path(self.name_or_path)
        if place.is_dir():
            weights = sha256_file(place / "model.safetensors")
            if self.sha256 and weights != self.sha256:
                raise ModelError(
                    f"{place / 'model.safetensors'}: SHA-256 is {weights}, must be {self.sha256}; "
                    "reinstall the package it came from"
                )
        else:
            weights = f"{self.name_or_path}@{self._commit()}"
        return digest([VERSION, weights, self.prompt, _precision()])

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

    def load(self) -> Any:
        """Load the model."""
        import torch
        from sentence_transformers import SentenceTransformer

        place = package_path(self.name_or_path)
        source = str(place) if place.is_dir() else self.name_or_path
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return SentenceTransformer(source, revision=self.revision, device=device, trust_remote_code=False)


def _precision() -> str:
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"  # noqa: SLF001


def text_hashes(texts: list[str]) -> list[str]:
    """SHA-256 of each text."""
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts]


def embed(texts: list[str], embedder: Embedder, bench: Bench) -> np.ndarray:
    """Give the unit vector of each text: float32, shape (texts, dim); a text without any token has a zero vector.

    Equal texts are embedded once, stored ones not at all. Texts longer than the embedder reads are cut by it, as it
    does by itself; how many is logged.
    """
    import numpy as np

    key = embedder.key()
    hashes = text_hashes(texts)
    with bench.store.lock(f"embed-{key[:32]}"):
        known = _stored(bench, key)
        missing = {name: text for name, text in zip(hashes, texts, strict=True) if name not in known}
        if missing:
            _embed_blocks(missing, embedder, key, bench)
            known = _stored(bench, key)
    rows = [known[name] for name in hashes]
    blocks = {path: np.load(path / "vectors.npy", mmap_mode="r") for path in {path for path, _ in rows}}
    dim = next(iter(blocks.values())).shape[1] if blocks else 0
    vectors = np.empty((len(texts), dim), np.float32)
    for index, (path, row) in enumerate(rows):
        vectors[index] = blocks[path][row]
    log.info("embed: %d texts, %d new", len(texts), len(missing))
    return vectors


def _stored(bench: Bench, key: str) -> dict[str, tuple[Path, int]]:
    """Where each stored text's vector is: block folder and row."""
    found: dict[str, tuple[Path, int]] = {}
    for recipe in sorted((bench.store.root / "embed").glob(f"[!.]*/{RECIPE}")):
        if read_json(recipe)["params"]["embedder"] == key:
            names = (recipe.parent / "hashes.txt").read_text().split()
            found.update({name: (recipe.parent, row) for row, name in enumerate(names)})
    return found


def _embed_blocks(missing: dict[str, str], embedder: Embedder, key: str, bench: Bench) -> None:
    import numpy as np

    from sft_lab.progress import track

    model = embedder.load()
    tokens = model.tokenizer(list(missing.values()), truncation=False, verbose=False)["input_ids"]
    cut = sum(len(ids) > model.max_seq_length for ids in tokens)
    if cut:
        log.info("embed: %d of %d texts are cut at %d tokens by the embedder", cut, len(missing), model.max_seq_length)
    # Texts of alike length side by side: a batch is as slow as its longest text.
    order = [name for _, name in sorted(zip(map(len, tokens), missing, strict=True), reverse=True)]
    for start in track(range(0, len(order), BLOCK), "embed"):
        names = order[start : start + BLOCK]

        def compute(folder: Path, names: list[str] = names) -> None:
            vectors = _encode(model, [missing[name] for name in names], embedder)
            np.save(folder / "vectors.npy", vectors)
            (folder / "hashes.txt").write_text("\n".join(names))

        bench.stage("embed", {"version": VERSION, "params": {"embedder": key}, "input": digest(names)}, compute)


def _encode(model: Any, texts: list[str], embedder: Embedder) -> np.ndarray:
    import numpy as np
    import torch

    with torch.autocast(model.device.type, torch.bfloat16, enabled=_precision() == "bf16"):
        raw = model.encode(
            texts, prompt=embedder.prompt or None, batch_size=embedder.batch_size, show_progress_bar=False
        )
    vectors = np.asarray(raw, np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)
