"""Configs: whatever stands in a file or on a command line is either told off in one message or comes back unchanged."""

from __future__ import annotations

import copy
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from example_counts import tried
from hypothesis import assume, example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from row_strategies import LEAVES, STRINGS, TEXTS, json_values

from sft_lab import compose
from sft_lab.config.compose import compose_config
from sft_lab.config.serialize import from_saved, load
from sft_lab.core.errors import ConfigError
from sft_lab.core.io import digest
from sft_lab.run.config import Run
from sft_lab.run.identity import NOT_IDENTITY

WORDS = ["model=tiny_random", "filter=[answered,pattern,length]", "filter.pattern.drop=[spam]",
         "split.filter=[answered]"]  # fmt: skip


@cache
def shipped() -> dict[str, Any]:
    return compose(WORDS).saved()


def saved() -> dict[str, Any]:
    return copy.deepcopy(shipped())


# Where a saved config holds the user's own words, and where anything at all.
OWN = [["evaluation", "baseline", "system_prompt"], ["decontaminate", "embedder", "prompt"], ["dataset", "group"],
       ["filter", "pattern", "drop", 0], ["evaluation", "prompts", 1], ["choices", "model"],
       ["dataset", "columns", "text"], ["trainer", "peft", "target_modules", 0],
       ["template", "special_tokens"]]  # fmt: skip
FREE = [["trainer", "sft_config"], ["model", "init_kwargs"]]


def put(content: Any, path: list[Any], value: Any) -> None:
    for name in path[:-1]:
        content = content[name]
    content[path[-1]] = value


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in plain data."""
    found = [path] if path else []
    for name, child in content.items() if isinstance(content, dict) else enumerate(content):
        if isinstance(child, dict | list):
            found += places(child, (*path, name))
        else:
            found.append((*path, name))
    return found


def built(content: dict[str, Any]) -> Run | None:
    """The run, or None where it is told off."""
    try:
        return from_saved(content, "config.yaml")
    except ConfigError as error:
        assert str(error).startswith("config.yaml: ")  # noqa: PT017
        return None


def comes_back(run: Run) -> None:
    """Saved and loaded it is the same: hash, values, and the very bytes."""
    text = run.to_yaml()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(text, encoding="utf-8")
        again = load(path)
    assert again.hash == run.hash
    assert again.saved() == run.saved()
    assert digest(again.saved()) == digest(run.saved())
    assert again.to_yaml() == text


def test_the_shipped_config_comes_back() -> None:
    run = built(saved())
    assert run
    comes_back(run)


@tried(3, 200)
@given(st.lists(st.tuples(st.sampled_from(OWN), STRINGS), max_size=4), st.lists(STRINGS, max_size=3))
def test_own_words_come_back(words: list[tuple[list[Any], str]], tags: list[str]) -> None:
    content = saved()
    content["tracking"]["tags"] = tags
    for path, text in words:
        put(content, path, [text] if path[-1] == "special_tokens" else text)
    if run := built(content):
        comes_back(run)


@tried(3, 200)
@given(st.sampled_from(FREE), st.dictionaries(STRINGS, json_values(), max_size=3))
def test_free_mappings_come_back(path: list[str], content: dict[str, Any]) -> None:
    whole = saved()
    put(whole, path, content)
    if run := built(whole):
        comes_back(run)


ANYTHING = st.one_of(
    LEAVES, json_values(),
    st.sampled_from([10**400, -(10**400), 2**63, "???", "${seed}", "1e400", [], {}, [None], "true"])
)  # fmt: skip


PLACE = st.deferred(lambda: st.sampled_from(places(shipped())))


@tried(5, 1000)
@given(st.lists(st.tuples(PLACE, ANYTHING), min_size=1, max_size=2))
@example([(("trainer", "eval_steps"), 10**400)])
@example([(("trainer", "eval_steps"), "1e400")])
@example([(("dataset", "format"), "${seed}")])
@example([(("decontaminate", "embedder", "scripts"), [["LATIN"]])])
@example([(("decontaminate", "against"), [{}])])
@example([(("filter", "pattern", "drop"), [{"a": 1}])])
def test_any_value_anywhere_is_taken_or_told_off(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    content = saved()
    for path, value in changes:
        with suppress(LookupError, TypeError):  # the first change took the second's place away
            put(content, list(path), value)
    if run := built(content):
        comes_back(run)


@tried(8, 1000)
@given(st.data(), st.sampled_from(["threshold", "seed", "kind", "_target_", "on", "True", "a.b", "", "é"]) | STRINGS)
def test_no_unknown_key_passes(data: st.DataObject, name: str) -> None:
    content = saved()
    typed = [path for path in places(content)
             if isinstance(_at(content, path), dict) and path[-1] not in ("filter", "columns", "sft_config",
                                                                          "init_kwargs", "choices")]  # fmt: skip
    path = data.draw(st.sampled_from([(), *typed]))
    node = _at(content, path)
    assume(name not in node and not (path == () and name == "format"))
    assume(name not in ("sources", "revision") or path)
    node[name] = data.draw(LEAVES)
    run = built(content)
    assert run is None, (path, name)


def _at(content: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        content = content[name]
    return content


YAML = [b"!!python/object:os.system", b"&a ", b"*a", b"<<: *a", b"\t", b"? ", b"|", b"---\n", b"%YAML 1.2\n", b"\n  ",
        b"[[[[[", b"{}", b"1_0", b"0o7", b"- ", b"\n...\n", b"!!binary ", b"!!set ", b"2026-11-22",
        b'"\\x24{oc.env:HOME}"']  # fmt: skip


@tried(3, 500)
@given(st.data(), st.binary(max_size=6) | TEXTS.map(str.encode) | st.sampled_from(YAML))
def test_any_text_is_a_config_or_told_off(data: st.DataObject, more: bytes) -> None:
    text = built_text().encode()
    start = data.draw(st.integers(0, len(text)))
    stop = start + data.draw(st.sampled_from([0, 1, 5]))
    changed = text[:start] + more + text[stop:]
    if data.draw(st.booleans()):
        changed = more + changed[: data.draw(st.sampled_from([0, 40]))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_bytes(changed)
        try:
            run = load(path)
        except ConfigError as error:
            assert str(error).startswith(str(path))  # noqa: PT017
            return
    comes_back(run)


@cache
def built_text() -> str:
    return compose(WORDS).to_yaml()


KEYS = st.sampled_from(["seed", "dedup.threshold", "filter.length.max_tokens", "evaluation.prompts",
                        "dataset.columns.a",
                        "trainer.sft_config.a", "trainer", "filter", "a", "seed.a", "", "dedup.on", "split.filter.a",
                        "trainer.peft.r", "filter[length]", "evaluation.prompts[0]", "format",
                        "dedup.kind"])  # fmt: skip


@tried(4, 500)
@given(st.lists(st.tuples(KEYS | STRINGS, st.sampled_from(["=", "=", "=", ""]), STRINGS | ANYTHING.map(repr))
                .map("".join), max_size=2))  # fmt: skip
def test_any_override_of_a_saved_config_is_taken_or_told_off(words: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(built_text(), encoding="utf-8")
        try:
            run = load(path, words)
        except ConfigError as error:
            assert str(error)  # noqa: PT017
            return
    comes_back(run)


@tried(3, 200)
@given(st.data(), st.randoms())
def test_a_hash_is_of_what_changes_the_result(data: st.DataObject, random: Any) -> None:
    """Equal identities, equal hashes; any other value, or filters in another order, another one."""
    content = saved()
    for _ in range(data.draw(st.integers(0, 2))):
        path = data.draw(st.sampled_from(places(content)))  # of what the change before has left
        if not isinstance(_at(content, path[:-1]), list):
            put(content, list(path), data.draw(st.sampled_from([1, 2, 0.5, True, "a", "1", None, 7.0])))
    if data.draw(st.booleans()):
        content["filter"] = dict(reversed(content["filter"].items()))
    run, before = built(content), built(saved())
    assume(run)
    assert run
    assert before
    other = [run.identity() != before.identity(), list(run.filter) != list(before.filter)]
    assert (run.hash != before.hash) == any(other)

    def shuffled(value: Any, at: str = "") -> Any:
        if isinstance(value, dict):
            names = list(value)
            if at not in ("filter", "sources"):
                random.shuffle(names)
            return {name: shuffled(value[name], name) for name in names}
        return value

    again = built(shuffled(content))
    assert again
    assert again.hash == run.hash


CHANGES = {
    "trainer.learning_rate": ["1e-4", "3e-4"], "seed": ["1", "2"], "dedup.threshold": ["0.9", "0.8"],
    "dataset.limit": ["5", "null"], "filter.length.max_tokens": ["100", "200"], "trainer.peft.r": ["4", "8"],
    "evaluation.prompts": ["[]", "[a]"], "split.eval_share": ["0.2", "0.3"], "dedup.on": ["prompt", "both"],
}  # fmt: skip
SILENT = {
    "tracking.project": ["a", "b"], "threads": ["1", "2"], "store.path": ["/tmp/a", "/tmp/b"], "rerun": ["true"],
    "tracking": ["local"], "launch": ["processes"], "tracking.tags": ["[x]"],
}  # fmt: skip


@pytest.mark.slow  # composes
@tried(4, 50)
@given(st.sets(st.sampled_from(sorted(CHANGES))), st.sets(st.sampled_from(sorted(SILENT)), max_size=2), st.data())
def test_the_order_of_overrides_is_nothing(names: set[str], quiet: set[str], data: st.DataObject) -> None:
    assert {name.partition(".")[0] for name in SILENT} <= NOT_IDENTITY
    if "tracking" in quiet:
        quiet -= {"tracking.project", "tracking.tags"}
    words = [f"{name}={data.draw(st.sampled_from(CHANGES[name]))}" for name in sorted(names)]
    silent = [f"{name}={data.draw(st.sampled_from(SILENT[name]))}" for name in sorted(quiet)]
    run = compose([*WORDS, *words])
    assert compose([*data.draw(st.permutations([*WORDS, *words])), *silent]).hash == run.hash
    comes_back(run)
    if words:
        changed = [*words]
        name, _, value = changed[0].partition("=")
        changed[0] = f"{name}={next(one for one in CHANGES[name] if one != value)}"
        assert compose([*WORDS, *changed]).hash != run.hash


def quoted(text: str) -> str:
    """Quote a text for Hydra's grammar: a quote is escaped, and backslashes only where a quote follows."""
    found, slashes = "", 0
    for character in text + "'":
        if character == "\\":
            slashes += 1
            continue
        found += "\\" * (2 * slashes if character == "'" else slashes)
        slashes = 0
        found += "\\'" if character == "'" else character
    return f"'{found[:-2]}'"


@pytest.mark.slow  # composes
@tried(6, 100)
@given(TEXTS)
def test_words_of_the_command_line_arrive_and_come_back(text: str) -> None:
    words = [*WORDS, f"evaluation.baseline.system_prompt={quoted(text)}"]
    try:
        run = compose(words)
    except ConfigError as error:
        assert "${" in text or "\x85" in text or text == "???" or not text.isprintable(), error  # noqa: PT017
        return
    assert run.evaluation.baseline.system_prompt == text
    comes_back(run)
    config = compose_config(words)
    shown = OmegaConf.create(OmegaConf.to_yaml(config))
    assert OmegaConf.to_container(shown)["evaluation"] == OmegaConf.to_container(config, enum_to_str=True)["evaluation"]


def test_the_traps_of_yaml_come_back() -> None:
    traps = ["no", "on", "1e3", "0x10", "12:30:00", "~", "007", "\u202eabc", "👩‍👩‍👧", "=", "<<", ".inf", "", "e\u0301"]
    content = saved()
    put(content, ["evaluation", "prompts"], traps)
    put(content, ["trainer", "sft_config"], {trap: [trap, {trap: trap}] for trap in traps})
    run = built(content)
    assert run
    assert run.evaluation.prompts == traps
    assert run.trainer.sft_config == content["trainer"]["sft_config"]
    comes_back(run)
