"""Layouts: what a template writes around the messages, found once, so that a conversation is rendered once."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from sft_lab.core.text import one_line
from sft_lab.data.messages import Message

MAX_CAUSE = 200  # characters
PRIVATE_USE = tuple(map(chr, range(0xE000, 0xF900)))  # characters that stand for nothing
_ROLES = {"system", "user", "assistant", "tool"}  # compared with a message's role
_GENERATION = re.compile(r"{%-?\s*(?:end)?generation\s*-?%}")  # a statement of Transformers' own


@dataclass(frozen=True)
class Rendered:
    """One conversation as text.

    Attributes:
        text: without a generation prompt.
        spans: the characters of each answer, end-of-turn token included.
        cuts: places no token may lie across, since a message's own words would else become a control token.
        contents: the characters of each message's own text, where they are known.
        masked: characters within spans that are not trained: thoughts.
        weights: of each span in the loss; empty where every one is 1.
    """

    text: str
    spans: list[tuple[int, int]]
    cuts: list[int]
    contents: list[tuple[int, int]] = field(default_factory=list)
    masked: list[tuple[int, int]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


class CannotRender(Exception):
    """A conversation cannot be rendered.

    Attributes:
        reason: why the row is dropped.
        cause: what exactly is the matter, such as the template's own words (``raise_exception``); may be empty.
    """

    def __init__(self, reason: str, cause: str = "") -> None:
        super().__init__(f"{reason}: {cause}" if cause else reason)
        self.reason, self.cause = reason, one_line(cause, MAX_CAUSE)

    @classmethod
    def by_template(cls, error: Exception) -> CannotRender:
        """Return it for what rendering raised."""
        return cls("template_refused", "calls itself without end" if isinstance(error, RecursionError) else str(error))


_STRIPS: tuple[Callable[[str], str], ...] = (str, str.strip, str.lstrip, str.rstrip)


@dataclass(frozen=True)
class Layout:
    """How a template writes conversations whose messages have certain roles: what stands around their contents.

    Found out once by rendering contents that occur nowhere else; then each row's text is held against it.

    Attributes:
        pieces: before, between and behind the contents.
        strips: what the template takes off each content's ends.
        answers: index of each answer, and how many characters before and behind it are trained with it.
    """

    pieces: list[str]
    strips: list[Callable[[str], str]]
    answers: list[tuple[int, int, int]]

    @classmethod
    def of(cls, conversation: Callable[[list[Message]], Rendered], roles: tuple[str, ...]) -> Layout | None:
        """Find the layout by rendering; None where a template writes more or less than the contents, in their order."""
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
        """Return the layout of more exchanges than the three of this one: the second is repeated.

        Args:
            exchanges: how many there are, three or more.
            head: messages before the first exchange.
        """
        added = exchanges - 3
        second, third = slice(head + 2, head + 4), head + 4
        pieces = [*self.pieces[:third], *self.pieces[second] * added, *self.pieces[third:]]
        strips = [*self.strips[:third], *self.strips[second] * added, *self.strips[third:]]
        around = [(before, behind) for _, before, behind in self.answers]
        around = [*around[:2], *around[1:2] * added, *around[2:]]
        return Layout(pieces, strips, [(head + 2 * i + 1, *trained) for i, trained in enumerate(around)])

    def locate(self, text: str, messages: list[Message]) -> Rendered | None:
        """Return where answers and contents are in a conversation's text; None if it is not written by this layout."""
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
    """Return the texts that a template may look for in a message: those that are compared, searched for or split by."""
    import jinja2
    from jinja2 import nodes

    try:
        environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])  # noqa: S701 - nothing is rendered
        tree = environment.parse(_GENERATION.sub("", jinja))
    except jinja2.TemplateError:
        return [""]  # every text may be what it looks for; if it is no template, rendering says so
    literals: set[str] = set()
    for node in tree.find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test)):
        literals |= {const.value for const in node.find_all(nodes.Const) if isinstance(const.value, str)}
    keys = {node.arg.value for node in tree.find_all(nodes.Getitem) if isinstance(node.arg, nodes.Const)}
    return sorted(text for text in literals - keys - _ROLES if text.strip())
