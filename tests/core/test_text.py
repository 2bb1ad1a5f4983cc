"""Normal form and scripts."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_lab.core.text import content_group, normalize, scripts

ALEF, HAMZA, TATWEEL, FATHA = "\u0627", "\u0654", "\u0640", "\u064e"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Hello  World\n", "hello world"),
        ("\u00a0a\u2003b\t\r\nc ", "a b c"),
        ("STRASSE straße", "strasse strasse"),
        ("ﬁne ① ｆｕｌｌ", "fine 1 full"),
        ("caf\u0065\u0301", "caf\u00e9"),
        ("", ""),
        (" \n\t", ""),
        ("مُحَمَّدٌ", "محمد"),
        ("كتـــاب", "كتاب"),
        ("أحمد إلى آخر ٱلكتاب", "احمد الى اخر الكتاب"),
        (f"{ALEF}{HAMZA}حمد", "احمد"),
        ("\ufefb", "لا"),  # a ligature
        ("هٰذا", "هذا"),
    ],
)
def test_normal_form(text: str, normal: str) -> None:
    assert normalize(text) == normal


@pytest.mark.parametrize(
    ("one", "two"), [("مسؤول", "مسئول"), ("على", "علي"), ("كتابة", "كتابه"), ("Yes, you can.", "No, you can.")]
)
def test_other_letters_stay_other_letters(one: str, two: str) -> None:
    assert normalize(one) != normalize(two)


@pytest.mark.parametrize("letter", ["\u0624", "\u0626", "\u0623", "\u0625", "\u0622", "é", "Å", "한"])
def test_a_composed_letter_and_its_parts_are_one(letter: str) -> None:
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert normalize(unicodedata.normalize(form, f"a{letter}b")) == normalize(f"a{letter}b")
    assert normalize(f"{letter}{FATHA}{TATWEEL}x") == normalize(f"{letter}x")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=12) | st.text("اأإآٱؤئوي" + HAMZA + TATWEEL + FATHA + "aA\u0301 \u0345ΐßİ", max_size=12))
def test_a_normal_form_is_its_own(text: str) -> None:
    normal = normalize(text)
    assert normalize(normal) == normal
    assert normalize(f"  {text}\n") == normal


def test_a_content_group_is_that_of_the_normal_form() -> None:
    assert content_group("Who?", "She.") == content_group(" WHO?", "she.  ")
    assert content_group("Who?", "She.") != content_group("Who?", "He.")
    assert content_group("a b", "").startswith("content:")


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("hello", {"LATIN": 1.0}),
        ("hello 123 !? 👍", {"LATIN": 1.0}),
        ("مرحبا", {"ARABIC": 1.0}),
        ("abc αβγδεζ", {"GREEK": 2 / 3, "LATIN": 1 / 3}),
        ("你好ab", {"CJK": 0.5, "LATIN": 0.5}),
        ("Да", {"CYRILLIC": 1.0}),
        ("12 + 3 = 15", {}),
        ("", {}),
    ],
)
def test_scripts(text: str, shares: dict[str, float]) -> None:
    assert scripts(text) == pytest.approx(shares)
    assert list(scripts(text)) == list(shares)
