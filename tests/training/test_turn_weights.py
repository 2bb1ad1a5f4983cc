"""Weights of turns: applied in the loss, or refused if the loss has no weights."""

from __future__ import annotations

import pytest
import torch

from sft_lab import compose
from sft_lab.core.errors import ConfigError
from sft_lab.training import loss_head
from sft_lab.training.callbacks import Watch
from sft_lab.training.config import Full, LossHead, Precision
from sft_lab.training.train import train


def test_each_token_counts_by_its_weight(run, context) -> None:
    model = run.model.load(context, seed=3)
    ids = torch.tensor([[5, 6, 7, 8]])
    labels = torch.tensor([[-100, 6, 7, 8]])
    weights = torch.tensor([[9.0, 0.5, 0.0, 2.0]])  # the first token is nobody's target
    sums = loss_head.compute_token_sums(model, labels, weights, input_ids=ids)
    logs = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    assert sums.loss.item() == pytest.approx(-(logs[0, 0, 6] / 2 + 2 * logs[0, 2, 8]).item(), rel=1e-5)
    assert sums.tokens == 3


def first_loss(run, context, rows, folder, **options) -> float:
    events: list[dict[str, float]] = []
    options = {"max_steps": 1, "per_device_train_batch_size": 3, "loss_weights": True, **options}
    knobs = Full(**options, logging_steps=1, precision=Precision.fp32)
    model = run.model.load(context, seed=3)
    train(model, context.tokenizer, rows, knobs, folder=folder, seed=3, watch=Watch(None, events.append))
    return events[0]["train/loss"]


@pytest.mark.slow
def test_a_training_multiplies_them(run, context, rows, tmp_path) -> None:
    """Rows of different lengths share a batch, and one has no weights of its own."""
    plain = first_loss(run, context, rows, tmp_path / "plain")
    weights = [[2.0] * len(ids) for ids in rows["input_ids"]]
    doubled = first_loss(run, context, rows.add_column("weights", weights), tmp_path / "doubled")
    assert doubled == pytest.approx(2 * plain, rel=1e-5)
    without = rows.add_column("weights", [None, *weights[1:]])
    assert plain <= first_loss(run, context, without, tmp_path / "mixed") <= doubled


@pytest.mark.parametrize("clash", [{"packing": True}, {"loss_head": LossHead.trl}])
def test_what_has_no_weights_is_refused(clash) -> None:
    with pytest.raises(ConfigError, match=f"loss_weights=true: cannot be combined with {next(iter(clash))}="):
        Full(loss_weights=True, **clash)


def test_weights_need_marked_turns() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.loss_weights=true: .*dataset\.train_on=marked"):
        compose(["model=tiny_random", "trainer.loss_weights=true"])
