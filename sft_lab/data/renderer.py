"""Rendering: a conversation becomes text, with the spans of its answers.

The text is rendered as a whole, so it has at most one BOS and no generation prompt. An answer is located by rendering
the conversation again with the answer replaced by a character that occurs nowhere else: whatever differs between the
common beginning and the common end is the answer, whatever the template does to it and wherever else its words occur.
The part that trains begins where the generation prompt ends and includes the end-of-turn token. Templates need no
special tags for this.

A control token in a message's own text (a user writes ``<|im_end|>``) stays ordinary text, so that no turn can be
forged: the positions where the tokenizer must not join characters are kept with the text.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Collection
from dataclasses import replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sft_lab.core.context import today
from sft_lab.core.errors import ModelError
from sft_lab.core.text import CONTROL_TOKENS
from sft_lab.data import clock
from sft_lab.data.control_tokens import (
    control_pattern,
    escaped,
    marked_values,
    refuse_missing,
    refuse_missing_tools,
    unmarked,
    unused_characters,
)
from sft_lab.data.messages import Message
from sft_lab.data.template_layout import PRIVATE_USE, CannotRender, Layout, Rendered, literals
from sft_lab.data.trained_turns import SystemTurn
from sft_lab.data.turn_search import TurnSearch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXCHANGE = ("user", "assistant")
MAX_SEARCHED = 2000  # messages of a conversation that is rendered again for each answer
_BLANK = PRIVATE_USE[0]


class ThoughtStyle(Enum):
    """How a template writes a thought.

    ``field``: from ``reasoning_content``. ``inside``: as ``<think>...</think>`` in the content. ``prompt``: not at all,
    but its generation prompt ends with ``<think>``. ``none``: not at all.
    """

    field = "field"
    inside = "inside"
    prompt = "prompt"
    none = "none"


class Renderer:
    """A template bound to a tokenizer.

    Args:
        tokenizer: whose special tokens are used, and which runs the Jinja text in its sandbox.
        jinja: the template's text.
        date: for a template that uses one; None: today.
        system: how a system turn is treated.

    Attributes:
        date: that date; None for a template that uses none.

    Raises:
        ModelError: if the template writes no end-of-turn token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        jinja: str,
        date: datetime.date | None = None,
        system: SystemTurn = SystemTurn.keep,
    ) -> None:
        self.tokenizer = tokenizer
        self._system = system
        self.jinja = jinja
        self.date = (date or today()) if clock.is_read(jinja) else None
        added = tokenizer.added_tokens_decoder.values()
        special = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
        # Tokens that a template writes mark turns, special or not; an answer may legitimately contain some (<think>).
        written = {str(token) for token in added if str(token) in jinja and not str(token).isspace()}
        self._special = sorted(special)
        self._control = {"assistant": control_pattern(special)}
        self._control["user"] = self._control["system"] = control_pattern(special | written)
        self._tokens = (sorted(special | written), sorted(special))  # of users and systems, of the assistant
        ids = tokenizer("a")["input_ids"]
        starts_with_bos = bool(ids) and ids[0] == tokenizer.bos_token_id
        self._bos = str(tokenizer.bos_token) if starts_with_bos else ""
        self._layouts: dict[tuple[str, ...], Layout | None] = {}
        self._literals = literals(jinja)
        self.end_of_turn, self.closing = self._find_closing()
        self.end_of_turn_id = int(tokenizer.convert_tokens_to_ids(self.end_of_turn))

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end an answer: the template's end of turn, and EOS where the tokenizer has one."""
        return sorted({self.end_of_turn_id, self.tokenizer.eos_token_id} - {None})

    @property
    def foreign(self) -> list[str]:
        """Control tokens of other models that the template writes before its end of turn, as text for this one."""
        inside = self.closing.removesuffix(self.end_of_turn)
        return [token for token in CONTROL_TOKENS if token in inside]

    def adapted(self, messages: list[Message]) -> list[Message]:
        """Return messages whose first turn the template accepts, such as a developer's turn as a system turn."""
        if not messages or messages[0]["role"] not in ("system", "developer"):
            return messages
        first, *rest = messages
        if first["role"] == "developer" and "developer" not in self.jinja:
            first = {**first, "role": "system"}
        if self._system is SystemTurn.drop:
            return rest
        if self._system is SystemTurn.merge and not self._takes_system and rest and rest[0]["role"] == "user":
            return [{**rest[0], "content": f"{first['content']}\n\n{rest[0]['content']}"}, *rest[1:]]
        return [first, *rest]

    def prompt(self, messages: list[Message], inputs: dict[str, Any] | None = None) -> Rendered:
        """Return the prompt that the model is given to answer.

        Args:
            messages: of the conversation so far.
            inputs: ``tools``, ``documents`` and other variables of the template.

        Raises:
            CannotRender: if the template refuses it.
        """
        messages = self.adapted(messages)
        mark, _ = unused_characters(messages, inputs)
        marked = [self._marked(message, mark) for message in messages]
        text = self._render(marked, marked_values(inputs or {}, self._control["user"], mark), mark, prompt=True)
        return unmarked(text, [], mark)

    def conversation(self, messages: list[Message]) -> Rendered:
        """Return a conversation that ends with the assistant, rendered.

        It is rendered once if the template has a ``Layout`` for these roles, and otherwise again for each answer.

        Raises:
            CannotRender: if the template refuses it, leaves out or changes content (except white space at its ends), or
                does not write each answer after the prompt for it and with an end of turn.
        """
        layout = self._layout(tuple(message["role"] for message in messages))
        if layout and not any(map(self._is_special, messages)):
            text = self._render(messages)
            if rendered := layout.locate(text, messages):
                return rendered
        return self._conversation(messages)

    def _layout(self, roles: tuple[str, ...]) -> Layout | None:
        if roles not in self._layouts:
            self._layouts[roles] = self._find_layout(roles)
        return self._layouts[roles]

    def _find_layout(self, roles: tuple[str, ...]) -> Layout | None:
        head = roles[:1] if roles[0] == "system" else ()
        exchanges = (len(roles) - len(head)) // 2
        if roles != head + EXCHANGE * exchanges or exchanges <= 4:
            return Layout.of(self._conversation, roles) if len(roles) <= MAX_SEARCHED else None
        # The layouts of three and four exchanges show what the template writes for more.
        three, four = (self._layout(head + EXCHANGE * count) for count in (3, 4))
        if three and four and three.extended(4, len(head)) == four:
            return three.extended(exchanges, len(head))
        return Layout.of(self._conversation, roles) if len(roles) <= MAX_SEARCHED else None

    def _is_special(self, message: Message) -> bool:
        """Return whether the template may react to a message's content, or the content has a control token."""
        content = message["content"]
        return any(literal in content for literal in self._literals) or any(
            token in content for token in self._tokens[message["role"] == "assistant"]
        )

    def _conversation(self, messages: list[Message]) -> Rendered:
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        rendered, _, hidden = self.turns(messages, {}, turns, shows_all=True)
        if hidden:
            raise hidden
        return rendered

    def turns(
        self, messages: list[Message], inputs: dict[str, Any], wanted: Collection[int], *, shows_all: bool = False
    ) -> tuple[Rendered, list[int], CannotRender | None]:
        """Render a conversation and locate assistant turns, from the last back to one that the template hides.

        Args:
            messages: of the conversation.
            inputs: ``tools``, ``documents`` and other variables of the template.
            wanted: indices of the turns to locate.
            shows_all: refuse a conversation with an answer left out or changed before any turn is located.

        Returns:
            The text with the spans of the turns that were located, their indices, and why the turn before them is not
            shown as the model writes it, None if all are.

        Raises:
            CannotRender: if the template refuses it, or leaves out or changes content.
        """
        search, mark = self._searched(messages, inputs)
        text, marked = search.text, search.messages
        refuse_missing(marked if shows_all else [m for m in marked if m["role"] != "assistant"], text)
        spans, indices, hidden = [], [], None
        for index in sorted(wanted, reverse=True):
            try:
                first, end = self._stretch(search, index)
                start = search.start(index, first)
                refuse_missing([marked[index]], text[start:end])
            except CannotRender as error:
                hidden = error
                break  # a template hides the same in all earlier turns, and locating each takes renderings
            spans.append((start, end))
            indices.append(index)
        return unmarked(text, spans[::-1], mark), indices[::-1], hidden

    def last_turn(self, messages: list[Message], inputs: dict[str, Any]) -> Rendered:
        """Return the prompt of a conversation's last turn followed by that turn.

        This is for templates that write earlier messages differently once the turn is finished.

        Raises:
            CannotRender: if the turn's content is changed.
        """
        search, mark = self._searched(messages, inputs)
        first, end = self._stretch(search, len(messages) - 1)
        prompt, start = search.behind_prompt(first)
        refuse_missing(search.messages[-1:], search.text[start:end])
        span = (len(prompt), len(prompt) + end - start)
        return unmarked(prompt + search.text[start:], [span], mark)

    def _searched(self, messages: list[Message], inputs: dict[str, Any]) -> tuple[TurnSearch, str]:
        """Return a rendered conversation to locate turns in, and the mark in its control tokens."""
        limit = MAX_SEARCHED if all(len(message) == 2 for message in messages) else MAX_SEARCHED // 2
        if len(messages) > limit:  # the time grows with the square of their number
            raise CannotRender("too_many_turns", f"{len(messages):,} messages, more than {limit:,}")
        mark, blank = unused_characters(messages, inputs)
        marked = [self._marked(message, mark) for message in messages]
        marked_inputs = marked_values(inputs, self._control["user"], mark)

        def render(messages: list[Message], prompt: bool) -> str:
            return self._render(messages, marked_inputs, mark, prompt=prompt)

        text = render(marked, False)
        refuse_missing_tools(marked_inputs, text)
        return TurnSearch(render, text, marked, blank), mark

    def _stretch(self, search: TurnSearch, index: int) -> tuple[int, int]:
        """Return where an answer's text, or its calls' arguments, begin and where its turn ends."""
        if search.messages[index].get("tool_calls"):
            return search.call(index, sorted({self.end_of_turn, self.call_style[0]}))
        first, end = search.answer(index)
        if not search.text.startswith(self.closing, end):
            raise CannotRender("no_end_of_turn")
        return first, end + len(self.closing)

    def cuts(self, text: str) -> list[int]:
        """Return the positions in a message's own text that no token may cross."""
        control = self._control["user"]
        return [match.end() for match in control.finditer(text)] if control else []

    def plain_text(self, text: str) -> Rendered:
        """Return plain text between BOS, if the tokenizer adds one, and EOS, without a template; all of it trains.

        Raises:
            CannotRender: if the tokenizer has no EOS, so that the model could not learn to stop.
        """
        if not self.tokenizer.eos_token:
            raise CannotRender("no_end_of_text")
        mark, _ = unused_characters([{"role": "text", "content": text}], None)
        marked = self._marked({"role": "text", "content": text}, mark)["content"]
        marked_text = f"{self._bos}{marked}{self.tokenizer.eos_token}"
        rendered = unmarked(marked_text, [(0, len(marked_text))], mark)
        start = len(self._bos)
        return rendered if rendered.cuts else replace(rendered, contents=[(start, start + len(text))])

    def _marked(self, message: Message, mark: str) -> Message:
        """Return a message with ``mark`` inside every control token in its own text.

        An answer may contain the template's tokens that are not special. Thoughts and the arguments of calls, which the
        template puts between such tokens, may not.
        """
        control = self._control.get(message["role"], self._control["user"])
        content = control.sub(rf"\g<0>{mark}", message["content"]) if control else message["content"]
        if len(message) == 2:
            return {**message, "content": content}
        return {**marked_values(message, self._control["user"], mark), "role": message["role"], "content": content}

    def _render(
        self, messages: list[Message], inputs: dict[str, Any] | None = None, mark: str = "", *, prompt: bool = False
    ) -> str:
        import jinja2

        try:
            if self.date:
                clock.set_to(self.date, self.jinja)
            text = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.jinja,
                tokenize=False,
                add_generation_prompt=prompt,
                **(inputs or {}),
            )
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"template: not Jinja, line {error.lineno}: {error.message}; fix the line") from error
        except Exception as error:  # a template may divide by zero, call what is not a function, recurse endlessly
            raise CannotRender.by_template(error) from error
        rendered = str(text).replace(escaped(mark), mark) if mark else str(text)
        return rendered if rendered.startswith(self._bos) else self._bos + rendered

    def _search(self, messages: list[Message], inputs: dict[str, Any] | None = None) -> TurnSearch:
        def render(messages: list[Message], prompt: bool) -> str:
            return self._render(messages, inputs, prompt=prompt)

        return TurnSearch(render, render(messages, False), messages, _BLANK)

    @cached_property
    def _takes_system(self) -> bool:
        try:
            text = self._render([{"role": "system", "content": _BLANK}, {"role": "user", "content": "a"}])
        except CannotRender:
            return False
        return _BLANK in text

    @cached_property
    def thought_style(self) -> ThoughtStyle:
        """How the template writes a thought."""
        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        for style, fields in (
            (ThoughtStyle.field, {"reasoning_content": _BLANK}),
            (ThoughtStyle.inside, {"content": f"<think>\n{_BLANK}\n</think>\n\nb"}),
        ):
            with contextlib.suppress(CannotRender):
                text = self._render([probe[0], {**probe[1], **fields}])
                if (_BLANK if style is ThoughtStyle.field else fields["content"]) in text:
                    return style
        is_opened = self._render(probe[:1], prompt=True).rstrip().endswith("<think>")
        return ThoughtStyle.prompt if is_opened else ThoughtStyle.none

    @cached_property
    def call_style(self) -> tuple[str, bool]:
        """The token that ends a turn with tool calls, and whether the template expects their arguments as JSON text."""
        tools = [{"type": "function", "function": {"name": "gamma", "description": "", "parameters": {}}}]
        for as_text in (False, True):
            arguments = '{"alpha": "beta"}' if as_text else {"alpha": "beta"}
            call = {"id": "abcdefghi", "type": "function", "function": {"name": "gamma", "arguments": arguments}}
            probe: list[Message] = [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
            ]
            try:
                search = self._search(probe, {"tools": tools})
            except CannotRender:
                continue
            text = search.text
            if "beta" in text and "'alpha'" not in text and '\\"alpha' not in text:
                behind = text[text.rindex("beta") :]
                ends = [(behind.rfind(token), token) for token in self._special if token in behind]
                end = self.end_of_turn if self.end_of_turn in behind or not ends else max(ends)[1]
                return end, as_text
        return self.end_of_turn, False

    def _find_closing(self) -> tuple[str, str]:
        """Return the end-of-turn token, and the text from the end of an answer through that token."""
        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            search = self._search(probe)
            after = search.text[search.answer(1)[1] :]
        except CannotRender as error:
            raise ModelError(
                f"template: cannot render a question and its answer ({error}); it must write each message's content "
                "unchanged"
            ) from error
        ends = [(start, -len(token), token) for token in self._special if (start := after.find(token)) >= 0]
        if not ends:
            raise ModelError(
                "template: writes no special token of the tokenizer after an answer, so the model could not learn to "
                "stop; use a template whose end-of-turn token the tokenizer knows (template=plain ends with EOS)"
            )
        start, _, token = min(ends)
        return token, after[: start + len(token)]
