"""Row formats: every key, every role, and what cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sft_lab import compose
from sft_lab.core.errors import SourceError
from sft_lab.data.formats import Format, Reader, find_reader, read_record
from sft_lab.data.messages import Unreadable, Watched

ASKED = [("user", "Hi?"), ("assistant", "Hello.")]


def read(record: dict[str, Any], wanted: Format = Format.auto, **columns: str) -> list[tuple[str, str]]:
    return turns_of(find_reader(wanted, columns, record), record)


def turns_of(reader: Reader, record: dict[str, Any]) -> list[tuple[str, str]]:
    messages, _ = read_record(reader, record)
    assert all(len(message) == 2 for message in messages)
    return [(message["role"], message["content"]) for message in messages]


def said(*texts: Any, conversation: str = "conversations") -> dict[str, Any]:
    roles = ["human", "gpt"]
    return {conversation: [{"from": roles[i % 2], "value": text} for i, text in enumerate(texts)]}


@pytest.mark.parametrize("conversation", ["conversations", "conversation", "messages"])
@pytest.mark.parametrize("role_key", ["from", "role", "user"])
@pytest.mark.parametrize("text_key", ["value", "text", "content"])
def test_every_key_of_sharegpt(conversation: str, role_key: str, text_key: str) -> None:
    turns = [{role_key: "human", text_key: "Hi?"}, {role_key: "gpt", text_key: "Hello."}]
    assert read({"id": "x", conversation: turns}) == ASKED


@pytest.mark.parametrize(
    ("role", "known"),
    [("human", "user"), ("user", "user"), ("prompter", "user"), ("gpt", "assistant"), ("assistant", "assistant"),
     ("chatgpt", "assistant"), ("bing", "assistant"), ("bard", "assistant"), ("model", "assistant"),
     ("bot", "assistant"), ("system", "system"), ("ChatGPT", "assistant"), (" Human ", "user")],
)  # fmt: skip
def test_every_role(role: str, known: str) -> None:
    assert read({"conversations": [{"from": role, "value": "x"}]}) == [(known, "x")]


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        ({"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi?"}]},
         [("system", "Be kind."), ("user", "Hi?")]),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, [("user", "Add.\n\n1 2"), ("assistant", "3")]),
        ({"instruction": "Add.", "input": "", "output": "3"}, [("user", "Add."), ("assistant", "3")]),
        ({"instruction": "Add.", "output": "3", "system": "Be brief."},
         [("system", "Be brief."), ("user", "Add."), ("assistant", "3")]),
        ({"instruction": "Add.", "context": "1 2", "response": "3"},
         [("user", "Add.\n\n1 2"), ("assistant", "3")]),
        ({"prompt": "Hi?", "completion": "Hello."}, ASKED),
        ({"prompt": "Hi?", "response": "Hello."}, ASKED),
        ({"prompt": "Hi?", "answer": "Hello."}, ASKED),
        ({"prompt": [{"role": "user", "content": "Hi?"}],
          "completion": [{"role": "assistant", "content": "Hello."}]}, ASKED),
        ({"question": "Who?", "answer": "She."}, [("user", "Who?"), ("assistant", "She.")]),
        ({"question": "Who?", "answer": "She.", "context": "Ada wrote it."},
         [("user", "Ada wrote it.\n\nWho?"), ("assistant", "She.")]),
        ({"text": "Once upon a time."}, [("text", "Once upon a time.")]),
        ({"text": " \n"}, []),
        ({"instruction": "Add.", "input": "1 2", "output": "3", "text": "### Add. 1 2 3"},
         [("user", "Add.\n\n1 2"), ("assistant", "3")]),
    ],
)  # fmt: skip
def test_every_format_is_found_by_its_columns(record: dict[str, Any], turns: list[tuple[str, str]]) -> None:
    assert read(record) == turns


HELLO = {"role": "assistant", "content": "Hello."}
WHAT = {"role": "assistant", "content": "What?"}
HI = {"role": "user", "content": "Hi?"}


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        ({"prompt": "Hi?", "chosen": "Hello.", "rejected": "What?"}, ASKED),
        ({"prompt": [HI], "chosen": [HELLO], "rejected": [WHAT]}, ASKED),
        ({"prompt": "Hi?", "chosen": [HI, HELLO], "rejected": [HI, WHAT], "messages": [HI, HELLO]}, ASKED),
        ({"chosen": [HI, HELLO], "rejected": [HI, WHAT]}, ASKED),
        ({"system": "Be kind.", "question": "Hi?", "chosen": "Hello.", "rejected": "What?"},
         [("system", "Be kind."), *ASKED]),
        ({"instruction": "Add.", "input": "1 2", "chosen": "3", "rejected": "4"},
         [("user", "Add.\n\n1 2"), ("assistant", "3")]),
        ({**said("Hi?"), "chosen": {"from": "gpt", "value": "Hello."}, "rejected": {"from": "gpt", "value": "What?"}},
         ASKED),
        ({"chosen": "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: A\nB\n\nC\n\nAssistant: ",
          "rejected": "\n\nHuman: Hi?\n\nAssistant: What?"},
         [*ASKED, ("user", "A\nB\n\nC"), ("assistant", "")]),
    ],
)  # fmt: skip
def test_of_a_preference_the_chosen_side_is_used(record: dict[str, Any], turns: list[tuple[str, str]]) -> None:
    assert read(record) == turns


def test_plain_text_may_be_named_by_ones_own_column() -> None:
    assert read({"body": "Once.", "question": "Who?", "answer": "She."}, text="body") == [("text", "Once.")]


def test_own_columns_come_before_known_ones() -> None:
    record = {"q": "Who?", "a": "She.", "c": "Ada wrote it.", "s": "Be brief.", "question": "no", "answer": "no"}
    assert read(record, prompt="q", answer="a") == [("user", "Who?"), ("assistant", "She.")]
    assert read(record, prompt="q", answer="a", context="c", system="s") == [
        ("system", "Be brief."),
        ("user", "Ada wrote it.\n\nWho?"),
        ("assistant", "She."),
    ]


def test_own_columns_may_be_empty_in_a_record() -> None:
    reader = find_reader(
        Format.auto, {"prompt": "q", "answer": "a", "context": "c", "system": "s"}, ["q", "a", "c", "s"]
    )
    assert turns_of(reader, {"q": "Who?", "a": None, "s": " "}) == [("user", "Who?"), ("assistant", "")]


def test_a_named_format_beats_the_one_that_would_be_found() -> None:
    record = {**said("Hi?", "Hello."), "question": "Who?", "answer": "She."}
    assert read(record) == ASKED
    assert read(record, Format.question_answer) == [("user", "Who?"), ("assistant", "She.")]


@pytest.mark.parametrize(
    ("wanted", "columns", "words"),
    [
        (Format.auto, {}, ["dataset.format=auto", "['ask', 'reply']", "dataset.columns="]),
        (Format.alpaca, {}, ["dataset.format=alpaca", "instruction+output", "['ask', 'reply']"]),
        (Format.auto, {"prompt": "ask", "answer": "replies"}, ["['replies']", "['ask', 'reply']"]),
    ],
)
def test_columns_that_do_not_fit_are_listed(wanted: Format, columns: dict[str, str], words: list[str]) -> None:
    with pytest.raises(SourceError) as raised:
        find_reader(wanted, columns, ["ask", "reply", "ask"])
    assert [word for word in words if word not in str(raised.value)] == []


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": [{"from": "narrator", "value": "Once."}]},
        {"conversations": [{"from": 7, "value": "Once."}]},
        {"conversations": [{"value": "Once."}]},
        {"conversations": ["Hi?", "Hello."]},
        {"conversations": [None]},
        {"conversations": "Hi? Hello."},
        {"conversations": {"from": "human", "value": "Hi?"}},
        said(3, "Hello."),
        said({"text": "Hi?"}, "Hello."),
        said(["Hi?"], "Hello."),
        said([{"type": "image", "url": "x"}], "Hello."),
        {"instruction": "Add.", "output": 3},
        {"question": True, "answer": "yes"},
        {"prompt": [{"role": "user", "content": "Hi?"}], "completion": "Hello."},
        {"text": 7},
        {"chosen": "Hello.", "rejected": "What?"},
        {"chosen": 5, "rejected": 6},
    ],
)
def test_what_cannot_be_read_is_said_to_be_unreadable(record: dict[str, Any]) -> None:
    with pytest.raises(Unreadable):
        read(record)


def test_no_text_is_an_empty_text() -> None:
    assert read(said("Hi?", None)) == [("user", "Hi?"), ("assistant", "")]
    assert read({"conversations": [{"from": "human"}]}) == [("user", "")]
    assert read({"conversations": None}) == []
    assert read({"question": None, "answer": "x"}) == [("user", ""), ("assistant", "x")]


def test_nulls_that_a_table_fills_in_hide_nothing() -> None:
    """A table has every key in every record; the one that is not None counts."""
    turns = [{"from": None, "role": "user", "value": None, "text": None, "content": "Hi?"}]
    assert read({"messages": None, "conversations": turns}) == [("user", "Hi?")]


def test_list_content_is_joined() -> None:
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there?"}]
    assert read({"messages": [{"role": "user", "content": parts}]}) == [("user", "Hi\nthere?")]


def test_odd_characters_come_through_and_lone_surrogates_do_not() -> None:
    assert read(said("nul \0 and \u200f marks", "\ud83d broken")) == [
        ("user", "nul \0 and \u200f marks"),
        ("assistant", "? broken"),
    ]


@pytest.mark.parametrize("key", ["conversations", "conversation", "messages"])
def test_a_field_that_is_read_is_not_called_unread(key: str) -> None:
    record = Watched({key: [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho", "score": 0}]})
    find_reader(Format.auto, {}, record)(record)
    assert record.unread() == {f"{key}[].score"}


@pytest.mark.parametrize(
    ("columns", "suggestion"),
    [
        (["id", "Instruction", "Input", "Output"], "{prompt: Instruction, answer: Output}"),
        (["ask", "say"], "{prompt: ask, answer: say}"),
        (["prompt", " completion"], '{prompt: prompt, answer: " completion"}'),
        (["id", "title", "body"], "{prompt: ..., answer: ...}"),
    ],
)
def test_unknown_columns_are_suggested_for_a_pair(columns: list[str], suggestion: str, here: Path) -> None:
    with pytest.raises(SourceError) as refused:
        find_reader(Format.auto, {}, columns)
    assert f"'dataset.columns={suggestion}'" in str(refused.value)
    if "..." not in suggestion:
        (here / "rows.jsonl").touch()
        named = compose([f"dataset.columns={suggestion}", "dataset=file", "dataset.path=rows.jsonl"]).dataset.columns
        find_reader(Format.auto, named, columns)
