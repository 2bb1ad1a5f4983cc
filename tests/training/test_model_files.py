"""The key of a base model changes with whatever changes its weights or its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sft_lab import compose
from sft_lab.core.context import StageContext
from sft_lab.core.model_files import loaded_files
from sft_lab.core.store import Store
from sft_lab.run.evaluator import Evaluator
from sft_lab.training.models import Pretrained

READ = [
    "config.json", "generation_config.json", "model.safetensors", "model-00001-of-00002.safetensors",
    "model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "tokenizer.model", "tekken.json", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/tools.jinja", "modeling_own.py", "weights.gguf", "inner/config.json",
    "inner/model.safetensors", "inner/additional_chat_templates/rag.jinja",
]  # fmt: skip
NOT_READ = ["README.md", ".gitattributes", "pytorch_model.bin", "optimizer.pt", "checkpoint-5/model.safetensors"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in [*READ, *NOT_READ]:
        file = tmp_path / "base" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    return tmp_path / "base"


def key(folder: Path, tmp_path: Path) -> str:
    model = Pretrained(name_or_path=str(folder), init_kwargs={"subfolder": "inner"})
    return model.key(StageContext(Store(tmp_path / "store")), seed=1)


def test_every_file_that_is_read_enters_the_key_and_no_other(folder: Path, tmp_path: Path) -> None:
    before = key(folder, tmp_path)
    for name in NOT_READ:
        (folder / name).write_text("changed")
    assert key(folder, tmp_path) == before
    keys = {before}
    for name in READ:
        (folder / name).write_text('{"changed": true}')
        keys.add(key(folder, tmp_path))
    assert len(keys) == 1 + len(READ)
    (folder / "vocab.bpe").write_text("new")
    keys.add(key(folder, tmp_path))
    (folder / "vocab.json").unlink()
    keys.add(key(folder, tmp_path))
    assert len(keys) == 3 + len(READ)


def test_the_base_model_of_an_adapter_in_the_folder_enters_the_key(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_text("one")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(other)}))
    before = key(folder, tmp_path)
    (other / "model.safetensors").write_text("two")
    assert key(folder, tmp_path) != before


@pytest.mark.parametrize("text", ["[]", "{", '{"base_model_name_or_path": 3}', '{"base_model_name_or_path": "."}'])
def test_a_broken_adapter_config_is_a_file_like_any_other(folder: Path, text: str) -> None:
    (folder / "adapter_config.json").write_text(text)
    assert folder / "adapter_config.json" in loaded_files(folder)


def test_a_moved_folder_has_the_same_key(folder: Path, tmp_path: Path) -> None:
    before = key(folder, tmp_path)
    assert key(folder.rename(tmp_path / "moved"), tmp_path) == before


@pytest.mark.slow
def test_how_weights_are_held_enters_the_key_of_base_scores(tiny: list[str]) -> None:
    def base_key(*overrides: str) -> str:
        run = compose([*tiny, *overrides])
        return Evaluator(run, run.context(), lambda: None).base_key()

    variants = [
        ["model.dtype=float32"], ["model.dtype=bfloat16"], ["model.attn_implementation=eager"],
        ["+model.init_kwargs.subfolder=inner"], ["+model.init_kwargs.subfolder=other"],
        ["+model.init_kwargs.rope_theta=5"], ["seed=7"], ["model.hidden_size=32"],
        ["template=chatml", "template.special_tokens=['<|new|>']"],
    ]  # fmt: skip
    assert len({base_key(*overrides) for overrides in variants}) == len(variants)
