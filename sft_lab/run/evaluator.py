"""What a run asks of a model, of the base model and of the tuned one alike: rows, questions, prompts.

What the base model answers is stored: it is the same for every job of a sweep.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

from sft_lab.core.errors import ModelError
from sft_lab.core.io import digest, read_json, write_json
from sft_lab.core.params import plain
from sft_lab.core.positions import learned_positions, within_positions
from sft_lab.core.rows import Rows
from sft_lab.core.text import normalize
from sft_lab.core.types import IGNORED
from sft_lab.data.chat_template import Auto, CannotRender, Jinja, Template
from sft_lab.data.preparation import Preparation
from sft_lab.data.sources import File
from sft_lab.data.split import group_hash
from sft_lab.data.tokenization import prompt_ids
from sft_lab.evaluation import answers as outputs
from sft_lab.evaluation import generation as samples
from sft_lab.evaluation import heldout
from sft_lab.evaluation.generation import Answer
from sft_lab.evaluation.heldout import Ending, Scores

if TYPE_CHECKING:
    from sft_lab.core.context import StageContext
    from sft_lab.data.preparation import Prepared, Ready
    from sft_lab.run.config import Run

PLAIN = Jinja(path="package:sft_lab/data/templates/plain.jinja")
EXAMPLE_CHARACTERS = 200  # of an example's prompt, and of its answer, at most: examples cost context

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Measured:
    """What a model was measured to do.

    Attributes:
        ids: of the held-out rows.
        held_out: their scores, None without any.
        answers: to the fixed prompts, by the way they were asked.
        outputs: prompt, reference and answer of some held-out rows.
        numbers: what goes into the summary.
    """

    ids: list[str]
    held_out: Scores | None
    answers: dict[str, list[str]]
    outputs: list[tuple[str, str, Answer]]
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Base(Measured):
    """The base model, measured under its own template, or ``plain`` where the run's is new to it.

    Attributes:
        untrained: its held-out scores under the run's template.
        prompted: the same with a system prompt and examples before each row.
    """

    untrained: Scores | None = None
    prompted: Scores | None = None


class Measuring:
    """Measures models on one run's data.

    Args:
        run: whose stages and knobs are used.
        context: its tools.
        load_model: gives the base model.
    """

    def __init__(self, run: Run, context: StageContext, load_model: Callable[[], Any]) -> None:
        self._run, self._bench, self._load_model = run, context, load_model
        self._options = run.evaluation

    def base(self, data: Prepared) -> Base:
        """Measure the base model, or find what it was measured to do."""
        own = self._knows(self._run.template)
        template = self._run.template if own else PLAIN
        held_out = data.held_out if own else self._as(template, data.held_out.rows)
        probe = data.probe if own else self._as(template, data.probe.rows)
        head = self._prompted_head(data)
        asked = _asked(held_out, self._options.outputs)
        answers = {
            "base": self._stored_answers(self._prompts(template, []), template),
            "prompted_base": self._stored_answers(self._prompts(template, head), template),
        }
        replies = self._stored_answers([ids for _, _, ids in asked], template)
        questions = self._questions(template)
        found = self._measured(
            held_out,
            self._stored_scores(held_out, template) if len(held_out.rows) else None,
            self._stored_scores(probe, template),
            {name: self._stored_scores(ready, template) for name, ready in questions.items()},
            {way: [reply.text for reply in found] for way, found in answers.items()},
            [(prompt, reference, reply) for (prompt, reference, _), reply in zip(asked, replies, strict=True)],
            self._domain_answers(questions, lambda prompts: self._stored_answers(prompts, template)),
            data,
        )
        return Base(
            **vars(found),
            untrained=found.held_out if own else self._untrained(data.held_out),
            prompted=self._stored_scores(self._prompted(template, head, held_out), template) if head else None,
        )

    def _untrained(self, held_out: Ready) -> Scores | None:
        return self._stored_scores(held_out, self._run.template) if len(held_out.rows) else None

    def tuned(self, model: Any, data: Prepared, held_out: Scores | None, probe: Scores | None) -> Measured:
        """Measure a trained model.

        Args:
            model: with the weights that will be saved.
            data: what it was trained on and is judged by.
            held_out: its held-out scores, None without held-out rows.
            probe: its scores of the probe where they are known already.
        """
        template = self._run.template
        asked = _asked(data.held_out, self._options.outputs)
        replies = self._answer(model, [ids for _, _, ids in asked], template)
        questions = self._questions(template)
        return self._measured(
            data.held_out,
            held_out,
            probe or self.score(model, data.probe),
            {name: self.score(model, ready) for name, ready in questions.items()},
            {"tuned": self.samples(model)},
            [(prompt, reference, reply) for (prompt, reference, _), reply in zip(asked, replies, strict=True)],
            self._domain_answers(questions, lambda prompts: self._answer(model, prompts, template)),
            data,
        )

    def score(self, model: Any, ready: Ready, template: Template | None = None) -> Scores:
        """Score rows by the one measure; ``template``: theirs, None for the run's."""
        ending = self._ending(template or self._run.template)
        return heldout.score(model, ready.tokens, ready.answer_bytes, ending, batch_tokens=self._options.batch_tokens)

    def _ending(self, template: Template) -> Ending:
        renderer, tokenizer = template.bind(self._bench), self._bench.tokenizer
        closing = tokenizer(renderer.closing.lstrip(), add_special_tokens=False)["input_ids"]
        foreign = closing[0] if renderer.foreign else None
        return Ending(frozenset(renderer.end_ids), max(1, len(closing)), foreign)

    def samples(self, model: Any) -> list[str]:
        """Answer the fixed prompts under the run's template."""
        return [reply.text for reply in self._answer(model, self._prompts(self._run.template, []), self._run.template)]

    def base_key(self) -> str:
        """A key of the base model's weights as they are held."""
        held = ["nf4"] if self._run.trainer.four_bit else []
        model = self._run.model
        how = plain(model.arithmetic())
        return digest([model.key(self._bench, self._run.seed), how, self._bench.new_tokens, *held])

    def _measured(
        self,
        ready: Ready,
        held_out: Scores | None,
        probe: Scores,
        sets: dict[str, Scores],
        answers: dict[str, list[str]],
        replies: list[tuple[str, str, Answer]],
        domain: list[bool],
        data: Prepared,
    ) -> Measured:
        numbers: dict[str, Any] = {}
        for side, scores in (("eval", held_out), ("train", probe)):
            if scores is not None:
                numbers[f"{side}/recalled_share"] = scores.recalled_share
        if held_out is not None:
            numbers |= {
                "eval/loss": held_out.loss,
                "eval/bits_per_byte": held_out.bits_per_byte,
                "eval/token_accuracy": held_out.accuracy,
                "eval/stop_probability": held_out.stop_probability,
                "eval/foreign_probability": held_out.foreign_probability,
            }
        numbers["train/probe_loss"] = probe.loss
        if replies:
            prompts, references, given = zip(*replies, strict=True)
            looked = outputs.measure_answers(given, prompts, references, data.train.rows.column("answer"))
            numbers |= {f"outputs/{name}": value for name, value in looked.items()}
        numbers |= {f"{name}/loss": scores.loss for name, scores in sets.items()}
        if domain:
            numbers["domain/right_share"] = sum(domain) / len(domain)
        return Measured(ready.rows.column("id"), held_out, answers, replies, numbers)

    def _knows(self, template: Template) -> bool:
        """Whether a template writes what the model's own does; without an end of text no other could be asked."""
        tokenizer = self._bench.tokenizer
        if isinstance(template, Auto) or not tokenizer.eos_token:
            return True
        if not tokenizer.chat_template:
            return False
        try:
            own, asked = (one.bind(self._bench).conversation(_PROBE).text for one in (Auto(), template))
        except (ModelError, CannotRender):
            return False
        return own == asked

    def _as(self, template: Template, rows: Rows, longest: int | None = None) -> Ready:
        """Give rows under a template, outside the waterfall."""
        work = Preparation(self._bench, longest or self._run.trainer.max_length, loss_on_all=False)
        return work.held_out_as(template, rows)

    def _questions(self, template: Template) -> dict[str, Ready]:
        """Give the sets of questions under a template."""
        return {
            name: self._as(template, File(path=path)(self._bench).rows) for name, path in self._options.sets().items()
        }

    def _domain_answers(
        self, questions: dict[str, Ready], answer: Callable[[list[list[int]]], list[Answer]]
    ) -> list[bool]:
        """Whether each question of the domain set is answered with what was expected."""
        if "domain" not in questions:
            return []
        asked = _asked(questions["domain"], len(questions["domain"].rows))
        replies = answer([ids for _, _, ids in asked])
        return [
            outputs.contains_expected(reply.text, expected)
            for (_, expected, _), reply in zip(asked, replies, strict=True)
        ]

    def _prompted_head(self, data: Prepared) -> Messages:
        """Give what stands before each prompt for the prompted base model: system prompt, examples.

        Examples are single exchanges, chosen by hash from the training side as it was loaded, so that they are the same
        for every filter and threshold; none has a held-out row's answer.
        """
        baseline, rows = self._options.baseline, data.sides.train
        head = [{"role": "system", "content": baseline.system_prompt}] if baseline.system_prompt else []
        if not baseline.examples:
            return head
        known = set(map(normalize, data.sides.held_out_rows.column("answer")))
        found = {
            (group_hash(f"example:{row_id.split('-', 1)[-1]}"), prompt, answer)
            for row_id, prompt, answer, messages in zip(
                *map(rows.column, ("id", "prompt", "answer", "messages")), strict=True
            )
            if sum(turn["role"] == "assistant" for turn in messages) == 1
            and 0 < len(prompt) <= EXAMPLE_CHARACTERS
            and 0 < len(answer) <= EXAMPLE_CHARACTERS
            and normalize(answer) not in known
        }
        for _, prompt, answer in sorted(found)[: baseline.examples]:
            head += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return head

    def _prompted(self, template: Template, head: Messages, ready: Ready) -> Ready:
        """Give held-out rows with the head before each; the answers of its examples are not scored."""
        names = ("id", "prompt", "answer", "messages")
        found = {name: ready.rows.column(name) for name in names}
        takes_system = self._takes_system(template)
        found["messages"] = [_with_head(head, messages, takes_system) for messages in found["messages"]]
        rows = Rows.of(datasets.Dataset.from_dict(found))
        longest = min(self._run.trainer.max_length + self._tokens(head), self._bench.tokenizer.model_max_length)
        asked = self._as(template, rows, within_positions(longest, self._run.model.config(self._bench)))
        examples = sum(message["role"] == "assistant" for message in head)
        skipped = [0 if text else examples for text in asked.rows.is_text]
        tokens = {**asked.tokens[:], "labels": [*map(_without_first, asked.tokens["labels"], skipped)]}
        return type(asked)(asked.rows, datasets.Dataset.from_dict(tokens), asked.rendered)

    def _takes_system(self, template: Template) -> bool:
        """Whether a template takes a system turn; some refuse one."""
        turns = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
        try:
            template.bind(self._bench).prompt(turns)
        except CannotRender:
            return False
        return True

    def _tokens(self, messages: Messages) -> int:
        texts = [message["content"] for message in messages]
        return sum(map(len, self._bench.tokenizer(texts, verbose=False)["input_ids"])) + 16 * len(messages)

    def _prompts(self, template: Template, head: Messages) -> list[list[int]]:
        """Give the fixed prompts as tokens."""
        renderer = template.bind(self._bench)
        takes_system = self._takes_system(template)
        asked = (_with_head(head, [{"role": "user", "content": text}], takes_system) for text in self._options.prompts)
        return [prompt_ids(renderer.prompt(messages), self._bench.tokenizer) for messages in asked]

    def _answer(self, model: Any, prompts: list[list[int]], template: Template) -> list[Answer]:
        limit, longest = learned_positions(model), max(map(len, prompts), default=0)
        if limit and longest + self._options.max_new_tokens > limit:
            self._bench.notice(
                f"evaluation.max_new_tokens={self._options.max_new_tokens}: the model has learned {limit:,} positions, "
                f"and the longest prompt takes {longest:,}: its answer is cut at {max(limit - longest, 0):,} tokens"
            )
        return samples.generate(
            model,
            self._bench.tokenizer,
            prompts,
            end_ids=sorted(self._ending(template).stops),
            max_new_tokens=self._options.max_new_tokens,
        )

    def _stored_scores(self, ready: Ready, template: Template) -> Scores:
        ending = self._ending(template)
        rows = [ready.tokens["input_ids"][:], ready.tokens["labels"][:], ready.answer_bytes.tolist()]
        recipe = {
            "version": 3,
            "model": self.base_key(),
            "ending": [sorted(ending.stops), ending.length, ending.foreign],
            "input": digest(rows),
        }

        def compute(folder: Path) -> None:
            self.score(self._load_model(), ready, template).save(folder)

        return Scores.load(self._bench.stage("base", recipe, compute).path)

    def _stored_answers(self, prompts: list[list[int]], template: Template) -> list[Answer]:
        if not prompts:
            return []

        def compute(folder: Path) -> None:
            found = self._answer(self._load_model(), prompts, template)
            write_json(folder / "answers.json", {"answers": [vars(answer) for answer in found]})

        params = {"max_new_tokens": self._options.max_new_tokens}
        recipe = {"version": 2, "params": params, "model": self.base_key(), "input": digest(prompts)}
        path = self._bench.stage("base_answers", recipe, compute).path
        return [Answer(**found) for found in read_json(path / "answers.json")["answers"]]


