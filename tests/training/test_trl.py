"""Training: steps, adapters, 4 bits, and resuming after an interruption."""

from __future__ import annotations

import importlib.util
import logging
from functools import partial
from pathlib import Path

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError, ModelError
from sft_lab.run.config import Run
from sft_lab.training.callbacks import Watch
from sft_lab.training.config import Budget, Full, Lora, LossHead, Peft, Precision, Quantization, planned_steps
from sft_lab.training.models import Pretrained
from sft_lab.training.peft_config import build_peft_config
from sft_lab.training.train import Trained, train
from sft_lab.training.weights import Holding, four_bit_kwargs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows(rows: datasets.Dataset) -> datasets.Dataset:
    return rows.select(range(24))


def trained(run: Run, context: StageContext, rows, options: Full, folder: Path, **more) -> Trained:
    options.precision, options.logging_steps = Precision.fp32, more.pop("logging_steps", 1)
    watch = more.pop("watch", None) or Watch(None, lambda _: None)
    model = run.model.load(context, seed=3)
    return train(model, context.tokenizer, rows, options, folder=folder, seed=3, watch=watch, **more)


@pytest.mark.parametrize("head", [LossHead.plain, LossHead.trl])
@pytest.mark.parametrize("kind", [Full, Lora, partial(Lora, loraplus_lr_ratio=4.0)])
def test_a_cut_off_training_ends_with_the_weights_of_a_whole_one(kind, head, run, context, rows, tmp_path) -> None:
    """Stopped at step 6 of 8 and resumed from the checkpoint of step 4: the same weights and log, bit for bit.

    The log entry of step 6 has the mean loss and all tokens of steps 4 to 6, of which the resumed training did two.
    """
    events: dict[str, list[dict[str, float]]] = {"whole": [], "cut": [], "resumed": []}

    def fit(folder: str, name: str) -> Trained:
        def record(event: dict[str, float]) -> None:
            events[name].append({key: value for key, value in event.items() if key != "tokens_per_second"})
            if name == "cut" and event["step"] == 6:
                raise KeyboardInterrupt

        options = kind(max_steps=8, save_steps=4, learning_rate=1e-2, loss_head=head, gradient_accumulation_steps=2)
        return trained(run, context, rows, options, tmp_path / folder, watch=Watch(None, record), logging_steps=3)

    uninterrupted = fit("whole", "whole").model.state_dict()
    with pytest.raises(KeyboardInterrupt):
        fit("cut", "cut")
    resumed = fit("cut", "resumed").model.state_dict()
    assert uninterrupted.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in uninterrupted.items())
    assert [event["step"] for event in events["whole"]] == [3, 6]
    assert events["resumed"] == events["whole"][1:]


def test_budget_steps_counts_the_rows_before_filters(run, context, rows, tmp_path, caplog) -> None:
    """12 rows in batches of 4 are 3 steps, whether 12 rows are left or 6; epochs follow what is left."""
    with caplog.at_level(logging.INFO, "sft_lab"):
        for left, budget, steps in ((6, Budget.steps, 3), (12, Budget.steps, 3), (6, Budget.epochs, 2)):
            options = Full(budget=budget)
            done = trained(
                run, context, rows.select(range(left)), options, tmp_path / f"{left}{budget}", reference_rows=12
            )
            assert done.steps == steps
        options = Full(budget=Budget.steps, max_steps=1)
        assert trained(run, context, rows, options, tmp_path / "max", reference_rows=12).steps == 1
    messages = [record.getMessage() for record in caplog.records if "optimizer steps" in record.getMessage()]
    assert messages[0] == "train: 6 rows, 3 optimizer steps, which is 1.5 epochs, loss_head=plain"
    assert messages[2] == "train: 6 rows, 2 optimizer steps, loss_head=plain"


