"""The plain loss head: runs a model's LM head only at the trained positions.

TRL computes log-probabilities in tiles, on a CPU at every position whether it trains or not, which takes half of a
step's time there. Here the model's own forward runs unchanged, and a hook narrows the input of its LM head. So whatever
a model does to its logits afterwards (a scale, a soft cap) applies here too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sft_lab.core.errors import ConfigError
from sft_lab.core.log import log
from sft_lab.core.types import IGNORED
from sft_lab.training.config import LossHead

WEIGHTS = "weights"  # the column of rows with a weight for each token


@dataclass(frozen=True)
class TokenSums:
    """Sums over a batch's trained tokens.

    Attributes:
        loss: negative log-likelihood in nats, weighted; with its gradient.
        entropy: of the predicted distributions, in nats.
        correct: the number of tokens that were the likeliest.
        tokens: their number.
    """

    loss: torch.Tensor
    entropy: torch.Tensor
    correct: torch.Tensor
    tokens: torch.Tensor


def compute_token_sums(
    model: Any, labels: torch.Tensor, weights: torch.Tensor | None = None, **inputs: Any
) -> TokenSums:
    """Run the model on a batch and return the sums over its trained tokens.

    Args:
        model: a causal language model, wrapped or not.
        labels: shape (rows, positions), not shifted.
        weights: of each label in the loss, with the same shape; None: 1.
        inputs: of the model's forward, without labels.
    """
    labels = labels[:, 1:]
    is_trained = labels != IGNORED
    targets = labels[is_trained]
    log_probabilities = _logits_at(model, is_trained, **inputs).float().log_softmax(dim=-1)

    with torch.no_grad():
        entropy = -(log_probabilities.exp() * log_probabilities).sum()
        correct = (log_probabilities.argmax(dim=-1) == targets).sum()
    loss = torch.nn.functional.nll_loss(log_probabilities, targets, reduction="sum" if weights is None else "none")
    if weights is not None:
        loss = (loss * weights[:, 1:][is_trained]).sum()
    return TokenSums(loss, entropy, correct, is_trained.sum())


def takes_plain(trainer: Any, choice: LossHead) -> bool:
    """Return whether to use the plain loss head; never if its loss would differ from that of TRL's."""
    if choice is LossHead.trl or (choice is LossHead.auto and trainer.args.device.type != "cpu"):
        return False

    reasons = {
        "a mixture of experts has a second loss": trainer.aux_loss_enabled,
        "sft_config sets another loss": trainer.args.loss_type != "nll" or trainer.label_smoother is not None,
        "rows are split across devices": trainer.accelerator.parallelism_config is not None,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if not reason and not is_supported(trainer.model):
        reason = "this model's LM head cannot run on selected positions only"
    if reason:
        log.info("train: loss_head=trl, since %s", reason)
    return reason is None


def is_supported(model: Any) -> bool:
    """Return whether a model's narrowed logits equal those of its full forward, tried on four tokens."""
    head = model.get_output_embeddings()
    if head is None:
        return False
    ids = torch.arange(1, 5, device=head.weight.device)[None]
    positions = torch.tensor([[False, True, True]], device=ids.device)

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            full = model(input_ids=ids, use_cache=False).logits[:, :-1][positions]
            narrow = _logits_at(model, positions, input_ids=ids)
    except (IndexError, RuntimeError, TypeError, ValueError):
        return False
    finally:
        model.train(was_training)
    return bool(narrow.shape == full.shape and torch.allclose(narrow, full, rtol=1e-2, atol=1e-3))


def _logits_at(model: Any, positions: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Return the logits at some positions.

    Args:
        model: a causal language model, wrapped or not.
        positions: bool, shape (rows, positions - 1).
        inputs: of the model's forward.

    Returns:
        Shape (true positions, vocabulary).
    """

    def narrow(_: Any, hidden_states: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (hidden_states[0][:, :-1][positions][None],)

    # Looked up in each step, since PEFT and others replace the module.
    hook = _unwrap(model).get_output_embeddings().register_forward_pre_hook(narrow)
    try:
        # use_cache=False: with a cache, rows that share a block would influence each other.
        logits: torch.Tensor = model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    return logits[0]


def _unwrap(model: Any) -> Any:
    """Return the model inside DistributedDataParallel, which does not forward its methods."""
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model


def pass_on_weights(trainer: Any) -> None:
    """Make a trainer's batches include the weights of its rows.

    Raises:
        ConfigError: if its loss head cannot use them.
    """
    if not trainer.plain_head:
        raise ConfigError(
            "trainer.loss_weights=true: needs the plain loss head, which this model or these options do not allow (the "
            "log says why); leave it out, and use only weights of 0 and 1"
        )
    trainer.data_collator = _with_weights(trainer.data_collator)


def _with_weights(collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def collate_with_weights(examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate(examples)
        weights = torch.ones(batch["labels"].shape)
        for row, example in enumerate(examples):
            if example[WEIGHTS] is not None:
                weights[row, : len(example[WEIGHTS])] = torch.as_tensor(example[WEIGHTS])
        return {**batch, WEIGHTS: weights}

    return collate_with_weights
