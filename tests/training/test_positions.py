"""Context length: tables of positions have an end; rotary models are trained past theirs with a notice."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from sft_lab.cli import main
from sft_lab.config import compose

POSITIONS = 160
SMALL = ["model=local", "model.name_or_path=model", "trainer=smoke", "template=chatml", "dedup=exact",
         "decontaminate.method=exact", "threads=1", "tracking=local", "hydra.run.dir=run"]  # fmt: skip


def save(folder: Path, kind: type, config: type, **shape: int) -> None:
    """Save a random model with the tokenizer of tests, which names no length of its own."""
    tokenizer = compose(["model=tiny_random", "dedup=exact", "decontaminate.method=exact"]).context().tokenizer
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    kind(config(vocab_size=len(tokenizer), **shape, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def gpt2(here: Path) -> Path:
    shape = {"n_layer": 1, "n_embd": 8, "n_head": 2, "n_positions": POSITIONS}
    save(here / "model", transformers.GPT2LMHeadModel, transformers.GPT2Config, **shape)
    return here


@pytest.fixture
def rotary(here: Path) -> Path:
    shape = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    limit = {"max_position_embeddings": 48}
    save(here / "model", transformers.LlamaForCausalLM, transformers.LlamaConfig, **shape, **limit)
    return here


def test_a_table_that_ends_before_the_rows_is_refused(gpt2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(SMALL) == 2
    remedy = f"only {POSITIONS} learned positions; set trainer.max_length={POSITIONS}"
    assert remedy in capsys.readouterr().err


@pytest.mark.slow
def test_answers_end_with_the_table(gpt2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Samples, outputs and the prompted base model ask for more than a table has; so does generate by default."""
    overrides = [f"trainer.max_length={POSITIONS}", f"split.max_eval_tokens={POSITIONS}",
             f"filter.length.max_tokens={POSITIONS}", "evaluation.max_new_tokens=150", "evaluation.samples_every=2",
             "trainer.max_steps=4"]  # fmt: skip
    assert main.main([*SMALL, *overrides]) == 0, capsys.readouterr().err
    err = capsys.readouterr().err
    assert f"evaluation.max_new_tokens=150: the model has {POSITIONS} learned positions" in err, err
    assert main.main(["generate", "run", "Hi", "--base"]) == 0
    assert "the model has no positions left after the prompt" in capsys.readouterr().err
    assert main.main(["generate", "run", "word " * POSITIONS]) == 2
    assert f"the model was made for {POSITIONS}; give a shorter one" in capsys.readouterr().err


@pytest.mark.slow
def test_rotary_models_and_long_warm_ups_are_noticed(rotary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([*SMALL, "trainer.max_steps=3", "trainer.warmup_steps=3"]) == 0, capsys.readouterr().err
    output = capsys.readouterr().err
    assert output.count("that the model was made for; trainer.max_length=48 drops longer rows") == 1, output
    assert "warm-up takes 3 of 3 steps; lower trainer.warmup_steps" in output
