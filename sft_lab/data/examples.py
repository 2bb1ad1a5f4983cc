"""Training examples: the text of a conversation, and which parts of it train.

A template that hides the thoughts of earlier turns shows the model a different text at each turn. Such a conversation
becomes several examples, each as the model sees it when it writes the turns that train there.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from sft_lab.data.control_tokens import refuse_missing_tools
from sft_lab.data.messages import Message
from sft_lab.data.renderer import Renderer, ThoughtStyle
from sft_lab.data.template_input import (
    PLAIN_FIELDS,
    Conversation,
    arguments_as_text,
    split_thought,
    thought_of,
    with_thought_inside,
    without_thought,
)
from sft_lab.data.template_layout import CannotRender, Rendered
from sft_lab.data.trained_turns import LabelRules, Reasoning, Unroll

MAX_UNROLLED = 200  # examples of a conversation, each of which repeats all turns before it
REWRITTEN = ("rewrites_history", "no_end_of_turn")  # the template writes an earlier turn differently at the end
_CLOSED = re.compile(r"\s*</think>")


class ExampleMaker:
    """Makes the training examples of conversations.

    Args:
        renderer: of the template.
        rules: which parts train.
    """

    def __init__(self, renderer: Renderer, rules: LabelRules) -> None:
        self.renderer = renderer
        self.rules = rules

    def __call__(self, conversation: Conversation) -> list[Rendered]:
        """Return the examples of a conversation; a single one if the template writes earlier turns as it did at first.

        Raises:
            CannotRender: if the template refuses it, or does not write what would be trained.
        """
        messages = self.renderer.adapted(conversation.messages)
        weights = self.rules.weights(messages)
        messages = [self._prepared(message) for message in messages]
        if not conversation.inputs and all(message.keys() <= PLAIN_FIELDS for message in messages):
            turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
            try:
                return [self._labelled(self.renderer.conversation(messages), turns, messages, weights)]
            except CannotRender as error:
                if error.reason not in REWRITTEN:
                    raise
        return self._unrolled(messages, conversation.inputs, weights)

    def prompt(self, conversation: Conversation) -> Rendered:
        """Return a conversation for the model to continue, rendered as it would be before a turn that trains.

        Raises:
            CannotRender: if the template refuses it, or does not write its thoughts or tools.
        """
        rendered = self.renderer.prompt(self.messages_of_prompt(conversation.messages), conversation.inputs)
        refuse_missing_tools(conversation.inputs, rendered.text)
        return rendered

    def messages_of_prompt(self, messages: list[Message]) -> list[Message]:
        """Return messages with thoughts and calls in the form that they have before a turn that trains."""
        messages = [*map(self._prepared, messages)]
        return [*map(without_thought, messages)] if self.renderer.thought_style is ThoughtStyle.prompt else messages

    def _prepared(self, message: Message) -> Message:
        """Return a message with its thought and its tool calls in the form that the template takes."""
        if "weight" in message:
            message = {name: value for name, value in message.items() if name != "weight"}
        if message["role"] != "assistant":
            return message
        if "tool_calls" in message and self.renderer.call_style[1]:
            message = arguments_as_text(message)
        if "reasoning_content" not in message and "think>" not in message["content"]:
            return message
        if self.rules.reasoning is Reasoning.drop:
            return without_thought(split_thought(message))
        style = self.renderer.thought_style
        if style is ThoughtStyle.inside:
            return with_thought_inside(message)
        if style is ThoughtStyle.none and thought_of(message):
            raise CannotRender("thought_not_rendered")
        return split_thought(message)

    def _unrolled(
        self, messages: list[Message], inputs: dict[str, Any], weights: dict[int, float]
    ) -> list[Rendered]:  # fmt: skip
        """Return an example of the whole conversation, and one up to each turn whose thought is hidden later."""
        is_prompted = self.renderer.thought_style is ThoughtStyle.prompt
        prompted = {index: thought for index in weights if is_prompted and (thought := thought_of(messages[index]))}
        written = [without_thought(message) for message in messages] if prompted else messages
        examples = []
        stop, missing = len(messages), set(weights)
        while missing:
            last = stop - 1
            visible = [index for index in missing if index not in prompted or index == last]
            rendered, turns, hidden = self.renderer.turns(written[:stop], inputs, visible)
            if last in missing and last not in turns:
                rendered, turns = self.renderer.last_turn(written[:stop], inputs), [last]
            if last in prompted and last in turns:
                rendered = self._opened(rendered, written[:last], inputs, prompted[last])
            if turns:
                examples.append(self._labelled(rendered, turns, messages, weights))
            missing -= set(turns)
            if missing and (self.rules.unroll is Unroll.never or stop == max(missing) + 1):
                raise hidden or CannotRender("thought_not_rendered")
            if len(missing) > MAX_UNROLLED:
                raise CannotRender("too_many_turns")
            stop = max(missing, default=0) + 1
        return examples

    def _opened(self, rendered: Rendered, prompt: list[Message], inputs: dict[str, Any], thought: str) -> Rendered:
        """Return a text with the last turn's thought added, which begins where the generation prompt ends."""
        opening = self.renderer.prompt(prompt, inputs).text
        *earlier, (start, end) = rendered.spans
        if opening.rstrip() != f"{rendered.text[:start]}<think>":
            raise CannotRender("thought_not_rendered")
        added = f"{opening[start:]}{thought}\n</think>\n\n"
        cuts = [cut if cut < start else cut + len(added) for cut in rendered.cuts]
        cuts += [len(opening) + cut for cut in self.renderer.cuts(thought)]
        text = rendered.text[:start] + added + rendered.text[start:]
        return replace(rendered, text=text, spans=[*earlier, (len(opening), end + len(added))], cuts=sorted(cuts))

    def _labelled(
        self, rendered: Rendered, turns: list[int], messages: list[Message], weights: dict[int, float]
    ) -> Rendered:
        """Return a text with the spans of the turns that train, their weights, and its masked thoughts."""
        kept = [(index, span) for index, span in zip(turns, rendered.spans, strict=True) if index in weights]
        values = [weights[index] for index, _ in kept]
        masked = []
        if self.rules.reasoning is Reasoning.mask:
            masked = [block for index, span in kept if (block := _thought_block(rendered.text, span, messages[index]))]
        return replace(
            rendered, spans=[span for _, span in kept], masked=masked, weights=values if set(values) != {1.0} else []
        )


def _thought_block(text: str, span: tuple[int, int], message: Message) -> tuple[int, int] | None:
    """Return the span of a turn up to the end of its thought, closing tag included; None without a thought."""
    thought = thought_of(message)
    start = text.find(thought, *span) if thought else -1
    if start < 0:
        return None
    end = start + len(thought)
    closed = _CLOSED.match(text, end)
    return span[0], closed.end() if closed else end
