"""``sft-lab generate``: a prompt answered by the model of a finished run, and by its base model beside it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core.errors import UserError, require
from sft_lab.evaluation.config import MOST_NEW_TOKENS
from sft_lab.tools.finished_run import Finished, open_run

if TYPE_CHECKING:
    from sft_lab.data.chat_template import Renderer
    from sft_lab.evaluation.generation import Answer

MAX_NEW_TOKENS = 256
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.001, 1000  # logits divided by less are no finite numbers


@dataclass(frozen=True)
class Asking:
    """How a prompt is asked.

    Attributes:
        system: text of a system turn before the prompt; empty: none.
        max_new_tokens: of an answer.
        temperature: 0 is greedy: always the likeliest token.
        top_p: likeliest tokens that make up this share; None: all.
        top_k: as many of the likeliest tokens; None: all.
        seed: of what is drawn; None: the run's.
    """

    system: str = ""
    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse impossible values, in the words of the command line."""
        length = 1 <= self.max_new_tokens <= MOST_NEW_TOKENS
        require(length, "--max-new-tokens", self.max_new_tokens, f"from 1 to {MOST_NEW_TOKENS:,}")
        number = self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature <= MOST_TEMPERATURE
        limits = f"0 (greedy), or from {LEAST_TEMPERATURE} to {MOST_TEMPERATURE:,}"
        require(number, "--temperature", self.temperature, limits)
        require(self.top_p is None or 0 < self.top_p <= 1, "--top-p", self.top_p, "above 0 and at most 1")
        require(self.top_k is None or self.top_k >= 1, "--top-k", self.top_k, "at least 1")
        require(self.seed is None or 0 <= self.seed < 2**32, "--seed", self.seed, f"from 0 to {2**32 - 1}")
        if self.temperature == 0:
            for name in ("top_p", "top_k", "seed"):
                if (value := getattr(self, name)) is not None:
                    flag = f"--{name.replace('_', '-')}"
                    raise UserError(f"{flag} {value}: changes nothing without --temperature above 0; add one")

    @property
    def sampling(self) -> dict[str, float | int] | None:
        """Transformers' keys; all of them, so that none is taken from what the model came with. None: greedy."""
        if not self.temperature:
            return None
        return {"temperature": self.temperature, "top_p": self.top_p or 1.0, "top_k": self.top_k or 0}


@dataclass(frozen=True)
class Generated:
    """Answers to a prompt.

    Attributes:
        tuned: of the run's model.
        base: of the base model, None unless asked for.
        base_as_plain: whether the base model was asked in plain text, since the run's template is new to it.
        max_new_tokens: of an answer: what was wanted, or what the prompt leaves of the model's positions.
    """

    tuned: Answer
    base: Answer | None = None
    base_as_plain: bool = False
    max_new_tokens: int = MAX_NEW_TOKENS


def typed(text: str, name: str) -> str:
    """Return a word of the command line, read as UTF-8 whatever the locale.

    Raises:
        UserError: if its bytes are no UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that the locale could not read
        return _utf8(os.fsencode(text), name)
    return text


def piped() -> str:
    """Return the text on standard input, which is UTF-8 whatever the locale.

    Raises:
        UserError: if it is none.
    """
    return _utf8(sys.stdin.buffer.read(), "standard input")


def _utf8(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: byte {error.start + 1} ({content[error.start]:#04x}) is no UTF-8; write it as UTF-8, as "
            "`iconv -f latin1 -t utf-8` does from a file"
        ) from error


def generate(path: Path, prompt: str, asking: Asking, *, base: bool = False) -> Generated:
    """Answer a prompt with the model of a finished run.

    Args:
        path: the run folder.
        prompt: of the user's turn.
        asking: system turn, length and sampling.
        base: ask the base model too.

    Raises:
        UserError: for a folder that is no finished run with weights, an empty prompt, or one its template refuses.
    """
    if not prompt.strip():
        raise UserError("prompt: is empty; give a text, or - and the text on standard input")
    found = open_run(path)
    own = found.renderer
    ids = _asked(own, prompt, asking, found.tokenizer)
    plain = base and found.context.tokenizer.chat_template != own.jinja
    renderer = _plain(found) if plain else own
    base_ids = _asked(renderer, prompt, asking, found.tokenizer) if plain else ids
    model = found.load_base(four_bit=found.run.trainer.four_bit)
    asking = _fitting(asking, model, max(len(ids), len(base_ids)))
    before = _answer(found, model, base_ids, renderer, asking) if base else None
    tuned = _answer(found, found.load_tuned(model), ids, own, asking)
    return Generated(tuned, before, plain, asking.max_new_tokens)


def _fitting(asking: Asking, model: Any, prompt_tokens: int) -> Asking:
    """Return the wishes with no longer an answer than the prompt leaves of what the model was made for."""
    from sft_lab.core.positions import positions_of

    if (positions := positions_of(model.config)) is None:
        return asking
    if prompt_tokens >= positions:
        raise UserError(
            f"prompt: takes {prompt_tokens:,} tokens under the chat template, and the model was made for "
            f"{positions:,}; ask with a shorter one"
        )
    return replace(asking, max_new_tokens=min(asking.max_new_tokens, positions - prompt_tokens))


def _plain(found: Finished) -> Renderer:
    from sft_lab.data.chat_template import Renderer
    from sft_lab.run.evaluator import PLAIN

    return Renderer(found.tokenizer, PLAIN.jinja(found.tokenizer))


def _asked(renderer: Renderer, prompt: str, asking: Asking, tokenizer: Any) -> list[int]:
    """Give the tokens of the prompt as the model was trained to read it."""
    from sft_lab.data.chat_template import CannotRender
    from sft_lab.data.tokenization import prompt_ids

    system = [{"role": "system", "content": asking.system}] if asking.system.strip() else []
    try:
        rendered = renderer.prompt([*system, {"role": "user", "content": prompt}])
    except CannotRender as error:
        if system:
            raise UserError(
                f"--system: the run's chat template takes no system turn ({error}); put the text into the prompt"
            ) from error
        raise UserError(f"prompt: the run's chat template refuses it ({error}); ask something else") from error
    if asking.system.strip() not in rendered.text:
        raise UserError("--system: the run's chat template takes no system turn; put the text into the prompt")
    return prompt_ids(rendered, tokenizer)


def _answer(found: Finished, model: Any, ids: list[int], renderer: Renderer, asking: Asking) -> Answer:
    import transformers

    from sft_lab.evaluation import generation

    transformers.set_seed(found.run.seed if asking.seed is None else asking.seed)
    (answer,) = generation.generate(
        model,
        found.tokenizer,
        [ids],
        end_ids=renderer.end_ids,
        max_new_tokens=asking.max_new_tokens,
        sampling=asking.sampling,
    )
    return answer


def show(found: Generated, asking: Asking) -> None:
    """Print the answer alone, so that it can be piped on; with the base model's, each under its name."""
    if found.base is None:
        sys.stdout.write(f"{found.tuned.text}\n")
    else:
        how = ", asked in plain text: the run's template is new to it" if found.base_as_plain else ""
        sys.stdout.write(f"base{how}:\n{found.base.text}\n\ntuned:\n{found.tuned.text}\n")
    cut = [name for name, answer in (("base", found.base), ("tuned", found.tuned)) if answer and not answer.ended]
    if cut:
        fits = found.max_new_tokens == asking.max_new_tokens
        remedy = "--max-new-tokens allows more" if fits else "with the prompt that is all the model was made for"
        sys.stderr.write(f"cut at {found.max_new_tokens} tokens: {', '.join(cut)}; {remedy}\n")
