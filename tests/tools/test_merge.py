"""An adapter put into its base model's weights: the same logits, with Transformers alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from training.test_new_tokens import ADDED, base_model

from sft_lab.cli.main import main
from sft_lab.core.errors import FolderError, UserError
from sft_lab.tools.finished_run import open_run
from sft_lab.tools.merge import merge_adapter

pytestmark = pytest.mark.slow

SMALL = ["dedup=exact", "decontaminate.method=exact", "tracking=local", "trainer.learning_rate=2e-2",
         "trainer.max_steps=3", "trainer.warmup_steps=0", "split.max_eval_rows=8", "dataset.turns=first"]  # fmt: skip


def trained(folder: Path, *words: str) -> Path:
    assert main([*SMALL, *words, f"hydra.run.dir={folder}"]) == 0
    return folder


def same_logits(folder: Path, merged: Path) -> transformers.PreTrainedModel:
    """Hold the merged model, loaded by Transformers alone, against the adapter on its base model."""
    opened = open_run(folder)
    alone = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype="float32").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(merged)
    assert tokenizer.get_vocab() == opened.tokenizer.get_vocab()
    assert tokenizer.chat_template == opened.tokenizer.chat_template
    messages = [{"role": "user", "content": "Where is Oslo?"}, {"role": "assistant", "content": "In Norway."}]
    asked = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
    size = len(tokenizer)
    base = opened.load_base(four_bit=False).eval()
    with torch.no_grad():
        before = base(**asked).logits[..., :size]
        tuned = opened.load_tuned(base)(**asked).logits[..., :size]
        found = alone(**asked).logits[..., :size]
    assert (found - tuned).abs().max() < 1e-4
    assert (found - before).abs().max() > 1e-2  # it was trained
    return alone


def as_the_card_says(weights: Path, monkeypatch: pytest.MonkeyPatch, base: str = "") -> dict[str, Any]:
    """Run the code of a card in its folder, with the place of the base model filled in; give its names."""
    text = (weights / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(weights)
    names: dict[str, Any] = {}
    exec(code.replace('from_pretrained("...")', f"from_pretrained({base!r})"), names)
    return names


@pytest.mark.parametrize("trainer", ["lora", "dora"])
def test_the_merged_model_says_what_the_adapter_says(
    trainer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(tmp_path / "run", "model=tiny_random", f"trainer={trainer}")
    capsys.readouterr()
    assert main(["merge", str(folder)]) == 0
    merged = folder / "merged"
    assert capsys.readouterr().out == f"{merged}\n"
    alone = same_logits(folder, merged)
    assert alone.generation_config.eos_token_id == [alone.config.eos_token_id]
    assert not any(path.name.startswith("adapter") for path in merged.iterdir())
    assert not list(folder.glob(".merged*"))
    card = (merged / "README.md").read_text(encoding="utf-8")
    assert "library_name: transformers" in card
    assert "An adapter merged into the weights of" in card
    assert "PeftModel" not in card
    with pytest.raises(FolderError, match="merged: already exists; remove it, or give another folder with --out"):
        merge_adapter(folder)
    other = tmp_path / "deep" / "out"
    assert merge_adapter(folder, other) == other
    weights = "model.safetensors"
    assert (other / weights).read_bytes() == (merged / weights).read_bytes()


@pytest.mark.parametrize(("family", "spare"), [("llama", 0), ("mistral", 0), ("opt", 7)])
def test_added_tokens_are_in_it(
    family: str, spare: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = base_model(tmp_path / "base", family, spare)
    limits = ["filter.length.max_tokens=200", "split.max_eval_tokens=200"]
    folder = trained(
        tmp_path / "run", "model=local", f"model.name_or_path={base}", "template=chatml", "trainer=lora", *limits
    )
    merged = merge_adapter(folder)
    alone = same_logits(folder, merged)
    tokenizer = transformers.AutoTokenizer.from_pretrained(merged)
    end = tokenizer.convert_tokens_to_ids(ADDED[1])
    assert (
        alone.generation_config.eos_token_id
        == [0, end]
        == open_run(folder).tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"])
    )
    settings = json.loads((folder / "model" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base)  # a local model: there is no other name for it
    by_card = as_the_card_says(folder / "model", monkeypatch, str(base))
    assert by_card["model"].generation_config.eos_token_id == [0, end]
    adapters = by_card["answer"].tolist()
    assert as_the_card_says(merged, monkeypatch)["answer"].tolist() == adapters
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert "base.resize_token_embeddings(len(tokenizer))" in card
    assert "resize_token_embeddings" not in (merged / "README.md").read_text(encoding="utf-8")


def test_all_weights_have_nothing_to_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained(tmp_path / "run", "model=tiny_random", "trainer=full")
    capsys.readouterr()
    assert main(["merge", str(folder)]) == 2
    assert "there is nothing to merge; load it directly" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such folder"):
        merge_adapter(tmp_path / "nowhere")
