"""Held-out loss is one measure: no batch size, order, packing or library enters."""

from __future__ import annotations

import math
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from sft_lab import compose
from sft_lab.core.context import StageContext
from sft_lab.core.types import IGNORED
from sft_lab.evaluation.heldout import AnswerEnding, Scores, score


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    run = compose(["model=tiny_random"])
    return run.model.load(StageContext(load_tokenizer=lambda: run.model.load_tokenizer(StageContext())), seed=7)


@pytest.fixture(scope="module")
def rows() -> datasets.Dataset:
    """Rows of 3 to 40 tokens; the first half of each is a prompt."""
    random = np.random.default_rng(0)
    ids = [random.integers(3, 4000, size).tolist() for size in (3, 40, 7, 7, 22, 13, 31, 5, 9, 18)]
    labels = [[IGNORED] * (len(row) // 2) + row[len(row) // 2 :] for row in ids]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": labels})


BYTES = np.arange(1, 11) * 10
ENDING = AnswerEnding(frozenset({2}))


def by_hand(model: torch.nn.Module, rows: datasets.Dataset) -> list[float]:
    """One row at a time, straight from the definition."""
    nats = []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0].double()
        log_probs = logits.log_softmax(-1)
        nats.append(
            -sum(
                log_probs[position - 1, label].item()
                for position, label in enumerate(row["labels"])
                if position > 0 and label != IGNORED
            )
        )
    return nats


@pytest.mark.parametrize("batch_tokens", [1, 40, 100, 4096])
def test_batches_do_not_matter(model: torch.nn.Module, rows: datasets.Dataset, batch_tokens: int) -> None:
    scores = score(model, rows, BYTES, ENDING, batch_tokens=batch_tokens)
    assert scores.nats == pytest.approx(by_hand(model, rows), abs=1e-4)
    assert scores.tokens.tolist() == [sum(label != IGNORED for label in row[1:]) for row in rows["labels"]]


def test_loss_is_a_sum_over_tokens_not_a_mean_of_means(model: torch.nn.Module, rows: datasets.Dataset) -> None:
    scores = score(model, rows, BYTES, ENDING)
    assert scores.loss == pytest.approx(sum(by_hand(model, rows)) / scores.tokens.sum(), rel=1e-6)
    assert scores.loss != pytest.approx((scores.nats / scores.tokens).mean(), rel=1e-4)
    assert scores.bits_per_byte == pytest.approx(scores.nats.sum() / math.log(2) / 550)


def test_row_order_does_not_matter(model: torch.nn.Module, rows: datasets.Dataset) -> None:
    order = [3, 1, 9, 0, 2, 8, 7, 5, 6, 4]
    forward, shuffled = score(model, rows, BYTES, ENDING), score(model, rows.select(order), BYTES[order], ENDING)
    assert shuffled.nats == pytest.approx(forward.nats[order], abs=1e-4)


def test_mode_is_given_back(model: torch.nn.Module, rows: datasets.Dataset) -> None:
    model.train()
    score(model, rows, BYTES, ENDING)
    assert model.training


def test_word_for_word_is_what_greedy_decoding_writes(model: torch.nn.Module, rows: datasets.Dataset) -> None:
    """Rows whose second half the model wrote itself are recalled; as soon as one token differs they are not."""
    records = []
    for length, changed in ((24, False), (24, True), (6, False)):
        ids = rows[1]["input_ids"][:10]
        for _ in range(length):
            with torch.no_grad():
                ids = [*ids, int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
        if changed:
            ids[-2] = (ids[-2] + 1) % 4000
        records.append({"input_ids": ids, "labels": [IGNORED] * 10 + ids[10:]})
    last = AnswerEnding(frozenset({records[0]["input_ids"][-1]}))
    scores = score(model, datasets.Dataset.from_list(records), np.array([9, 9, 9]), last)
    assert scores.recalled.tolist() == [1, 0, -1]  # the last is too short to say
    assert scores.recalled_share == 0.5
    assert scores.correct.tolist()[0] == 24
    assert scores.stops[0] > scores.stops[1]  # the last token is the likeliest behind what the model wrote itself
    assert not scores.foreign.any()
    assert scores.accuracy == pytest.approx(scores.correct.sum() / 54)


def test_scores_are_read_as_they_were_written(model: torch.nn.Module, rows: datasets.Dataset, tmp_path: Path) -> None:
    scores = score(model, rows, BYTES, ENDING)
    scores.save(tmp_path)
    for name, values in vars(Scores.load(tmp_path)).items():
        assert np.array_equal(values, getattr(scores, name))
