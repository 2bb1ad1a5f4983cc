"""Tool calls in a run's answers: in the summary, the samples and the report, and what `generate` shows of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_shapes import MISTRAL, QWEN25

from sft_lab.cli.main import main
from sft_lab.core.io import read_json
from sft_lab.core.run_dir import RunDir
from sft_lab.core.tolerant_readers import read_lines
from sft_lab.data.call_form import CallForm
from sft_lab.data.renderer import Renderer
from sft_lab.evaluation.generation import Answer
from sft_lab.run.call_checks import call_numbers, calls_as_text, drop_call_tokens
from sft_lab.run.questions import Output

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]  # fmt: skip
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def form(shape: Any) -> CallForm:
    calls = CallForm.of(Renderer(shape.tokenizer, shape.jinja))
    assert calls
    return calls


def output(raw: str, *, is_call: bool = True) -> Output:
    return Output("Warm?", CALL, Answer(raw, ended=True, stray=[], raw=raw), json.dumps(TOOLS), is_call)


def test_the_share_of_valid_calls_is_of_the_answers_that_should_call() -> None:
    wrong = CALL.replace("city", "town"), CALL.replace("weather", "rain"), "Hm."
    outputs = [output(CALL), *map(output, wrong), output("No call is wanted.", is_call=False)]
    assert call_numbers(outputs, form(QWEN25)) == {"outputs/call_share": 0.25}
    assert call_numbers(outputs[-1:], form(QWEN25)) == {}
    assert call_numbers(outputs, None) == {}


def test_calls_are_shown_beside_the_text() -> None:
    answers = [Answer(text, ended=True, stray=[], raw=text) for text in (CALL, "Hm.", CALL.replace("Rome", "Bonn"))]
    shown = calls_as_text(answers, [TOOLS, TOOLS, []], form(QWEN25))
    assert shown == ['weather {"city": "Rome"}', "", 'weather {"city": "Bonn"}  (no such tool)']
    assert calls_as_text(answers, [[]] * 3, None) == []


def test_the_tokens_of_a_call_are_not_astray() -> None:
    answers = [Answer("", ended=True, stray=["[INST]", "[TOOL_CALLS]"])]
    assert drop_call_tokens(answers, form(MISTRAL))[0].stray == ["[INST]"]


def rows() -> list[dict[str, Any]]:
    """Conversations that a tiny model learns by heart."""
    cities = ["Rome", "Oslo", "Bonn", "Bern", "Kyiv", "Riga", "Lima", "Graz"]
    return [
        {
            "messages": [
                {"role": "user", "content": f"Warm in {city}?"},
                {"role": "assistant", "content": None, "tool_calls": [
                    {"type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": city})}}]},
                {"role": "tool", "content": str(number)},
                {"role": "assistant", "content": f"{number} degrees."},
            ],
            "tools": TOOLS,
        }
        for number, city in enumerate(cities, start=10)
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_on_conversations_with_tools(here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    (here / "qwen.jinja").write_text(QWEN25.jinja, encoding="utf-8")
    overrides = [
        *tiny, "dataset=rows.jsonl", "trainer=full", "trainer.max_steps=150", "trainer.learning_rate=5e-3",
        "trainer.per_device_train_batch_size=8", "dedup=none", "decontaminate.method=none", "filter=answered",
        "template=file", "template.path=qwen.jinja", "template.special_tokens=['<|im_start|>','<|im_end|>']",
        "split.eval_share=0.3", "split.min_eval_rows=1", "evaluation.max_new_tokens=60", "hydra.run.dir=run",
        "evaluation.general=null", "evaluation.messages=last.json",
    ]  # fmt: skip
    (here / "last.json").write_text(json.dumps({"messages": rows()[0]["messages"][:3], "tools": TOOLS}))
    assert main(overrides) == 0
    folder = RunDir(here / "run")
    summary, outputs = read_json(folder.summary), read_lines(folder.outputs)
    assert 0.5 <= summary["outputs/call_share"] <= 1
    assert summary["base/outputs_call_share"] == 0
    assert [row["reference"] for row in outputs] == [CALL.replace("Rome", row["prompt"][8:-1]) for row in outputs]
    called = [row for row in outputs if row["tuned_calls"]]
    assert len(called) == summary["outputs/call_share"] * len(outputs)
    assert called[0]["tuned_calls"].startswith('weather {"city": "')
    (sample,) = read_lines(folder.samples)
    assert sample["prompt"] == "10"  # what the tool returned
    assert (sample["tuned_calls"], sample["tuned"][-9:]) == ("", " degrees.")
    assert (folder.path / "inputs/evaluation.messages.json").exists() or "evaluation.messages" in read_json(
        folder.manifest
    )["inputs"]
    page = folder.report.read_text(encoding="utf-8")
    assert '<div class="call" dir="auto"><b>calls</b> weather {&#34;city&#34;: &#34;' in page
    assert "call a known tool correctly" in page

    talk = {"messages": rows()[0]["messages"][:1], "tools": TOOLS}
    (here / "talk.jsonl").write_text(json.dumps(talk) + "\n" + json.dumps({**talk, "tools": []}) + "\n")
    capsys.readouterr()
    assert main(["generate", "run", "--messages", "talk.jsonl", "--max-new-tokens", "60"]) == 0
    shown = capsys.readouterr().out
    assert "conversation 1\n<tool_call>\n" in shown
    assert '\n\ntool call: weather {"city": "' in shown
    assert shown.index("tool call:") < shown.index("conversation 2\n")
    assert "tool call" not in shown[shown.index("conversation 2\n") :].replace("<tool_call>", "")
