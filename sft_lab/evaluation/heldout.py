"""Held-out loss: one measure everywhere.

The summed negative log-likelihood of the answer tokens (end of turn included) divided by their number. A sum over
tokens, not a mean of batch means, so batch size, order and packing do not enter. Rows are never packed here.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch

from sft_lab.progress import track

IGNORED = -100


@dataclass(frozen=True)
class Scores:
    """Per row: summed negative log-likelihood of its answer in nats, answer tokens, UTF-8 bytes of the answer."""

    nats: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray

    @property
    def loss(self) -> float:
        """Nats per answer token."""
        return float(self.nats.sum() / self.tokens.sum()) if self.tokens.sum() else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of the answers: comparable over templates and tokenizers."""
        return float(self.nats.sum() / math.log(2) / self.bytes.sum()) if self.bytes.sum() else math.nan

    def of(self, rows: np.ndarray) -> Scores:
        """The scores of some rows: bool, shape (rows,)."""
        return Scores(self.nats[rows], self.tokens[rows], self.bytes[rows])


def score(
    model: Any, rows: datasets.Dataset, answer_bytes: np.ndarray, *, batch_tokens: int = 4096, precision: str = "fp32"
) -> Scores:
    """Score every row's labelled tokens.

    Args:
        model: a causal language model; put in evaluation mode and back.
        rows: ``input_ids`` and ``labels`` (-100: not scored).
        answer_bytes: UTF-8 bytes of each row's answer, shape (rows,).
        batch_tokens: tokens of a batch, padding included.
        precision: ``bf16`` for autocast, else the weights' own arithmetic.
    """
    sizes = np.array([len(ids) for ids in rows["input_ids"]], np.int64)
    nats, tokens = np.zeros(len(rows)), np.zeros(len(rows), np.int64)
    training = model.training
    model.eval()
    try:
        batches = _batches(sizes, batch_tokens)
        for batch in track(batches, "held-out loss"):
            picked = rows[batch.tolist()]
            nats[batch], tokens[batch] = _score_batch(model, picked["input_ids"], picked["labels"], precision)
    finally:
        model.train(training)
    return Scores(nats, tokens, answer_bytes)


def _batches(sizes: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Rows of alike length together, as many as fit the budget: little padding, bounded memory."""
    batches: list[list[int]] = []
    for row in np.argsort(-sizes, kind="stable"):
        longest = sizes[batches[-1][0]] if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(int(row))
        else:
            batches.append([int(row)])
    return [np.array(batch) for batch in batches]


def _score_batch(
    model: Any, input_ids: list[list[int]], labels: list[list[int]], precision: str
) -> tuple[np.ndarray, np.ndarray]:
    device = next(model.parameters()).device
    width = max(len(ids) for ids in input_ids)
    ids = torch.zeros(len(input_ids), width, dtype=torch.long)
    target = torch.full((len(input_ids), width), IGNORED, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (row_ids, row_labels) in enumerate(zip(input_ids, labels, strict=True)):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        target[row, : len(row_labels)] = torch.tensor(row_labels)
        mask[row, : len(row_ids)] = 1
    target = target[:, 1:]
    # The vocabulary is what costs most: logits only where some row of the batch has an answer token to predict.
    places = (target != IGNORED).any(dim=0).nonzero().flatten()
    keep = {"logits_to_keep": places.to(device)} if _keeps_logits(model) else {}
    # use_cache=False: with a cache, rows of a batch influence one another in some attention paths.
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, **keep).logits
    logits = logits if keep else logits[:, places.to(device)]
    target = target[:, places].to(device)
    losses = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), target, ignore_index=IGNORED, reduction="none"
    )
    return losses.double().sum(dim=1).cpu().numpy(), (target != IGNORED).sum(dim=1).cpu().numpy()


def _keeps_logits(model: Any) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters
