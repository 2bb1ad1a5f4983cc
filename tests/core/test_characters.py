"""What a word processor or a messenger makes of quotes and hyphens, and what the user is told to type instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sft_lab.core.characters import meant_option, not_json
from sft_lab.core.errors import SourceError, UserError
from sft_lab.data.conversation_file import read_conversations
from sft_lab.data.formats import Format, find_reader
from sft_lab.data.readers import read

CURLY = r"it contains “ \(U\+201C LEFT DOUBLE QUOTATION MARK\); type \" instead"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("–m", "type -m"), ("—cn", "type -cn"), ("–base", "type --base"), ("-–base", "type --base"),
        ("––gpus=2", "type --gpus=2"), ("−v", "type -v"),
        ("-m", ""), ("--base", ""), ("–5", ""), ("– and so on", ""), ("seed=–1", ""), ("–", ""),
    ],
)  # fmt: skip
def test_an_option_with_a_dash(typed: str, meant: str) -> None:
    assert meant_option(typed).endswith(meant)
    assert bool(meant_option(typed)) == bool(meant)


def test_a_column_in_curly_quotes() -> None:
    with pytest.raises(SourceError, match=f"no column .* only .*; {CURLY}"):
        find_reader(Format.auto, {"prompt": "“q”", "answer": "a"}, ["q", "a"])
    with pytest.raises(SourceError, match=r"only \['q', 'a'\]$"):
        find_reader(Format.auto, {"prompt": "x", "answer": "a"}, ["q", "a"])


def test_a_record_in_curly_quotes_names_one_line_and_the_quotes(tmp_path: Path) -> None:
    good, curly = '{"prompt": "a", "completion": "b"}', "{“prompt”: “c”}"
    lines, array, talk = tmp_path / "a.jsonl", tmp_path / "a.json", tmp_path / "talk.json"
    lines.write_text(f"{good}\n{curly}\n", encoding="utf-8")
    array.write_text(f"[{good},\n{curly}]", encoding="utf-8")
    talk.write_text("[{“role”: “user”}]", encoding="utf-8")
    for path in (lines, array):
        (problem,) = (str(record) for record in read(path, path.name, None, 1) if isinstance(record, SourceError))
        assert problem.count("line ") == 1
        with pytest.raises(SourceError, match=rf"line 2: not JSON .*; {CURLY}; fix"):
            raise SourceError(problem)
    with pytest.raises(UserError, match=f"not JSON .*; {CURLY}; give a JSON list"):
        read_conversations(talk, "talk.json")


def test_curly_quotes_within_a_text_are_not_blamed() -> None:
    with pytest.raises(json.JSONDecodeError) as error:
        json.loads('{"prompt": "“Hi”", "completion": oops}')
    assert not_json(error.value) == "not JSON (Expecting value at character 34)"
