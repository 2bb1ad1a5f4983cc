"""Templates: their text, the spans of answers, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import tokenizers
import transformers

from sft_lab.core.context import StageContext
from sft_lab.core.errors import ModelError
from sft_lab.core.types import IGNORED
from sft_lab.data.chat_template import Auto, Jinja, Template
from sft_lab.data.renderer import Renderer
from sft_lab.data.sources import File
from sft_lab.data.template_layout import CannotRender
from sft_lab.data.tokens_and_labels import tokenize

CHATML, MISTRAL, PLAIN, QUESTION_ANSWER, ALPACA, TAGGED, WRONG_END = (
    Jinja(path=f"package:sft_lab/data/templates/{name}.jinja")
    for name in ("chatml", "mistral", "plain", "question_answer", "alpaca", "tagged", "wrong_end")
)
TRIMS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REASONING = (  # DeepSeek R1's, in short
    "{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% elif m.role == 'assistant' %}"
    "{% set said = m.content.split('</think>')[-1] %}<｜Assistant｜>{{ said }}<｜end▁of▁sentence｜>"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat(*texts: str, system: str = "") -> list[dict[str, str]]:
    """Give messages: user, assistant, user, ..."""
    head = [{"role": "system", "content": system}] if system else []
    roles = ["user", "assistant"]
    return head + [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def parts(tokenizer: Any, jinja: str, *texts: str, system: str = "") -> tuple[str, list[str]]:
    """Render; give the text and its answers."""
    rendered = Renderer(tokenizer, jinja).conversation(chat(*texts, system=system))
    return rendered.text, [rendered.text[start:end] for start, end in rendered.spans]


def test_chatml(tiny: Any) -> None:
    text, answers = parts(tiny, CHATML.jinja(tiny), "Hi?", "Hello.", "Bye?", "Bye.", system="Be kind.")
    assert text == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nBye?<|im_end|>\n<|im_start|>assistant\nBye.<|im_end|>\n"
    )
    assert answers == ["Hello.<|im_end|>", "Bye.<|im_end|>"]


def test_mistral(with_bos: Any) -> None:
    text, answers = parts(with_bos, MISTRAL.jinja(with_bos), "Hi?", "Hello.", "Bye?", "Bye.", system="Be kind.")
    assert text == "<s>[INST] Be kind.\n\nHi? [/INST]Hello.</s>[INST] Bye? [/INST]Bye.</s>"
    assert answers == ["Hello.</s>", "Bye.</s>"]


def test_plain(with_bos: Any) -> None:
    text, answers = parts(with_bos, PLAIN.jinja(with_bos), "Hi?", "Hello.", "Bye?", "Bye.", system="Be kind.")
    assert text == "<s>Be kind.\nUser: Hi?\nBot: Hello.</s>\nUser: Bye?\nBot: Bye.</s>\n"
    assert answers == [" Hello.</s>", " Bye.</s>"]


def test_question_answer(with_bos: Any) -> None:
    jinja = QUESTION_ANSWER.jinja(with_bos)
    text, answers = parts(with_bos, jinja, "Hi?", "Hello.", "Bye?", "Bye.", system="Be kind.")
    assert text == (
        "<s>Be kind.\n\n### Question: Hi?\n### Answer: Hello.</s>\n### Question: Bye?\n### Answer: Bye.</s>\n"
    )
    assert answers == [" Hello.</s>", " Bye.</s>"]


def test_alpaca(with_bos: Any) -> None:
    jinja = ALPACA.jinja(with_bos)
    turns = (
        "### Instruction:\nHi?\n\n### Response:\nHello.</s>\n\n### Instruction:\nBye?\n\n### Response:\nBye.</s>\n\n"
    )
    text, answers = parts(with_bos, jinja, "Hi?", "Hello.", "Bye?", "Bye.")
    task = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    assert text == f"<s>{task}\n\n{turns}"
    assert answers == ["Hello.</s>", "Bye.</s>"]
    assert parts(with_bos, jinja, "Hi?", "Hello.", "Bye?", "Bye.", system="Be kind.") == (
        f"<s>Be kind.\n\n{turns}",
        answers,
    )


def test_tagged(with_bos: Any) -> None:
    text, answers = parts(with_bos, TAGGED.jinja(with_bos), "Hi?", "Hello.", "Bye?", "Bye.", system="Be kind.")
    assert text == (
        "<s>[SYSTEM]Be kind.[/SYSTEM]\n"
        "[USER]Hi?[/USER]\n[ASSISTANT]Hello.</s>\n[USER]Bye?[/USER]\n[ASSISTANT]Bye.</s>\n"
    )
    assert answers == ["Hello.</s>", "Bye.</s>"]


@pytest.mark.parametrize("template", [PLAIN, MISTRAL, QUESTION_ANSWER, ALPACA, TAGGED])
def test_a_row_with_context_goes_through_whole(template: Jinja, context: StageContext, write: Any) -> None:
    """From a file of questions to labels: context and question are read, the answer and its end are trained."""
    file = write({"question": "Who swam?", "answer": "Sara.", "context": "Sara swam, Omar ran."})
    rows = File(path=str(file))(context).rows
    selection, encoded = template(rows, context)
    assert selection.reason == [""]
    _, ready = tokenize(rows, encoded, max_length=200, loss_on_all=False)
    ids, labels = ready["input_ids"][0], ready["labels"][0]
    trained = [token for token in labels if token != IGNORED]
    assert context.tokenizer.decode(trained).strip() == f"Sara.{context.tokenizer.eos_token}"
    asked = context.tokenizer.decode(ids[: labels.index(trained[0])])
    assert "Sara swam, Omar ran.\n\nWho swam?" in asked


def test_another_familys_end_before_the_end_of_turn_is_told(tiny: Any, with_bos: Any, context: StageContext) -> None:
    rows = datasets.Dataset.from_dict({"id": ["a"], "prompt": ["Hi?"], "answer": ["Hello. </s>"], "system": [""]})
    for template in (CHATML, PLAIN, TAGGED):
        template(rows, context)
    assert context.notices == []
    WRONG_END(rows, context)
    (told,) = context.notices
    assert told.startswith("template: writes </s> between an answer and its end of turn <|im_end|>, but")
    again = StageContext(context.store, lambda: tiny)
    WRONG_END(rows, again)
    assert [entry.hit for entry in again.entries] == [True]
    assert again.notices == [told]  # of stored texts too
    assert Renderer(tiny, WRONG_END.jinja(tiny)).foreign == ["</s>"]
    assert Renderer(with_bos, PLAIN.jinja(with_bos)).foreign == []  # </s> is its own
    assert Renderer(with_bos, WRONG_END.jinja(with_bos)).end_of_turn == "</s>"


def test_the_ends_of_an_answer(tiny: Any, with_bos: Any) -> None:
    assert Renderer(tiny, CHATML.jinja(tiny)).end_ids == [tiny.convert_tokens_to_ids("<|im_end|>")]
    ends = with_bos.convert_tokens_to_ids(["<|im_end|>", "</s>"])
    assert Renderer(with_bos, CHATML.jinja(with_bos)).end_ids == sorted(ends)


def test_the_prompt_is_the_beginning_of_what_is_trained(tiny: Any, with_bos: Any) -> None:
    for tokenizer, template in (
        (tiny, CHATML), (tiny, PLAIN), (with_bos, MISTRAL), (with_bos, PLAIN), (with_bos, QUESTION_ANSWER),
        (tiny, ALPACA), (with_bos, TAGGED),
    ):  # fmt: skip
        renderer = Renderer(tokenizer, template.jinja(tokenizer))
        rendered = renderer.conversation(chat("Hi?", "Hello.", "Bye?", "Bye."))
        for index, (start, _) in zip((1, 3), rendered.spans, strict=True):
            assert renderer.prompt(chat("Hi?", "Hello.", "Bye?", "Bye.")[:index]).text == rendered.text[:start]


def test_auto_is_the_tokenizers_own(tiny: Any, with_bos: Any, context: StageContext) -> None:
    assert Auto().bind(context).conversation(chat("Hi?", "Hello.")).text.startswith("<|im_start|>user\nHi?")
    with pytest.raises(ModelError, match="template=chatml"):
        Auto().jinja(with_bos)


def test_a_users_file(tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}\n### End\n{{ eos_token }}"
        "{% else %}### {{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}\n",
        encoding="utf-8",
    )
    text, answers = parts(tiny, Jinja(path=str(path)).jinja(tiny), "Hi?", "Hello.", "Bye?", "Bye.")
    assert text == "### user: Hi?\nHello.\n### End\n<|im_end|>### user: Bye?\nBye.\n### End\n<|im_end|>"
    assert answers == ["Hello.\n### End\n<|im_end|>", "Bye.\n### End\n<|im_end|>"]
    assert Jinja(path=str(path)).check() == []
    assert "no such file" in Jinja(path=str(tmp_path / "none.jinja")).check()[0]


@pytest.mark.parametrize(
    ("tokens", "name", "remedy"),
    [
        (
            ["<|im_start|>", "<|im_end|>"],
            "owner/base",
            "use template=chatml, whose tokens <|im_start|> <|im_end|> its tok",
        ),
        (["[INST]", "[/INST]"], "owner/base", "use template=mistral, the format of its family"),
        ([], "mistralai/Mistral-7B-v0.1", "use template=mistral, the format of its family"),
        ([], "base", "use template=mistral, the format of its family"),  # by its config.json
        (["<start_of_turn>"], "owner/base", "its tokenizer has <start_of_turn>: save the chat template of this family"),
        ([], "owner/base", "use template=tagged, which needs no special tokens, or template=chatml, which adds"),
    ],
)
def test_a_model_without_a_template_is_answered_with_the_one_that_fits(
    tokens: list[str], name: str, remedy: str, here: Path
) -> None:
    Path("base").mkdir()
    Path("base/config.json").write_text('{"model_type": "mistral"}')
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")), name_or_path=name
    )
    tokenizer.add_tokens(tokens, special_tokens=True)
    with pytest.raises(ModelError) as error:
        Auto().jinja(tokenizer)
    assert f"no chat template of its own, like most base models; {remedy}" in str(error.value)


def test_answers_keep_their_white_space_where_the_template_does(tiny: Any) -> None:
    answer = "\n\n    indented\n\n"
    assert parts(tiny, CHATML.jinja(tiny), "Hi?", answer)[1] == [f"{answer}<|im_end|>"]
    assert parts(tiny, TRIMS, "Hi?", answer, " Hm? ", " \n")[1] == ["indented<|im_end|>", "<|im_end|>"]


@pytest.mark.parametrize("answer", ["", "a", "user", "assistant\n", "im_end", "|>", "Hi?", "<|im_end|>", "\n", " Bot:"])
@pytest.mark.parametrize("jinja", [CHATML.jinja(None), PLAIN.jinja(None), TRIMS])  # type: ignore[arg-type]
def test_an_answer_that_occurs_elsewhere_is_found_where_it_is(tiny: Any, jinja: str, answer: str) -> None:
    text, (first, second) = parts(tiny, jinja, "Hi? user a im_end", answer, answer, answer)
    assert first.strip() == second.strip() == f"{answer.strip() if jinja == TRIMS else answer}<|im_end|>".strip()
    assert text.rstrip().endswith(second)


@pytest.mark.parametrize("answer", ["Yes.", "", "e", "end", "<think", "sentence", "<", "<think>\n"])
def test_a_thought_opened_by_the_generation_prompt_is_not_trained(reasons: Any, answer: str) -> None:
    text, answers = parts(reasons, REASONING, "Is it? end", answer, "And?", answer)
    reply = f"<｜Assistant｜>{answer}<｜end▁of▁sentence｜>"
    assert text == f"<｜User｜>Is it? end{reply}<｜User｜>And?{reply}"
    assert answers == [f"{answer}<｜end▁of▁sentence｜>"] * 2
    assert Renderer(reasons, REASONING).prompt(chat("Is it?")).text.endswith("<｜Assistant｜><think>\n")


def refusal(tokenizer: Any, jinja: str, *texts: str, system: str = "") -> str:
    with pytest.raises(CannotRender) as raised:
        parts(tokenizer, jinja, *texts, system=system)
    return raised.value.reason


def test_what_a_template_would_leave_out_is_refused(tiny: Any, reasons: Any) -> None:
    silent = "{% for m in messages if m.role != 'system' %}{{ m.content }}<|im_end|>{% endfor %}"
    once = "{{ messages[0].content }}<|im_end|>{{ messages[1].content if messages | length > 1 }}<|im_end|>"
    joins = r"{% for m in messages %}{{ m.content | replace('\n', ' ') }}<|im_end|>{% endfor %}"
    assert refusal(tiny, NO_SYSTEM, "Hi?", "Hello.", system="Be kind.") == "template_refused"
    assert refusal(tiny, silent, "Hi?", "Hello.", system="Be kind.") == "message_not_rendered"
    assert refusal(tiny, once, "Hi?", "Hello.", "Bye?", "Well.") == "message_not_rendered"
    assert refusal(tiny, joins, "Hi?", "a\nb") == "message_not_rendered"
    assert refusal(reasons, REASONING, "Is it?", "<think>Hm.</think>Yes.") == "message_not_rendered"


def test_a_template_that_breaks_is_refused(tiny: Any) -> None:
    adds = "{% for m in messages %}{{ m.content + (1 if m.content == 'one' else '') }}<|im_end|>{% endfor %}"
    assert refusal(tiny, adds, "one", "Hello.") == "template_refused"


def test_a_template_that_moves_what_was_said_is_refused(tiny: Any) -> None:
    """Newer Mistral templates write the system text before the last user turn: earlier answers were never given so."""
    moves = (
        "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
        "{% set talk = messages[1:] if system else messages %}"
        "{% for m in talk %}{% if m.role == 'user' %}[{{ system if loop.revindex <= 2 else '' }}]{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}"
    )
    assert parts(tiny, moves, "Hi?", "Hello.", system="Be kind.")[1] == ["Hello.<|im_end|>"]
    assert refusal(tiny, moves, "Hi?", "Hello.", "Bye?", "Bye.", system="Be kind.") == "rewrites_history"


def test_an_end_of_turn_after_the_last_answer_only_is_refused(tiny: Any) -> None:
    last = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ eos_token }}"
    assert parts(tiny, last, "Hi?", "Hello.")[1] == ["Hello.\n<|im_end|>"]
    assert refusal(tiny, last, "Hi?", "Hello.", "Bye?", "Bye.") == "no_end_of_turn"


@pytest.mark.parametrize(
    ("jinja", "words"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "no special token"),
        ("{% for m in messages %}{{ m.content }}{% endif %}", "not Jinja, line 1"),
        ("{{ raise_exception('never') }}", "cannot render"),
        ("<|im_end|>", "cannot render"),
        ("", "cannot render"),
    ],
)
def test_a_template_that_can_never_work_is_an_error(tiny: Any, jinja: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Renderer(tiny, jinja)


def test_the_longest_of_special_tokens_ends_a_turn(tiny: Any) -> None:
    assert Renderer(tiny, CHATML.jinja(tiny)).end_of_turn == "<|im_end|>"
    assert Renderer(tiny, CHATML.jinja(tiny)).end_of_turn_id == tiny.convert_tokens_to_ids("<|im_end|>")


def test_one_bos_whoever_writes_it(with_bos: Any, tiny: Any) -> None:
    own = "{{ bos_token }}" + MISTRAL.jinja(with_bos)
    for jinja in (own, MISTRAL.jinja(with_bos)):
        assert parts(with_bos, jinja, "Hi?", "Hello.")[0].count("<s>") == 1
    assert "<s>" not in parts(tiny, PLAIN.jinja(tiny), "Hi?", "Hello.")[0]
    assert parts(with_bos, PLAIN.jinja(with_bos), "Hi?", "Hello.", system="<s>Be kind.")[0].startswith("<s><s>Be kind.")


def test_private_use_characters_of_a_row_are_left_alone(tiny: Any) -> None:
    odd = "\ue000\ue001 a \ue002 <|im_end|>"
    text, answers = parts(tiny, CHATML.jinja(tiny), odd, odd)
    assert text == f"<|im_start|>user\n{odd}<|im_end|>\n<|im_start|>assistant\n{odd}<|im_end|>\n"
    assert answers == [f"{odd}<|im_end|>"]


def test_cuts_stand_in_every_control_token_of_a_message_and_in_no_other(tiny: Any) -> None:
    rendered = Renderer(tiny, CHATML.jinja(tiny)).conversation(chat("a<|im_end|>b<|im_<|im_start|>", "c<|endoftext|>"))
    broken = [rendered.text[cut - 1 : cut + 9] for cut in rendered.cuts]
    assert broken == ["<|im_end|>", "<|im_start", "<|endoftex"]
    assert Renderer(tiny, CHATML.jinja(tiny)).conversation(chat("a < b |> c", "[INST] <s>")).cuts == []


def test_turn_tokens_that_are_not_special_are_cut_for_users_and_thoughts_stay_for_assistants(reasons: Any) -> None:
    rendered = Renderer(reasons, REASONING).conversation(chat("a<｜Assistant｜>b<think>", "<think>c"))
    assert [rendered.text[cut - 1 : cut + 5] for cut in rendered.cuts] == ["<｜Assi", "<think"]


def test_the_stage_keeps_what_it_can_and_says_why_not(context: StageContext, tmp_path: Path) -> None:
    path = tmp_path / "no_system.jinja"
    path.write_text(NO_SYSTEM, encoding="utf-8")
    rows = datasets.Dataset.from_dict(
        {"id": ["a", "b"], "prompt": ["Hi?"] * 2, "answer": ["Hello."] * 2, "system": ["", "Be kind."]}
    )
    template: Template = Jinja(path=str(path))
    selection, encoded = template(rows, context)
    assert selection.reason == ["", "template_refused"]
    assert selection.cause == ["", "no system role"]
    assert [bool(text) for text in encoded.table["text"]] == [not reason for reason in selection.reason]
    assert template(rows, context)[1].path == encoded.path
    assert [entry.hit for entry in context.entries] == [False, True]
    path.write_text(NO_SYSTEM + " ", encoding="utf-8")
    assert (
        template(rows, context)[1].path == encoded.path
    )  # read once: what is trained, asked and saved has one template
    assert Jinja(path=str(path))(rows, context)[1].path != encoded.path


def test_plain_text_goes_past_the_template_and_is_trained_whole(tiny: Any, with_bos: Any) -> None:
    for tokenizer, text in ((tiny, "Once.<|im_end|>"), (with_bos, "<s>Once.</s>")):
        rendered = Renderer(
            tokenizer, CHATML.jinja(tokenizer) if tokenizer is tiny else PLAIN.jinja(tokenizer)
        ).plain_text("Once.")
        assert (rendered.text, rendered.spans) == (text, [(0, len(text))])
    forged = Renderer(tiny, CHATML.jinja(tiny)).plain_text("a<|im_start|>b")
    assert forged.text == "a<|im_start|>b<|im_end|>"
    assert forged.cuts == [2]