def test_packing_with_max_steps_says_the_epochs(run, context, rows, tmp_path, caplog) -> None:
    """24 rows of some 60 tokens fit into a few blocks: three steps of one block are more than the rows suggest."""
    options = Full(packing=True, max_length=512, max_steps=6, per_device_train_batch_size=1)
    with caplog.at_level(logging.INFO, "sft_lab"):
        trained(run, context, rows, options, tmp_path)
    blocks = -(-sum(map(len, rows["input_ids"])) // 512)
    assert f"24 rows packed into {blocks} blocks, 6 optimizer steps, which is {6 / blocks:.3g} epochs" in caplog.text


@given(
    st.integers(1, 500), st.integers(1, 9), st.integers(1, 5), st.sampled_from([0.5, 1.0, 2.5]), st.integers(1, 3)
)  # fmt: skip
def test_planned_steps_is_what_transformers_does(rows, batch, accumulation, epochs, processes) -> None:
    options = Full(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, num_train_epochs=epochs)
    batches = len(range(0, rows, batch * processes))
    per_epoch = max(batches // accumulation + (batches % accumulation > 0), 1)  # the trainer's own words
    assert planned_steps(rows, options, processes) == -int(-epochs * per_epoch // 1)


def test_knobs_of_peft_arrive(run, context) -> None:
    model = run.model.load(context, seed=3)
    config = build_peft_config(Lora(peft=Peft(r=8, use_dora=True, use_rslora=True)), model, [])
    assert (config.r, config.use_dora, config.use_rslora, config.trainable_token_indices) == (8, True, True, None)
    config = build_peft_config(Lora(), model, [5, 6])
    assert config.trainable_token_indices == {"model.embed_tokens": [5, 6], "lm_head": [5, 6]}


def test_dora_trains_lengths(run, context, rows, tmp_path) -> None:
    done = trained(run, context, rows, Lora(max_steps=2, peft=Peft(r=4, use_dora=True)), tmp_path)
    assert any("lora_magnitude_vector" in name for name, _ in done.model.named_parameters())


def test_loraplus_moves_b_matrices_by_the_ratio(run, context, rows, tmp_path) -> None:
    """AdamW's first step moves each weight by its learning rate; A does not move yet, since B begins at zero."""

    def after_one_step(**knobs) -> dict[str, torch.Tensor]:
        options = Lora(max_steps=1, learning_rate=1e-3, warmup_steps=0, max_grad_norm=0, **knobs)
        return trained(run, context, rows, options, tmp_path / str(knobs)).model.state_dict()

    alike, faster = after_one_step(), after_one_step(loraplus_lr_ratio=16)
    matrices = [name for name in alike if "lora_B" in name]
    assert matrices
    assert all(alike[name].abs().max() > 9e-4 for name in matrices)
    assert all(torch.allclose(faster[name], 16 * alike[name], rtol=1e-4) for name in matrices)
    assert all(torch.equal(faster[name], alike[name]) for name in alike if name not in matrices)


@pytest.mark.parametrize("optim", ["galore_adamw", "apollo_adamw", "lomo", "adalomo"])
def test_loraplus_is_refused_with_an_optimizer_that_groups_by_itself(optim) -> None:
    with pytest.raises(ConfigError, match=r"loraplus_lr_ratio=16: .* use optim=adamw_torch_fused"):
        Lora(optim=optim, loraplus_lr_ratio=16)


def test_training_warns_of_nothing_of_ours(run, context, rows, tmp_path, recwarn) -> None:
    trained(run, context, rows, Full(max_steps=1), tmp_path)
    assert [str(warning.message) for warning in recwarn if "gradient_checkpointing" in str(warning.message)] == []


def test_four_bits_are_refused_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    (problem,) = Lora(quantization=Quantization.nf4).missing()
    assert problem.startswith("trainer.quantization=nf4: needs the package bitsandbytes (pip install bitsandbytes)")
    assert "trainer=lora" in problem
    assert Lora().missing() == Full().missing() == []
    with pytest.raises(ModelError, match="pip install bitsandbytes"):
        four_bit_kwargs(Holding(four_bit=True))


@pytest.mark.parametrize("name", ["no-such-owner/no-such-model"])
def test_a_hub_model_that_cannot_be_had_names_its_page_and_the_login(name) -> None:
    model = Pretrained(name_or_path=name)
    for load in (lambda: model.load_tokenizer(StageContext()), lambda: model.key(StageContext(), 1)):
        with pytest.raises(ModelError) as caught:
            load()
        assert f"https://huggingface.co/{name}" in str(caught.value)
        assert "`hf auth login`" in str(caught.value)


def test_a_folder_that_holds_no_model_is_not_sent_to_the_hub(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError) as caught:
        Pretrained(name_or_path=str(tmp_path)).load_tokenizer(StageContext())
    assert "huggingface.co" not in str(caught.value)
