"""Exported models: llama.cpp and Transformers compute and write with them what the trained model does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from patience import PATIENCE
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from training.test_new_tokens import base_model
from transformers.tokenization_utils_base import generate_merges

from sft_lab import compose
from sft_lab.cli.main import main
from sft_lab.core.errors import FolderError
from sft_lab.core.io import read_json
from sft_lab.core.run_dir import RunDir
from sft_lab.tools.export_model import export_model
from sft_lab.tools.gguf_file import plain_jinja, write_gguf
from sft_lab.tools.gguf_vocab import PRE_TOKENIZERS, CannotWrite, Vocabulary
from sft_lab.training.tiny_random import TOKENIZER_FOLDER

SMALL = ["dedup=exact", "decontaminate.method=exact", "tracking=local", "trainer.learning_rate=2e-2",
         "trainer.max_steps=3", "trainer.warmup_steps=0", "split.max_eval_rows=8", "dataset.turns=first",
         "threads=1"]  # fmt: skip
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is Oslo?"},
    {"role": "assistant", "content": "In Norway."},
    {"role": "user", "content": "And Rome?"},
]
TEXTS = [
    "Hello world, it's 2024!\n\n  x=1234567 and  café naïve 你好",
    "What's I'll don't THEY'RE  \t tabs\r\nnew",
    "<|im_start|>user\nhey<|im_end|>\n",
    "    def f(a):\n\n\n        return [1,22,333,4444]",
    "😀 العربية",
]
END = 2  # <|im_end|>
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "eos_token_id": END, "bos_token_id": None,
}  # fmt: skip
SCALED = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}  # fmt: skip


def splitting(name: str) -> dict[str, Any]:
    """The pre-tokenizer that llama.cpp calls by a name."""
    (steps,) = (steps for steps, known in PRE_TOKENIZERS.items() if known == name)
    parts = []
    for kind, *options in steps:
        if kind == "Split":
            parts.append({"type": kind, "pattern": {"Regex": options[0]}, "behavior": "Isolated", "invert": False})
        elif kind == "Digits":
            parts.append({"type": kind, "individual_digits": options[0]})
        else:
            parts.append({**BYTES, "use_regex": options[1]})
    return {"type": "Sequence", "pretokenizers": parts}


KINDS: dict[str, tuple[Callable[..., Any], dict[str, Any], str, torch.dtype]] = {
    "llama": (transformers.LlamaConfig, {"tie_word_embeddings": False, "rope_parameters": SCALED}, "llama-bpe",
              torch.float32),
    "mistral": (transformers.MistralConfig, {"head_dim": 32, "sliding_window": 2048}, "smollm", torch.float32),
    "qwen2": (transformers.Qwen2Config, {"tie_word_embeddings": True}, "qwen2", torch.bfloat16),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 32}, "gpt-2", torch.float16),
}  # fmt: skip


def make_model(folder: Path, kind: str, spare: int = 5, **options: Any) -> Path:
    """A random model of a kind as merge leaves it, with more rows than its tokenizer has tokens; Llama with BOS."""
    make_config, own, pre, dtype = KINDS[kind]
    shutil.copytree(TOKENIZER_FOLDER, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(1)
    config = make_config(**{**SHAPE, **own, **options}, vocab_size=len(tokenizer) + spare, pad_token_id=0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # large ones: errors show
        torch.nn.init.normal_(parameter, mean=parameter.ndim % 2, std=0.15)
    model.to(dtype).save_pretrained(folder)
    if kind == "llama":
        tokenizer.bos_token = "<|endoftext|>"
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
        tokenizer.save_pretrained(folder)
    settings = read_json(folder / "tokenizer.json")
    settings["pre_tokenizer"], settings["model"]["ignore_merges"] = splitting(pre), pre == "llama-bpe"
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    return folder


def use_sentencepiece(folder: Path) -> Path:
    """Give a model the tokenizer of Llama 2 and Mistral 7B, with a small vocabulary."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    rows = (TOKENIZER_FOLDER.parents[1] / "starter/conversations.jsonl").read_text(encoding="utf-8")
    learned.train_from_iterator([rows[:200_000]], trainers.BpeTrainer(vocab_size=1500, show_progress=False))
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = sorted(learned.get_vocab(), key=learned.get_vocab().get)
    vocab = {token: number for number, token in enumerate(dict.fromkeys([*special, *pieces]))}
    tokenizer = transformers.LlamaTokenizer(vocab=vocab, merges=generate_merges(vocab, None, special))
    tokenizer.add_special_tokens({"additional_special_tokens": ["[INST]", "[/INST]"]})
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
        "{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


