"""Chat template options: the model's own template, or a Jinja file."""

from __future__ import annotations

import abc
import io
import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sft_lab.core.bounds import Bounded, bounded
from sft_lab.core.context import StageContext
from sft_lab.core.errors import ModelError
from sft_lab.core.io import read_json
from sft_lab.core.packages import package_path, saved_path
from sft_lab.core.stage import ReadsFiles, UsesContext
from sft_lab.data.trained_turns import LabelRules, SystemTurn, Unroll

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from sft_lab.core.rows import Rows
    from sft_lab.core.selection import Selection
    from sft_lab.data.renderer import Renderer
    from sft_lab.data.tokens_and_labels import Encoded


CHATML = ("<|im_start|>", "<|im_end|>")
# Of families whose format no option here has, by which their base models can be recognized: Llama 3, Gemma, Phi.
FAMILY_TOKENS = ("<|start_header_id|>", "<start_of_turn>", "<|assistant|>")


@dataclass
class Template(Bounded, ReadsFiles, UsesContext, abc.ABC):
    """The base of all template options: a Jinja text. Rows of plain text do not pass through it.

    Attributes:
        special_tokens: that it needs; those the tokenizer lacks are added and trained.
        system: what is done with a system turn; ``merge`` puts it into the first user turn if the template takes none.
        unroll: whether a conversation becomes several examples if the template hides the thoughts of earlier turns.
    """

    version: ClassVar[int] = 4

    special_tokens: list[str] = field(default_factory=list)
    system: SystemTurn = bounded(SystemTurn.keep, added=True)
    unroll: Unroll = bounded(Unroll.auto, added=True)

    def changes(self) -> dict[str, str]:
        """Return the options, besides the Jinja text, that change its output."""
        return {} if self.system is SystemTurn.keep else {"system": self.system.name}

    @abc.abstractmethod
    def named(self) -> str:
        """Return the key and value that chose it, for messages."""

    @abc.abstractmethod
    def jinja(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the Jinja text."""

    def bind(self, context: StageContext) -> Renderer:
        """Return the template bound to the run's tokenizer; notice another model's tokens that it writes as text."""
        from sft_lab.data.renderer import Renderer

        try:
            renderer = Renderer(context.tokenizer, self.jinja(context.tokenizer), context.template_date, self.system)
        except ModelError as error:
            raise ModelError(str(error).replace("template:", f"{self.named()}:", 1)) from error
        if renderer.foreign:
            context.notice(
                f"template: writes {' '.join(renderer.foreign)} between an answer and its end of turn "
                f"{renderer.end_of_turn}, but this tokenizer does not have it as a special token, so the model would "
                "learn to write it as text; remove it from the template, or use the model's own (template=auto)"
            )
        return renderer

    def __call__(self, rows: Rows | datasets.Dataset, context: StageContext | None = None) -> tuple[Selection, Encoded]:
        """Return every row rendered and encoded, stored or computed; every turn trains.

        Returns:
            The selection (dropped: conversations that the template refuses), and the texts and tokens of the rows.
        """
        from sft_lab.core.rows import Rows
        from sft_lab.data.tokens_and_labels import encode

        view = Rows.of(rows)
        encoded = encode(view, self, self.context_for(context), LabelRules(unroll=self.unroll))
        return replace(encoded.selection(view), source=rows), encoded


@dataclass
class Auto(Template):
    """The model's own chat template."""

    def named(self) -> str:
        """Return the option."""
        return "template=auto"

    def jinja(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the tokenizer's template.

        Raises:
            ModelError: if the model has none.
        """
        if not tokenizer.chat_template:
            raise ModelError(
                "template=auto: this model has no chat template of its own, like most base models; "
                f"{_fitting(tokenizer)} (docs/data.md compares them)"
            )
        return str(tokenizer.get_chat_template())


def _fitting(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return which template to use for a tokenizer that has none: one whose tokens it has, if there is one."""
    vocabulary = tokenizer.get_vocab()
    if set(CHATML) <= vocabulary.keys():
        return f"use template=chatml, whose tokens {' '.join(CHATML)} its tokenizer has"
    if "[INST]" in vocabulary or _is_mistral(tokenizer.name_or_path):
        return "use template=mistral, the format of its family"
    if token := next((token for token in FAMILY_TOKENS if token in vocabulary), None):
        return (
            f"its tokenizer has {token}: save the chat template of this family's instruct model as a file and use "
            "template=file template.path=FILE.jinja, or use template=tagged, which needs no special tokens"
        )
    return (
        "use template=tagged, which needs no special tokens, or template=chatml, which adds "
        f"{' '.join(CHATML)} and trains their embeddings"
    )


def _is_mistral(name_or_path: str) -> bool:
    config = Path(name_or_path) / "config.json"
    with suppress(OSError, ValueError, AttributeError):
        return str(read_json(config).get("model_type")).startswith(("mistral", "ministral", "mixtral"))
    return bool(re.search("mistral|ministral|mixtral", name_or_path, re.IGNORECASE))


@dataclass
class Jinja(Template):
    """A Jinja file: one that the package ships (``package:...``) or your own."""

    path: str = bounded("???", holds=bool, limit="the path of a .jinja file")

    def __post_init__(self) -> None:
        """Make the path absolute, so that a saved config runs from any folder."""
        super().__post_init__()
        self.path = saved_path(self.path)

    def check(self) -> list[str]:
        """Return an error if the file is missing or is not UTF-8."""
        if not package_path(self.path).is_file():
            return [f"template.path={self.path}: no such file; give the path of a .jinja file"]
        try:
            self._content.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            return [f"template.path={self.path}: cannot be read ({error}); save it as UTF-8"]
        return []

    def named(self) -> str:
        """Return the path."""
        return f"template.path={self.path}"

    def jinja(self, tokenizer: PreTrainedTokenizerBase) -> str:  # noqa: ARG002 - the same text for every model
        """Return the file's text as first read, so that rows, prompts and ``model/`` have the same template."""
        return io.TextIOWrapper(io.BytesIO(self._content), encoding="utf-8").read()  # line ends as of a text file

    def files(self) -> list[Path]:
        """Return the file, unless it is a package's."""
        return [] if self.path.startswith("package:") else [Path(self.path)]

    def contents(self) -> dict[Path, bytes]:
        """Return the file's bytes."""
        return dict.fromkeys(self.files(), self._content)

    @cached_property
    def _content(self) -> bytes:
        return package_path(self.path).read_bytes()
