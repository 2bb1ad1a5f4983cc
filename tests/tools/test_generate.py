"""A finished run's model, asked from the command line."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sft_lab import compose
from sft_lab.cli.main import main
from sft_lab.core.errors import FolderError, UserError
from sft_lab.core.run_dir import RunDir
from sft_lab.evaluation.generation import Answer
from sft_lab.tools.finished_run import open_run
from sft_lab.tools.generate import GeneratedAnswers, GenerationOptions, answer_prompt, print_answers

pytestmark = pytest.mark.slow

SMALL = ["model=tiny_random", "trainer=smoke", "dedup=exact", "decontaminate.method=exact", "tracking=local",
         "trainer.max_steps=12", "trainer.learning_rate=5e-2", "seed=7"]  # fmt: skip


# A random model repeats a line break for ever when it is greedy: what is drawn has letters.
DRAWN = GenerationOptions(max_new_tokens=8, temperature=1.0, seed=3)


def said(model: Any, tokenizer: Any, text: str) -> str:
    """Answer a rendered prompt by Transformers alone, drawn as ``DRAWN`` says."""
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    transformers.set_seed(3)
    with torch.no_grad():
        written = model.eval().generate(**ids, max_new_tokens=8, do_sample=True, temperature=1.0, top_k=0)
    answer = tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert answer
    return answer


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an adapter."""
    folder = tmp_path_factory.mktemp("done") / "run"
    assert main([*SMALL, f"hydra.run.dir={folder}"]) == 0
    return folder


def test_the_answer_is_the_runs_own(done: Path) -> None:
    """Greedy, under the run's template: what the run itself wrote to the same prompt, base and tuned."""
    row = json.loads((done / "samples.jsonl").read_text(encoding="utf-8").splitlines()[0])
    length = compose(SMALL).evaluation.max_new_tokens
    found = answer_prompt(done, row["prompt"], GenerationOptions(max_new_tokens=length), base=True)
    assert found.base is not None
    assert (found.base.text, found.tuned.text) == (row["base"], row["tuned"])
    assert found.tuned.text
    assert not found.is_base_plain


def test_the_base_model_is_asked_as_itself(done: Path) -> None:
    found = answer_prompt(done, "Hi", DRAWN, base=True)
    opened = open_run(done)
    asked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    base = opened.load_base(four_bit=False)
    assert found.base is not None
    assert found.base.text == said(base, opened.tokenizer, asked)
    assert found.tuned.text == said(opened.load_tuned(base), opened.tokenizer, asked)
    assert found.base != found.tuned


