"""Files of conversations for a model to continue."""

from __future__ import annotations

import json
from pathlib import Path

import chat_shapes
import pytest

from sft_lab.core.errors import UserError
from sft_lab.data.conversation_file import read_conversations
from sft_lab.data.examples import ExampleMaker
from sft_lab.data.renderer import Renderer
from sft_lab.data.trained_turns import LabelRules

TALK = [
    {"role": "user", "content": "How warm is it?"},
    {"role": "assistant", "content": None, "reasoning_content": "I ask.", "weight": 0,
     "tool_calls": [{"id": "1", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]},
    {"role": "tool", "tool_call_id": "1", "content": "31"},
]  # fmt: skip
TOOL = {"name": "weather", "parameters": {"type": "object"}}


def test_a_list_an_object_and_lines_of_them(tmp_path: Path) -> None:
    file = tmp_path / "talk"
    bodies = [json.dumps(TALK), json.dumps({"messages": TALK, "tools": json.dumps([TOOL])})]
    for text in (*bodies, json.dumps(TALK, indent=2), f"\ufeff{bodies[0]}"):
        file.write_text(text, encoding="utf-8")
        (conversation,) = read_conversations(file, "talk").values()
        assert [message["role"] for message in conversation.messages] == ["user", "assistant", "tool"]
        assert conversation.messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Rome"}
        assert "weight" not in conversation.messages[1]
        assert conversation.inputs == ({"tools": [TOOL]} if "tools" in text else {})
    file.write_text("\n\n".join(bodies) + "\n", encoding="utf-8")
    assert [*read_conversations(file, "talk")] == ["talk, line 1", "talk, line 3"]


def test_the_prompt_is_what_the_model_was_trained_on(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    file.write_text(json.dumps({"messages": TALK, "tools": [TOOL]}), encoding="utf-8")
    (conversation,) = read_conversations(file, "talk").values()
    shape = chat_shapes.QWEN3
    maker = ExampleMaker(Renderer(shape.tokenizer, shape.jinja), LabelRules())
    prompt = maker.prompt(conversation)
    (trained,) = [
        example.text[: example.spans[-1][0]]
        for example in maker(type(conversation)([*conversation.messages, {"role": "assistant", "content": "31."}],
                                                conversation.inputs))
    ]  # fmt: skip
    assert prompt.text == trained
    assert "<think>\nI ask.\n</think>" in prompt.text


def test_a_device_is_not_read() -> None:
    with pytest.raises(UserError, match=r"^--messages /dev/zero: a device or a pipe; give a file with a JSON list"):
        read_conversations(Path("/dev/zero"), "--messages /dev/zero")
