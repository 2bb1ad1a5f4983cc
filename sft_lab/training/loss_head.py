"""The plain loss head: a model's LM head at the trained positions alone, and what its logits say there.

TRL computes log-probabilities in tiles, on a CPU at every position whether it is trained or not, which takes half of
a step's time there. Here the model's own forward runs as it is; only what its LM head is handed is narrowed on the
way. So whatever a model does to its logits afterwards (a scale, a soft cap) happens to these too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sft_lab.core.types import IGNORED


@dataclass(frozen=True)
class Told:
    """What a model says of a batch's trained tokens.

    Attributes:
        loss: negative log-likelihood in nats, their sum; it carries the gradient.
        entropy: of the predicted distributions in nats, their sum.
        correct: how many tokens were the likeliest.
        tokens: how many there are.
    """

    loss: torch.Tensor
    entropy: torch.Tensor
    correct: torch.Tensor
    tokens: torch.Tensor


def score(model: Any, labels: torch.Tensor, **inputs: Any) -> Told:
    """Run the model on a batch.

    Args:
        model: a causal language model, wrapped or not.
        labels: shape (rows, positions), not shifted.
        inputs: of the model's forward, without labels.
    """
    labels = labels[:, 1:]
    wanted = labels != IGNORED
    targets = labels[wanted]
    logs = _logits_at(model, wanted, **inputs).float().log_softmax(dim=-1)
    with torch.no_grad():
        entropy = -(logs.exp() * logs).sum()
        correct = (logs.argmax(dim=-1) == targets).sum()
    loss = torch.nn.functional.nll_loss(logs, targets, reduction="sum")
    return Told(loss, entropy, correct, wanted.sum())


def fits(model: Any) -> bool:
    """Try on four tokens whether narrowing works: at the places asked for, the logits of all places."""
    head = model.get_output_embeddings()
    if head is None:
        return False
    ids = torch.arange(1, 5, device=head.weight.device)[None]
    wanted = torch.tensor([[False, True, True]], device=ids.device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            whole = model(input_ids=ids, use_cache=False).logits[:, :-1][wanted]
            narrow = _logits_at(model, wanted, input_ids=ids)
    except (IndexError, RuntimeError, TypeError, ValueError):
        return False
    finally:
        model.train(was_training)
    return bool(narrow.shape == whole.shape and torch.allclose(narrow, whole, rtol=1e-2, atol=1e-3))


def _logits_at(model: Any, wanted: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Give the logits where ``wanted`` (shape: rows, positions - 1) is true: shape (places, vocabulary)."""

    def narrow(_: Any, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (given[0][:, :-1][wanted][None],)

    # Found anew in each step, since PEFT and others put their own module in its place.
    hook = _unwrapped(model).get_output_embeddings().register_forward_pre_hook(narrow)
    try:
        # use_cache=False: with a cache, rows that share a block influence one another.
        logits: torch.Tensor = model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    return logits[0]


def _unwrapped(model: Any) -> Any:
    """The model inside DistributedDataParallel, which does not pass on the methods of what it holds."""
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
