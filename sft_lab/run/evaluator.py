"""What a run measures of the base model and of the tuned one: losses, answers, questions.

The base model's scores and answers are stored, since they are the same for every job of a sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

from sft_lab.core.errors import ConfigError, ModelError
from sft_lab.core.io import digest, read_json, write_json
from sft_lab.core.params import plain
from sft_lab.core.positions import learned_positions, within_positions
from sft_lab.core.remote import local_path
from sft_lab.core.rows import Rows
from sft_lab.core.text import one_line
from sft_lab.core.types import TEMPLATE_INPUTS
from sft_lab.data.call_form import CallForm
from sft_lab.data.chat_template import Auto, Jinja, Template
from sft_lab.data.control_tokens import refuse_missing_tools
from sft_lab.data.conversation_file import read_conversations
from sft_lab.data.examples import ExampleMaker
from sft_lab.data.preparation import Preparation
from sft_lab.data.sources import File
from sft_lab.data.template_layout import CannotRender
from sft_lab.data.tokens_and_labels import prompt_ids
from sft_lab.data.trained_turns import TrainOn
from sft_lab.evaluation import heldout
from sft_lab.evaluation.answers import measure_answers
from sft_lab.evaluation.custom_metrics import measure_custom
from sft_lab.evaluation.generation import Answer, generate
from sft_lab.evaluation.heldout import AnswerEnding, Scores
from sft_lab.pipeline import label_rules
from sft_lab.run.call_checks import call_numbers, calls_as_text, drop_call_tokens, has_tools
from sft_lab.run.few_shot import Messages, count_answers, few_shot_prefix, mask_first_answers, with_prefix
from sft_lab.run.fixed_prompts import FixedPrompt, fixed_prompts
from sft_lab.run.measurement import BaseMeasurement, Measurement, domain_numbers, held_out_numbers
from sft_lab.run.questions import Question, answer_questions, question_rows, shortest_questions
from sft_lab.training.weights import four_bit_dtype

if TYPE_CHECKING:
    from sft_lab.core.context import StageContext
    from sft_lab.data.preparation import Prepared, Ready
    from sft_lab.run.config import Run

PLAIN = Jinja(path="package:sft_lab/data/templates/plain.jinja")

MAX_TRAINING_ANSWERS = 20_000  # with which the model's are compared

# Two exchanges, to see what a template writes. No system message: some templates add their own, others refuse one.
_SAMPLE_MESSAGES = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b")) * 2]


class Evaluator:
    """Measures models on one run's data.

    Args:
        run: its stages and options are used.
        context: the tools of its stages.
        load_model: returns the base model; called when something is not stored yet.
    """

    def __init__(self, run: Run, context: StageContext, load_model: Callable[[], Any]) -> None:
        self._run = run
        self._context = context
        self._load_model = load_model
        self._options = run.evaluation
        self._has_tools: bool | None = None
        self._fixed: list[FixedPrompt] | None = None  # read once, so that all models are asked the same

    def measure_base(self, data: Prepared) -> BaseMeasurement:
        """Measure the base model, or read what was measured before."""
        # Plain text has no tools: rows with some are asked in the run's template, though it is new to the model.
        is_known = self.knows(self._run.template) or self._gives_tools(data)
        template = self._run.template if is_known else PLAIN
        form = self._call_form(template, data)
        held_out = data.held_out if is_known else self._templated(template, data.held_out.rows)
        probe = data.probe if is_known else self._templated(template, data.probe.rows)
        prefix = few_shot_prefix(self._options.baseline, data.sides)
        fixed_answers = {
            "base": self._stored_answers(self._fixed_prompts(data, template, []), template, form),
            "prompted_base": self._stored_answers(self._fixed_prompts(data, template, prefix), template, form),
        }
        measured = self._measure(
            held_out,
            probe,
            template,
            fixed_answers,
            data,
            form,
            score=lambda ready: self._stored_scores(ready, template),
            generate_answers=lambda prompts: self._stored_answers(prompts, template, form),
        )

        untrained = measured.held_out
        if not is_known and len(data.held_out.rows):
            untrained = self._stored_scores(data.held_out, self._run.template)
        prompted = None
        if prefix:
            prompted = self._stored_scores(self.prompted(template, prefix, held_out), template)
        return BaseMeasurement(**vars(measured), untrained=untrained, prompted=prompted)

    def measure_tuned(
        self, model: Any, data: Prepared, held_out_scores: Scores | None, probe_scores: Scores | None
    ) -> Measurement:
        """Measure a trained model.

        Args:
            model: with the weights that will be saved.
            data: the training rows and the held-out rows.
            held_out_scores: of these weights, None without held-out rows.
            probe_scores: of these weights where they are known already.
        """
        template = self._run.template
        form = self._call_form(template, data)
        return self._measure(
            data.held_out,
            data.probe,
            template,
            {"tuned": self.answer_fixed_prompts(model, data)},
            data,
            form,
            score=lambda ready: self.score(model, ready),
            generate_answers=lambda prompts: self._generate(model, prompts, template, form),
            held_out_scores=held_out_scores,
            probe_scores=probe_scores,
        )

    def _measure(
        self,
        held_out: Ready,
        probe: Ready,
        template: Template,
        fixed_answers: dict[str, list[Answer]],
        data: Prepared,
        form: CallForm | None,
        *,
        score: Callable[[Ready], Scores],
        generate_answers: Callable[[list[list[int]]], list[Answer]],
        held_out_scores: Scores | None = None,
        probe_scores: Scores | None = None,
    ) -> Measurement:
        rules = label_rules(self._run)
        questions = shortest_questions(held_out, self._options.outputs, rules, self._decode)
        self._notice_cut_answers(questions)
        outputs = answer_questions(questions, generate_answers, form)
        question_sets = self._question_sets(template)
        if held_out_scores is None and len(held_out.rows):
            held_out_scores = score(held_out)
        probe_scores = probe_scores or score(probe)

        numbers = {**held_out_numbers(held_out_scores, probe_scores)}
        if outputs:
            prompts, references, answers, *_ = zip(*outputs, strict=True)
            metrics = measure_answers(answers, prompts, references, _sampled_answers(data.train.rows))
            numbers |= {f"outputs/{name}": value for name, value in metrics.items()} | call_numbers(outputs, form)
        texts = [output.answer.text for output in outputs]
        numbers |= measure_custom(question_rows(questions, held_out.rows), texts, self._context.notice)
        numbers |= {f"{name}/loss": score(ready).loss for name, ready in question_sets.items()}
        if "domain" in question_sets:
            domain = question_sets["domain"]
            domain_questions = shortest_questions(domain, len(domain.rows), rules, self._decode)
            numbers |= domain_numbers(answer_questions(domain_questions, generate_answers))
        fixed = self._chosen_prompts(data)
        tools = [prompt.conversation.inputs.get("tools", []) for prompt in fixed]
        return Measurement(
            held_out.rows.column("id"),
            held_out_scores,
            [prompt.text for prompt in fixed],
            {name: [answer.text for answer in answers] for name, answers in fixed_answers.items()},
            {name: calls_as_text(answers, tools, form) for name, answers in fixed_answers.items()},
            outputs,
            numbers,
        )

    def _call_form(self, template: Template, data: Prepared) -> CallForm | None:
        """Return how a template writes tool calls; None where no prompt has tools."""
        return CallForm.of(template.bind(self._context)) if self._gives_tools(data) else None

    def _gives_tools(self, data: Prepared) -> bool:
        if self._has_tools is None:
            of_prompts = any("tools" in prompt.conversation.inputs for prompt in self._chosen_prompts(data))
            self._has_tools = of_prompts or has_tools(data.held_out.rows)
        return self._has_tools

    def _decode(self, ids: list[int]) -> str:
        return str(self._context.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def score(self, model: Any, ready: Ready, template: Template | None = None, *, shared: bool = False) -> Scores:
        """Return the held-out scores of rows.

        Args:
            model: to measure.
            ready: the rows.
            template: theirs; None: the run's.
            shared: by all processes of a training, see ``heldout.score``.
        """
        ending = self._ending(template or self._run.template)
        batch_tokens = self._options.batch_tokens
        size = np.zeros(len(ready.tokens), np.int64)  # of each example; a row's answers are counted once
        scores = heldout.score(model, ready.tokens, size, ending, batch_tokens=batch_tokens, shared=shared)
        return scores.of_rows(ready.first_examples, ready.answer_bytes)

    def prompts(self, data: Prepared) -> list[str]:
        """Return the fixed prompts."""
        return [prompt.text for prompt in self._chosen_prompts(data)]

    def _chosen_prompts(self, data: Prepared) -> list[FixedPrompt]:
        if self._fixed is None:
            path, conversations = self._options.messages, None
            if path is not None:
                file = local_path(path, self._context.store)
                conversations = read_conversations(file, f"evaluation.messages={path}").values()
            self._fixed = fixed_prompts(self._options.prompts, data.held_out.rows, conversations)
        return self._fixed

    def _notice_cut_answers(self, questions: list[Question]) -> None:
        """Notice answers that cannot be as long as they should be: some languages take many tokens."""
        references = [question.reference for question in questions]
        sizes = map(len, self._context.tokenizer(references, add_special_tokens=False).input_ids if references else [])
        limit = self._options.max_new_tokens
        if (long := sum(size > limit for size in sizes)) > len(questions) / 2:
            self._context.notice(
                f"evaluation: {long} of the {len(questions)} held-out answers are longer than "
                f"evaluation.max_new_tokens={limit}, so the models' answers are cut off there; raise it to see all"
            )

    def answer_fixed_prompts(self, model: Any, data: Prepared) -> list[Answer]:
        """Return a model's answers to the fixed prompts under the run's template."""
        template = self._run.template
        form = self._call_form(template, data)
        return self._generate(model, self._fixed_prompts(data, template, []), template, form)

    def base_key(self) -> str:
        """Return a key of the base model's weights as they are held."""
        model, holding = self._run.model, self._run.trainer.holding
        quantization = ["nf4", four_bit_dtype(holding)] if holding.four_bit else []
        weights = model.key(self._context, self._run.seed)
        arithmetic = plain(model.arithmetic(self._context, holding))
        return digest([weights, arithmetic, self._context.new_tokens, *quantization])

    def knows(self, template: Template) -> bool:
        """Return whether a template writes what the model's own does.

        So does every template where there is no end of text, since the model could be measured under no other.
        """
        tokenizer = self._context.tokenizer
        if isinstance(template, Auto) or not tokenizer.eos_token:
            return True
        if not tokenizer.chat_template:
            return False
        try:
            own = Auto().bind(self._context).conversation(_SAMPLE_MESSAGES).text
            return own == template.bind(self._context).conversation(_SAMPLE_MESSAGES).text
        except (ModelError, CannotRender):
            return False

    def prompted(self, template: Template, prefix: Messages, ready: Ready) -> Ready:
        """Return held-out rows with the prefix before each; the answers of its examples are not scored."""
        beside = [name for name in TEMPLATE_INPUTS if name in ready.rows.table.column_names]
        columns = {name: ready.rows.column(name) for name in ("id", "prompt", "answer", "messages", *beside)}
        takes_system = self._takes_system(template)
        columns["messages"] = [
            with_prefix(prefix, messages, takes_system=takes_system) for messages in columns["messages"]
        ]
        rows = Rows.of(datasets.Dataset.from_dict(columns))
        longest = self._run.trainer.max_length + self._count_tokens(prefix)
        longest = min(longest, self._context.tokenizer.model_max_length)
        longest = within_positions(longest, self._run.model.config(self._context))
        templated = self._templated(template, rows, longest)

        # In a row of several examples it is not known which of them hold answers of the prefix.
        is_single = np.bincount(templated.encoded.row_of_example(templated.rows), minlength=len(templated.rows)) == 1
        kept = templated.tokens.select(templated.first_examples[is_single])
        rows = templated.rows.take(is_single)
        examples = 0 if self._run.dataset.train_on is TrainOn.last else count_answers(prefix)
        skipped = [0 if is_text else examples for is_text in rows.is_text]
        labels = [*map(mask_first_answers, kept["labels"], skipped)]
        tokens = datasets.Dataset.from_dict({**kept[:], "labels": labels})
        return type(templated)(rows, tokens, templated.encoded)

    def _templated(self, template: Template, rows: Rows, longest: int | None = None) -> Ready:
        """Return rows under a template, outside the waterfall."""
        work = Preparation(self._context, longest or self._run.trainer.max_length, loss_on_all=False)
        return work.held_out_as(template, rows)

    def _question_sets(self, template: Template) -> dict[str, Ready]:
        """Return the sets of questions, general and domain, under a template."""
        return {
            name: self._templated(template, File(path=path, turns=self._run.dataset.turns)(self._context).rows)
            for name, path in self._options.sets().items()
        }

    def _ending(self, template: Template) -> AnswerEnding:
        renderer, tokenizer = template.bind(self._context), self._context.tokenizer
        closing = tokenizer(renderer.closing.lstrip(), add_special_tokens=False)["input_ids"]
        foreign = closing[0] if renderer.foreign else None
        return AnswerEnding(frozenset(renderer.end_ids), max(1, len(closing)), foreign)

    def _takes_system(self, template: Template) -> bool:
        """Return whether a template takes a system message; some refuse one."""
        messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
        try:
            template.bind(self._context).prompt(messages)
        except CannotRender:
            return False
        return True

    def _count_tokens(self, messages: Messages) -> int:
        """Return an upper bound of what messages take under a template, which may write 16 tokens around each."""
        texts = [message["content"] for message in messages]
        ids = self._context.tokenizer(texts, verbose=False)["input_ids"]
        return sum(map(len, ids)) + 16 * len(messages)

    def _fixed_prompts(self, data: Prepared, template: Template, prefix: Messages) -> list[list[int]]:
        """Return the fixed prompts as tokens, behind a prefix."""
        renderer = template.bind(self._context)
        takes_system = self._takes_system(template)
        prompts = []
        maker = ExampleMaker(renderer, label_rules(self._run))
        for text, conversation in self._chosen_prompts(data):
            try:
                own_messages = maker.messages_of_prompt(conversation.messages)
                messages = with_prefix(prefix, own_messages, takes_system=takes_system)
                rendered = renderer.prompt(messages, conversation.inputs)
                refuse_missing_tools(conversation.inputs, rendered.text)
            except CannotRender as error:
                problem = f"the template cannot render the conversation that ends with {one_line(text, 60)!r} ({error})"
                raise ConfigError(f"evaluation: {problem}; give other prompts, or another template") from error
            prompts.append(prompt_ids(rendered, self._context.tokenizer))
        return prompts

    def _generate(
        self, model: Any, prompts: list[list[int]], template: Template, form: CallForm | None
    ) -> list[Answer]:  # fmt: skip
        max_new_tokens = self._options.max_new_tokens
        limit, longest = learned_positions(model), max(map(len, prompts), default=0)
        if limit and longest + max_new_tokens > limit:
            self._context.notice(
                f"evaluation.max_new_tokens={max_new_tokens}: the model has {limit:,} learned positions and the "
                f"longest prompt takes {longest:,}, so its answer is cut off at {max(limit - longest, 0):,} tokens"
            )
        tokenizer = self._context.tokenizer
        ends = {*self._ending(template).stops, *([tokenizer.convert_tokens_to_ids(form.end)] if form else [])}
        answers = generate(model, tokenizer, prompts, end_ids=sorted(ends), max_new_tokens=max_new_tokens)
        return drop_call_tokens(answers, form) if form else answers

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

        return Scores.load(self._context.stage("base", recipe, compute).path)

    def _stored_answers(
        self, prompts: list[list[int]], template: Template, form: CallForm | None
    ) -> list[Answer]:  # fmt: skip
        if not prompts:
            return []

        def compute(folder: Path) -> None:
            answers = self._generate(self._load_model(), prompts, template, form)
            write_json(folder / "answers.json", {"answers": [vars(answer) for answer in answers]})

        params = {"max_new_tokens": self._options.max_new_tokens}
        recipe = {"version": 3, "params": params, "model": self.base_key(), "input": digest(prompts)}
        if form:
            recipe["calls"] = plain(form)  # they are read in what was written, which older results do not hold
        path = self._context.stage("base_answers", recipe, compute).path
        return [Answer(**fields) for fields in read_json(path / "answers.json")["answers"]]


def _sampled_answers(rows: Rows) -> list[str]:
    """Return the rows' answers, of a large set those of rows at even distances."""
    every = -(-len(rows) // MAX_TRAINING_ANSWERS) or 1
    positions = rows.positions[::every]
    answers: list[str] = Rows(rows.table, positions, rows.table_key).column("answer")
    return answers
