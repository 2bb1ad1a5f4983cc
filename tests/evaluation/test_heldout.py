"""Held-out loss does not depend on batch size, order, packing or library."""

from __future__ import annotations

import copy
import dataclasses
import math
import multiprocessing
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from patience import PATIENCE

from sft_lab import compose
from sft_lab.core.context import StageContext
from sft_lab.core.types import IGNORED
from sft_lab.evaluation import heldout
from sft_lab.evaluation.arithmetic import in_weight_dtype
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positions", [0, 1, 63, 64, 65, 200])
def test_slices_give_the_digits_of_all_at_once(positions: int, dtype: torch.dtype, monkeypatch) -> None:
    """And never more logits at a time than a slice has."""
    torch.manual_seed(0)
    logits = (torch.randn(3, positions, 4096) * 4).to(dtype)
    target = torch.randint(0, 4096, (3, positions))
    target[torch.rand(3, positions) < 0.3] = IGNORED
    loss = torch.nn.functional.cross_entropy
    at_once = loss(logits.float().transpose(1, 2), target, ignore_index=IGNORED, reduction="none")
    sizes = [0]

    def count(part: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        sizes.append(part.numel())
        return loss(part, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", count)
    assert torch.equal(heldout._token_losses(logits, target), at_once)
    assert max(sizes) <= heldout.LOSS_SLICE * 4096


def test_flash_attention_measures_under_autocast_where_weights_are_float32(model: torch.nn.Module) -> None:
    """Its kernels take no float32; all else is measured in the arithmetic of the weights."""
    assert not isinstance(in_weight_dtype(model), torch.autocast)
    model.config._attn_implementation_internal = "kernels-community/flash-attn2"
    try:
        assert in_weight_dtype(model).fast_dtype in (torch.bfloat16, torch.float16)
        assert not isinstance(in_weight_dtype(copy.deepcopy(model).to(torch.bfloat16)), torch.autocast)
    finally:
        model.config._attn_implementation_internal = "sdpa"


@pytest.mark.slow
def test_processes_share_the_batches(model: torch.nn.Module, rows: datasets.Dataset, tmp_path: Path) -> None:
    """Two processes score other batches each and learn the same sums, digit for digit those of one alone."""
    alone = score(model, rows, BYTES, ENDING, batch_tokens=40)
    inputs = tmp_path / "inputs.pt"
    torch.save((model, rows.to_dict()), inputs)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_score_shared, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
    for rank in (0, 1):
        shared = Scores.load(tmp_path / str(rank))
        for field in dataclasses.fields(Scores):
            assert np.array_equal(getattr(shared, field.name), getattr(alone, field.name)), field.name
    counted = [int((tmp_path / f"{rank}" / "forwards").read_text()) for rank in (0, 1)]
    assert all(counted)
    assert sum(counted) == len(heldout._batches(np.array([len(ids) for ids in rows["input_ids"]]), 40))


def _score_shared(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    init = f"file://{folder / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
    model, columns = torch.load(folder / "inputs.pt", weights_only=False)
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    scores = score(model, datasets.Dataset.from_dict(columns), BYTES, ENDING, batch_tokens=40, shared=True)
    (folder / str(rank)).mkdir()
    scores.save(folder / str(rank))
    (folder / str(rank) / "forwards").write_text(str(len(forwards)))
    torch.distributed.destroy_process_group()
