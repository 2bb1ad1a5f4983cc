"""Our labels compared with TRL's on 200 rows with tools and thoughts: assistant masks, and prompt and completion."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import chat_shapes
import datasets
import pytest
import trl

from sft_lab.core.context import StageContext
from sft_lab.core.rows import Rows
from sft_lab.core.store import Store
from sft_lab.core.types import IGNORED
from sft_lab.data.chat_template import Jinja
from sft_lab.data.tokens_and_labels import encode
from sft_lab.data.trained_turns import LabelRules, TrainOn

pytestmark = pytest.mark.slow

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {}}}]
Talk = list[dict[str, Any]]


def talks(count: int) -> list[Talk]:
    """Conversations of one to three exchanges, with a system turn, a tool call and thoughts in some."""
    dice = random.Random(5)

    words = ["rain", "city", "sun", "Rome", "wet", "dry\n", "no", "yes.", "ask,", "see?"]

    def text(longest: int) -> str:
        return " ".join(dice.choices(words, k=dice.randint(1, longest)))

    def answer(content: str, **fields: Any) -> dict[str, Any]:
        thought = {"reasoning_content": text(6).strip()} if dice.random() < 0.5 else {}
        return {"role": "assistant", "content": content.strip(), **thought, **fields}

    rows = []
    for _ in range(count):
        row: Talk = [{"role": "system", "content": text(5)}] if dice.random() < 0.3 else []
        for _ in range(dice.randint(1, 3)):
            row.append({"role": "user", "content": text(9)})
            if dice.random() < 0.6:
                call = {
                    "id": "abcdefghi",
                    "type": "function",
                    "function": {"name": "weather", "arguments": {"city": text(2)}},
                }
                row.append(answer("", tool_calls=[call]))
                row.append({"role": "tool", "tool_call_id": "abcdefghi", "content": json.dumps({"sky": text(3)})})
            row.append(answer(text(12) + "."))
        rows.append(row)
    return rows


ROWS = talks(200)


def ours(jinja: str, rows: list[Talk], folder: Path, train_on: TrainOn) -> list[list[tuple[list[int], list[int]]]]:
    """Return tokens and labels of the examples of each row."""
    (folder / "own.jinja").write_text(jinja, encoding="utf-8")
    stored = [
        [
            {**message, "tool_calls": json.dumps(message["tool_calls"])} if "tool_calls" in message else message
            for message in row
        ]
        for row in rows
    ]
    size = len(rows)
    columns = {"prompt": ["a"] * size, "answer": ["b"] * size, "messages": stored, "tools": [json.dumps(TOOLS)] * size}
    view = Rows.of(datasets.Dataset.from_dict(columns))
    context = StageContext(Store(folder / "store"), lambda: chat_shapes.QWEN3.tokenizer)
    encoded = encode(view, Jinja(path=str(folder / "own.jinja")), context, LabelRules(train_on))
    assert encoded.selection(view).dropped == {}
    examples: list[list[tuple[list[int], list[int]]]] = [[] for _ in rows]
    for row, example in zip(encoded.row_of_example(view), encoded.tokens(view, loss_on_all=False), strict=True):
        examples[row].append((example["input_ids"], example["labels"]))
    return examples


def theirs(jinja: str, columns: dict[str, list[Any]], run, context, folder: Path, **options: Any) -> list[Any]:
    """Return tokens and labels as TRL prepares them."""
    config = trl.SFTConfig(
        output_dir=str(folder / "trl"), use_cpu=True, bf16=False, report_to="none", max_length=None, disable_tqdm=True,
        gradient_checkpointing=False, **options,
    )  # fmt: skip
    tokenizer = chat_shapes.QWEN3.tokenizer
    tokenizer.chat_template = jinja
    rows = datasets.Dataset.from_dict({**columns, "tools": [TOOLS] * len(ROWS)})
    model = run.model.load(context, seed=3)
    trainer = trl.SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


def test_assistant_masks(run, context, tmp_path: Path) -> None:
    """TRL's own template for training Qwen 3 shows every thought, so that a row is one example.

    It marks the line break behind an end of turn too, which no model writes before it stops. Nothing else differs.
    """
    jinja = (TEMPLATES / "qwen3_training.jinja").read_text(encoding="utf-8")
    masked = theirs(jinja, {"messages": ROWS}, run, context, tmp_path, assistant_only_loss=True)
    end, line_break = (chat_shapes.QWEN3.tokenizer(text)["input_ids"] for text in ("<|im_end|>", "\n"))
    for (example,), (ids, labels) in zip(ours(jinja, ROWS, tmp_path, TrainOn.all), masked, strict=True):
        for place in range(1, len(ids)):
            if ids[place - 1 : place + 1] == [*end, *line_break]:
                labels[place] = IGNORED
        assert example == (ids, labels)


def test_prompt_and_completion(run, context, tmp_path: Path) -> None:
    """The last turn of each row, under Qwen 3's own template: the prompt is what the model is given there.

    TRL trains the line break behind the end of turn here too.
    """
    jinja = (TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8")
    columns = {"prompt": [row[:-1] for row in ROWS], "completion": [row[-1:] for row in ROWS]}
    masked = theirs(jinja, columns, run, context, tmp_path)
    for (example,), (ids, labels) in zip(ours(jinja, ROWS, tmp_path, TrainOn.last), masked, strict=True):
        assert chat_shapes.QWEN3.tokenizer.decode(ids[-1:]) == "\n"
        assert example == (ids, [*labels[:-1], IGNORED])
