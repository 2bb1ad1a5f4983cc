"""Keys and small files: two recipes share a key if and only if they are equal, and what is written is read again."""

from __future__ import annotations

import copy
import json
import math
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from example_counts import tried
from hypothesis import assume, example, given
from hypothesis import strategies as st
from row_strategies import FINITE, STRINGS, json_values

from sft_lab.core.io import FORMAT, digest, finite, flat, read_json, write_json, write_lines
from sft_lab.core.store import RECIPE, Store

VALUES = json_values(leaves=FINITE)


def survives(content: Any) -> bool:
    """JSON itself reads two lone surrogates that meet as one character, and the first key of two equal ones is lost."""
    return same(json.loads(json.dumps(content)), content)


RECIPES = st.dictionaries(
    STRINGS.filter(lambda name: name not in ("stage", "format", "files")), VALUES, max_size=4
).filter(survives)


def same(one: Any, other: Any) -> bool:
    """Equal as JSON: in Python 1 == 1.0 == True, and 0.0 == -0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) and (not isinstance(one, float) or math.copysign(1, one) == math.copysign(1, other))


NEAR = st.sampled_from([
    (1, 1.0), (1, True), (0, False), (0, -0.0), (0.0, -0.0), (1, "1"), (None, "null"), (True, "True"), ("é", "e\u0301"),
    ([], {}), ([[]], []), ("", None), ("a", "A"), (" a", "a"), ("ﬁ", "fi"), (10**16, 1e16), (2**53 + 1, float(2**53)),
    ("\ud83d\ude00", "😀"), ([1, [2]], [[1], 2]), ({"a": {"b": 1}}, {"a.b": 1}), ({"a": None}, {}), ("\\u0041", "A"),
    ('"', '\\"'), (0.1 + 0.2, 0.3), ([1, 2], [2, 1]), ("\0", ""),
])  # fmt: skip


def put(content: Any, at: list[int], value: Any) -> Any:
    """Put a value in the place of one inside the content."""
    if not isinstance(content, dict | list) or not content or not at:
        return value
    place = list(content)[at[0] % len(content)] if isinstance(content, dict) else at[0] % len(content)
    found = copy.copy(content)
    found[place] = put(content[place], at[1:], value)
    return found


@tried(20, 2000)
@given(VALUES, VALUES)
@example({"a": 1}, {"a": 1})
def test_keys_are_equal_iff_recipes_are(one: Any, other: Any) -> None:
    assert (digest(one) == digest(other)) == same(one, other)


@tried(20, 2000)
@given(VALUES, NEAR, st.lists(st.integers(0, 9), max_size=4))
def test_what_is_nearly_equal_has_another_key(recipe: Any, pair: tuple[Any, Any], at: list[int]) -> None:
    one, other = (put(recipe, at, value) for value in pair)
    assert digest(one) != digest(other)


@tried(20, 2000)
@given(VALUES, st.randoms())
def test_the_order_of_keys_is_no_part_of_a_key(recipe: Any, random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            names = list(value)
            random.shuffle(names)
            return {name: shuffled(value[name]) for name in names}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    assert digest(shuffled(recipe)) == digest(recipe)


@tried(20, 2000)
@given(STRINGS)
def test_unicode_forms_are_different_content(text: str) -> None:
    other = unicodedata.normalize("NFD", text)
    assume(other != text)
    assert digest({"a": text}) != digest({"a": other})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_json_has_no_key(value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        digest({"a": [value]})


@tried(6, 1000)
@given(RECIPES, RECIPES)
@example({"path": "\udcff"}, {"path": "\udcfe"})
def test_an_entry_is_found_by_its_recipe_and_by_no_other(one: dict[str, Any], other: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        made = store.entry("stage", one, lambda place: (place / "a").write_bytes(b"1") and None)
        assert not made.hit
        assert Store(Path(folder)).entry("stage", json.loads(json.dumps(one)), _never).path == made.path
        said = read_json(made.path / RECIPE)
        assert list(said.pop("files")) == ["a"]
        assert same(said, {"format": FORMAT, "stage": "stage", **one})
        assert [listed.key for listed in store.listing()] == [made.key]
        if not same(one, other):
            assert not store.entry("stage", other, lambda place: None).hit


def _never(folder: Path) -> None:
    raise AssertionError(folder)


@tried(20, 2000)
@given(st.dictionaries(STRINGS.filter(lambda name: name != "format"), json_values(), max_size=4))
def test_json_files_give_back_what_was_written(content: dict[str, Any]) -> None:
    assume(survives(finite(content)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.json")
        write_json(path, content)
        assert same(read_json(path), {"format": FORMAT, **finite(content)})
        write_lines(path, [content, content])
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        assert [len(json.loads(line)) for line in lines] == [len(content)] * 2


@tried(20, 2000)
@given(st.dictionaries(st.text("abc", min_size=1), json_values(st.text("abc", min_size=1)), max_size=4))
def test_flat_loses_nothing(content: dict[str, Any]) -> None:
    def rebuilt(names: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in names.items():
            *path, leaf = name.split(".")
            place = found
            for part in path:
                place = place.setdefault(part, {})
            place[leaf] = value
        return found

    assert same(rebuilt(flat(finite(content))), finite(content))
