"""The plain loss head gives TRL's loss at every step, whatever is trained and however rows share a batch."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import transformers

from sft_lab.core.context import StageContext
from sft_lab.evaluation.generation import generate
from sft_lab.training import loss_head
from sft_lab.training.callbacks import Watch
from sft_lab.training.config import Full, Lora, LossHead, Peft, Precision
from sft_lab.training.train import train

pytestmark = pytest.mark.slow

STEPS = 4


def train_with(
    model, context: StageContext, rows, folder: Path, head: LossHead, kind: type[Full] = Full, **options
) -> list[dict]:
    options = kind(
        **{"max_steps": STEPS, "per_device_train_batch_size": 3, "learning_rate": 1e-3, "warmup_steps": 0, **options},
        logging_steps=1, save_steps=100, precision=Precision.fp32, loss_head=head,
    )  # fmt: skip
    events: list[dict[str, float]] = []
    train(model, context.tokenizer, rows, options, folder=folder, seed=3, watch=Watch(None, events.append))
    return events


def assert_same(plain: list[dict], theirs: list[dict]) -> None:
    assert len(plain) == STEPS
    assert len({round(event["train/loss"], 4) for event in plain}) > 1  # it learns, so that a wrong gradient shows
    for ours, trl in zip(plain, theirs, strict=True):
        del ours["tokens_per_second"], trl["tokens_per_second"]
        assert (
            ours.keys() == trl.keys() >= {"train/loss", "train/entropy", "train/mean_token_accuracy", "train/grad_norm"}
        )
        assert ours == pytest.approx(trl, abs=1e-5, rel=1e-4)
        assert ours["train/loss"] == pytest.approx(trl["train/loss"], abs=1e-5)


# packing, gradient_accumulation_steps, trainer, every token trained
CASES = [
    (False, 1, Full, False), (False, 3, Lora, False), (False, 3, Full, True),
    (True, 1, Lora, True), (True, 3, Full, False), (True, 3, Lora, False),
]  # fmt: skip


@pytest.mark.parametrize(("packing", "accumulation", "kind", "every_token"), CASES)
def test_every_step_as_trl(packing, accumulation, kind, every_token, run, context, rows, tmp_path) -> None:
    if every_token:
        rows = rows.remove_columns("labels").add_column("labels", rows["input_ids"])
    options = {"packing": packing, "gradient_accumulation_steps": accumulation, "max_length": 256 if packing else 1280}
    events = [
        train_with(run.model.load(context, seed=3), context, rows, tmp_path / head.name, head, kind, **options)
        for head in (LossHead.plain, LossHead.trl)
    ]
    assert_same(*events)


def small(family: str, **options) -> transformers.PreTrainedModel:
    names = {
        "vocab_size": 4100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048,
    }  # fmt: skip
    transformers.set_seed(5)
    config = transformers.AutoConfig.for_model(family, **{**names, **options})
    config.pad_token_id = 0
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")


FAMILIES = {
    "gemma2": {"final_logit_softcapping": 0.5},  # so low that forgetting the cap would show
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "qwen2": {"tie_word_embeddings": False},
    "opt": {"word_embed_proj_dim": 16, "ffn_dim": 64},  # its head stands behind a projection
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 2048},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_do_something_to_their_logits(family, context, rows, tmp_path) -> None:
    events = []
    for head in (LossHead.plain, LossHead.trl):
        model = small(family, **FAMILIES[family])
        assert loss_head.is_supported(model)
        events.append(train_with(model, context, rows, tmp_path / head.name, head))
    assert_same(*events)


def test_a_second_loss_is_left_to_trl(context, rows, tmp_path, caplog) -> None:
    """A mixture of experts balances its experts by a loss of its own."""
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "output_router_logits": True}
    model = small("mixtral", **experts)
    with caplog.at_level(logging.INFO, "sft_lab"):
        train_with(model, context, rows.select(range(6)), tmp_path, LossHead.plain, max_steps=1)
    assert "loss_head=trl, since a mixture of experts has a second loss" in caplog.text


def test_a_mixture_of_experts_writes_after_its_training(context, rows, tmp_path) -> None:
    """TRL leaves its balancing loss switched on, which fails with a cache; experts are adapted by their parameters."""
    model = small("mixtral", num_local_experts=2, num_experts_per_tok=1, output_router_logits=True)
    assert generate(model, context.tokenizer, [[5, 6, 7]], end_ids=[], max_new_tokens=2)
    experts = Peft(r=2, config={"target_parameters": ["mlp.experts.gate_up_proj"]})
    options = Lora(max_steps=2, learning_rate=1e-2, peft=experts, precision=Precision.fp32)
    watch = Watch(None, lambda _: None)
    trained = train(model, context.tokenizer, rows, options, folder=tmp_path, seed=3, watch=watch).model
    assert not trained.config.output_router_logits
    matrices = {name: values for name, values in trained.named_parameters() if "experts.lora_B" in name}
    assert len(matrices) == model.config.num_hidden_layers
    assert all(values.any() for values in matrices.values())
    assert generate(trained, context.tokenizer, [[5, 6, 7]], end_ids=[], max_new_tokens=2)


class Shifted(transformers.LlamaForCausalLM):
    """A head that looks at the place before as well, so it cannot be run at some places alone."""

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        output.logits = output.logits + output.logits.roll(1, dims=1)
        return output


def test_a_head_that_needs_all_positions_is_found_out(run, context) -> None:
    model = run.model.load(context, seed=3)
    assert loss_head.is_supported(model)
    model.__class__ = Shifted
    assert not loss_head.is_supported(model)


def test_score_counts_by_hand(run, context) -> None:
    """Three trained tokens of two padded rows, beside the model's own logits of everything."""
    model = run.model.load(context, seed=3)
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    labels = torch.tensor([[-100, -100, 7, 8], [9, 10, -100, -100]])  # the first position is nobody's target
    sums = loss_head.compute_token_sums(model, labels, input_ids=ids, attention_mask=(ids > 0).long())
    logs = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    assert sums.tokens == 3
    assert sums.loss.item() == pytest.approx(-(logs[0, 1, 7] + logs[0, 2, 8] + logs[1, 0, 10]).item(), rel=1e-5)
    assert sums.entropy.item() == pytest.approx(3 * torch.tensor(float(logs.shape[-1])).log().item(), rel=0.01)
    nothing = loss_head.compute_token_sums(model, torch.full_like(ids, -100), input_ids=ids)
    assert nothing.loss == 0
    nothing.loss.backward()  # a batch of nothing to train still has a gradient, of 0
