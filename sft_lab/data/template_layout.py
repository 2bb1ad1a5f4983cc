"""Layouts: the text that a template writes around messages, so that each conversation is rendered only once."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from sft_lab.core.text import one_line
from sft_lab.data.messages import Message

MAX_CAUSE = 200  # characters
PRIVATE_USE = tuple(map(chr, range(0xE000, 0xF900)))  # characters without a meaning
_ROLES = {"system", "user", "assistant", "tool"}  # which templates compare with a message's role
_GENERATION = re.compile(r"{%-?\s*(?:end)?generation\s*-?%}")  # a statement of Transformers' own


@dataclass(frozen=True)
class Rendered:
    """One conversation as text.

    Attributes:
        text: without a generation prompt.
        spans: of each answer in the text, end-of-turn token included.
        cuts: positions that no token may cross, or else a message's own text would become a control token.
        contents: the span of each message's own text, if known.
        masked: spans of thoughts within ``spans`` that do not train.
        weights: of each span in the loss; empty if all are 1.
    """

    text: str
    spans: list[tuple[int, int]]
    cuts: list[int]
    contents: list[tuple[int, int]] = field(default_factory=list)
    masked: list[tuple[int, int]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


# Why the stage ``template`` drops a row; docs/data.md says what each means.
RenderReason = Literal[
    "template_refused", "tools_not_rendered", "tool_call_not_rendered", "message_not_rendered", "answer_not_rendered",
    "thought_not_rendered", "thought_not_closed", "rewrites_history", "no_end_of_turn", "no_end_of_text",
    "no_turn_trains", "too_many_turns", "nested_too_deeply", "template_kwargs_reserved", "template_kwargs_unreadable",
    "tools_unreadable", "documents_unreadable", "tool_calls_unreadable", "tool_arguments_not_json",
]  # fmt: skip


class CannotRender(Exception):
    """A conversation cannot be rendered.

    Attributes:
        reason: why the row is dropped.
        cause: the details, such as the template's own message (``raise_exception``); may be empty.
    """

    def __init__(self, reason: RenderReason, cause: str = "") -> None:
        super().__init__(f"{reason}: {cause}" if cause else reason)
        self.reason: RenderReason = reason
        self.cause = one_line(cause, MAX_CAUSE)

    @classmethod
    def by_template(cls, error: Exception) -> CannotRender:
        """Return it for an error that rendering raised."""
        return cls("template_refused", "endless recursion" if isinstance(error, RecursionError) else str(error))


_STRIPS: tuple[Callable[[str], str], ...] = (str, str.strip, str.lstrip, str.rstrip)


@dataclass(frozen=True)
class Layout:
    """How a template writes conversations with certain roles: the text around the contents of messages.

    It is determined once, by rendering contents that occur nowhere else; then each row's text is compared with it.

    Attributes:
        pieces: the text before, between and after the contents.
        strips: how the template strips each content.
        answers: the index of each answer, and the number of characters before and after it that train with it.
    """

    pieces: list[str]
    strips: list[Callable[[str], str]]
    answers: list[tuple[int, int, int]]

    @classmethod
    def of(cls, conversation: Callable[[list[Message]], Rendered], roles: tuple[str, ...]) -> Layout | None:
        """Return the layout, found by rendering; None if the template does not write each content once, in order."""
        contents = PRIVATE_USE[2 : 2 + len(roles)]
        if len(contents) < len(roles):
            return None
        try:
            bare, padded = (
                conversation([{"role": role, "content": around.format(content)}
                              for role, content in zip(roles, contents, strict=True)])
                for around in ("{}", " \n{} \n")
            )  # fmt: skip
        except CannotRender:
            return None
        pieces = re.split("|".join(contents), bare.text)
        if "".join(character for character in bare.text if character in contents) != "".join(contents):
            return None
        strips = []
        for content in contents:
            written = [strip for strip in _STRIPS if strip(f" \n{content} \n") in padded.text]
            if not written:
                return None
            strips.append(written[0])
        answers = []
        indices = [index for index, role in enumerate(roles) if role == "assistant"]
        for index, (start, end) in zip(indices, bare.spans, strict=True):
            position = bare.text.index(contents[index])
            answers.append((index, position - start, end - position - 1))
        return cls(pieces, strips, answers)

    def extended(self, exchanges: int, head: int) -> Layout:
        """Return the layout for more exchanges than this one's three, by repeating the second.

        Args:
            exchanges: their number, three or more.
            head: the number of messages before the first exchange.
        """
        added = exchanges - 3
        second, third = slice(head + 2, head + 4), head + 4
        pieces = [*self.pieces[:third], *self.pieces[second] * added, *self.pieces[third:]]
        strips = [*self.strips[:third], *self.strips[second] * added, *self.strips[third:]]
        around = [(before, behind) for _, before, behind in self.answers]
        around = [*around[:2], *around[1:2] * added, *around[2:]]
        return Layout(pieces, strips, [(head + 2 * i + 1, *trained) for i, trained in enumerate(around)])

    def locate(self, text: str, messages: list[Message]) -> Rendered | None:
        """Return a conversation's text with the spans of its answers and contents; None if it has another layout."""
        contents = [strip(message["content"]) for strip, message in zip(self.strips, messages, strict=True)]
        position = 0
        spans = []
        for piece, content in zip(self.pieces, contents, strict=False):
            if not text.startswith(piece + content, position):
                return None
            position += len(piece)
            spans.append((position, position + len(content)))
            position += len(content)
        if text[position:] != self.pieces[-1]:
            return None
        answers = [(spans[index][0] - before, spans[index][1] + behind) for index, before, behind in self.answers]
        return Rendered(text, answers, [], spans)


def literals(jinja: str) -> list[str]:
    """Return the strings that a template may look for in a message, in comparisons, tests, filters and calls."""
    import jinja2
    from jinja2 import nodes

    try:
        environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])  # noqa: S701 - nothing is rendered
        tree = environment.parse(_GENERATION.sub("", jinja))
    except jinja2.TemplateError:
        return [""]  # which is in every text; rendering will report the error
    literals: set[str] = set()
    for node in tree.find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test)):
        literals |= {const.value for const in node.find_all(nodes.Const) if isinstance(const.value, str)}
    keys = {node.arg.value for node in tree.find_all(nodes.Getitem) if isinstance(node.arg, nodes.Const)}
    return sorted(text for text in literals - keys - _ROLES if text.strip())
