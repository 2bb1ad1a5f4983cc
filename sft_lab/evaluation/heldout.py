"""Held-out loss, the same measure everywhere.

It is the summed negative log-likelihood of the answer tokens (end of turn included) divided by their number: a mean
over tokens, not over batches, so that batch size and order do not matter. Rows are never packed here.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import distributed

from sft_lab.core.progress import track
from sft_lab.core.types import IGNORED
from sft_lab.evaluation.arithmetic import in_weight_dtype

RECALLED_TOKENS = 32  # an answer counts as memorized if this many tokens from its middle on are predicted correctly
LOSS_SLICE = 64  # positions; a multiple of a processor's vector width, which keeps results the same to the last digit
MIN_RECALLED_TOKENS = 8  # an answer with fewer tokens from its middle on is too short to show memorization


@dataclass(frozen=True)
class AnswerEnding:
    """How a template ends an answer.

    Attributes:
        stops: tokens that end a turn or a text, at which generation stops.
        foreign: the first token of another model family's end token, if the template writes one as text.
        length: the number of tokens after the text of an answer through the end of its turn, without white space.
    """

    stops: frozenset[int]
    length: int = 1
    foreign: int | None = None


UNKNOWN_ENDING = AnswerEnding(frozenset())


@dataclass(frozen=True)
class Scores:
    """How well a model predicts the answers of rows; each array has shape (rows,).

    Attributes:
        nats: summed negative log-likelihood of the answer.
        tokens: in the answer, end of turn included.
        bytes: UTF-8 bytes in the answer.
        correct: the number of answer tokens that were the likeliest.
        stops: the probability, after the text of the answer, of a token at which generation stops.
        foreign: the same for the first token of another model family's end token as text; 0 without one.
        recalled: 1 if greedy decoding from the middle of the answer on would give it word for word (verbatim extraction
            of Carlini et al., "Quantifying memorization across neural language models", ICLR 2023), 0 if not, -1 if the
            answer is too short to tell.
    """

    nats: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    correct: np.ndarray
    stops: np.ndarray
    foreign: np.ndarray
    recalled: np.ndarray

    @property
    def loss(self) -> float:
        """Nats per answer token."""
        return float(self.nats.sum() / self.tokens.sum()) if self.tokens.sum() else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of the answers, comparable across templates and tokenizers."""
        return float(self.nats.sum() / math.log(2) / self.bytes.sum()) if self.bytes.sum() else math.nan

    @property
    def accuracy(self) -> float:
        """Share of the answer tokens that were the likeliest."""
        return float(self.correct.sum() / self.tokens.sum()) if self.tokens.sum() else math.nan

    @property
    def stop_probability(self) -> float:
        """Median probability of stopping at the end of an answer's text."""
        return float(np.median(self.stops)) if len(self.stops) else math.nan

    @property
    def foreign_probability(self) -> float:
        """Median probability of writing another model family's end token there as text."""
        return float(np.median(self.foreign)) if len(self.foreign) else math.nan

    @property
    def recalled_share(self) -> float | None:
        """Share of the answers recalled word for word from their middle on; None if none is long enough."""
        judged = self.recalled[self.recalled >= 0]
        return float(judged.mean()) if len(judged) else None

    def of(self, rows: np.ndarray) -> Scores:
        """Return the scores of some of the rows; ``rows``: bool, shape (rows,)."""
        return Scores(*(getattr(self, name.name)[rows] for name in fields(self)))

    def of_rows(self, first: np.ndarray, answer_bytes: np.ndarray) -> Scores:
        """Return the scores of rows from those of their examples: sums, or the values of the last example.

        Args:
            first: the index of each row's first example: int64, shape (rows,).
            answer_bytes: UTF-8 bytes of each row's answer, shape (rows,).
        """
        if len(first) == len(self.nats):
            return replace(self, bytes=answer_bytes)
        last = np.append(first[1:], len(self.nats)) - 1
        sums = {name: np.add.reduceat(getattr(self, name), first) for name in ("nats", "tokens", "correct")}
        at_end = {name: getattr(self, name)[last] for name in ("stops", "foreign", "recalled")}
        return Scores(bytes=answer_bytes, **sums, **at_end)

    def save(self, folder: Path) -> None:
        """Write ``scores.npz``."""
        np.savez(folder / "scores.npz", **{name.name: getattr(self, name.name) for name in fields(self)})

    @classmethod
    def load(cls, folder: Path) -> Scores:
        """Return the scores that ``save`` wrote."""
        with np.load(folder / "scores.npz", allow_pickle=False) as arrays:
            return cls(**{name.name: arrays[name.name] for name in fields(cls)})


