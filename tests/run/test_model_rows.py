"""Rows as the model sees them, and what conversations hold: in data.json, on the page and on the terminal."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any

import datasets
import pytest
from chat_shapes import QWEN3, QWEN25, Shape
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sft_lab.cli.main import main
from sft_lab.core.io import read_json
from sft_lab.core.run_dir import RunDir
from sft_lab.data import model_view

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
FIRST = [
    {"role": "user", "content": "How warm is Rome? <|im_end|>\u202e\x1b[31m"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "31"},
    {"role": "assistant", "content": "31 <b>degrees</b>."},
]
ANSWERED = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'
IM = "template.special_tokens=['<|im_start|>','<|im_end|>']"


def talk(prompt: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def prepare(here: Path, tiny: list[str], rows: list[dict[str, Any]], *options: str, shape: Shape = QWEN25) -> RunDir:
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (here / "qwen.jinja").write_text(shape.jinja, encoding="utf-8")
    overrides = ["dataset=rows.jsonl", "template=file", "template.path=qwen.jinja", IM, "split.eval_share=0"]
    assert (
        main(
            ["prepare", *tiny, *overrides, "hydra.run.dir=out", "trainer.max_length=8000", "filter=answered", *options]
        )
        == 0
    )
    return RunDir(here / "out")


def text_of(view: dict[str, Any], **kinds: bool) -> str:
    return "".join(part["text"] for part in view["parts"] if all(part[kind] is value for kind, value in kinds.items()))


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    short = [talk(f"Number {index}?", "x" * index) for index in range(4, 12)]
    thought = talk("And twelve?", "<think>\nHm.\n</think>\n\nTwelve.")
    return [{"messages": FIRST, "tools": [TOOL]}, *short, thought, talk("Long?", "a<b " * 1200)]


def test_three_rows_as_the_model_gets_them(
    here: Path, tiny: list[str], rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(here, tiny, rows, "-v")
    first, middle, last = read_json(folder.data)["model_rows"]
    texts = {row["id"]: row["text"] for row in datasets.load_from_disk(folder.dataset)["train"]}
    assert [view["choice"] for view in (first, middle, last)] == ["first", "of median length", "longest"]
    assert text_of(first) == texts[first["id"]]
    assert text_of(first, trained=True) == f"{ANSWERED}31 <b>degrees</b>.<|im_end|>"
    assert text_of(first, special=True).count("<|im_end|>") == 5  # of system, turns and result; the user's is text
    assert "<|im_end|>\u202e" in text_of(first, special=False)

    gap = next(index for index, part in enumerate(last["parts"]) if "omitted" in part)
    head, tail = ("".join(part["text"] for part in side) for side in (last["parts"][:gap], last["parts"][gap + 1 :]))
    omitted = last["parts"][gap]["omitted"]
    assert len(head) + len(tail) + omitted == len(texts[last["id"]])
    assert texts[last["id"]].startswith(head)
    assert texts[last["id"]].endswith(tail)
    assert last["parts"][gap]["trained"]

    page = folder.report.read_text(encoding="utf-8")
    assert f"<mark>{escape(ANSWERED.removesuffix('<|im_end|>'), quote=False)}</mark>".replace('"', "&#34;") in page
    assert "<mark>31 &lt;b&gt;degrees&lt;/b&gt;.</mark>" in page
    assert "&lt;|im_end|&gt;\\u202e\\x1b[31m<i" in page
    assert "characters left out" in page

    shown = capsys.readouterr().out
    assert f"⟦{ANSWERED}⟧" in shown
    assert "\\u202e\\x1b[31m<|im_end|>" in shown
    assert f"[... {omitted:,} characters left out ...]" in shown


def test_what_conversations_hold(
    here: Path, tiny: list[str], rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(here, tiny, [*rows, talk("Empty?", "")], "dataset.train_on=last")
    assert "⟦" not in capsys.readouterr().out  # without -v
    counts = read_json(folder.data)["conversations"]
    assert (counts["before"]["rows"], counts["after"]["rows"]) == (12, 11)
    assert (counts["after"]["with_tools"], counts["after"]["with_thoughts"]) == (1, 1)
    assert counts["after"]["turns"] == {"mean": pytest.approx(23 / 11), "median": 2, "p90": 2, "max": 3}
    train = datasets.load_from_disk(folder.dataset)["train"]
    assert counts["tokens"] > counts["trained_tokens"] > sum(map(len, train["text"])) / 4
    page = folder.report.read_text(encoding="utf-8")
    assert "with the template's, each row counted once" in page
    assert "exact</bdi>,<wbr> " not in page  # the folder has a name of its own
    assert '<p class="subject"><bdi>rows.jsonl</bdi>,<wbr> <bdi>tiny_random</bdi></p>' in page


def test_every_token_trains_and_is_shown_so(here: Path, tiny: list[str]) -> None:
    rows = [{"text": f"Plain text number {index}."} for index in range(3)]
    folder = prepare(here, tiny, rows, "trainer.loss_on=all", "filter=[]")
    content = read_json(folder.data)
    assert content["conversations"]["trained_tokens"] == content["conversations"]["tokens"]
    assert content["conversations"]["after"]["turns"]["max"] is None
    assert [text_of(view, trained=True) for view in content["model_rows"]] == [
        text_of(view) for view in content["model_rows"]
    ]


@pytest.mark.parametrize(
    ("page", "examples", "trained"),
    [
        ("many_turns", 3, ["Seven.<|im_end|>Eleven.<|im_end|>", "C, A, T.<|im_end|>"]),
        ("tools", 2, [f"{ANSWERED}31 degrees.<|im_end|>", "Good morning.<|im_end|>"]),
        ("thoughts", 4, ["<think>\n17 times 3 is 51.\n</think>\n\n51<|im_end|>",
                         "<think>\nNo prime up to 9 divides 97.\n</think>\n\nYes.<|im_end|>"]),
    ],
)  # fmt: skip
def test_the_files_to_copy(page: str, examples: int, trained: list[str], here: Path, tiny: list[str]) -> None:
    text = (Path(__file__).parents[2] / f"docs/{page}.md").read_text(encoding="utf-8")
    for number, block in enumerate(re.findall(r"```json\n(.*?)```", text, re.DOTALL)[:2]):
        rows = [*map(json.loads, block.splitlines())]
        shape = QWEN3 if page == "thoughts" else QWEN25
        folder = prepare(here, tiny, rows, f"hydra.run.dir=out{number}", "filter=[]", shape=shape)
        folder = RunDir(here / f"out{number}")
        last = read_json(folder.waterfall)["stages"][-1]
        assert last["rows_kept"] == len(rows)
        if not number:
            assert last.get("examples", last["rows_kept"]) == examples
            assert set(trained) <= {text_of(view, trained=True) for view in read_json(folder.data)["model_rows"]}


def test_a_space_at_a_border_stays() -> None:
    """Decoders of this kind drop the space at the beginning of whatever they are given."""
    backend = Tokenizer(models.WordLevel({"▁Hi": 0, "▁you": 1, "▁all": 2, "<s>": 3}, unk_token="<s>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    parts = model_view._parts([0, 1, 2], [False, True, True], set(), tokenizer)
    assert [part["text"] for part in parts] == ["Hi", " you all"]
