"""Rendering: a conversation becomes text, and we know which characters of it are the answer.

The text is rendered whole, so there is one BOS at most and no generation prompt in it. An answer's place is found by
rendering the conversation once more with a character that occurs nowhere else in the answer's stead: what is new
between the same beginning and the same end is the answer, whatever the template does to it and wherever else its words
occur. What is trained begins where the generation prompt ends and goes through the end-of-turn token. No template needs
special tags for that.

A control token in a message's own words (a user writes ``<|im_end|>``) stays words, so that nobody can forge a turn:
the places where tokenize must break the text are kept beside it.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from sft_lab.core.context import today
from sft_lab.core.errors import ModelError
from sft_lab.core.text import CONTROL_TOKENS
from sft_lab.data import clock
from sft_lab.data.template_layout import PRIVATE_USE, CannotRender, Layout, Message, Rendered, literals

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXCHANGE = ("user", "assistant")
MAX_SEARCHED = 2000  # messages of a conversation whose answers are found by rendering it for each
_BLANK = PRIVATE_USE[0]


class Renderer:
    """A template bound to a tokenizer.

    Args:
        tokenizer: gives the special tokens and runs the Jinja text in its sandbox.
        jinja: the template's text.
        date: what a template that asks for the date is told; None: the current one.

    Attributes:
        date: that date; None for a template that does not ask.

    Raises:
        ModelError: if an end-of-turn token is not to be found in what the template writes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, jinja: str, date: datetime.date | None = None) -> None:
        self.tokenizer = tokenizer
        self.jinja = jinja
        self.date = (date or today()) if clock.is_read(jinja) else None
        added = tokenizer.added_tokens_decoder.values()
        special = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
        # What a template writes marks turns, special or not; an answer may hold such tokens (<think>) rightfully.
        written = {str(token) for token in added if str(token) in jinja and not str(token).isspace()}
        self._special = sorted(special)
        self._control = {"assistant": _broken(special)}
        self._control["user"] = self._control["system"] = _broken(special | written)
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
        """Control tokens of other models that the template writes before its end of turn, plain text to this one."""
        inside = self.closing.removesuffix(self.end_of_turn)
        return [token for token in CONTROL_TOKENS if token in inside]

    def prompt(self, messages: list[Message]) -> Rendered:
        """Render what the model is given before it answers.

        Raises:
            CannotRender: if the template refuses it.
        """
        mark, _ = _unused_characters(messages)
        return _unmarked(
            self._render([self._marked(message, mark) for message in messages], add_generation_prompt=True), [], mark
        )

    def conversation(self, messages: list[Message]) -> Rendered:
        """Render a conversation that ends with the assistant.

        Once, where the template writes conversations of these roles as its layout says (``Layout``); else as often as
        it takes to find each answer.

        Raises:
            CannotRender: if the template refuses it, leaves out or changes what is said (but for white space at the
                ends), or does not write each answer after what it gives the model to answer, with an end of turn.
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
        # What is written of three and of four exchanges tells what is written of more.
        three, four = (self._layout(head + EXCHANGE * count) for count in (3, 4))
        if three and four and three.extended(4, len(head)) == four:
            return three.extended(exchanges, len(head))
        return Layout.of(self._conversation, roles) if len(roles) <= MAX_SEARCHED else None

    def _is_special(self, message: Message) -> bool:
        """Whether the template may treat a message by what it says, or a control token in it must be broken."""
        content = message["content"]
        return any(literal in content for literal in self._literals) or any(
            token in content for token in self._tokens[message["role"] == "assistant"]
        )

    def _conversation(self, messages: list[Message]) -> Rendered:
        if len(messages) > MAX_SEARCHED:  # it would take as many renderings of as many turns
            raise CannotRender("too_many_turns")
        mark, blank = _unused_characters(messages)
        marked = [self._marked(message, mark) for message in messages]
        text = self._render(marked)
        if any(message["content"].strip() not in text for message in marked):
            raise CannotRender("message_not_rendered")
        spans = []
        for index, message in enumerate(marked):
            if message["role"] == "assistant":
                start, end, after = self._locate_answer(text, marked, index, blank)
                if not after.startswith(self.closing):
                    raise CannotRender("no_end_of_turn")
                spans.append((start, end + len(self.closing)))
        return _unmarked(text, spans, mark)

    def plain_text(self, text: str) -> Rendered:
        """Give plain text between BOS, where the tokenizer puts one, and EOS: no template, and all of it is trained.

        Raises:
            CannotRender: if the tokenizer has no EOS, so that the model could not learn to stop.
        """
        if not self.tokenizer.eos_token:
            raise CannotRender("no_end_of_text")
        mark, _ = _unused_characters([{"role": "text", "content": text}])
        marked = self._marked({"role": "text", "content": text}, mark)["content"]
        marked_text = f"{self._bos}{marked}{self.tokenizer.eos_token}"
        rendered = _unmarked(marked_text, [(0, len(marked_text))], mark)
        start = len(self._bos)
        return rendered if rendered.cuts else replace(rendered, contents=[(start, start + len(text))])

    def _locate_answer(self, text: str, messages: list[Message], index: int, blank: str) -> tuple[int, int, str]:
        """Find the answer of one turn: where training begins, where the answer's own text ends, and what follows."""
        hollow = [*messages[:index], {"role": "assistant", "content": blank}, *messages[index + 1 :]]
        before, separator, after = self._render(hollow).partition(blank)
        end = len(text) - len(after)
        is_answer = text[len(before) : end].strip() == messages[index]["content"].strip()
        if not (separator and text.startswith(before) and text.endswith(after) and is_answer):
            raise CannotRender("answer_not_rendered")
        generation_prompt = self._render(messages[:index], add_generation_prompt=True)
        if before.startswith(generation_prompt):
            return len(generation_prompt), end, after
        # Reasoning templates open a thought in the generation prompt that a finished answer does not have, and others
        # end every text in some way. What counts is that all said so far stands there as it did then.
        hollow = [*messages[: index - 1], {**messages[index - 1], "content": blank}]
        if not before.startswith(self._render(hollow).partition(blank)[0]):
            raise CannotRender("rewrites_history")
        return len(before), end, after

    def _marked(self, message: Message, mark: str) -> Message:
        """Put ``mark`` into every control token that the message's own text holds."""
        content, control = message["content"], self._control.get(message["role"], self._control["user"])
        return {**message, "content": control.sub(rf"\g<0>{mark}", content)} if control else message

    def _render(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        import jinja2

        try:
            if self.date:
                clock.set_to(self.date, self.jinja)
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.jinja, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"template: not Jinja, line {error.lineno}: {error.message}; fix the line") from error
        except Exception as error:  # a template divides by zero, calls what is no function, recurses without end
            raise CannotRender("template_refused") from error
        rendered = str(text)
        return rendered if rendered.startswith(self._bos) else self._bos + rendered

    def _find_closing(self) -> tuple[str, str]:
        """Find the end-of-turn token, and what stands between an answer and its end, that token included."""
        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            _, _, after = self._locate_answer(self._render(probe), probe, 1, _BLANK)
        except CannotRender as error:
            cause = error.__cause__
            detail = "calls itself without end" if isinstance(cause, RecursionError) else cause
            reason = f"{error}: {detail}" if cause else str(error)
            raise ModelError(
                f"template: cannot render one question and its answer ({reason}); it must write the content of each of "
                "`messages` as it is"
            ) from error
        ends = [(start, -len(token), token) for token in self._special if (start := after.find(token)) >= 0]
        if not ends:
            raise ModelError(
                "template: what it writes after an answer holds no special token of the tokenizer, so the model could "
                "not learn to stop; use a template whose end-of-turn token the tokenizer knows (template=plain ends "
                "with EOS)"
            )
        start, _, token = min(ends)
        return token, after[: start + len(token)]


def _unused_characters(messages: list[Message]) -> tuple[str, str]:
    used = {character for message in messages for character in message["content"]}
    mark, blank, *_ = (character for character in PRIVATE_USE if character not in used)
    return mark, blank


def _broken(tokens: set[str]) -> re.Pattern[str] | None:
    """Match the first character of every control token, overlapping ones too: behind it the text is broken."""
    longer = sorted(token for token in tokens if len(token) > 1)  # one character cannot be broken
    return re.compile(f"(?={'|'.join(map(re.escape, longer))}).", re.DOTALL) if longer else None


def _unmarked(text: str, spans: list[tuple[int, int]], mark: str) -> Rendered:
    cuts = [match.start() - earlier for earlier, match in enumerate(re.finditer(mark, text))]

    def moved(position: int) -> int:
        return position - text.count(mark, 0, position)

    return Rendered(text.replace(mark, ""), [(moved(start), moved(end)) for start, end in spans], cuts)
