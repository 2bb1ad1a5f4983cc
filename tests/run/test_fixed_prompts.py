"""What the models are asked: the prompts of the config, or those of the user's own held-out rows."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from sft_lab import compose
from sft_lab.core.rows import Rows
from sft_lab.run.fixed_prompts import MAX_CHARACTERS, fixed_prompts


def held_out(*prompts: str) -> Rows:
    rows = [
        {
            "id": str(number),
            "prompt": text,
            "answer": "",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}],
        }
        for number, text in enumerate(prompts)
    ]
    return Rows.of(Dataset.from_list(rows))


def test_the_first_short_ones_each_once() -> None:
    rows = held_out("Where?", "x" * (MAX_CHARACTERS + 1), "Where?", "When?", "Why?", "Who?")
    assert fixed_prompts(None, rows) == [("Where?", None), ("When?", None), ("Why?", None)]
    assert fixed_prompts(None, held_out("Where?")) == [("Where?", None)]
    assert fixed_prompts(None, rows.take([])) == []


def test_chosen_ones_come_first() -> None:
    assert fixed_prompts(["How?", "How?"], held_out("Where?")) == [("How?", None)] * 2
    assert fixed_prompts([], held_out("Where?")) == []


def test_a_prompt_brings_the_tools_of_its_row() -> None:
    rows = [
        {
            "id": "1",
            "prompt": "Where?",
            "answer": "",
            "messages": [{"role": "user", "content": "Where?"}],
            "tools": "[]",
        }
    ]
    (prompt,) = fixed_prompts(None, Rows(Dataset.from_list(rows), np.arange(1), "key"))
    assert prompt == ("Where?", "[]")


def test_the_bundled_conversations_bring_theirs(tiny: list[str]) -> None:
    assert "comet" in (compose(tiny).evaluation.prompts or [""])[0]
    assert compose([*tiny, "evaluation.prompts=[Hello]"]).evaluation.prompts == ["Hello"]
    assert compose([*tiny, "dataset=hub", "dataset.name=a/b"]).evaluation.prompts is None
