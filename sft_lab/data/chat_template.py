"""Chat templates: a conversation becomes text, and we know which characters of it are the answer.

The text is rendered whole, so there is one BOS at most and no generation prompt in it. An answer's place is found by
rendering the conversation once more with a character that occurs nowhere else in the answer's stead: what is new
between the same beginning and the same end is the answer, whatever the template does to it and wherever else its words
occur. What is trained begins where the generation prompt ends and goes through the end-of-turn token. No template needs
special tags for that.

A control token in a message's own words (a user writes ``<|im_end|>``) stays words, so that nobody can forge a turn:
the places where tokenize must break the text are kept beside it.
"""

from __future__ import annotations

import abc
import datetime
import io
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sft_lab.core.bounds import Bounded, bounded
from sft_lab.core.context import StageContext, today
from sft_lab.core.errors import ModelError
from sft_lab.core.io import digest
from sft_lab.core.packages import package_path, saved_path
from sft_lab.core.plugins import version_of
from sft_lab.core.text import CONTROL_TOKENS
from sft_lab.data import clock

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from sft_lab.core.rows import Rows, Selection

Message = dict[str, str]


@dataclass(frozen=True)
class Rendered:
    """One conversation as text.

    Attributes:
        text: without a generation prompt.
        spans: the characters of each answer, end-of-turn token included.
        cuts: places no token may lie across, since a message's own words would else become a control token.
    """

    text: str
    spans: list[tuple[int, int]]
    cuts: list[int]


class CannotRender(Exception):
    """The template refuses this conversation."""


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
        ids = tokenizer("a")["input_ids"]
        starts_with_bos = bool(ids) and ids[0] == tokenizer.bos_token_id
        self._bos = str(tokenizer.bos_token) if starts_with_bos else ""
        self.end_of_turn, self.closing = self._find_closing()
        self.end_of_turn_id = int(tokenizer.convert_tokens_to_ids(self.end_of_turn))

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end an answer: the template's end of turn, and EOS where the tokenizer has one."""
        return sorted({self.end_of_turn_id, self.tokenizer.eos_token_id} - {None})

    @property
    def foreign(self) -> list[str]:
        """Control tokens of other models that the template writes before its end of turn: words to this tokenizer."""
        words = self.closing.removesuffix(self.end_of_turn)
        return [token for token in CONTROL_TOKENS if token in words]

    def prompt(self, messages: list[Message]) -> Rendered:
        """Render what the model is given before it answers.

        Raises:
            CannotRender: if the template refuses it.
        """
        mark, _ = _unused_characters(messages)
        return _unmarked(
            self._render([self._marked(one, mark) for one in messages], add_generation_prompt=True), [], mark
        )

    def conversation(self, messages: list[Message]) -> Rendered:
        """Render a conversation that ends with the assistant.

        Raises:
            CannotRender: if the template refuses it, leaves out or changes what is said (but for white space at the
                ends), or does not write each answer after what it gives the model to answer, with an end of turn.
        """
        mark, blank = _unused_characters(messages)
        marked = [self._marked(message, mark) for message in messages]
        text = self._render(marked)
        if any(message["content"].strip() not in text for message in marked):
            raise CannotRender("message_not_rendered")
        spans = []
        for index, message in enumerate(marked):
            if message["role"] == "assistant":
                start, end, after = self._place(text, marked, index, blank)
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
        whole = f"{self._bos}{marked}{self.tokenizer.eos_token}"
        return _unmarked(whole, [(0, len(whole))], mark)

    def _place(self, text: str, messages: list[Message], index: int, blank: str) -> tuple[int, int, str]:
        """Find the answer of one turn: where training begins, where the answer's own text ends, and what follows."""
        hollow = [*messages[:index], {"role": "assistant", "content": blank}, *messages[index + 1 :]]
        before, found, after = self._render(hollow).partition(blank)
        end = len(text) - len(after)
        whole = text[len(before) : end].strip() == messages[index]["content"].strip()
        if not (found and text.startswith(before) and text.endswith(after) and whole):
            raise CannotRender("answer_not_rendered")
        asked = self._render(messages[:index], add_generation_prompt=True)
        if before.startswith(asked):
            return len(asked), end, after
        # Reasoning templates open a thought in the generation prompt that a finished answer does not have, and others
        # end every text in some way. What counts is that all said so far stands there as it did then.
        hollow = [*messages[: index - 1], {**messages[index - 1], "content": blank}]
        if not before.startswith(self._render(hollow).partition(blank)[0]):
            raise CannotRender("rewrites_history")
        return len(before), end, after

    def _marked(self, message: Message, mark: str) -> Message:
        """Put ``mark`` into every control token that the message's own words hold."""
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
            raise ModelError(f"template: not Jinja, line {error.lineno}: {error.message}; mend the line") from error
        except Exception as error:  # a template divides by zero, calls what is no function, recurses without end
            raise CannotRender("template_refused") from error
        rendered = str(text)
        return rendered if rendered.startswith(self._bos) else self._bos + rendered

    def _find_closing(self) -> tuple[str, str]:
        """Find the end-of-turn token, and what stands between an answer and its end, that token included."""
        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            _, _, after = self._place(self._render(probe), probe, 1, _BLANK)
        except CannotRender as error:
            cause = error.__cause__
            said = "calls itself without end" if isinstance(cause, RecursionError) else cause
            why = f"{error}: {said}" if cause else str(error)
            raise ModelError(
                f"template: cannot render one question and its answer ({why}); it must write the content of each of "
                "`messages` as it is"
            ) from error
        ends = [(place, -len(token), token) for token in self._special if (place := after.find(token)) >= 0]
        if not ends:
            raise ModelError(
                "template: what it writes after an answer holds no special token of the tokenizer, so the model could "
                "not learn to stop; use a template whose end-of-turn token the tokenizer knows (template=plain ends "
                "with EOS)"
            )
        place, _, token = min(ends)
        return token, after[: place + len(token)]


