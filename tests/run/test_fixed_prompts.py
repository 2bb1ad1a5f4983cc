"""What the models are asked: the prompts of the config, or those of the user's own held-out rows."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from sft_lab import compose
from sft_lab.core.rows import Rows
from sft_lab.data.template_input import Conversation
from sft_lab.run.fixed_prompts import MAX_CHARACTERS, FixedPrompt, fixed_prompts

TOOLS = '[{"name": "look"}]'


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
    assert fixed_prompts(None, rows) == [*map(FixedPrompt.of, ("Where?", "When?", "Why?"))]
    assert fixed_prompts(None, held_out("Where?")) == [FixedPrompt.of("Where?")]
    assert fixed_prompts(None, rows.take([])) == []


def test_chosen_ones_come_first() -> None:
    assert fixed_prompts(["How?", "How?"], held_out("Where?")) == [FixedPrompt.of("How?")] * 2
    assert fixed_prompts([], held_out("Where?")) == []


def test_a_prompt_brings_the_tools_of_its_row() -> None:
    rows = [
        {
            "id": "1",
            "prompt": "Where?",
            "answer": "",
            "messages": [{"role": "user", "content": "Where?"}],
            "tools": TOOLS,
        }
    ]
    (prompt,) = fixed_prompts(None, Rows(Dataset.from_list(rows), np.arange(1), "key"))
    assert prompt == FixedPrompt.of("Where?", TOOLS)
    assert prompt.conversation.inputs == {"tools": [{"name": "look"}]}


def test_conversations_stand_behind_the_prompts_or_in_place_of_rows() -> None:
    talk = Conversation([*({"role": role, "content": role} for role in ("user", "assistant", "tool"))])
    assert fixed_prompts(None, held_out("Where?"), [talk]) == [("tool", talk)]
    assert [prompt.text for prompt in fixed_prompts(["How?"], held_out("Where?"), [talk])] == ["How?", "tool"]


def test_the_bundled_conversations_bring_theirs(tiny: list[str]) -> None:
    assert "comet" in (compose(tiny).evaluation.prompts or [""])[0]
    assert compose([*tiny, "evaluation.prompts=[Hello]"]).evaluation.prompts == ["Hello"]
    assert compose([*tiny, "dataset=hub", "dataset.name=a/b"]).evaluation.prompts is None