def _asked(ready: Ready, count: int) -> list[tuple[str, str, list[int]]]:
    """Give prompt, expected answer and the prompt's tokens of the ``count`` conversations with the shortest answers."""
    columns = (ready.rows.column("prompt"), ready.rows.column("messages"), *map(ready.tokens.__getitem__, _TOKENS))
    found = []
    for prompt, messages, ids, labels in zip(*columns, strict=True):
        expected = next((turn["content"] for turn in messages if turn["role"] == "assistant"), None)
        if expected is not None:
            begin = next(place for place, label in enumerate(labels) if label != IGNORED)
            found.append((prompt, expected, list(ids[:begin])))
    order = sorted(range(len(found)), key=lambda place: len(found[place][1]))[:count]
    return [found[place] for place in sorted(order)]


_TOKENS = ("input_ids", "labels")
# Without a system turn: some templates put in one of their own, others refuse it.
_PROBE = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b")) * 2]


def _with_head(head: Messages, messages: Messages, takes_system: bool = True) -> Messages:
    """Put the head before a conversation.

    Two system turns become one, since many templates know one only; where a template takes none, its text goes before
    the first user turn's.
    """
    if not messages:  # plain text
        return []
    if not takes_system and head and head[0]["role"] == "system":
        first, *rest = [*head[1:], *messages]
        return [{**first, "content": f"{head[0]['content']}\n\n{first['content']}"}, *rest]
    if head and head[0]["role"] == "system" and messages[0]["role"] == "system":
        both = f"{head[0]['content']}\n\n{messages[0]['content']}"
        return [{"role": "system", "content": both}, *head[1:], *messages[1:]]
    if messages[0]["role"] == "system":
        return [messages[0], *head, *messages[1:]]
    return [*head, *messages]


def _without_first(labels: list[int], runs: int) -> list[int]:
    """Leave out the first ``runs`` stretches of labels: the answers of the examples."""
    kept: list[int] = []
    for number, (_, stretch) in enumerate(itertools.groupby(labels, key=lambda label: label != IGNORED)):
        values = list(stretch)
        # Stretches take turns, the first one unlabelled.
        kept += [IGNORED] * len(values) if number < 2 * runs else values
    return kept
