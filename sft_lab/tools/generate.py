"""``sft-lab generate``: answer prompts with the model of a finished run, and with its base model for comparison."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core.errors import UserError, require
from sft_lab.core.gpus import release_memory
from sft_lab.core.log import log
from sft_lab.evaluation.config import MOST_NEW_TOKENS
from sft_lab.tools.finished_run import FinishedRun, open_run

if TYPE_CHECKING:
    from sft_lab.data.call_form import CallForm
    from sft_lab.data.renderer import Renderer
    from sft_lab.data.template_input import Conversation
    from sft_lab.evaluation.generation import Answer

MAX_NEW_TOKENS = 256
_PROGRESS = "%s model: loading, then answering with at most %d tokens"
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 1000  # logits divided by less would overflow


@dataclass(frozen=True)
class GenerationOptions:
    """Options of generation; the fields are command-line flags.

    Attributes:
        system: text of a system turn before the prompt; empty: none.
        max_new_tokens: of an answer.
        temperature: 0 is greedy: always the most likely token.
        top_p: sample from the most likely tokens with this total probability; None for all.
        top_k: sample from this many of the most likely tokens; None for all.
        seed: of sampling; None: the run's.
    """

    system: str = ""
    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse impossible values, naming their flags."""
        is_length = 1 <= self.max_new_tokens <= MOST_NEW_TOKENS
        require(is_length, "--max-new-tokens", self.max_new_tokens, f"from 1 to {MOST_NEW_TOKENS:,}")

        is_temperature = self.temperature == 0 or MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE
        limits = f"0 (greedy), or from {MIN_TEMPERATURE} to {MAX_TEMPERATURE:,}"
        require(is_temperature, "--temperature", self.temperature, limits)
        require(self.top_p is None or 0 < self.top_p <= 1, "--top-p", self.top_p, "above 0 and at most 1")
        require(self.top_k is None or self.top_k >= 1, "--top-k", self.top_k, "at least 1")
        require(self.seed is None or 0 <= self.seed < 2**32, "--seed", self.seed, f"from 0 to {2**32 - 1}")

        if self.temperature == 0:
            for name in ("top_p", "top_k", "seed"):
                if (value := getattr(self, name)) is not None:
                    flag = f"--{name.replace('_', '-')}"
                    raise UserError(f"{flag} {value}: has no effect without --temperature above 0")

    @property
    def sampling(self) -> dict[str, float | int] | None:
        """All sampling options of Transformers, so that none comes from the model's config; None for greedy."""
        if not self.temperature:
            return None
        return {"temperature": self.temperature, "top_p": self.top_p or 1.0, "top_k": self.top_k or 0}


@dataclass(frozen=True)
class GeneratedAnswers:
    """Answers to a prompt.

    Attributes:
        tuned: of the run's model.
        base: of the base model; None if it did not answer.
        is_base_plain: whether the base model got the prompt as plain text, since it does not know the run's template.
        max_new_tokens: the limit that applied; lower than requested if the prompt leaves fewer positions.
        tools: that the conversation gives the model, as JSON schemas.
        call_form: how the template writes calls of them; None where there are none, or it is not known.
        question: the last user turn.
    """

    tuned: Answer
    base: Answer | None = None
    is_base_plain: bool = False
    max_new_tokens: int = MAX_NEW_TOKENS
    tools: Sequence[dict[str, Any]] = ()
    call_form: CallForm | None = None
    question: str = ""