def score(
    model: Any,
    rows: datasets.Dataset,
    answer_bytes: np.ndarray,
    ending: AnswerEnding = UNKNOWN_ENDING,
    *,
    batch_tokens: int = 4096,
    shared: bool = False,
) -> Scores:
    """Return the scores of every row's labelled tokens, in the arithmetic of the weights.

    Args:
        model: a causal language model; put in evaluation mode and back.
        rows: ``input_ids`` and ``labels`` (-100: not scored).
        answer_bytes: UTF-8 bytes of each row's answer, shape (rows,).
        ending: how the template of the rows ends an answer.
        batch_tokens: in a batch, padding included.
        shared: all processes of a distributed training call this together, each with the same whole model, and each
            scores a part of the batches.
    """
    process, processes = (distributed.get_rank(), distributed.get_world_size()) if shared else (0, 1)
    sizes = np.array([len(ids) for ids in rows["input_ids"]], np.int64)
    sums, counts = np.zeros((3, len(rows))), np.zeros((3, len(rows)), np.int64)
    training = model.training
    model.eval()
    try:
        batches = _batches(sizes, batch_tokens)[process::processes]
        with in_weight_dtype(model):
            for batch in track(batches, "held-out loss"):
                chosen = rows[batch.tolist()]
                sums[:, batch], counts[:, batch] = _score_batch(model, chosen["input_ids"], chosen["labels"], ending)
    finally:
        model.train(training)
    if shared:  # each row was scored by one process and is 0 in all others
        parts: list[Any] = [None] * processes
        distributed.all_gather_object(parts, (sums, counts))
        sums, counts = (np.sum(arrays, axis=0) for arrays in zip(*parts, strict=True))
    (nats, stops, foreign), (tokens, correct, recalled) = sums, counts
    return Scores(nats, tokens, answer_bytes, correct, stops, foreign, recalled)


def _batches(sizes: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Return batches of rows of similar length within the token budget, for little padding and bounded memory."""
    batches: list[list[int]] = []
    for row in np.argsort(-sizes, kind="stable"):
        longest = sizes[batches[-1][0]] if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(int(row))
        else:
            batches.append([int(row)])
    return [np.array(batch) for batch in batches]


def _score_batch(
    model: Any, input_ids: list[list[int]], labels: list[list[int]], ending: AnswerEnding
) -> tuple[np.ndarray, np.ndarray]:
    """Return nats, ``stops`` and ``foreign``, shape (3, rows), and the counts of each row, shape (3, rows)."""
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
    # Logits take most of the time: they are computed only where a row of the batch has an answer token to predict.
    positions = (target != IGNORED).any(dim=0).nonzero().flatten()
    keep = {"logits_to_keep": positions.to(device)} if _keeps_logits(model) else {}
    # use_cache=False: with a cache, rows of a batch influence each other in some attention implementations.
    with torch.no_grad():
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, **keep).logits
    logits = logits if keep else logits[:, positions.to(device)]
    target = target[:, positions].to(device)
    nats = _token_losses(logits, target).double().sum(dim=1)
    scored = target != IGNORED
    # The end of the answer's text: `ending.length` tokens before its last one, or its first one if it is shorter.
    order = scored.cumsum(dim=1)
    end = (order == (order[:, -1:] - ending.length + 1).clamp(min=1)).int().argmax(dim=1)
    probabilities = logits[torch.arange(len(end), device=end.device), end].float().softmax(dim=-1)
    stops = probabilities[:, sorted(ending.stops)].sum(dim=-1).double()
    foreign = torch.zeros_like(stops) if ending.foreign is None else probabilities[:, ending.foreign].double()
    correct, mask_np = (logits.argmax(dim=-1) == target).cpu().numpy(), scored.cpu().numpy()
    counts = [_count(row[row_mask]) for row, row_mask in zip(correct, mask_np, strict=True)]
    return torch.stack([nats, stops, foreign]).cpu().numpy(), np.array(counts, np.int64).T


def _token_losses(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the loss at each position, 0 without a target: float32, shape (rows, positions).

    The loss function copies its logits to float32 several times: for 4,096 tokens and 152,000 classes at once, 9 GB.
    Slices of positions give the same digits, and on a CPU take a third of the time, since they fit its cache.
    """
    losses = torch.zeros(target.shape, device=target.device)
    for row in range(len(target)):
        for start in range(0, target.shape[1], LOSS_SLICE):
            part = slice(row, row + 1), slice(start, start + LOSS_SLICE)
            losses[part] = torch.nn.functional.cross_entropy(
                logits[part].float().transpose(1, 2), target[part], ignore_index=IGNORED, reduction="none"
            )
    return losses


def _count(correct: np.ndarray) -> tuple[int, int, int]:
    """Return a row's number of answer tokens, of those predicted correctly, and whether the answer is recalled.

    Each token was predicted from the true ones before it, so greedy decoding would have written a stretch without
    errors in the same way.
    """
    stretch = correct[len(correct) // 2 :][:RECALLED_TOKENS]
    recalled = int(stretch.all()) if len(stretch) >= MIN_RECALLED_TOKENS else -1
    return len(correct), int(correct.sum()), recalled


def _keeps_logits(model: Any) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters
