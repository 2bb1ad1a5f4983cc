"""Templates and tokens: what is trained is the answer and its end, and nobody's words are anything but words."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from example_counts import tried
from hypothesis import given
from hypothesis import strategies as st
from row_strategies import TEXTS
from small_parts import tokenizer
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from sft_lab.core.context import StageContext
from sft_lab.core.rows import Rows
from sft_lab.core.store import Store
from sft_lab.core.types import IGNORED
from sft_lab.data.chat_template import Auto, Jinja, Template
from sft_lab.data.renderer import Renderer
from sft_lab.data.template_layout import CannotRender
from sft_lab.data.tokens_and_labels import prompt_ids, tokenize

CHATML, MISTRAL, PLAIN, ALPACA, TAGGED = (
    Jinja(path=f"package:sft_lab/data/templates/{name}.jinja")
    for name in ("chatml", "mistral", "plain", "alpaca", "tagged")
)
FORGED = ["<|im_end|>", "<|im_start|>", "<|im_start|>assistant\n", "<|endoftext|>", "<s>", "</s>", "[INST]", "[/INST]",
          "<|im_end|><|im_end|>", "<<|im_end|>", "<|im_end|", "|>", "{{ messages }}", "{% raw %}", "user\n",
          "### Response:\n",           "\ue000", "\ue000\ue001", "\uf8ff"]  # fmt: skip
SAID = st.one_of(TEXTS, st.lists(st.sampled_from(FORGED) | TEXTS, max_size=4).map("".join))
TALKS = st.lists(SAID, min_size=1, max_size=3).flatmap(
    lambda asked: st.lists(SAID, min_size=len(asked), max_size=len(asked)).map(
        lambda given: [text for pair in zip(asked, given, strict=True) for text in pair]
    )
)


@cache
def with_bos() -> Any:
    """Puts <s> before every text it is given, as Llama's and Mistral's do."""
    backend = Tokenizer.from_str(tokenizer().backend_tokenizer.to_str())
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


WAYS = {
    "chatml": (tokenizer, CHATML), "auto": (tokenizer, Auto()), "plain": (tokenizer, PLAIN),
    "alpaca": (tokenizer, ALPACA), "mistral": (with_bos, MISTRAL), "plain with BOS": (with_bos, PLAIN),
    "tagged": (with_bos, TAGGED),
}  # fmt: skip
WAY = st.sampled_from(list(WAYS))


@cache
def renderer(way: str) -> Renderer:
    make, template = WAYS[way]
    return template.bind(StageContext(load_tokenizer=make))


def messages_of(talk: list[str], system: str | None = None) -> list[dict[str, str]]:
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(talk)]


def tokens_of(make: Any, template: Template, talks: list[list[str]], max_length: int, *, on_all: bool = False) -> Any:
    """Template and tokenize as a run does; rows by id, and both selections."""
    import datasets

    table = datasets.Dataset.from_dict(
        {
            "id": [str(number) for number in range(len(talks))],
            "prompt": ["\n".join(talk[::2]) for talk in talks],
            "answer": ["\n".join(talk[1::2]) for talk in talks],
            "messages": [messages_of(talk) for talk in talks],
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        context = StageContext(Store(Path(folder)), make)
        rows = Rows.of(table)
        rendering, rendered = template(rows, context)
        rows = rows.take(rendering.kept)
        fitting, tokens = tokenize(rows, rendered, max_length=max_length, loss_on_all=on_all)
        return {row["id"]: row for row in tokens.to_list()}, rendering, fitting


def control_ids(make: Any) -> set[int]:
    return set(make().all_special_ids) | {
        place for place, token in make().added_tokens_decoder.items() if token.special
    }


@tried(5, 2000)
@given(WAY, st.lists(TALKS, min_size=1, max_size=3))
def test_what_is_trained_is_the_answers_and_their_ends(way: str, talks: list[list[str]]) -> None:
    make, template = WAYS[way]
    rows, rendering, fitting = tokens_of(make, template, talks, 10**6)
    end = renderer(way)
    assert set(rendering.reason) <= {"", "message_not_rendered", "answer_not_rendered", "no_end_of_turn",
                                     "rewrites_history", "template_refused"}  # fmt: skip
    assert fitting.kept.all()
    innocent = [end.conversation(messages_of(["a", "b"] * (len(talk) // 2))) for talk in talks]
    for number, talk in enumerate(talks):
        if rendering.reason[number]:
            continue
        row = rows[str(number)]
        ids, labels = row["input_ids"], row["labels"]
        whole = end.conversation(messages_of(talk))
        assert make().decode(ids) == whole.text
        assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
        # No more control tokens than the template itself writes round as many turns.
        written = make()(innocent[number].text, add_special_tokens=False)["input_ids"]
        control = control_ids(make)
        assert [token for token in ids if token in control] == [token for token in written if token in control]
        # Each stretch that is trained is one answer with what the template writes behind it, in their order.
        stretches: list[list[int]] = []
        for place, label in enumerate(labels):
            if label != IGNORED:
                if not place or labels[place - 1] == IGNORED:
                    stretches.append([])
                stretches[-1].append(label)
        answers = [*zip(talk[1::2], whole.spans, strict=True)]
        answers = [(answer, span) for answer, span in answers if answer.strip()] or answers  # silence is no lesson
        for stretch, (answer, (start, stop)) in zip(stretches, answers, strict=True):
            said = make().decode(stretch)
            assert stretch[-1] == end.end_of_turn_id
            assert said == whole.text[start:stop]
            assert answer.strip() in said
            assert said.replace(answer.strip(), "", 1).strip() == end.closing.strip()


@tried(5, 2000)
@given(WAY, TALKS, st.none() | SAID)
def test_a_prompt_is_the_beginning_of_what_was_trained(way: str, talk: list[str], system: Any) -> None:
    make, _ = WAYS[way]
    end = renderer(way)
    try:
        whole = end.conversation(messages_of(talk, system))
    except CannotRender:
        return
    asked = end.prompt(messages_of(talk[:-1], system))
    assert whole.text.startswith(asked.text)
    assert whole.spans[-1][0] == len(asked.text)
    assert make().decode(prompt_ids(asked, make())) == asked.text
    bos = make().bos_token_id if make is with_bos else None
    assert prompt_ids(asked, make()).count(bos) == int(bos is not None)
    assert whole.cuts == sorted(set(whole.cuts))
    assert all(0 < cut < len(whole.text) for cut in whole.cuts)


@tried(2, 1000)
@given(WAY, st.lists(TALKS, min_size=1, max_size=4), st.integers(1, 60))
def test_what_is_too_long_goes_whole(way: str, talks: list[list[str]], max_length: int) -> None:
    make, template = WAYS[way]
    all_rows, _, whole = tokens_of(make, template, talks, 10**6)
    rows, _, fitting = tokens_of(make, template, talks, max_length)
    sizes = [len(all_rows[row_id]["input_ids"]) for row_id in whole.ids]
    assert fitting.score.tolist() == whole.score.tolist() == sizes
    assert fitting.reason == ["over_max_length" if size > max_length else "" for size in sizes]
    assert rows == {row_id: row for row_id, row in all_rows.items() if len(row["input_ids"]) <= max_length}
    everything, _, _ = tokens_of(make, template, talks, max_length, on_all=True)
    assert {row_id: row["input_ids"] for row_id, row in everything.items()} == {
        row_id: row["input_ids"] for row_id, row in rows.items()
    }
    assert all(row["labels"] == row["input_ids"] for row in everything.values())


@tried(8, 2000)
@given(SAID)
def test_plain_text_is_trained_whole(text: str) -> None:
    for way in ("plain", "plain with BOS"):
        make = WAYS[way][0]
        rendered = renderer(way).plain_text(text)
        ids = prompt_ids(rendered, make())
        assert make().decode(ids) == rendered.text
        control = control_ids(make)
        assert [token for token in ids if token in control] == [
            *([make().bos_token_id] if make is with_bos else []), make().eos_token_id
        ]  # fmt: skip
        assert rendered.spans == [(0, len(rendered.text))]
