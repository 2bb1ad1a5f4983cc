"""Chat templates: a conversation becomes text, and we know which characters of it are the answer.

The text is rendered whole and tokenized whole, so there is one BOS at most and no generation prompt in it. The
answer's place is found by rendering the conversation up to it: what follows, through the end-of-turn token, is
trained. No template needs special tags for that.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sft_lab.bench import Bench, package_path
from sft_lab.errors import ModelError, require
from sft_lab.files import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sft_lab.rows import Rows, Selection

Message = dict[str, str]


@dataclass(frozen=True)
class Rendered:
    """Text of one conversation and the character spans of its answers, end-of-turn token included."""

    text: str
    spans: list[tuple[int, int]]


class CannotRender(Exception):
    """The template refuses this conversation."""


class Renderer:
    """A template bound to a tokenizer.

    Args:
        tokenizer: gives the special tokens and runs the Jinja text in its sandbox.
        jinja: the template's text.

    Raises:
        ModelError: if an end-of-turn token is not to be found in what the template writes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, jinja: str) -> None:
        self.tokenizer = tokenizer
        self.jinja = jinja
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        self._special = sorted({*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)})
        ids = tokenizer("a")["input_ids"]
        starts_with_bos = bool(ids) and ids[0] == tokenizer.bos_token_id
        self._bos = str(tokenizer.bos_token) if starts_with_bos else ""
        self.end_of_turn = self._find_end_of_turn()
        self.end_of_turn_id = int(tokenizer.convert_tokens_to_ids(self.end_of_turn))

    def prompt(self, messages: list[Message]) -> str:
        """Render what the model is given before it answers."""
        return self._render(messages, add_generation_prompt=True)

    def conversation(self, messages: list[Message]) -> Rendered:
        """Render a conversation that ends with the assistant.

        Raises:
            CannotRender: if the template refuses it, or changes earlier turns when later ones come.
        """
        text = self._render(messages)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                through = self._render(messages[: index + 1])
                if not text.startswith(through):
                    raise CannotRender("rewrites_history")
                spans.append(self._span(through, self._render(messages[:index], add_generation_prompt=True), message))
        return Rendered(text, spans)

    def _span(self, through: str, before: str, message: Message) -> tuple[int, int]:
        content = message["content"].strip()
        start = len(before)
        if not through.startswith(before):
            # Reasoning templates open a thought in the generation prompt that a finished answer does not have.
            start = through.rfind(content)
        place = through.find(content, start)
        if start < 0 or place < 0:
            raise CannotRender("answer_not_rendered")
        return start, self._end_after(through, place + len(content))

    def _end_after(self, text: str, place: int) -> int:
        ends = [(found, -len(token)) for token in self._special if (found := text.find(token, place)) >= 0]
        if not ends:
            raise CannotRender("no_end_of_turn")
        found, negative_length = min(ends)
        return found - negative_length

    def _render(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        import jinja2

        try:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.jinja, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"template: not Jinja, line {error.lineno}: {error.message}") from error
        except jinja2.TemplateError as error:
            raise CannotRender("template_refused") from error
        rendered = str(text)
        return rendered if rendered.startswith(self._bos) else self._bos + rendered

    def _find_end_of_turn(self) -> str:
        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            rendered = self.conversation(probe)
        except CannotRender as error:
            raise ModelError(
                f"template: what it writes after an answer holds no special token of the tokenizer ({error}), so the "
                "model could not learn to stop; use a template whose end-of-turn token the tokenizer knows "
                "(template=plain ends with EOS)"
            ) from error
        text = rendered.text[: rendered.spans[0][1]]
        return max((str(token) for token in self._special if text.endswith(token)), key=len)


@dataclass
class Template(abc.ABC):
    """What every template option has: a Jinja text."""

    version: ClassVar[int] = 1

    @abc.abstractmethod
    def jinja(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Give the Jinja text."""

    def check(self) -> list[str]:
        """Say what is wrong with the world as this template needs it."""
        return []

    def bind(self, bench: Bench) -> Renderer:
        """Bind the template to the run's tokenizer."""
        return Renderer(bench.tokenizer, self.jinja(bench.tokenizer))

    def __call__(self, rows: Rows, bench: Bench) -> tuple[Selection, Path]:
        """Render every row, or find the stored texts.

        Returns:
            The selection (dropped: conversations the template refuses) and the folder whose ``table`` holds the
            kept rows' ``id``, ``text`` and ``spans``.
        """
        from sft_lab.rows import Selection

        recipe = {
            "version": self.version,
            "params": {"jinja": digest(self.jinja(bench.tokenizer))},
            "tokenizer": bench.tokenizer_key,
            "input": rows.key,
        }
        entry = bench.stage("template", recipe, lambda folder: self._render_all(rows, bench, folder))
        return Selection.load(entry.path), entry.path

    def _render_all(self, rows: Rows, bench: Bench, folder: Path) -> None:
        import datasets

        from sft_lab.rows import Selection

        renderer = self.bind(bench)
        reasons: list[str] = []
        rendered: dict[str, list[Any]] = {"id": [], "text": [], "spans": []}
        for row_id, messages in zip(rows.column("id"), rows.column("messages"), strict=True):
            try:
                conversation = renderer.conversation(messages)
            except CannotRender as error:
                reasons.append(str(error))
                continue
            reasons.append("")
            rendered["id"].append(row_id)
            rendered["text"].append(conversation.text)
            rendered["spans"].append([list(span) for span in conversation.spans])
        text, spans = datasets.Value("string"), [[datasets.Value("int32")]]
        features = datasets.Features({"id": text, "text": text, "spans": spans})
        datasets.Dataset.from_dict(rendered, features=features).save_to_disk(str(folder / "table"))
        Selection.of(rows, reasons).save(folder)


@dataclass
class Auto(Template):
    """The model's own chat template."""

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

    path: str = "???"

    def __post_init__(self) -> None:
        """Make the path absolute, so that a saved config runs from any folder."""
        require(bool(self.path), "path", self.path, "the path of a .jinja file")
        if not self.path.startswith("package:"):
            self.path = str(package_path(self.path))

    def check(self) -> list[str]:
        """The file is there."""
        found = package_path(self.path).is_file()
        return [] if found else [f"template.path={self.path}: no such file; give the path of a .jinja file"]

    def jinja(self, tokenizer: PreTrainedTokenizerBase) -> str:  # noqa: ARG002 - the same text for every model
        """Give the file's text."""
        return package_path(self.path).read_text(encoding="utf-8")
