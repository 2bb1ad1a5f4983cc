"""Options that training would refuse are refused before any data is read, naming the key."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import transformers
import trl

from sft_lab.cli import main
from sft_lab.core.errors import ConfigError
from sft_lab.core.positions import empty_model, learned_positions
from sft_lab.training.config import OWN_FIELDS, Full, Lora, Peft, planned_steps, refuse_no_step
from sft_lab.training.peft_config import build_peft_config
from sft_lab.training.rehearsal import rehearse
from sft_lab.training.sft_config import build_sft_config
from sft_lab.training.sft_fields import fields_in_source

SMALL = ["model=tiny_random", "trainer=smoke", "dedup=exact", "decontaminate.method=exact", "threads=1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_scheduler_type": "warmup_stable_decay"}, r"lr_scheduler_kwargs=\{num_decay_steps: \.\.\."),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_kwargs=.*min_lr"),
        ({"sft_config": {"adam_beta1": 2.0}}, "trainer.optim=.*adam_beta1"),
        ({"optim": "galore_adamw"}, "trainer.optim=galore_adamw"),
        (
            {"optim": "galore_adamw", "sft_config": {"optim_target_modules": ["q_proj"]}},
            "not installed: .*galore_torch",
        ),
        ({"sft_config": {"dataloader_persistent_workers": True}}, "dataloader_"),
        ({"sft_config": {"save_only_model": True}}, "save_only_model=true: .* without its optimizer"),
    ],
)
def test_what_training_would_refuse(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        rehearse(build_sft_config(Full(**options), tmp_path, 1, watched=True))


def test_a_field_that_trl_does_not_have_is_refused_before_trl_is_imported() -> None:
    fields = {field.name for field in dataclasses.fields(trl.SFTConfig)}
    assert fields <= fields_in_source() <= fields | {"Parameters", "else"}
    (problem,) = Full(sft_config={"weight_decy": 0.1, "adam_beta1": 0.8}).check()
    assert re.match(r"trainer\.sft_config=\['weight_decy'\]: not a field .*; did you mean weight_decay\?", problem)


def test_what_is_ours_and_not_refused_may_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each field that sft_config passes itself and does not reserve: given twice, TRL would refuse it."""
    passed: dict[str, object] = {}

    class Recorded(trl.SFTConfig):  # type: ignore[misc]
        def __init__(self, **values: object) -> None:
            passed.update(values)
            super().__init__(**values)

    monkeypatch.setattr(trl, "SFTConfig", Recorded)
    args = build_sft_config(Full(), tmp_path, 1, watched=True)
    rehearse(args)
    free = sorted(set(passed) - OWN_FIELDS)
    assert {"save_total_limit", "dataloader_pin_memory", "ddp_timeout"} <= set(free)
    for name in free:
        changed = build_sft_config(Full(sft_config={name: getattr(args, name)}), tmp_path, 1, watched=True)
        assert getattr(changed, name) == getattr(args, name)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.peft.target_modules=[q_proj,v_porj]"], r"\['v_porj'\]: .* did you mean v_proj"),
        (["+trainer.peft.config.modules_to_save=[lm_hed]"], r"modules_to_save=\['lm_hed'\]: .* did you mean lm_head"),
        (["+trainer.peft.config.target_parameters=[mlp.experts.up]"], "the model has no parameter .* up_proj.weight"),
        (["trainer.lr_scheduler_type=warmup_stable_decay"], "num_decay_steps"),
        (["trainer.warmup_steps=1.5"], "trainer.warmup_steps=1.5: must be a whole number"),
        (
            ["trainer.per_device_train_batch_size=999", "+trainer.sft_config.dataloader_drop_last=true"],
            "there would be no steps",
        ),
        (["tracking=wandb", "tracking.project=me/mine"], "tracking.project='me/mine': must be a name"),
        (["tracking=wandb", "tracking.tags=['']"], "tracking.tags='': must be 1 to 64 characters"),
        (["threads=100000"], "threads=100000: must be at most"),
        (["evaluation.max_new_tokens=1000000"], "evaluation.max_new_tokens=1000000: must be from 1 to 131,072"),
    ],
)
def test_told_on_the_command_line(
    overrides: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([*SMALL, "tracking=local", "dataset.limit=60", "hydra.run.dir=run", *overrides]) == 2
    err = capsys.readouterr().err
    assert re.search(message, err), err
    assert not (here / "run" / "model").exists()


def test_drop_last_counts_whole_batches() -> None:
    options = Full(per_device_train_batch_size=4, sft_config={"dataloader_drop_last": True})
    assert planned_steps(7, options) == 1
    with pytest.raises(ConfigError, match="3 rows"):
        refuse_no_step(3, options)


def test_an_empty_model_has_no_kernel_that_its_config_names() -> None:
    config = transformers.LlamaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, vocab_size=16)
    config._attn_implementation = "kernels-community/flash-attn2"  # as a stranger's config.json sets it
    model = empty_model(config)
    assert model is not None
    assert model.config._attn_implementation == "eager"


def test_positions_and_modules_of_an_empty_model() -> None:
    with torch.device("meta"):
        gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2))
        llama = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, vocab_size=16)
        )
    assert learned_positions(gpt2) == 1024
    assert learned_positions(llama) is None
    assert build_peft_config(Lora(peft=Peft(target_modules=["self_attn.q_proj"])), llama, []) is not None
    with pytest.raises(ConfigError, match="available:"):
        build_peft_config(Lora(peft=Peft(target_modules=["zzz"])), llama, [])
