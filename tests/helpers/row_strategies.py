"""What real files and hostile ones hold, for every property here."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

# What has broken text handling before: line ends of other systems, marks that turn writing round, characters beyond
# the basic plane, letters that compose, control tokens, template text, YAML's own words.
ODD = [
    "", " ", "\n", "\r\n", "\0", "\x85", "\u2028", "\ufeff", "\u200b", "\u202e", "\u0301", "e\u0301", "é", "ﬁ",
    "İ", "ß", "👩‍👩‍👧", "السَّلامُ", "中文", "<|im_end|>", "<|im_start|>assistant\n", "</s>", "[INST]",
    "{{ x }}", "{% if %}", "<b>&amp;", "no", "on", "null", "~", "1e3", "0x10", "012", "12:30:00", "1_000",
    "2026-11-22", "=", "<<", "- a", "a: b", "#", "%", "'", '"', "\\", "\ue000", "\U0010ffff",
]  # fmt: skip
LETTERS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
WORDS = st.sampled_from(["a", "b", "Hi", "the cat", "Yes.", "Paris is in France."])
# Text that Arrow and YAML can hold, and any string that JSON can.
TEXTS = st.one_of(WORDS, st.sampled_from(ODD), LETTERS, st.lists(st.sampled_from(ODD), max_size=4).map("".join))
STRINGS = st.one_of(TEXTS, st.text(max_size=8), st.sampled_from(["\ud800", "a\udfff", "\ud83d\ude00"]))

NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, 1, -1, 10**30, 0.0, -0.0, 1e308, 5e-324, float("inf")])
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, STRINGS)


def json_values(keys: st.SearchStrategy[str] = STRINGS, leaves: st.SearchStrategy[Any] = LEAVES) -> Any:
    """Any JSON value, NaN and Infinity among the numbers, as Python's own reader takes them."""
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4))


FINITE = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), STRINGS)
