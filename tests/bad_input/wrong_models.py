"""Wrong chat templates and model folders."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wrong_data import GOOD
from wrong_input import PREPARE, SMALL, Wrong
from wrong_words import written

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def template(what: str, text: str | bytes) -> Wrong:
    def make(here: Path) -> None:
        written("data.jsonl", GOOD)(here)
        written("my.jinja", text)(here)

    words = ["dataset=file", "dataset.path=data.jsonl", "template=file", "template.path=my.jinja"]
    return Wrong("templates", what, [*PREPARE, *words], make)


@functools.cache
def tiny_model() -> Path:
    """A folder with a small model that save_pretrained wrote."""
    import transformers

    import sft_lab

    made = Path(tempfile.mkdtemp())
    files = Path(sft_lab.__file__).parent / "training" / "tiny_tokenizer_files"
    tokenizer = transformers.AutoTokenizer.from_pretrained(files)
    tokenizer.save_pretrained(made)
    _llama(len(tokenizer)).save_pretrained(made)
    return made


def _llama(vocabulary: int) -> Any:
    import transformers

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=vocabulary, **shape))


def model(what: str, change: Callable[[Path], object], *words: str) -> Wrong:
    def make(here: Path) -> None:
        written("data.jsonl", GOOD)(here)
        shutil.copytree(tiny_model(), here / "model")
        change(here / "model")

    data = ["dataset=file", "dataset.path=data.jsonl", "evaluation.general=null"]
    chosen = ["trainer=smoke", "model=local", "model.name_or_path=./model", "hydra.run.dir=run"]
    return Wrong("model folders", what, [*SMALL[1:], *data, *chosen, *words], make)


def named(what: str, *words: str, **more: Any) -> Wrong:
    return Wrong("model folders", what, [*SMALL[1:], "hydra.run.dir=run", *words], **more)


def without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def edited(name: str, **keys: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **keys}))


def cut(name: str, size: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def fewer_tokens(folder: Path) -> None:
    _llama(100).save_pretrained(folder)


def embedder(what: str, *files: str) -> Wrong:
    def make(here: Path) -> None:
        written("data.jsonl", GOOD)(here)
        (here / "embedder").mkdir()
        for file in files:
            written(f"embedder/{file}", "{}")(here)

    words = ["dataset=file", "dataset.path=data.jsonl", "dedup=semantic", "dedup.embedder.sha256=null"]
    return Wrong("embedders", what, [*PREPARE, *words, "dedup.embedder.name_or_path=./embedder"], make)


def as_it_is(_: Path) -> None:
    """The folder is well, a knob is not."""


CASES = [
    template("empty", ""),
    template("not UTF-8", b"\xff\xfe"),
    template("an unclosed tag", "{% for m in messages %}"),
    template("an unknown Jinja filter", "{{ messages | frob }}"),
    template("an undefined name", "{{ nothing.at.all }}"),
    template("that raises an error", "{{ raise_exception('only poems') }}"),
    template("that divides by zero", "{{ 1 // 0 }}" + TURNS),
    template("that recurses endlessly", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}" + TURNS),
    template("that loops a billion times", "{% for i in range(10 ** 9) %}{% endfor %}" + TURNS),
    template("that accesses Python internals", "{{ cycler.__init__.__globals__.os.system('touch pwned') }}" + TURNS),
    template("that accesses a file", "{% include '/etc/passwd' %}" + TURNS),
    template("that writes the same for every row", "hello"),
    template("that leaves the answer out", "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"),
    template("that changes the answer", TURNS.replace("m.content", "m.content | upper")),
    template("without an end of turn", "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"),
    template("with an end of turn unknown to the tokenizer", TURNS.replace("im_end", "no_such")),
    named("missing", "model=local", "model.name_or_path=./nowhere"),
    named("without a name", "model=local", "model.name_or_path="),
    named("empty", "model=local", "model.name_or_path=./model", make=lambda here: (here / "model").mkdir()),
    named("not in the cache, and no network", "model=local", "model.name_or_path=nobody/nothing",
          environment={"HF_HUB_OFFLINE": "1"}),
    named("a GGUF file with another hash", "model=smollm2_135m_bundled", "model.path=my.gguf",
          make=written("my.gguf", "x")),
    model("without config.json", without("config.json")),
    model("whose config is not JSON", lambda folder: (folder / "config.json").write_text("{")),
    model("whose config is a list", lambda folder: (folder / "config.json").write_text("[]")),
    model("of an unknown type", edited("config.json", model_type="frob")),
    model("that does not generate text", edited("config.json", model_type="t5")),
    model("whose weights have the wrong shapes", edited("config.json", hidden_size=32)),
    model("without weights", without("model.safetensors")),
    model("whose weights are truncated", cut("model.safetensors", 3000)),
    model("without a tokenizer", without("tokenizer.json", "tokenizer_config.json")),
    model("whose tokenizer is not JSON", lambda folder: (folder / "tokenizer.json").write_text("{")),
    model("without a chat template", without("chat_template.jinja")),
    model("whose tokenizer has more tokens than the weights", fewer_tokens),
    model("with an unknown attention implementation", as_it_is, "model.attn_implementation=telepathy"),
    model("with an unknown keyword argument", as_it_is, "+model.init_kwargs.frob=1"),
    model("with layer names that it lacks", as_it_is, "trainer.peft.target_modules=[nowhere]"),
    model("with an unknown schedule", as_it_is, "trainer.lr_scheduler_type=zigzag"),
    model("with an unknown optimizer", as_it_is, "trainer.optim=adamx"),
    model("with an unknown TRL field", as_it_is, "+trainer.sft_config.adam_beta3=1"),
    model("with a loss unknown to TRL", as_it_is, "+trainer.sft_config.loss_type=frob"),
    embedder("with weights in a pickle", "config.json", "pytorch_model.bin"),
    embedder("that is an adapter", "adapter_config.json", "adapter_model.safetensors"),
]  # fmt: skip