def write(folder: Path) -> Path:
    file = folder.with_suffix(".gguf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(MESSAGES[1:2], add_generation_prompt=True, return_dict=False)
    write_gguf(folder, file, "a model", end_ids=[END], prompt=prompt)
    return file


def trained(folder: Path, *words: str) -> Path:
    assert main([*SMALL, "model=tiny_random", *words, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture
def serve() -> Iterator[Callable[[Path], Callable[[str, dict[str, Any]], Any]]]:
    """Serve a file with llama.cpp; gives a function that posts to it."""
    pytest.importorskip("xllamacpp")
    servers = []

    def start(file: Path) -> Callable[[str, dict[str, Any]], Any]:
        command = [sys.executable, Path(__file__).with_name("llama_cpp_server.py"), file]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        servers.append(server)
        url = server.stdout.readline().strip()

        def post(path: str, body: dict[str, Any]) -> Any:
            request = urllib.request.Request(
                url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.load(answer)

        return post

    yield start
    for server in servers:
        server.communicate()


def holds_what_is_in(folder: Path, post: Callable[[str, dict[str, Any]], Any], tolerance: float) -> None:
    """Hold llama.cpp's tokens, prompt and probabilities against Transformers'."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    begin = "<s>" if "<s>" in tokenizer.get_vocab() else ""  # SentencePiece puts a space before a first word
    for text in (begin + text for text in TEXTS):
        asked = {"content": text, "add_special": False, "parse_special": True}
        assert post("/tokenize", asked)["tokens"] == tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    prompt = post("/apply-template", {"messages": MESSAGES})["prompt"]
    asked = {"content": prompt, "add_special": True, "parse_special": True}
    assert post("/tokenize", asked)["tokens"] == ids
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    answer = post("/completion", {"prompt": ids, "n_predict": 1, "n_probs": 10, "temperature": 0})
    top = answer["completion_probabilities"][0]["top_logprobs"]
    assert len(top) == 10
    for token in top:
        assert token["logprob"] == pytest.approx(expected[token["id"]].item(), abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_computes_the_same(kind: str, tmp_path: Path, serve: Callable[[Path], Any]) -> None:
    folder = make_model(tmp_path / kind, kind)
    holds_what_is_in(folder, serve(write(folder)), tolerance=0.02)  # it keeps keys and values in 16 bits


@pytest.mark.slow
def test_llama_cpp_splits_texts_as_sentencepiece_does(tmp_path: Path, serve: Callable[[Path], Any]) -> None:
    folder = use_sentencepiece(make_model(tmp_path / "mistral", "mistral"))
    holds_what_is_in(folder, serve(write(folder)), tolerance=0.02)


def test_a_sentencepiece_tokenizer_that_llama_cpp_would_read_otherwise(tmp_path: Path) -> None:
    folder = use_sentencepiece(make_model(tmp_path / "mistral", "mistral"))
    settings = read_json(folder / "tokenizer.json")
    model, merges = settings["model"], settings["model"]["merges"]

    def refused() -> str:
        (folder / "tokenizer.json").write_text(json.dumps(settings))
        with pytest.raises(CannotWrite) as error:
            write(folder)
        return str(error.value)

    model["merges"] = merges[:-1]
    assert refused() == "models whose tokenizer lacks merges that SentencePiece would make"
    twice = next(number for number, pair in enumerate(merges) if "".join(pair) == "".join(merges[number + 1]))
    model["merges"] = [*merges[: twice + 1], *merges[twice + 2 :], merges[twice + 1]]
    assert refused() == "models whose tokenizer merges in an order that SentencePiece does not use"
    model["merges"] = merges
    settings["pre_tokenizer"]["prepend_scheme"] = "always"
    assert "llama.cpp does not support" in refused()
    settings["pre_tokenizer"]["prepend_scheme"] = "first"
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
    assert refused() == "models with a SentencePiece tokenizer whose prompts do not begin with a control token"


@pytest.mark.slow
def test_a_run_exported_for_llama_cpp(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], serve: Callable[[Path], Any]
) -> None:
    folder = trained(tmp_path / "run", "trainer=lora")
    capsys.readouterr()
    assert main(["export", str(folder), "--to", "gguf"]) == 0
    file = folder / "export/gguf/model.gguf"
    assert capsys.readouterr().out.splitlines() == [
        str(file), f"use it: llama-server -m {file} --jinja", f"use it: llama-cli -m {file} --jinja"
    ]  # fmt: skip
    post = serve(file)
    holds_what_is_in(folder / "merged", post, tolerance=0.001)
    answer = post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 30, "temperature": 0})["choices"][0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "merged")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "merged", dtype="float32")
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**ids, max_new_tokens=30, do_sample=False)[0][ids["input_ids"].shape[1] :]
    assert answer["message"]["content"] == tokenizer.decode(written, skip_special_tokens=True)
    assert (answer["finish_reason"] == "stop") == (written[-1] == END)


@pytest.mark.slow
def test_tokens_that_training_added_are_in_it(tmp_path: Path, serve: Callable[[Path], Any]) -> None:
    base = use_sentencepiece(make_model(tmp_path / "base", "mistral", spare=0))
    run = tmp_path / "run"
    local = ["model=local", f"model.name_or_path={base}", "template=chatml", "trainer=lora"]
    assert main([*SMALL, *local, f"hydra.run.dir={run}"]) == 0
    file = export_model(run, "gguf").path
    holds_what_is_in(run / "merged", serve(file), tolerance=0.02)
    fields = gguf.GGUFReader(file).fields
    tokens = transformers.AutoTokenizer.from_pretrained(run / "merged").convert_ids_to_tokens
    assert tokens(int(fields["tokenizer.ggml.eos_token_id"].contents())) == "</s>"
    assert tokens(int(fields["tokenizer.ggml.eot_token_id"].contents())) == "<|im_end|>"


@pytest.mark.slow
def test_transformers_loads_the_file(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "mistral", "mistral", spare=0)
    file = write(folder)
    first, again = (
        transformers.AutoModelForCausalLM.from_pretrained(path, dtype="float32", **options).eval()
        for path, options in ((folder, {}), (file.parent, {"gguf_file": file.name}))
    )
    ids = torch.tensor([list(range(20, 60))])
    with torch.no_grad():
        assert (first(ids).logits - again(ids).logits).abs().max() < 1e-4
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert tokenizer.chat_template == plain_jinja(transformers.AutoTokenizer.from_pretrained(folder).chat_template)
    fields = gguf.GGUFReader(file).fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == fields["tokenizer.ggml.eot_token_id"].contents() == END
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False


def test_a_template_without_generation_tags_writes_the_same() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOKENIZER_FOLDER)
    tagged = "{{ 'a' }} {%- generation -%} b {% endgeneration %} c {%  generation%} d {%-endgeneration %}"
    plain = plain_jinja(tagged)
    assert "generation" not in plain
    for jinja in (tagged, tokenizer.chat_template):
        before, after = (
            tokenizer.apply_chat_template(MESSAGES, chat_template=text, tokenize=False)
            for text in (jinja, plain_jinja(jinja))
        )
        assert before == after


@pytest.mark.slow
def test_a_run_exported_for_ollama(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained(tmp_path / "run", "trainer=full")
    capsys.readouterr()
    assert main(["export", str(folder), "--to", "ollama", "--out", str(tmp_path / "mine")]) == 0
    file = tmp_path / "mine/Modelfile"
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / "mine"), f"use it: ollama create tuned -f {file}", "use it: ollama run tuned"
    ]  # fmt: skip
    text = file.read_text()
    assert "FROM ./model.gguf\n" in text
    assert text.endswith('PARAMETER stop "<|im_end|>"\n')
    assert sorted(path.name for path in file.parent.iterdir()) == ["Modelfile", "model.gguf"]
    assert not (folder / "merged").exists()
    assert main(["export", str(folder), "--to", "ollama", "--out", str(tmp_path / "mine")]) == 2
    assert "mine: already exists; remove it, or give another folder with --out" in capsys.readouterr().err
    jinja = "{% for m in messages %}{{ loop.index ~ m.role + m.content + '<|im_end|>' }}{% endfor %}"
    (folder / "model/chat_template.jinja").write_text(jinja + "{{ 'x' if add_generation_prompt }}")
    assert main(["export", str(folder), "--to", "ollama"]) == 2
    assert "this chat template does more than write texts between messages" in capsys.readouterr().err
    assert not (folder / "export").exists()


@pytest.mark.slow
def test_a_run_exported_for_vllm(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "trainer=lora")
    exported = export_model(folder, "vllm")
    assert exported == (folder / "merged", [f"vllm serve {folder}/merged --served-model-name tuned"])
    assert export_model(folder, "vllm").path == folder / "merged"  # merged once
    copied = export_model(folder, "vllm", tmp_path / "mine").path
    for path in (folder / "merged", copied):
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        trained_with = transformers.AutoTokenizer.from_pretrained(folder / "model")
        assert tokenizer.get_chat_template() == trained_with.get_chat_template()
        assert transformers.GenerationConfig.from_pretrained(path).eos_token_id == [END]


def test_nothing_outside_the_run_is_copied_for_vllm(tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "run")
    folder.model.mkdir(parents=True)
    folder.config.write_text(compose([*SMALL, "model=tiny_random", "trainer=full"]).to_yaml())
    folder.status.write_text(json.dumps({"format": 1, "state": "finished"}))
    (folder.model / "config.json").write_text("{}")
    (tmp_path / "secret.json").write_text("{}")
    (folder.model / "extra.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(FolderError, match=r"extra.json: is a link that leads out of the run folder"):
        export_model(folder.path, "vllm", tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


@pytest.mark.slow
def test_another_kind_of_model_gets_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = base_model(tmp_path / "base", "opt", 7)
    limits = ["filter.length.max_tokens=200", "split.max_eval_tokens=200"]
    run = tmp_path / "run"
    local = ["model=local", f"model.name_or_path={base}", "template=chatml", "trainer=lora", *limits]
    assert main([*SMALL, *local, f"hydra.run.dir={run}"]) == 0
    capsys.readouterr()
    assert main(["export", str(run), "--to", "gguf"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "sft-lab: export: cannot write models of type opt as GGUF; use llama.cpp's script: "
        f"python convert_hf_to_gguf.py {run}/merged --outfile {run}/export/gguf/model.gguf"
    )
    assert not list((run / "export").iterdir())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rope_parameters": {**SCALED, "rope_type": "linear"}}, "models with scaled positions"),
        ({"spare": -3}, "fewer rows than its tokenizer has tokens"),
    ],
)
def test_what_would_be_wrong_is_not_written(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match=reason):
        write(make_model(tmp_path / "llama", "llama", **options))


@pytest.mark.parametrize("change", [{"pre_tokenizer": {"type": "Whitespace"}}, {"normalizer": {"type": "Lowercase"}}])
def test_another_tokenizer_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    folder = make_model(tmp_path / "qwen3", "qwen3")
    settings = read_json(folder / "tokenizer.json")
    (folder / "tokenizer.json").write_text(json.dumps({**settings, **change}))
    with pytest.raises(CannotWrite, match="splits text in a way"):
        write(folder)


@pytest.mark.parametrize(
    ("kind", "pre"), [(transformers.Qwen2Tokenizer, "qwen2"), (transformers.GPT2Tokenizer, "gpt-2")]
)
def test_the_tokenizers_of_transformers_are_known(kind: type, pre: str, tmp_path: Path) -> None:
    tokenizer = kind(vocab={"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}, merges=[("a", "b")])
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path)
    vocabulary = Vocabulary.of(tmp_path, 5)
    assert (vocabulary.pre, vocabulary.tokens[:4], vocabulary.merges) == (
        pre,
        ["a", "b", "ab", "<|endoftext|>"],
        ["a b"],
    )