def test_sampling_is_drawn_from_the_seed(done: Path) -> None:
    texts = [
        answer_prompt(done, "Hi", GenerationOptions(max_new_tokens=12, temperature=1.0, seed=seed)).tuned.text
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    greedy = answer_prompt(done, "Hi", GenerationOptions(max_new_tokens=12))
    assert (
        answer_prompt(done, "Hi", GenerationOptions(max_new_tokens=12, temperature=1.0, top_k=1)).tuned == greedy.tuned
    )
    assert (
        answer_prompt(done, "Hi", GenerationOptions(max_new_tokens=12, temperature=1.0, top_p=1e-6)).tuned
        == greedy.tuned
    )


def test_a_system_turn_changes_the_answer(done: Path) -> None:
    asked = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    opened = open_run(done)
    tuned = opened.load_tuned(opened.load_base(four_bit=False))
    found = answer_prompt(done, "Hi", dataclasses.replace(DRAWN, system="Be kind."))
    assert found.tuned.text == said(tuned, opened.tokenizer, asked)


def test_an_answer_that_repeats_the_question_is_said_to(capsys: pytest.CaptureFixture[str]) -> None:
    options = GenerationOptions(max_new_tokens=3)
    for text, note in (("Where is Oslo?", "only repeats the question: tuned\n"), ("In Norway.", "")):
        print_answers(GeneratedAnswers(Answer(text, True, []), question="where is Oslo"), options)
        assert capsys.readouterr().err == note


def test_the_answer_alone_is_on_standard_output(
    done: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hi\n")))
    assert main(["generate", str(done), "-", "--max-new-tokens", "3"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{answer_prompt(done, 'Hi' + chr(10), GenerationOptions(max_new_tokens=3)).tuned.text}\n"
    assert "cut at 3 tokens: tuned; --max-new-tokens allows more" in shown.err
    assert main(["generate", str(done), "Hi", "--base", "--max-new-tokens", "3"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("base:\n")
    assert "\n\ntuned:\n" in shown.out
    progress = "{} model: loading, then answering with at most 3 tokens\n"
    assert progress.format("base") + progress.format("tuned") in shown.err


def test_a_base_model_that_does_not_know_the_template_is_asked_in_plain_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.jinja"
    text = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        "# {{ m.role }}\n{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}# assistant\n{% endif %}"
    )
    mine.write_text(text)
    folder = tmp_path / "run"
    assert main([*SMALL, "template=file", f"template.path={mine}", f"hydra.run.dir={folder}"]) == 0
    capsys.readouterr()
    mine.unlink()  # the trained template is in the run folder
    found = answer_prompt(folder, "Hi", DRAWN, base=True)
    assert found.is_base_plain
    opened = open_run(folder)
    base = opened.load_base(four_bit=False)
    assert found.base is not None
    assert found.base.text == said(base, opened.tokenizer, "User: Hi\nBot:")
    end = opened.tokenizer.eos_token
    asked = f"# user\nHi{end}# assistant\n"
    assert found.tuned.text == said(opened.load_tuned(base), opened.tokenizer, asked)
    assert main(["generate", str(folder), "Hi", "--base", "--max-new-tokens", "5"]) == 0
    assert "base, prompted in plain text, since it does not know the run's template:\n" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^--system: the run's chat template accepts no system turn"):
        answer_prompt(folder, "Hi", GenerationOptions(system="Be kind."))


def test_all_weights(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main([*SMALL, "trainer=full", "trainer.max_steps=2", f"hydra.run.dir={folder}"]) == 0
    opened = open_run(folder)
    assert not opened.is_adapter
    alone = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype="float32")
    asked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert answer_prompt(folder, "Hi", DRAWN).tuned.text == said(alone, opened.tokenizer, asked)
    # It stops by itself where the run taught it, without being told.
    assert alone.generation_config.eos_token_id == [opened.tokenizer.eos_token_id]


def test_folders_that_have_no_model(done: Path, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"nowhere: no such folder; `sft-lab runs`"):
        answer_prompt(tmp_path / "nowhere", "Hi", GenerationOptions())
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_bytes((done / "config.yaml").read_bytes())
    with pytest.raises(FolderError, match=r"is not finished \(never started\); sft-lab exec"):
        answer_prompt(folder, "Hi", GenerationOptions())
    (folder / "status.json").write_text('{"state": "failed"}')
    with pytest.raises(FolderError, match=r"is not finished \(failed\)"):
        answer_prompt(folder, "Hi", GenerationOptions())
    (folder / "status.json").write_text('{"state": "running"}')
    with RunDir(folder).claimed(), pytest.raises(FolderError, match=r"is still running; wait until it has finished"):
        answer_prompt(folder, "Hi", GenerationOptions())
    (folder / "status.json").write_text('{"state": "finished", "work": "prepare"}')
    with pytest.raises(FolderError, match="prepared data but no model"):
        answer_prompt(folder, "Hi", GenerationOptions())
    (folder / "status.json").write_text('{"state": "finished", "work": "run"}')
    with pytest.raises(FolderError, match="has no weights; sft-lab replay"):
        answer_prompt(folder, "Hi", GenerationOptions())
    (folder / "status.json").write_text("{")
    with pytest.raises(FolderError, match=r"status\.json: cannot be read"):
        answer_prompt(folder, "Hi", GenerationOptions())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--max-new-tokens", "0"], "--max-new-tokens=0: must be from 1 to 131,072"),
        (["--temperature", "-1"], "--temperature=-1.0: must be 0 (greedy), or from 0.001 to 1,000"),
        (["--temperature", "nan"], "--temperature=nan: must be 0 (greedy), or from 0.001 to 1,000"),
        (["--temperature", "1", "--top-p", "0"], "--top-p=0.0: must be above 0 and at most 1"),
        (["--temperature", "1", "--top-k", "0"], "--top-k=0: must be at least 1"),
        (["--top-p", "0.9"], "--top-p 0.9: has no effect without --temperature above 0"),
    ],
)
def test_flags_that_cannot_be(words: list[str], says: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "run", "Hi", *words]) == 2
    assert says in capsys.readouterr().err


def test_an_empty_prompt(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "run", " \n"]) == 2
    assert "prompt: is empty" in capsys.readouterr().err