def decode_argument(text: str, name: str) -> str:
    """Return an argument of the command line, decoded as UTF-8 whatever the locale.

    Raises:
        UserError: if its bytes are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that the locale could not decode
        return _decode(os.fsencode(text), name)
    return text


def read_stdin() -> str:
    """Return the text on standard input, decoded as UTF-8 whatever the locale.

    Raises:
        UserError: if it is not UTF-8.
    """
    return _decode(sys.stdin.buffer.read(), "standard input")


def _decode(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: byte {error.start + 1} ({content[error.start]:#04x}) is not UTF-8; convert it, for example with "
            "`iconv -f latin1 -t utf-8`"
        ) from error


def answer_prompt(path: Path, prompt: str, options: GenerationOptions, *, base: bool = False) -> GeneratedAnswers:
    """Answer a prompt with the model of a finished run.

    Args:
        path: the run folder.
        prompt: of the user's turn.
        options: system turn, length and sampling.
        base: whether the base model answers too.

    Raises:
        UserError: if the folder has no finished run with weights, or the prompt is empty or refused by its template.
    """
    from sft_lab.data.template_input import Conversation

    if not prompt.strip():
        raise UserError("prompt: is empty; give a text, or - to read it from standard input")
    system = [{"role": "system", "content": options.system}] if options.system.strip() else []
    conversation = Conversation([*system, {"role": "user", "content": prompt}])
    return answer_conversations(path, {"prompt": conversation}, options, base=base)[0]


def answer_conversations(
    path: Path, conversations: Mapping[str, Conversation], options: GenerationOptions, *, base: bool
) -> list[GeneratedAnswers]:
    """Answer the last message of conversations with the model of a finished run.

    Args:
        path: the run folder.
        conversations: with their tools, by their names in messages; the last message of each is the user's or a tool's.
        options: length and sampling.
        base: whether the base model answers too.

    Raises:
        UserError: if the folder has no finished run with weights, or its template refuses a conversation.
    """
    from sft_lab.data.call_form import CallForm

    finished = open_run(path)
    renderer = base_renderer = finished.renderer

    def render(renderer: Renderer) -> list[list[int]]:
        return [_render_prompt(finished, renderer, *item, options) for item in conversations.items()]

    prompts = base_prompts = render(renderer)
    has_tools = any("tools" in conversation.inputs for conversation in conversations.values())
    # Plain text has no tools: rows with some are asked in the run's template, though it is new to the model.
    is_plain = base and not has_tools and finished.context.tokenizer.chat_template != renderer.jinja
    if is_plain:
        base_renderer = _plain_renderer(finished)
        base_prompts = render(base_renderer)

    longest = max(map(len, [*prompts, *base_prompts]))
    options = _limit_length(options, finished.run.model.config(finished.context), longest)
    form = CallForm.of(renderer) if has_tools else None
    ends = {form.end} if form else set()
    model = None
    base_answers: Sequence[Answer | None] = [None] * len(prompts)
    if base:
        log.info(_PROGRESS, "base", options.max_new_tokens)
        model = finished.load_base(four_bit=finished.run.trainer.holding.four_bit)
        base_answers = _generate(finished, model, base_prompts, base_renderer, options, ends)
        if not finished.is_adapter:
            model = None
            release_memory()
    log.info(_PROGRESS, "tuned", options.max_new_tokens)
    answers = _generate(finished, finished.load_tuned(model), prompts, renderer, options, ends)
    return [
        GeneratedAnswers(
            tuned=tuned,
            base=other,
            is_base_plain=is_plain,
            max_new_tokens=options.max_new_tokens,
            tools=each.inputs.get("tools", ()),
            call_form=form,
            question=next((str(turn["content"]) for turn in reversed(each.messages) if turn["role"] == "user"), ""),
        )
        for tuned, other, each in zip(answers, base_answers, conversations.values(), strict=True)
    ]


def _limit_length(options: GenerationOptions, config: Any, prompt_tokens: int) -> GenerationOptions:
    """Return the options with the answer limited to the positions that the prompt leaves."""
    from sft_lab.core.positions import positions_of

    if (positions := positions_of(config)) is None:
        return options
    if prompt_tokens >= positions:
        raise UserError(
            f"prompt: is {prompt_tokens:,} tokens long with the chat template, but the model was made for "
            f"{positions:,}; give a shorter one"
        )
    return replace(options, max_new_tokens=min(options.max_new_tokens, positions - prompt_tokens))


def _plain_renderer(finished: FinishedRun) -> Renderer:
    from sft_lab.data.renderer import Renderer
    from sft_lab.run.evaluator import PLAIN

    return Renderer(finished.tokenizer, PLAIN.jinja(finished.tokenizer))


def _render_prompt(
    finished: FinishedRun, renderer: Renderer, name: str, conversation: Conversation, options: GenerationOptions
) -> list[int]:
    """Return the tokens of the prompt in the template that the model was trained on."""
    from sft_lab.data.examples import ExampleMaker
    from sft_lab.data.template_layout import CannotRender
    from sft_lab.data.tokens_and_labels import prompt_ids
    from sft_lab.pipeline import label_rules

    remedy = "put the text in the prompt"
    try:
        rendered = ExampleMaker(renderer, label_rules(finished.run)).prompt(conversation)
    except CannotRender as error:
        if options.system.strip():
            message = f"--system: the run's chat template accepts no system turn ({error}); {remedy}"
            raise UserError(message) from error
        raise UserError(f"{name}: the run's chat template rejects it ({error}); change it") from error
    if options.system.strip() not in rendered.text:
        raise UserError(f"--system: the run's chat template accepts no system turn; {remedy}")
    return prompt_ids(rendered, finished.tokenizer)


def _generate(
    finished: FinishedRun, model: Any, prompts: list[list[int]], renderer: Renderer, options: GenerationOptions,
    ends: set[str],
) -> list[Answer]:  # fmt: skip
    """Return answers; they end where a turn does, or at one of ``ends``, tokens of the template."""
    import transformers

    from sft_lab.evaluation import generation

    transformers.set_seed(finished.run.seed if options.seed is None else options.seed)
    return generation.generate(
        model,
        finished.tokenizer,
        prompts,
        end_ids=sorted({*renderer.end_ids, *map(finished.tokenizer.convert_tokens_to_ids, ends)}),
        max_new_tokens=options.max_new_tokens,
        sampling=options.sampling,
    )


def print_answers(answers: GeneratedAnswers, options: GenerationOptions) -> None:
    """Print just the answer, to be piped; with a base model's answer, print each under its name."""
    from sft_lab.evaluation.answers import repeats

    if answers.base is None:
        sys.stdout.write(f"{_with_calls(answers, answers.tuned)}\n")
    else:
        plain = ", prompted in plain text, since it does not know the run's template" if answers.is_base_plain else ""
        base, tuned = (_with_calls(answers, answer) for answer in (answers.base, answers.tuned))
        sys.stdout.write(f"base{plain}:\n{base}\n\ntuned:\n{tuned}\n")

    by_name = {"base": answers.base, "tuned": answers.tuned}
    repeating = [name for name, answer in by_name.items() if answer and repeats(answer.text, answers.question)]
    if repeating:
        sys.stderr.write(f"only repeats the question: {', '.join(repeating)}\n")
    cut = [name for name, answer in by_name.items() if answer and not answer.ended]
    if cut:
        limit = answers.max_new_tokens
        is_own_limit = limit == options.max_new_tokens
        remedy = "--max-new-tokens allows more" if is_own_limit else "the model has no positions left after the prompt"
        sys.stderr.write(f"cut at {limit} tokens: {', '.join(cut)}; {remedy}\n")


def print_conversations(answers: Sequence[GeneratedAnswers], options: GenerationOptions) -> None:
    """Print the answers to conversations, each under its number where there are several."""
    for number, each in enumerate(answers, start=1):
        if len(answers) > 1:
            sys.stdout.write(f"{'' if number == 1 else chr(10)}conversation {number}\n")
        print_answers(each, options)


def _with_calls(answers: GeneratedAnswers, answer: Answer) -> str:
    """Return an answer's text; with tools, the text as it was written and the calls in it below."""
    from sft_lab.evaluation.tool_calls import describe_calls

    if not answers.tools:
        return answer.text
    text = answer.raw.strip()
    if answers.call_form is None:
        return f"{text}\n\ntool calls: the run's chat template does not show how they are written"
    calls = describe_calls(answers.call_form.parse(answer.raw), answers.tools)
    return f"{text}\n\n" + ("no tool call" if not calls else f"tool call: {calls}".replace("\n", "\ntool call: "))
