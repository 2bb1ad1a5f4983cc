"""Static embedders: a vector for each token, and for a text the mean over its tokens.

They are distilled from a sentence-transformers model by the method of model2vec
(https://github.com/MinishLab/model2vec): each token of the vocabulary goes through the model once, the vectors are
reduced to their principal components, and weighted down by the token's frequency, estimated from its rank by Zipf's
law (SIF: Arora et al., ICLR 2017). It is implemented here because ``distill`` of model2vec 0.10 requires transformers
below 5.4.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_lab.core.errors import ConfigError
from sft_lab.core.hardware import encoding_on_every_core

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

SIF = 1e-4  # as in model2vec: tokens of a higher frequency are weighted down
TOKENS = 1024  # per batch through the model
CHARACTERS = 8  # of a text that are tokenized, for each token that is read


def distill(model: SentenceTransformer, dim: int, folder: Path) -> None:
    """Write the static embedder of a model: ``tokenizer.json`` and ``model.safetensors``.

    It reads as many tokens of a text as the model does.

    Raises:
        ConfigError: if the model has fewer dimensions than ``dim``, or no fast tokenizer.
    """
    import torch
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError("dedup.embedder.distill: the embedder has no fast tokenizer, so it cannot be distilled")
    vectors = _token_vectors(model, backend.get_vocab_size())
    if dim > vectors.shape[1]:
        raise ConfigError(f"dedup.embedder.distill={dim}: the embedder has {vectors.shape[1]} dimensions; give fewer")
    vectors = _principal(vectors, dim) * _weights(len(vectors))[:, None]
    tokenizer = type(backend).from_str(backend.to_str())
    if model.max_seq_length:
        tokenizer.enable_truncation(model.max_seq_length - tokenizer.num_special_tokens_to_add(is_pair=False))
    StaticEmbedding(tokenizer, torch.from_numpy(vectors.astype(np.float32))).save(str(folder))


def _token_vectors(model: SentenceTransformer, size: int) -> np.ndarray:
    """Return the model's mean output for each token by itself, between special tokens: float32, shape (size, dim)."""
    import torch

    from sft_lab.core.progress import progress

    around = model.tokenizer("a", return_special_tokens_mask=True)
    prefix = around["special_tokens_mask"].index(0)
    ids = torch.tensor(around["input_ids"])
    parts = []
    with progress("distill", size, "tokens") as done, torch.inference_mode():
        for start in range(0, size, TOKENS):
            tokens = torch.arange(start, min(start + TOKENS, size))
            batch = ids.repeat(len(tokens), 1)
            batch[:, prefix] = tokens
            batch = batch.to(model.device)
            output = model[0]({"input_ids": batch, "attention_mask": torch.ones_like(batch)})
            parts.append(output["token_embeddings"].float().mean(1).cpu())
            done(len(tokens))
    vectors: np.ndarray = torch.cat(parts).numpy()
    return vectors


def _principal(vectors: np.ndarray, dim: int) -> np.ndarray:
    """Return the first ``dim`` principal components of each row."""
    centered = vectors - vectors.mean(0)
    _, components = np.linalg.eigh(centered.T @ centered)  # ascending
    projected: np.ndarray = centered @ components[:, ::-1][:, :dim]
    return projected


def _weights(size: int) -> np.ndarray:
    """Return the weight of each token, by its frequency as estimated from its rank in the vocabulary."""
    frequency = 1 / np.arange(2, size + 2)
    frequency /= frequency.sum()
    weights: np.ndarray = SIF / (SIF + frequency)
    return weights


def load(folder: Path) -> SentenceTransformer:
    """Return the embedder that ``distill`` wrote."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    module = StaticEmbedding.load(str(folder))
    return SentenceTransformer(modules=[module], device="cpu", trust_remote_code=False)


def static_module(model: Any) -> StaticEmbedding | None:
    """Return the module with the tokens' vectors; None if the model is not static."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    return model[0] if isinstance(model[0], StaticEmbedding) else None


def mean_vectors(module: StaticEmbedding, texts: list[str], prompt: str) -> np.ndarray:
    """Return the mean of the vectors of each text's tokens, zero without tokens: float32, shape (texts, dim).

    The same as ``SentenceTransformer.encode``, but without sorting, small batches and token offsets.
    """
    import torch

    truncation = module.tokenizer.truncation
    limit = CHARACTERS * truncation["max_length"] if truncation else None
    beginnings = [(prompt + text)[:limit] for text in texts]
    with encoding_on_every_core():
        encoded = module.tokenizer.encode_batch_fast(beginnings, add_special_tokens=False)
    ids = [encoding.ids for encoding in encoded]
    starts = np.cumsum([0, *map(len, ids)])[:-1]
    flat = np.fromiter((token for text in ids for token in text), np.int64, sum(map(len, ids)))
    with torch.inference_mode():
        device = module.embedding.weight.device
        vectors = module.embedding(torch.from_numpy(flat).to(device), torch.from_numpy(starts).to(device))
    result: np.ndarray = vectors.float().cpu().numpy()
    return result
