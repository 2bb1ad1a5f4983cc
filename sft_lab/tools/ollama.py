"""A chat template as Ollama's Modelfile has it: in the template language of Go, which knows no Jinja."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sft_lab.core.errors import UserError
from sft_lab.data.template_layout import CannotRender, Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sft_lab.data.renderer import Renderer

EXCHANGES = 3  # after which a template writes no more than it did before
_QUESTION = {"role": "user", "content": "Where is it?"}
NO_SYSTEM = "# The model was trained without system messages: those sent to Ollama are left out."
STRIPS = "# The chat template strips white space around messages, which Ollama's cannot: send none."


@dataclass(frozen=True)
class TurnTexts:
    """What a template writes around the messages of a conversation; each text but the last ends at the next message.

    Attributes:
        before_user: before a user's message that is the first.
        before_system: before a system message, which is the first; None where the template takes none.
        after_system: between a system message and a user's.
        after_user: between a user's message and its answer.
        prompt: behind the last user's message, for the model to go on from.
        after_assistant: between an answer and the next user's message.
        strips: whether white space at the ends of messages is left out.
    """

    before_user: str
    before_system: str | None
    after_system: str
    after_user: str
    prompt: str
    after_assistant: str
    strips: bool

    @classmethod
    def of(cls, renderer: Renderer) -> TurnTexts:
        """Find what a template writes, and prove it by rendering conversations of several lengths.

        Raises:
            UserError: if it does more than write texts between messages.
        """
        exchanges = ("user", "assistant") * EXCHANGES
        plain = Layout.of(renderer.conversation, exchanges)
        with_system = Layout.of(renderer.conversation, ("system", *exchanges)) if _takes_system(renderer) else None
        if plain is None:
            raise _inexpressible()
        strips = any(strip is not str for strip in [*plain.strips, *(with_system.strips if with_system else ())])
        prompt = renderer.prompt([_QUESTION]).text.rpartition(_QUESTION["content"])[2]
        texts = cls(plain.pieces[0], None, "", plain.pieces[1], prompt, plain.pieces[2], strips)
        if with_system:
            texts = replace(texts, before_system=with_system.pieces[0], after_system=with_system.pieces[1])
        for messages in _conversations(with_system=with_system is not None):
            if texts.render(messages) != renderer.prompt(messages).text:
                raise _inexpressible()
        return texts

    def without_bos(self, bos: str) -> TurnTexts:
        """Return the same without BOS at the beginning, which Ollama writes itself where the model has it.

        Raises:
            UserError: if only some conversations begin with it.
        """
        heads = [head for head in (self.before_user, self.before_system) if head is not None]
        if not all(head.startswith(bos) for head in heads):
            raise _inexpressible()
        system = None if self.before_system is None else self.before_system.removeprefix(bos)
        return replace(self, before_user=self.before_user.removeprefix(bos), before_system=system)

    def render(self, messages: list[dict[str, str]]) -> str:
        """Return what a model is given before it answers a last message of the user's, as the Go template writes it."""
        first = self.before_system if messages[0]["role"] == "system" else self.before_user
        after = {"system": self.after_system, "user": self.after_user, "assistant": self.after_assistant}
        *earlier, last = messages
        texts = [first or "", *(message["content"] + after[message["role"]] for message in earlier)]
        return "".join([*texts, last["content"], self.prompt])

    def to_go(self) -> str:
        """Return the template in Go's language; every text is a quoted literal, so no white space is lost."""
        is_system, end = '{{- if eq .Role "system" }}', "{{- end }}"
        is_last = "{{- if eq (len (slice $.Messages $i)) 1 }}"
        after_user = f"{is_last}{_write(self.prompt)}{{{{- else }}}}{_write(self.after_user)}{end}"
        after_assistant = f"{is_last}{{{{- else }}}}{_write(self.after_assistant)}{end}"
        head, after_system = _write(self.before_user), ""
        if self.before_system is not None:
            head = f"{is_system}{_write(self.before_system)}{{{{- else }}}}{_write(self.before_user)}{end}"
            after_system = f"{is_system}{_write(self.after_system)}{end}"
        lines = [
            "{{- $first := true }}",
            "{{- range $i, $_ := .Messages }}",
            "" if self.before_system is not None else '{{- if ne .Role "system" }}',
            f"{{{{- if $first }}}}{head}{end}",
            "{{- $first = false }}",
            "{{- .Content }}",
            after_system,
            f'{{{{- if eq .Role "user" }}}}{after_user}{end}',
            f'{{{{- if eq .Role "assistant" }}}}{after_assistant}{end}',
            end,
            "" if self.before_system is not None else end,
        ]
        return "\n".join(filter(None, lines))


def modelfile(texts: TurnTexts, weights: str, stops: list[str], name: str, bos: str) -> str:
    """Return the Modelfile for a GGUF file in the same folder.

    Args:
        texts: what its template writes.
        weights: the file's name.
        stops: the texts of the tokens that end an answer.
        name: the base model's, for a comment.
        bos: what the template begins with and Ollama writes by itself; may be empty.
    """
    comments = [f"# {name}, fine-tuned with sft_lab. Tool calls are not in this template."]
    comments += [NO_SYSTEM] if texts.before_system is None else []
    comments += [STRIPS] if texts.strips else []
    comments += [f"# Ollama writes {bos} at the beginning by itself, so the template does not have it."] if bos else []
    parameters = [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join([*comments, f"FROM ./{weights}", f'TEMPLATE """{texts.to_go()}"""', *parameters, ""])


def _write(text: str) -> str:
    return f"{{{{- {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def _takes_system(renderer: Renderer) -> bool:
    try:
        text = renderer.prompt([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "a"}]).text
    except CannotRender:
        return False
    return "Be kind." in text


def _conversations(*, with_system: bool) -> Iterator[list[dict[str, str]]]:
    """Yield conversations of one to four questions, each with and without a system message."""
    for head in [[], *([[{"role": "system", "content": "Answer briefly.\nIn English."}]] if with_system else [])]:
        messages = [*head]
        for number in range(1, EXCHANGES + 2):
            messages = [*messages, {"role": "user", "content": f"Where is\n\nplace {number}?"}]
            yield messages
            messages = [*messages, {"role": "assistant", "content": f"It is {number} miles away."}]


def _inexpressible() -> UserError:
    return UserError(
        "export --to ollama: this chat template does more than write texts between messages, which Ollama's template "
        "language cannot express; --to gguf writes a file whose own template llama-server runs"
    )
