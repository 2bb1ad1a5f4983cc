"""Held-out loss: one measure everywhere.

The summed negative log-likelihood of the answer tokens (end of turn included) divided by their number. A sum over
tokens, not a mean of batch means, so batch size, order and packing do not enter. Rows are never packed here.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from sft_lab.progress import track

IGNORED = -100


RECALLED_TOKENS = 32  # at most so many from the middle of an answer on must be foretold word for word
FEWEST_RECALLED = 8  # an answer with fewer tokens from its middle on says nothing about memory


@dataclass(frozen=True)
class Ending:
    """How a template ends an answer.

    Attributes:
        stops: tokens that end a turn or a text: generation stops there.
        foreign: the first token of another model family's end token, where the template writes that as text.
        length: tokens between an answer's own words and its end, the end included; white space before it apart.
    """

    stops: frozenset[int]
    length: int = 1
    foreign: int | None = None


UNKNOWN_ENDING = Ending(frozenset())


@dataclass(frozen=True)
class Scores:
    """What a model made of rows' answers, word by word; each array: shape (rows,).

    Attributes:
        nats: summed negative log-likelihood of the answer.
        tokens: of the answer, end of turn included.
        bytes: UTF-8 bytes of the answer.
        correct: answer tokens that were the likeliest one.
        stops: probability, behind the answer's own words, of a token that generation stops at.
        foreign: the same of beginning another model family's end token as text; 0 where the template has none.
        recalled: 1 where greedy decoding from the middle of the answer on would give it word for word (verbatim
            extraction of Carlini et al., "Quantifying memorization across neural language models", ICLR 2023), 0 where
            not, -1 where the answer is too short to say.
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
        """Bits per UTF-8 byte of the answers: comparable over templates and tokenizers."""
        return float(self.nats.sum() / math.log(2) / self.bytes.sum()) if self.bytes.sum() else math.nan

    @property
    def accuracy(self) -> float:
        """Share of the answer tokens that were the likeliest."""
        return float(self.correct.sum() / self.tokens.sum()) if self.tokens.sum() else math.nan

    @property
    def stop_probability(self) -> float:
        """Median probability of stopping where an answer's own words end."""
        return float(np.median(self.stops)) if len(self.stops) else math.nan

    @property
    def foreign_probability(self) -> float:
        """Median probability of writing another family's end token there, as text."""
        return float(np.median(self.foreign)) if len(self.foreign) else math.nan

    @property
    def recalled_share(self) -> float | None:
        """Share of the answers known word for word from their middle on; None where none is long enough."""
        counted = self.recalled[self.recalled >= 0]
        return float(counted.mean()) if len(counted) else None

    def of(self, rows: np.ndarray) -> Scores:
        """The scores of some rows: bool, shape (rows,)."""
        return Scores(*(getattr(self, name.name)[rows] for name in fields(self)))

    def save(self, folder: Path) -> None:
        """Write ``scores.npz``."""
        np.savez(folder / "scores.npz", **{name.name: getattr(self, name.name) for name in fields(self)})

    @classmethod
    def load(cls, folder: Path) -> Scores:
        """Read what ``save`` wrote."""
        with np.load(folder / "scores.npz", allow_pickle=False) as found:
            return cls(**{name.name: found[name.name] for name in fields(cls)})


def score(
    model: Any,
    rows: datasets.Dataset,
    answer_bytes: np.ndarray,
    ending: Ending = UNKNOWN_ENDING,
    *,
    batch_tokens: int = 4096,
    precision: str = "fp32",
) -> Scores:
    """Score every row's labelled tokens.

    Args:
        model: a causal language model; put in evaluation mode and back.
        rows: ``input_ids`` and ``labels`` (-100: not scored).
        answer_bytes: UTF-8 bytes of each row's answer, shape (rows,).
        ending: how the template of the rows ends an answer.
        batch_tokens: tokens of a batch, padding included.
        precision: ``bf16`` for autocast, else the weights' own arithmetic.
    """
    sizes = np.array([len(ids) for ids in rows["input_ids"]], np.int64)
    floats, told = np.zeros((3, len(rows))), np.zeros((3, len(rows)), np.int64)
    training = model.training
    model.eval()
    try:
        batches = _batches(sizes, batch_tokens)
        for batch in track(batches, "held-out loss"):
            picked = rows[batch.tolist()]
            floats[:, batch], told[:, batch] = _score_batch(
                model, picked["input_ids"], picked["labels"], ending, precision
            )
    finally:
        model.train(training)
    (nats, stops, foreign), (tokens, correct, recalled) = floats, told
    return Scores(nats, tokens, answer_bytes, correct, stops, foreign, recalled)


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
    model: Any, input_ids: list[list[int]], labels: list[list[int]], ending: Ending, precision: str
) -> tuple[np.ndarray, np.ndarray]:
    """Give nats, ``stops`` and ``foreign``, shape (3, rows), and what ``_told`` says of each row, shape (3, rows)."""
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
    nats = losses.double().sum(dim=1)
    asked = target != IGNORED
    # Behind the answer's own words: so many tokens before its last, or at its beginning where it is shorter.
    order = asked.cumsum(dim=1)
    end = (order == (order[:, -1:] - ending.length + 1).clamp(min=1)).int().argmax(dim=1)
    likely = logits[torch.arange(len(end), device=end.device), end].float().softmax(dim=-1)
    stops = likely[:, sorted(ending.stops)].sum(dim=-1).double()
    foreign = torch.zeros_like(stops) if ending.foreign is None else likely[:, ending.foreign].double()
    right, asked_np = (logits.argmax(dim=-1) == target).cpu().numpy(), asked.cpu().numpy()
    told = [_told(row[counted]) for row, counted in zip(right, asked_np, strict=True)]
    return torch.stack([nats, stops, foreign]).cpu().numpy(), np.array(told, np.int64).T


def _told(right: np.ndarray) -> tuple[int, int, int]:
    """Count what was right of one row's answer tokens (bool): tokens, right ones, whether it is recalled.

    Each token was predicted from the true ones before it, so a stretch that is right throughout is what greedy
    decoding would have written.
    """
    stretch = right[len(right) // 2 :][:RECALLED_TOKENS]
    recalled = int(stretch.all()) if len(stretch) >= FEWEST_RECALLED else -1
    return len(right), int(right.sum()), recalled


def _keeps_logits(model: Any) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters
