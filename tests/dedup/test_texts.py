"""Texts are read a batch at a time, on which no result depends."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_lab.core.context import StageContext
from sft_lab.core.io import digest
from sft_lab.core.rows import Rows
from sft_lab.core.store import Store
from sft_lab.core.text import On, normalize
from sft_lab.dedup import shingles, texts
from sft_lab.dedup.exact import Exact, Keep
from sft_lab.dedup.minhash import MinHash
from sft_lab.dedup.texts import Texts, hex_names, nodes_of

ANSWERS = st.lists(
    st.sampled_from(["a", "A ", "b", "", "中国", "a\nb", "a much longer answer, number 1", "é", "e\u0301"])
)


def rows_of(answers: list[str]) -> Rows:
    prompts = [f"q{number}" for number in range(len(answers))]
    features = datasets.Features({name: datasets.Value("string") for name in ("prompt", "answer")})
    return Rows.of(datasets.Dataset.from_dict({"prompt": prompts, "answer": answers}, features))


@pytest.mark.slow
@settings(deadline=None)
@given(ANSWERS, st.integers(1, 5), st.randoms(use_true_random=False))
def test_batches_are_the_texts_in_order(answers: list[str], size: int, random: object) -> None:
    rows = rows_of(answers)
    for on in On:
        view = Texts.of(rows, on)
        assert [text for batch in view.batches(size) for text in batch] == list(view) == rows.texts(on)
    kept = np.arange(len(answers))[::-2]
    view = Texts.of(rows, On.answer)
    both = view.take(kept) + Texts.of_list(answers)
    assert list(both) == [answers[index] for index in kept] + answers
    assert both.key == digest(hex_names(both.hashes))
    assert (view.take(kept).hashes == view.hashes[kept]).all()


@settings(deadline=None)
@given(ANSWERS)
def test_a_node_is_what_is_equal_when_normalized(answers: list[str]) -> None:
    distinct, node_of_text = nodes_of(Texts.of_list(answers))
    normal = list(dict.fromkeys(map(normalize, answers)))
    assert node_of_text.tolist() == [normal.index(normalize(answer)) for answer in answers]
    assert list(distinct) == [answers[node_of_text.tolist().index(node)] for node in range(len(normal))]


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_blocks_change_no_result(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "Plants turn sunlight, water and carbon dioxide into sugar and oxygen"
    answers = [f"{sentence}{'.' * (number % 3)} {number // 6 % 5 * 'And more. '}{number // 30}" for number in range(60)]
    rows = rows_of(answers)

    def results(folder: str) -> list[object]:
        context = StageContext(Store(tmp_path / folder))
        stages = [Exact(), MinHash(threshold=0.8), MinHash(threshold=0.6, keep=Keep.longest)]
        selections = [stage(rows, context) for stage in stages]
        return [(list(made.reason), made.score.tobytes(), list(made.nearest)) for made in selections]

    expected = results("as_is")
    for module, name in ((texts, "BATCH"), (shingles, "BLOCK"), (shingles, "LARGE_BLOCK"), (shingles, "PAIRS")):
        monkeypatch.setattr(module, name, size)
    monkeypatch.setattr(shingles, "KEPT_BYTES", 0)
    assert results("in_blocks") == expected
    assert any(reason for reason in expected[1][0])  # type: ignore[index]
