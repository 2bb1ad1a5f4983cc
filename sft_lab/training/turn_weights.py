"""Weights of turns in the loss: each row has one for every token, and the plain loss head multiplies by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sft_lab.core.errors import ConfigError

COLUMN = "weights"


def pass_on_weights(trainer: Any) -> None:
    """Have a trainer's batches carry the weights of its rows.

    Raises:
        ConfigError: if its loss head cannot use them.
    """
    if not trainer.plain_head:
        raise ConfigError(
            "trainer.loss_weights=true: needs the plain loss head, which this model or these options do not allow (the "
            "log has why); leave it out, with weights of 0 and 1 alone"
        )
    trainer.data_collator = _with_weights(trainer.data_collator)


def _with_weights(collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def collate_with_weights(examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate(examples)
        weights = torch.ones(batch["labels"].shape)
        for row, example in enumerate(examples):
            if example[COLUMN] is not None:
                weights[row, : len(example[COLUMN])] = torch.as_tensor(example[COLUMN])
        return {**batch, COLUMN: weights}

    return collate_with_weights
