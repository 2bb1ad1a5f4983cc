"""Chat templates in Ollama's language: what they write is what the Jinja template writes, or they are refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import transformers
from patience import PATIENCE

from sft_lab.core.errors import UserError
from sft_lab.data.renderer import Renderer
from sft_lab.tools.ollama import NO_SYSTEM, STRIPS, TurnTexts, modelfile
from sft_lab.training.tiny_random import TOKENIZER_FOLDER

OURS = sorted((Path(__file__).parents[2] / "sft_lab/data/templates").glob("*.jinja"))
LLAMA3 = (
    "{% for m in messages %}"
    "{% set content = '<|start|>' + m['role'] + '<|end|>\n\n' + m['content'] | trim + '<|im_end|>' %}"
    "{% if loop.first %}{{ bos_token }}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
QWEN = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are \"Qwen\".<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEMS = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}" + QWEN.partition("{% endif %}")[2]
)
COUNTING = "{% for m in messages %}{{ loop.index ~ m.role + m.content + '<|im_end|>' }}{% endfor %}{{ 'x' }}"
HIDING = (
    "{% for m in messages %}{{ m.role + ': ' }}{% if loop.index0 >= messages | length - 3 %}{{ m.content }}{% endif %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
EXPRESSIBLE = {
    **{path.stem: path.read_text() for path in OURS},
    "llama3": LLAMA3,
    "qwen": QWEN,
    "no system": NO_SYSTEMS,
}
TURNS = [
    {"role": "system", "content": 'Be "kind" {{ now }}.'},
    {"role": "user", "content": "Where?\n\n  `here`"},
    {"role": "assistant", "content": "There {{- end }}"},
    {"role": "user", "content": "é 你 \\n"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "No?"},
]
CONVERSATIONS = [TURNS[:2], TURNS[:4], TURNS, TURNS[1:2], TURNS[1:4], TURNS[1:]]


def renderer(jinja: str) -> Renderer:
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOKENIZER_FOLDER)
    tokenizer.bos_token = "<|endoftext|>"
    return Renderer(tokenizer, jinja)


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that renders as Ollama does."""
    if not shutil.which("go"):
        pytest.skip("needs Go: apt-get install golang-go")
    folder = tmp_path_factory.mktemp("go")
    environment = {**os.environ, "GOCACHE": str(folder / "cache"), "GO111MODULE": "off"}
    source = Path(__file__).with_name("render_template.go")
    subprocess.run(["go", "build", "-o", "render", source], cwd=folder, env=environment, check=True, timeout=PATIENCE)
    return folder / "render"


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_the_texts_are_what_jinja_writes(name: str) -> None:
    bound = renderer(EXPRESSIBLE[name])
    texts = TurnTexts.of(bound)
    assert (texts.before_system is None) == (name == "no system")
    for messages in CONVERSATIONS:
        if messages[0]["role"] != "system" or texts.before_system is not None:
            assert texts.render(messages) == bound.prompt(messages).text


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_go_writes_what_jinja_writes(name: str, go: Path) -> None:
    bound = renderer(EXPRESSIBLE[name])
    texts = TurnTexts.of(bound)
    expected = []
    for messages in CONVERSATIONS:
        is_left_out = texts.before_system is None and messages[0]["role"] == "system"
        expected.append(bound.prompt(messages[1:] if is_left_out else messages).text)
    job = json.dumps({"Template": texts.to_go(), "Conversations": CONVERSATIONS})
    done = subprocess.run([go], input=job, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize("jinja", [COUNTING, HIDING], ids=["counts", "hides earlier turns"])
def test_a_template_that_does_more_is_refused(jinja: str) -> None:
    with pytest.raises(UserError, match="export --to ollama: this chat template does more than write texts between"):
        TurnTexts.of(renderer(jinja))


def test_bos_is_left_to_ollama() -> None:
    texts = TurnTexts.of(renderer(LLAMA3)).without_bos("<|endoftext|>")
    assert texts.before_user == "<|start|>user<|end|>\n\n"
    assert texts.before_system == "<|start|>system<|end|>\n\n"
    with pytest.raises(UserError, match="does more"):
        TurnTexts.of(renderer(QWEN)).without_bos("<|endoftext|>")


def test_the_modelfile() -> None:
    texts = TurnTexts.of(renderer(LLAMA3))
    lines = modelfile(texts, "model.gguf", ["<|im_end|>", "</s>"], "meta/x", "").splitlines()
    assert lines[:3] == [
        "# meta/x, fine-tuned with sft_lab. Tool calls are not in this template.", STRIPS, "FROM ./model.gguf"
    ]  # fmt: skip
    assert lines[3].startswith('TEMPLATE """{{- $first := true }}')
    assert lines[-2:] == ['PARAMETER stop "<|im_end|>"', 'PARAMETER stop "</s>"']
    assert NO_SYSTEM in modelfile(TurnTexts.of(renderer(NO_SYSTEMS)), "model.gguf", [], "x", "")
    assert "# Ollama writes <s> at the beginning by itself" in modelfile(texts, "model.gguf", [], "x", "<s>")
