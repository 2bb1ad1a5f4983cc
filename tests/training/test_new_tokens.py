"""ChatML on a base model without it: tokens are added, trained, saved, and loaded again by plain PEFT."""

from __future__ import annotations

import logging
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sft_lab import compose
from sft_lab.core.context import StageContext
from sft_lab.evaluation.heldout import score
from sft_lab.training.callbacks import Watch
from sft_lab.training.model_io import save
from sft_lab.training.train import train

pytestmark = pytest.mark.slow

ADDED = ["<|im_start|>", "<|im_end|>"]
SHAPES = {
    "llama": {"tie_word_embeddings": True, "intermediate_size": 64, "num_key_value_heads": 2},
    "mistral": {"tie_word_embeddings": False, "intermediate_size": 64, "num_key_value_heads": 2},
    "opt": {"word_embed_proj_dim": 16, "ffn_dim": 64},
    "gpt2": {},
}


def base_model(folder: Path, family: str, spare: int) -> Path:
    """A base model without chat tokens, its matrix with ``spare`` rows more than the tokenizer has tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(special_tokens=["</s>"], initial_alphabet=alphabet))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    transformers.set_seed(1)
    config = transformers.AutoConfig.for_model(
        family, vocab_size=len(fast) + spare, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=4096, eos_token_id=0, bos_token_id=0, pad_token_id=0, **SHAPES[family],
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def opened(folder: Path, trainer: str = "lora"):
    run = compose(
        ["tracking=local", "model=local", f"model.name_or_path={folder}", "template=chatml", f"trainer={trainer}",
         "dedup=exact", "decontaminate.method=exact", "filter.length.max_tokens=200", "split.max_eval_tokens=200",
         "split.max_eval_rows=8", "dataset.turns=first"]
    )  # fmt: skip
    context = StageContext(run.store.open(), lambda: run.model.tokenizer(context, run.template.special_tokens))
    return run, context


@pytest.mark.parametrize(("family", "spare"), [("llama", 0), ("mistral", 0), ("opt", 7), ("gpt2", 1)])
def test_the_adapter_carries_the_new_rows(family, spare, tmp_path, caplog) -> None:
    base = base_model(tmp_path / "base", family, spare)
    run, context = opened(base)
    with caplog.at_level(logging.INFO, "sft_lab"):
        size = len(context.tokenizer)
    assert "2 tokens added for the template: <|im_start|> <|im_end|>" in caplog.text
    new = context.new_tokens
    assert new == [size - 2, size - 1]
    assert context.tokenizer.convert_ids_to_tokens(new) == ADDED
    data = run.prepare(context)
    model = run.model.load(context, seed=1)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    before, _ = old = [layer.weight.detach().clone() for layer in layers]
    assert before.shape[0] == max(size, size - 2 + spare)  # grown only as needed
    assert torch.allclose(before[new[0]], before[: size - 2].mean(dim=0), atol=1e-6)
    options = run.trainer
    options.max_steps, options.learning_rate, options.warmup_steps = 3, 1e-2, 0
    trained = train(
        model, context.tokenizer, data.train.tokens, options, folder=tmp_path / "work", seed=1,
        watch=Watch(None, lambda _: None), new_tokens=new,
    )  # fmt: skip
    tuned = score(trained.model, data.held_out.tokens, data.held_out.answer_bytes)
    out = tmp_path / "out"
    renderer = run.template.bind(context)
    names = {"base_name": "owner/name", "base_revision": "v1"}
    save(trained.model, context.tokenizer, renderer.jinja, out, end_ids=renderer.end_ids, **names)
    settings = peft.PeftConfig.from_pretrained(out)
    assert (settings.base_model_name_or_path, settings.revision) == ("owner/name", "v1")
    assert transformers.GenerationConfig.from_pretrained(out).eos_token_id == [0, new[1]]
    saved = safetensors.torch.load_file(out / "adapter_model.safetensors")
    rows = {name: values.shape for name, values in saved.items() if "lora_" not in name}
    assert len(rows) == (2 if family == "mistral" else 1)  # where input and output are one matrix, its rows once
    assert all(shape[0] == 2 for shape in rows.values())

    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.convert_tokens_to_ids(ADDED) == new
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    if plain.get_input_embeddings().weight.shape[0] < len(tokenizer):
        plain.resize_token_embeddings(len(tokenizer))  # with random rows, which the adapter replaces
    again = peft.PeftModel.from_pretrained(plain, out)
    assert score(again, data.held_out.tokens, data.held_out.answer_bytes).loss == pytest.approx(tuned.loss, abs=1e-6)
    merged = again.merge_and_unload()
    assert score(merged, data.held_out.tokens, data.held_out.answer_bytes).loss == pytest.approx(tuned.loss, abs=1e-5)
    for layer in (merged.get_input_embeddings(), merged.get_output_embeddings()):
        moved = (layer.weight[:size] - old[layer is merged.get_output_embeddings()][:size]).abs().amax(dim=1) > 1e-6
        assert moved.nonzero().flatten().tolist() == new  # these rows were trained, and no others


def test_full_training_saves_the_grown_model(tmp_path) -> None:
    base = base_model(tmp_path / "base", "llama", 0)
    run, context = opened(base, "full")
    run.trainer.max_steps = 2
    done = run.execute(tmp_path / "run")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert model.get_input_embeddings().weight.shape[0] == len(context.tokenizer)
    held_out = run.prepare(context).held_out
    assert score(model, held_out.tokens, held_out.answer_bytes).loss == pytest.approx(done["eval/loss"], abs=1e-5)


def test_a_whole_run_with_an_adapter(tmp_path, caplog) -> None:
    """The command a user types: template=chatml on a base model just works, the same twice."""
    base = base_model(tmp_path / "base", "opt", 7)
    losses = []
    for name in ("one", "two"):
        run, _ = opened(base)
        run.trainer.max_steps = 2
        with caplog.at_level(logging.INFO, "sft_lab"):
            losses.append(run.execute(tmp_path / name)["eval/loss"])
    assert losses[0] == losses[1]
    assert "2 tokens added" in caplog.text