_PRIVATE_USE = tuple(map(chr, range(0xE000, 0xF900)))  # characters that stand for nothing
_BLANK = _PRIVATE_USE[0]


def _unused_characters(messages: list[Message]) -> tuple[str, str]:
    used = {character for message in messages for character in message["content"]}
    mark, blank, *_ = (character for character in _PRIVATE_USE if character not in used)
    return mark, blank


def _broken(tokens: set[str]) -> re.Pattern[str] | None:
    """Match the first character of every control token, overlapping ones too: behind it the text is broken."""
    longer = sorted(token for token in tokens if len(token) > 1)  # one character cannot be broken
    return re.compile(f"(?={'|'.join(map(re.escape, longer))}).", re.DOTALL) if longer else None


def _unmarked(text: str, spans: list[tuple[int, int]], mark: str) -> Rendered:
    cuts = [found.start() - earlier for earlier, found in enumerate(re.finditer(mark, text))]

    def moved(place: int) -> int:
        return place - text.count(mark, 0, place)

    return Rendered(text.replace(mark, ""), [(moved(start), moved(end)) for start, end in spans], cuts)


@dataclass
class Template(Bounded, abc.ABC):
    """What every template option has: a Jinja text. Rows of plain text go past it.

    Attributes:
        special_tokens: it needs; those the tokenizer lacks are added, and trained with the rest.
    """

    version: ClassVar[int] = 3

    special_tokens: list[str] = field(default_factory=list)

    @abc.abstractmethod
    def named(self) -> str:
        """Say for a message which template this is, by the key that chose it."""

    @abc.abstractmethod
    def jinja(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Give the Jinja text."""

    def check(self) -> list[str]:
        """Say what is wrong with the world as this template needs it."""
        return []

    def files(self) -> list[Path]:
        """Return the files that its config names."""
        return []

    def contents(self) -> dict[Path, bytes]:
        """Return what it has read of them whole, once: that is what it goes by."""
        return {}

    def bind(self, context: StageContext) -> Renderer:
        """Bind the template to the run's tokenizer, and say so if it would teach the model wrong words."""
        try:
            renderer = Renderer(context.tokenizer, self.jinja(context.tokenizer), context.template_date)
        except ModelError as error:
            raise ModelError(str(error).replace("template:", f"{self.named()}:", 1)) from error
        if renderer.foreign:
            context.notice(
                f"template: writes {' '.join(renderer.foreign)} between an answer and its end of turn "
                f"{renderer.end_of_turn}; that is no special token of this tokenizer, so the model would learn to "
                "write it as words; take it out of the template, or use the one of this model (template=auto)"
            )
        return renderer

    def __call__(self, rows: Rows | datasets.Dataset, context: StageContext) -> tuple[Selection, Path]:
        """Render every row, or find the stored texts.

        Returns:
            The selection (dropped: conversations the template refuses) and the folder whose ``table`` holds the
            kept rows' ``id``, ``text``, ``spans`` and ``cuts``.
        """
        from sft_lab.core.rows import Rows, Selection

        view = Rows.of(rows)
        renderer = self.bind(context)  # what is wrong with the template is said for stored texts too
        date = {"date": renderer.date.isoformat()} if renderer.date else {}
        if renderer.date:
            context.notice(
                f"template: writes the date into every conversation, here that of {renderer.date}; a run that goes on "
                "and its replay keep it, and a new run on another day trains on other texts"
            )
        recipe = {
            "version": version_of(self),
            "params": {"jinja": digest(renderer.jinja), **date},
            "tokenizer": context.tokenizer_key,
            "input": view.key,
        }
        entry = context.stage("template", recipe, lambda folder: self._render_all(view, renderer, folder))
        return Selection.load(entry.path), entry.path

    def _render_all(self, rows: Rows, renderer: Renderer, folder: Path) -> None:
        import datasets

        from sft_lab.core.rows import Selection, save_table

        reasons: list[str] = []
        rendered: dict[str, list[Any]] = {"id": [], "text": [], "spans": [], "cuts": []}
        for row_id, messages, answer in zip(*map(rows.column, ("id", "messages", "answer")), strict=True):
            try:
                conversation = renderer.conversation(messages) if messages else renderer.plain_text(answer)
            except CannotRender as error:
                reasons.append(str(error))
                continue
            reasons.append("")
            rendered["id"].append(row_id)
            rendered["text"].append(conversation.text)
            rendered["spans"].append([list(span) for span in conversation.spans])
            rendered["cuts"].append(conversation.cuts)
        text, places = datasets.Value("string"), [datasets.Value("int32")]
        features = datasets.Features({"id": text, "text": text, "spans": [places], "cuts": places})
        save_table(rendered, features, folder)
        Selection.of(rows, reasons).save(folder)


@dataclass
class Auto(Template):
    """The model's own chat template."""

    def named(self) -> str:
        """By the option."""
        return "template=auto"

    def jinja(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Give the tokenizer's template.

        Raises:
            ModelError: if the model has none.
        """
        if not tokenizer.chat_template:
            raise ModelError(
                "template=auto: this model has no chat template of its own; use template=chatml "
                "(or template=plain for a base model without chat tokens)"
            )
        return str(tokenizer.get_chat_template())


@dataclass
class Jinja(Template):
    """A Jinja file: one that ships with the package (``package:...``) or your own."""

    path: str = bounded("???", holds=bool, limit="the path of a .jinja file")

    def __post_init__(self) -> None:
        """Make the path absolute, so that a saved config runs from any folder."""
        super().__post_init__()
        self.path = saved_path(self.path)

    def check(self) -> list[str]:
        """The file is there, and text."""
        if not package_path(self.path).is_file():
            return [f"template.path={self.path}: no such file; give the path of a .jinja file"]
        try:
            self._content.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            return [f"template.path={self.path}: cannot be read ({error}); save it as UTF-8"]
        return []

    def named(self) -> str:
        """The path as given."""
        return f"template.path={self.path}"

    def jinja(self, tokenizer: PreTrainedTokenizerBase) -> str:  # noqa: ARG002 - the same text for every model
        """Give the file's text, as it was when it was first read: rows, prompts and ``model/`` have one template."""
        return io.TextIOWrapper(io.BytesIO(self._content), encoding="utf-8").read()  # line ends as of a text file

    def files(self) -> list[Path]:
        """Return the file, unless a package brings it."""
        return [] if self.path.startswith("package:") else [Path(self.path)]

    def contents(self) -> dict[Path, bytes]:
        """Return the file's bytes."""
        return dict.fromkeys(self.files(), self._content)

    @cached_property
    def _content(self) -> bytes:
        return package_path(self.path).read_bytes()
