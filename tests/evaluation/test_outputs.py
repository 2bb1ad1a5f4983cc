"""A model's answers and their metrics: batching, ends, control tokens, variety, likeness, tasks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sft_lab import compose
from sft_lab.core.context import StageContext
from sft_lab.evaluation.answers import (
    contains_expected,
    distinct_pairs,
    has_same_json_form,
    likeness,
    measure_answers,
    split_words,
)
from sft_lab.evaluation.generation import Answer, _answer, generate


@pytest.fixture(scope="module")
def model_and_tokenizer() -> tuple[Any, Any]:
    run = compose(["model=tiny_random"])
    context = StageContext(load_tokenizer=lambda: run.model.load_tokenizer(StageContext()))
    return run.model.load(context, seed=7), context.tokenizer


def test_prompts_of_all_lengths_are_answered_together_as_alone(model_and_tokenizer: tuple[Any, Any]) -> None:
    model, tokenizer = model_and_tokenizer
    prompts = [[*range(10, 10 + size)] for size in (3, 17, 1, 40, 8, 9, 2, 5, 30, 4)]
    options: dict[str, Any] = {"end_ids": [tokenizer.eos_token_id], "max_new_tokens": 6}
    together = generate(model, tokenizer, prompts, **options)
    assert together == [generate(model, tokenizer, [prompt], **options)[0] for prompt in prompts]
    assert not any(answer.ended for answer in together)  # cut at six tokens


def test_an_answer_ends_at_its_end_token(model_and_tokenizer: tuple[Any, Any]) -> None:
    model, tokenizer = model_and_tokenizer
    prompt = [10, 11, 12]
    (full,) = generate(model, tokenizer, [prompt], end_ids=[tokenizer.eos_token_id], max_new_tokens=5)
    ids = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=5)[0, len(prompt) :].tolist()
    assert full == Answer(tokenizer.decode(ids), False, [])
    third = ids[2]
    before = ids[: ids.index(third)]
    (ended,) = generate(model, tokenizer, [prompt], end_ids=[third], max_new_tokens=5)
    assert ended == Answer(tokenizer.decode(before), True, [])
    assert full.text.startswith(ended.text)


def test_an_answer_cut_within_a_character_ends_before_it(model_and_tokenizer: tuple[Any, Any]) -> None:
    _, tokenizer = model_and_tokenizer
    ids = tokenizer("𓀀𓀁")["input_ids"]
    cut = [count for count in range(1, len(ids)) if tokenizer.decode(ids[:count]).endswith("\ufffd")]
    assert cut
    for count in cut:
        assert "𓀀𓀁".startswith(_answer(tokenizer, ids[:count], []).text)


def test_sampling_differs_from_greedy_and_not_from_itself(model_and_tokenizer: tuple[Any, Any]) -> None:
    import transformers

    model, tokenizer = model_and_tokenizer
    options: dict[str, Any] = {
        "end_ids": [tokenizer.eos_token_id],
        "max_new_tokens": 8,
        "sampling": {"temperature": 2.0},
    }
    texts = []
    for seed in (1, 1, 2):
        transformers.set_seed(seed)
        texts.append(generate(model, tokenizer, [[10, 11, 12]], **options)[0].text)
    assert texts[0] == texts[1] != texts[2]


def answers(*texts: str, ended: bool = True, stray: tuple[str, ...] = ()) -> list[Answer]:
    return [Answer(text, ended, list(stray)) for text in texts]


def test_shares() -> None:
    given = [*answers("Paris", '{"a": 1}'), *answers("x </s> y", ended=False, stray=("</s>",))]
    metrics = measure_answers(
        given, ["PARIS ", "give JSON", "x"],
        ["paris.", '{"a": 2}', "a reference that is far too long to be given word for word by anybody"], []
    )  # fmt: skip
    assert metrics["ended_share"] == pytest.approx(2 / 3)
    assert metrics["stray_share"] == pytest.approx(1 / 3)
    assert metrics["echoed_share"] == pytest.approx(1 / 3)  # "Paris" was the question
    assert metrics["json_share"] == 1.0  # of the one reference that is JSON
    assert metrics["exact_share"] == 0.0  # "paris." has a full stop
    assert measure_answers(answers(" PARIS"), ["Where?"], ["Paris"], [])["exact_share"] == 1.0


def test_nothing_to_measure_is_none() -> None:
    metrics = measure_answers(
        answers(""), ["?"], ["no JSON and no short answer, so that nothing at all can be said of this one"], []
    )
    assert (metrics["json_share"], metrics["exact_share"], metrics["distinct_2"], metrics["likeness"]) == (None,) * 4


@pytest.mark.parametrize(
    ("text", "reference", "same"),
    [
        ('{"a": 1, "b": 2}', '{"b": "x", "a": "y"}', True),
        ('{"a": 1}', '{"b": 1}', False),
        ("[1]", "[2, 3]", True),
        ("Here: {}", "{}", False),
        ("1", "{}", False),
    ],
)
def test_json_has_the_form_of_its_reference(text: str, reference: str, same: bool) -> None:
    assert has_same_json_form(text, reference) is same


def test_variety_and_likeness() -> None:
    assert distinct_pairs(["a b a b"]) == pytest.approx(2 / 3)
    assert distinct_pairs(["one two three", "four five"]) == 1.0
    training = ["the cat sat on the mat", "nothing alike"]
    assert likeness(["the cat sat on the mat"], training) == 1.0
    assert likeness(["the dog sat on the mat"], training) == pytest.approx(5 / 6)
    assert likeness(["zebra"], training) == 0.0


def test_an_answer_is_right_that_holds_the_expected_one() -> None:
    assert contains_expected("The capital is  PARIS, of course.", "Paris")
    assert not contains_expected("London", "Paris")
    assert not contains_expected("It was in 1943.", "4")
    assert not contains_expected("I do not know.", "no")


def test_texts_without_spaces_are_compared_by_character() -> None:
    assert split_words("水在零度结冰，在一百度沸腾，这是每个孩子在学校里都学到的东西。")[:3] == ["水", "在", "零"]
    assert split_words("one two") == ["one", "two"]
