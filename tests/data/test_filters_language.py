"""Language detection and its filter, with real sentences and the real detector."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest

import sft_lab
from sft_lab.core.context import StageContext
from sft_lab.core.errors import ConfigError
from sft_lab.core.rows import Rows
from sft_lab.core.store import Store
from sft_lab.core.text import On, scripts
from sft_lab.data.filters.language import Language
from sft_lab.data.formats import Format
from sft_lab.data.languages import LANGUAGE_NAMES, detect, languages_of, unfamiliar_share
from sft_lab.data.sources import File

SAID = {
    "en": "I do not know what you mean by that.",
    "ar": "لا أعرف ماذا تقصد بهذا الكلام.",
    "fr": "Je ne sais pas ce que tu veux dire.",
    "de": "Ich weiß nicht, was du damit meinst.",
    "es": "No sé qué quieres decir con eso.",
    "ru": "Я не знаю, что ты имеешь в виду.",
    "fa": "نمی‌دانم منظورت چیست.",
    "hi": "मुझे नहीं पता आपका क्या मतलब है।",
    "zh": "我不知道你是什么意思。",
    "ja": "何を言っているのか分かりません。",
}
CODE = "```python\nfor the_word in the_list_of_words:\n    print(the_word, 'is one of the words in this list')\n```"


def table(*rows: tuple[str, str]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"prompt": [p for p, _ in rows], "answer": [a for _, a in rows]})


def test_sentences_are_told_apart() -> None:
    found = detect(list(SAID.values()))
    assert [code for code, _ in found] == list(SAID)
    assert all(0.5 < confidence <= 1 for _, confidence in found)


def test_dialects_count_as_their_language() -> None:
    egyptian, cantonese = "مش عارف انت عايز تقول ايه", "我唔知你講乜。"
    assert [code for code, _ in detect([egyptian, cantonese])] == ["ar", "zh"]
    assert not {"arz", "yue", "wuu"} & set(LANGUAGE_NAMES)


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "...", "12 + 30 = 42", "😀", "```\n/\n```"])
def test_a_text_without_letters_is_in_no_language(text: str) -> None:
    assert detect([text]) == [("", 0.0)]


def test_code_between_fences_does_not_count_unless_there_is_nothing_else() -> None:
    french = "Voici la fonction que vous cherchez."
    alone, around, unclosed, code = detect([french, f"{french}\n{CODE}", f"{french}\n{CODE[:-3]}", CODE])
    assert around[0] == unclosed[0] == alone[0] == "fr"
    assert around[1] == pytest.approx(alone[1], abs=0.1)
    assert code[0] == "en"


def test_every_name_is_of_a_code_the_detector_answers() -> None:
    """Asked for all its answers on one text, the detector gives every code it has."""
    from sft_lab.data import languages

    codes = {answer["lang"] for answer in languages._detector().detect("x", k=-1, threshold=-1)}
    assert set(LANGUAGE_NAMES) == codes - {"arz", "wuu", "yue"}
    assert (LANGUAGE_NAMES["ar"], LANGUAGE_NAMES["en"]) == ("Arabic", "English")


def test_every_starter_conversation_is_told_by_its_script(tmp_path: Path) -> None:
    """The starter set is English and Arabic; which of the two, its letters say."""
    path = Path(sft_lab.__file__).parent / "starter" / "conversations.jsonl"
    context = StageContext(Store(tmp_path))
    rows = File(path=str(path), format=Format.sharegpt)(context).rows
    codes, confidences = languages_of(rows, context, On.both)
    shares = [scripts(f"{a}{b}") for a, b in zip(rows.column("prompt"), rows.column("answer"), strict=True)]
    expected = ["ar" if share.get("ARABIC", 0) > 0.5 else "en" if share else "" for share in shares]
    assert codes == expected
    assert {"ar", "en"} <= set(codes)
    assert confidences.dtype == np.float32
    assert (confidences[np.array([bool(code) for code in codes])] > 0.3).mean() > 0.99


def test_the_filter(context: StageContext) -> None:
    rows = table(
        ("Who are you?", SAID["en"]),
        ("ماذا تقصد؟", SAID["ar"]),
        ("Translate to Arabic: I do not know what you mean.", SAID["ar"]),
        ("1 + 1", "2"),
    )
    arabic = Language(keep=["ar"])(rows, context)
    assert arabic.reason == ["other_language", "", "", "language_unclear"]
    assert arabic.score[3] == 0
    assert (arabic.score[:3] > 0.3).all()
    assert Language(keep=["ar", "en"])(rows, context).reason == ["", "", "", "language_unclear"]
    assert Language(keep=["en"], on=On.prompt)(rows, context).reason[2] == ""
    assert Language(keep=["en"], on=On.answer)(rows, context).reason[2] == "other_language"


def test_min_confidence_is_inside(context: StageContext) -> None:
    rows = table(("hi", "Yes."))
    (score,) = Language(keep=["en"], min_confidence=0)(rows, context).score.tolist()
    assert 0 < score < 1
    assert Language(keep=["en"], min_confidence=score)(rows, context).reason == [""]
    assert Language(keep=["en"], min_confidence=score + 0.01)(rows, context).reason == ["language_unclear"]
    # Without letters there is nothing to guess, however low the bound.
    assert Language(keep=["en"], min_confidence=0)(table(("1", "2")), context).reason == ["language_unclear"]


def test_languages_are_found_once_for_a_table_whatever_is_in_view(context: StageContext) -> None:
    rows = Rows.of(table(("Who?", SAID["en"]), ("من؟", SAID["ar"]), ("Qui ?", SAID["fr"])))
    whole, _ = languages_of(rows, context, On.answer)
    part, confidences = languages_of(rows.take(np.array([False, True, True])), context, On.answer)
    assert (whole, part) == (["en", "ar", "fr"], ["ar", "fr"])
    assert confidences.shape == (2,)
    languages_of(rows, context, On.prompt)
    assert [(entry.stage, entry.hit) for entry in context.entries] == [
        ("languages", False), ("languages", True), ("languages", False)
    ]  # fmt: skip


def test_a_view_of_no_rows(context: StageContext) -> None:
    rows = Rows.of(table(("Who?", SAID["en"])))
    assert Language(keep=["en"])(rows.take(np.array([False])), context).reason == []


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ([], r"keep=\[\]: must be a list of language codes"),
        (["arabic"], r"keep=arabic: .*did you mean ar \(Arabic\)\?"),
        (["ar", "EN"], r"keep=EN: .*did you mean en \(English\)\?"),
        (["pt-BR"], r"did you mean pt \(Portuguese\)\?"),
        (["Portugese"], r"did you mean pt \(Portuguese\)\?"),
        (["qq"], r"keep=qq: unknown language code; give a two-letter code: af, am"),
    ],
)
def test_unknown_codes_are_refused_with_the_nearest(keep: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Language(keep=keep)


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_impossible_confidence_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="min_confidence"):
        Language(keep=["en"], min_confidence=value)


@pytest.mark.parametrize(
    ("tongues", "per_byte", "share"),
    [
        ("ar ar en", 0.5, 2 / 3),
        ("ar ar en", 0.3, None),  # the tokenizer was trained on the script
        ("ar en en", 0.5, None),
        ("en en en", 0.9, None),  # digits and code have short tokens too
    ],
)
def test_a_script_that_a_tokenizer_hardly_knows(tongues: str, per_byte: float, share: float | None) -> None:
    answers = [SAID[tongue] for tongue in tongues.split()]
    rows = Rows.of(table(*(("1", answer) for answer in answers)))
    tokens = np.array([len(f"1\n{answer}".encode()) * per_byte for answer in answers])
    assert unfamiliar_share(rows, tokens) == (pytest.approx(share) if share else None)
