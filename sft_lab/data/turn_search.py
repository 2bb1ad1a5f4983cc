"""Locating assistant turns in a conversation's text, by rendering it again with such a turn replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sft_lab.data.messages import Message
from sft_lab.data.template_layout import CannotRender


@dataclass(frozen=True)
class TurnSearch:
    """A conversation that was rendered.

    Attributes:
        render: renders other messages in the same way; True: followed by the generation prompt.
        text: of the conversation.
        messages: of the conversation.
        blank: a character that does not occur in them.
    """

    render: Callable[[list[Message], bool], str]
    text: str
    messages: list[Message]
    blank: str

    def answer(self, index: int) -> tuple[int, int]:
        """Return where the text of a turn without calls begins and ends.

        Raises:
            CannotRender: if the template changes the text.
        """
        before, separator, after = self._rendered_with(index, content=self.blank).partition(self.blank)
        end = len(self.text) - len(after)
        is_answer = self.text[len(before) : end].strip() == self.messages[index]["content"].strip()
        if not (separator and self.text.startswith(before) and self.text.endswith(after) and is_answer):
            raise CannotRender("answer_not_rendered")
        return len(before), end

    def call(self, index: int, ends: list[str]) -> tuple[int, int]:
        """Return where the arguments of a turn's calls begin, and where the turn ends.

        The text that changes with other arguments belongs to this turn. The first token after it that ends a turn must
        come before the text that changes with another next message.

        Args:
            index: of the turn.
            ends: the tokens that end such a turn.

        Raises:
            CannotRender: if nothing changes, or there is no such token.
        """
        calls = [
            {**call, "function": {**call["function"], "arguments": self._other(call["function"]["arguments"])}}
            for call in self.messages[index]["tool_calls"]
        ]
        first, last = self._difference(self._rendered_with(index, tool_calls=calls))
        if first == len(self.text):
            raise CannotRender("tool_call_not_rendered")
        stops = [position + len(end) for end in ends if (position := self.text.find(end, last)) >= 0]
        limit = len(self.text)
        if self.messages[index + 1 :] and self.messages[index + 1]["content"].strip():
            limit, _ = self._difference(self._rendered_with(index + 1, content=self.blank))
        if not stops or min(stops) > limit:
            raise CannotRender("no_end_of_turn")
        return first, min(stops)

    def start(self, index: int, first: int) -> int:
        """Return where training begins: after the generation prompt, if the text begins with it.

        Reasoning templates open a thought in the generation prompt that a finished answer does not have, and others
        write something at the end of every text. It is enough that all earlier messages are written as they were then.

        Args:
            index: of the turn.
            first: where the text of the answer begins, or the arguments of its calls.

        Raises:
            CannotRender: if the text before is not what the model was given.
        """
        before = self.text[:first]
        generation_prompt = self.render(self.messages[:index], True)
        if before.startswith(generation_prompt):
            return len(generation_prompt)
        if self.messages[index].get("tool_calls"):
            answered = [*self.messages[:index], {"role": "assistant", "content": self.blank}]
            before = self.render(answered, False).partition(self.blank)[0]
        earlier = [*self.messages[: index - 1], {**self.messages[index - 1], "content": self.blank}]
        earlier_text = self.render(earlier, False).partition(self.blank)[0]
        if not (self.text[:first].startswith(before) and before.startswith(earlier_text)):
            raise CannotRender("rewrites_history")
        return len(before)

    def behind_prompt(self, first: int) -> tuple[str, int]:
        """Return the prompt that the last turn answered, now written differently, and where that turn begins.

        Args:
            first: as for ``start``.

        Raises:
            CannotRender: if its beginning cannot be located.
        """
        index = len(self.messages) - 1
        prompt, without = self.render(self.messages[:index], True), self.render(self.messages[:index], False)
        _, behind = self._difference(self._rendered_with(index - 1, content=self.blank))
        header = prompt.removeprefix(without)
        start = self.text.find(header, behind) + len(header)
        if header in ("", prompt) or not behind < start <= first:
            raise CannotRender("rewrites_history")
        return prompt, start

    def _other(self, arguments: object) -> object:
        """Return arguments that no call has, as an object or as JSON text like ``arguments``."""
        return f'{{"{self.blank}": "{self.blank}"}}' if isinstance(arguments, str) else {self.blank: self.blank}

    def _rendered_with(self, index: int, **fields: object) -> str:
        changed = {**self.messages[index], **fields}
        return self.render([*self.messages[:index], changed, *self.messages[index + 1 :]], False)

    def _difference(self, other: str) -> tuple[int, int]:
        """Return where the text begins and ceases to differ from another."""
        first = _common(self.text, other)
        rest = _common(self.text[first:][::-1], other[first:][::-1])
        return first, len(self.text) - rest


def _common(left: str, right: str) -> int:
    """Return the length of the common prefix of two texts."""
    low, high = 0, min(len(left), len(right))
    while low < high:  # bisection, since comparing slices is faster than comparing characters
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
