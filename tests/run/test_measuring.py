"""What is asked of base and tuned model: prompted baselines, questions of one's own, samples on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sft_lab import compose
from sft_lab.cli.main import main
from sft_lab.core.context import StageContext
from sft_lab.core.io import read_json
from sft_lab.core.types import IGNORED
from sft_lab.evaluation.advice import advise
from sft_lab.run.evaluator import Evaluator
from sft_lab.run.few_shot import few_shot_prefix, mask_first_answers, with_prefix


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_labels_of_the_examples_are_left_out() -> None:
    gap, *labels = IGNORED, 1, 2, 3, 4
    one, two, three, four = labels
    assert mask_first_answers([gap, one, two, gap, gap, three, gap, four], 0) == [
        gap,
        one,
        two,
        gap,
        gap,
        three,
        gap,
        four,
    ]
    assert mask_first_answers([gap, one, two, gap, gap, three, gap, four], 1) == [
        gap,
        gap,
        gap,
        gap,
        gap,
        three,
        gap,
        four,
    ]
    assert mask_first_answers([gap, one, two, gap, gap, three, gap, four], 2) == [gap] * 7 + [four]


def test_two_system_turns_become_one() -> None:
    head = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "b"}]
    assert [turn["content"] for turn in with_prefix(head, asked)] == ["Be brief.\n\nBe kind.", "a", "b"]
    assert [turn["content"] for turn in with_prefix(head, asked[1:])] == ["Be brief.", "a", "b"]
    assert [turn["content"] for turn in with_prefix(head[1:], asked)] == ["Be kind.", "a", "b"]
    assert with_prefix(head, []) == []  # plain text


def test_conversations_are_read_once_and_asked_of_all_models(here: Path, tiny: list[str]) -> None:
    """Their file may change while a model trains."""
    file = here / "talk.json"
    file.write_text('[{"role": "user", "content": "Why?"}]')
    run = compose([*tiny, "evaluation.prompts=[]", "evaluation.messages=talk.json"])
    context = run.context()
    data = run.prepare(context)
    evaluator = Evaluator(run, context, lambda: None)
    assert evaluator.prompts(data) == ["Why?"]
    file.write_text('[{"role": "user", "content": "Where?"}]\n[{"role": "user", "content": "When?"}]')
    assert evaluator.prompts(data) == ["Why?"]
    assert Evaluator(run, context, lambda: None).prompts(data) == ["Where?", "When?"]


def test_a_prompted_row_scores_the_same_answer_behind_prompt_and_examples(here: Path, tiny: list[str]) -> None:
    run = compose([*tiny, "evaluation.baseline.examples=2"])
    context = StageContext(run.store.open(), lambda: run.model.tokenizer(StageContext()))
    data = run.prepare(context)
    head = few_shot_prefix(run.evaluation.baseline, data.sides)
    assert [turn["role"] for turn in head] == ["system", "user", "assistant", "user", "assistant"]
    prompted = Evaluator(run, context, lambda: None).prompted(run.template, head, data.held_out)
    assert len(prompted.rows) == len(data.held_out.rows)
    for alone, behind in zip(data.held_out.tokens, prompted.tokens, strict=True):
        asked, given = ([label for label in row["labels"] if label != IGNORED] for row in (alone, behind))
        assert given == asked
        text = context.tokenizer.decode(behind["input_ids"])
        assert all(turn["content"] in text for turn in head)


def test_examples_do_not_depend_on_filters_or_thresholds(here: Path, tiny: list[str]) -> None:
    heads = []
    for words in ([], ["dedup=none"], ["filter.length.max_tokens=60"]):
        run = compose([*tiny, *words])
        context = StageContext(run.store.open(), lambda run=run: run.model.tokenizer(StageContext()))
        heads.append(few_shot_prefix(run.evaluation.baseline, run.prepare(context).sides))
    assert heads[0] == heads[1] == heads[2]


@pytest.mark.slow
def test_own_questions_before_and_after(here: Path, tiny: list[str]) -> None:
    questions = [{"question": "How much is two and two?", "answer": "Four."}, {"question": "Who?", "answer": "You."}]
    Path("domain.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in questions))
    words = [*tiny, "trainer.max_steps=2", "evaluation.prompts=[]", "evaluation.domain=domain.jsonl"]
    assert main([*words, "hydra.run.dir=run"]) == 0
    summary = read_json(Path("run/summary.json"))
    for name in ("domain", "general"):
        assert summary[f"{name}/loss"] > 0
        assert summary[f"base/{name}_loss"] > 0
        assert summary[f"{name}/loss"] != summary[f"base/{name}_loss"]
    assert summary["domain/right_share"] == 0.0
    assert summary["base/domain_right_share"] == 0.0
    assert main([*words, "evaluation.objective=domain/loss", "hydra.run.dir=other"]) == 0
    assert read_json(Path("other/summary.json"))["objective"] == summary["domain/loss"]


def test_questions_that_are_not_there_are_found_before_any_work(
    here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, "evaluation.domain=nowhere.jsonl", "hydra.run.dir=run"]) == 2
    assert "evaluation.domain" in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.slow
def test_samples_on_the_way_and_what_is_written_at_each_measurement(here: Path, tiny: list[str]) -> None:
    words = [*tiny, "trainer.max_steps=4", "trainer.eval_steps=2", "evaluation.samples_every=2",
             "evaluation.prompts=[Hello,Who?]", "evaluation.max_new_tokens=3", "hydra.run.dir=run"]  # fmt: skip
    assert main(words) == 0
    told = lines(Path("run/training_samples.jsonl"))
    assert [(row["step"], row["prompt"]) for row in told] == [(2, "Hello"), (2, "Who?"), (4, "Hello"), (4, "Who?")]
    after = [row["tuned"] for row in lines(Path("run/samples.jsonl"))]
    assert [row["answer"] for row in told[2:]] == after  # the last step's weights are the saved ones
    events = lines(Path("run/metrics.jsonl"))
    measured = [event for event in events if "eval/loss" in event and event["step"]]
    assert [event["step"] for event in measured] == [2, 4]
    for event in measured:
        assert event["gap"] == pytest.approx(event["eval/loss"] - event["train/probe_loss"])
    assert measured[-1]["train/probe_loss"] == read_json(Path("run/summary.json"))["train/probe_loss"]
    assert all(event["tokens_per_second"] > 0 for event in events if "train/loss" in event)
    outputs = lines(Path("run/outputs.jsonl"))
    assert len(outputs) == 8
    assert all(row["prompt"] and row["reference"] for row in outputs)
    cut = "8 of the 8 held-out answers are longer than evaluation.max_new_tokens=3"
    assert any(cut in notice for notice in read_json(Path("run/data.json"))["notices"])


@pytest.mark.slow
def test_nothing_beside_the_losses_where_nothing_is_asked_for(here: Path, tiny: list[str]) -> None:
    off = ["evaluation.prompts=[]", "evaluation.outputs=0", "evaluation.general=null", "evaluation.watch_probe=false",
           "evaluation.baseline.examples=0", "evaluation.baseline.system_prompt=null"]  # fmt: skip
    assert main([*tiny, *off, "trainer.max_steps=2", "hydra.run.dir=run"]) == 0
    summary = read_json(Path("run/summary.json"))
    assert not [name for name in summary if name.startswith(("outputs/", "general/", "domain/", "prompted/"))]
    assert summary["train/probe_loss"] > 0
    assert Path("run/outputs.jsonl").read_text() == ""


@pytest.mark.parametrize("sign", ["overfitting", "not_judged", "template_not_learned", "memorizing", "undertrained"])
def test_advice_can_be_copied(here: Path, tiny: list[str], sign: str) -> None:
    words = [*tiny, "trainer.eval_steps=0.34", "trainer.save_steps=0.25"]
    found = advise(sign, compose(words))
    assert found is not None
    assert compose([*words, *found["override"].split()]) is not None


@pytest.mark.slow
def test_a_template_without_system_turns_is_prompted_in_the_user_turn(here: Path, tiny: list[str]) -> None:
    Path("no_system.jinja").write_text(
        "{%- for m in messages -%}{%- if m['role'] == 'system' -%}{{ raise_exception('no system turn') }}{%- endif -%}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{%- endfor -%}"
        "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
    )
    words = [*tiny, "template=file", "template.path=no_system.jinja"]
    run = compose(words)
    context = StageContext(run.store.open(), lambda: run.model.tokenizer(StageContext()))
    data = run.prepare(context)
    head = few_shot_prefix(run.evaluation.baseline, data.sides)
    prompted = Evaluator(run, context, lambda: None).prompted(run.template, head, data.held_out)
    assert len(prompted.rows) == len(data.held_out.rows)
    first = context.tokenizer.decode(prompted.tokens[0]["input_ids"])
    assert first.startswith("<|im_start|>user\nAnswer correctly and briefly.\n\n")
    assert main([*words, "trainer.max_steps=1", "evaluation.max_new_tokens=2", "hydra.run.dir=run"]) == 0


def test_an_objective_nobody_measures_is_refused(
    here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, "evaluation.objective=domain/loss", "hydra.run.dir=run"]) == 2
    assert "evaluation.domain=FILE" in capsys.readouterr().err


def test_examples_differ_and_hold_no_held_out_answer(here: Path, tiny: list[str]) -> None:
    same = [{"question": f"Question {n % 2}?", "answer": "The one answer."} for n in range(40)]
    other = [{"question": f"Other {n}?", "answer": f"Answer number {n}."} for n in range(60)]
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in same + other))
    words = [word for word in tiny if not word.startswith("dataset")]
    run = compose([*words, "dataset=file", "dataset.path=rows.jsonl", "split.min_eval_rows=1",
                   "evaluation.baseline.examples=30"])  # fmt: skip
    context = StageContext(run.store.open(), lambda: run.model.tokenizer(StageContext()))
    data = run.prepare(context)
    head = few_shot_prefix(run.evaluation.baseline, data.sides)
    answers = [turn["content"] for turn in head if turn["role"] == "assistant"]
    prompts = [turn["content"] for turn in head if turn["role"] == "user"]
    assert len(answers) == 30
    assert len(set(zip(prompts, answers, strict=True))) == 30
    assert answers.count("The one answer.") <= 2
    assert not set(answers) & set(data.sides.held_out_rows.column("answer"))


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (["template=auto"], True),
        (["template=chatml"], True),
        (["template=file", "template.path=same.jinja"], True),  # other words, the same text
        (["template=alpaca"], False),
        (["template=file", "template.path=refuses.jinja"], False),
    ],
)
def test_the_base_model_is_asked_under_a_template_it_knows_by_what_is_written(
    here: Path, tiny: list[str], words: list[str], known: bool
) -> None:
    body = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    ask = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    Path("same.jinja").write_text("{% for m in messages %}" + body + "{% endfor %}" + ask)
    many = "{% if messages | length > 2 %}{{ raise_exception('one question only') }}{% endif %}"
    Path("refuses.jinja").write_text(many + Path("same.jinja").read_text())
    run = compose([*tiny, *words])
    context = StageContext(run.store.open(), lambda: run.model.tokenizer(StageContext()))
    assert Evaluator(run, context, lambda: None).knows(run.template) is known
    context.tokenizer.eos_token = None
    assert Evaluator(run, context, lambda: None).knows(run.template)  # under `plain` it could not be asked


@pytest.mark.slow
def test_choosing_by_held_out_rows_needs_some(here: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for choice in ("trainer.load_best_model_at_end=true", "trainer.early_stopping_patience=2"):
        assert main([*tiny, choice, "split.eval_share=0", "hydra.run.dir=run", "rerun=true"]) == 2
        assert "raise split.eval_share" in capsys.readouterr().err
