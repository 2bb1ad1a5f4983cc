"""Run folders from strangers: what they hold is text; none of it runs, writes elsewhere or moves a cursor."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import peft
import pytest
from job_folders import nats_of, write_job
from outside import TINY, Outside

from sft_lab.cli.main import main
from sft_lab.core.context import StageContext
from sft_lab.core.errors import FolderError, ModelError
from sft_lab.core.run_dir import RunDir
from sft_lab.core.store import Store
from sft_lab.report import card, html_report
from sft_lab.tracking.config import Wandb
from sft_lab.tracking.wandb_mirror import refuse_strange_folders
from sft_lab.training import model_io
from sft_lab.training.models import TRUST, Pretrained
from sft_lab.training.peft_config import refuse_other_adapters
from sft_lab.training.weights import FROZEN

ESCAPES = "\x1b]0;title\x07\x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\\x1b[2J\x9b1A\r\x08"
MARKUP = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
MARKUP += "<a href='javascript:alert(1)'>[x](javascript:alert(1))"
MARKUP += "</style></svg></textarea>'\"><svg onload=alert(1)>{{7*7}}{% raw %}[red]"
CONTROLS = {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160))}


class Evil:
    """A pickle of this makes the canary when it is read without care."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def test_the_pickle_would_work(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def put(folder: RunDir, name: str, **values: Any) -> None:
    path = folder.path / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


COMMANDS = {"runs": lambda path: ["runs", str(path)], "compare": lambda path: ["compare", str(path)]}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("what", ["verdict", "error", "names", "manifest", "sample"])
def test_no_cursor_moves(
    command: str, what: str, tmp_path: Path, outside: Outside, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = tmp_path / "sweep"
    hostile = ESCAPES + MARKUP
    name = "-n\n\x1b]0;title\x07" if what == "names" else "one"
    folder = write_job(
        jobs / name, nats_of(), seed=1, prompt=hostile if what == "sample" else "p",
        error=hostile if what == "error" else None, state="failed" if what == "error" else "finished",
        dataset={"kind": "file", "path": hostile}, choices__dataset=hostile,
    )  # fmt: skip
    write_job(jobs / "two", nats_of(1.1), seed=2)
    if what == "verdict":
        put(folder, "summary.json", verdict=hostile)
        put(folder, "status.json", work=hostile, time=hostile)
    if what == "manifest":
        put(folder, "manifest.json", packages={hostile: hostile, "torch": hostile}, held_out_fingerprint=hostile)
    assert main(COMMANDS[command](jobs)) in (0, 2)
    said = capsys.readouterr()
    assert not CONTROLS & set(said.out + said.err)
    assert "Traceback" not in said.err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "number",
    ["1" + "0" * 400, "-1e999", "1e308", "NaN", "9" * 5000, "[" * 20_000 + "]" * 20_000, '{"a":' * 5000],
    ids=["long", "below", "above", "nan", "longest", "deep list", "deep object"],
)  # fmt: skip
def test_numbers_beyond_measure(
    command: str, number: str, tmp_path: Path, outside: Outside, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        folder = write_job(tmp_path / "sweep" / name, nats_of(seed=seed), seed=seed)
        for file in (folder.summary, folder.status, folder.waterfall):
            said = json.loads(file.read_text())
            keys = [key for key, value in said.items() if isinstance(value, int | float) and key != "format"]
            text = json.dumps(said | dict.fromkeys(keys, "NUMBER") | {"evil": "NUMBER"})
            file.write_text(text.replace('"NUMBER"', number))
        lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        text = "\n".join(json.dumps({**line, **dict.fromkeys(set(line) - {"step"}, "NUMBER")}) for line in lines)
        folder.metrics.write_text(text.replace('"NUMBER"', number))
    assert main(COMMANDS[command](tmp_path / "sweep")) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


class Elements(HTMLParser):
    """Counts elements with their attributes, and keeps the values that lead or act."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: Counter[Any] = Counter()
        self.acting: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag, tuple(sorted(name for name, _ in attrs))] += 1
        self.acting |= {str(value) for name, value in attrs if name in ("href", "src", "style", "xlink:href")}
        assert not [name for name, _ in attrs if name.startswith("on")]


def texts(node: Any, text: str) -> Any:
    """Replace every free text in the JSON of a run folder: what has a space in it, or stands for a person's words."""
    if isinstance(node, dict):
        return {key: texts(value, text) for key, value in node.items()}
    if isinstance(node, list):
        return [texts(value, text) for value in node]
    return text if isinstance(node, str) and (" " in node or len(node) > 40) else node


def rewrite(folder: Path, text: str) -> RunDir:
    for name in ("data.json", "summary.json", "manifest.json", "waterfall.json"):
        (folder / name).write_text(json.dumps(texts(json.loads((folder / name).read_text()), text)))
    for name in ("samples.jsonl", "outputs.jsonl"):
        if (folder / name).exists():
            lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
            said = [{key: text if isinstance(value, str) else value for key, value in line.items()} for line in lines]
            (folder / name).write_text("".join(json.dumps(line) + "\n" for line in said))
    return RunDir(folder)


@pytest.mark.slow
def test_a_report_holds_text_and_no_elements_of_strangers(finished: Path, tmp_path: Path, outside: Outside) -> None:
    pages = []
    for name, text in (("plain", "x" * len(MARKUP)), ("hostile", MARKUP)):
        folder = rewrite(Path(shutil.copytree(finished, tmp_path / name)), text)
        (folder.figures / "evil.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' onload='a()'><script/></svg>")
        pages.append(Elements(html_report.write_report(folder).read_text()))
        said = card.write_model_card(folder, text).read_text()
        outside_of_code = said.split("```")[::2]
        assert not any("<script" in part or "](javascript:" in part or "<img" in part for part in outside_of_code)
    assert pages[0].found == pages[1].found
    assert pages[0].acting == pages[1].acting
    assert not any("script" in tag for tag, _ in pages[1].found)


def test_a_comparison_holds_text_and_no_elements_of_strangers(tmp_path: Path, outside: Outside) -> None:
    pages = []
    for kind, text in (("plain", "x" * len(MARKUP)), ("hostile", MARKUP)):
        for number in (1, 2, 3):
            write_job(
                tmp_path / kind / f"job{number}", nats_of(1 + number / 50), prompt=text, tuned=text, seed=number,
                dataset={"kind": "file", "path": f"{text}{number}"}, choices__dataset=f"{text}{number}",
                error=text if number == 3 else None, state="failed" if number == 3 else "finished",
            )  # fmt: skip
        assert main(["compare", str(tmp_path / kind)]) == 0
        pages.append(Elements((tmp_path / kind / "compare.html").read_text()))
    assert pages[0].found == pages[1].found
    assert not any("javascript:" in value or "alert" in value for value in pages[1].acting)


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail without a traceback, and give what it said."""
    capsys.readouterr()
    assert main(words) in (1, 2)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def links(folder: Path, outside: Outside) -> dict[str, Callable[[], None]]:
    def link(name: str, to: Path) -> Callable[[], None]:
        def make() -> None:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(to)

        return make

    files = ["run.log", "metrics.jsonl", "eval.parquet", "output.log", "dropped.parquet", ".lock", "figures/loss.svg"]
    folders = ["checkpoints", "model", "dataset", "wandb", "figures"]
    return {name: link(name, outside.file) for name in files} | {name: link(name, outside.folder) for name in folders}


@pytest.mark.parametrize("work", ["run", "prepare"])
def test_nothing_is_written_through_links(work: str, tmp_path: Path, outside: Outside) -> None:
    for name in links(tmp_path, outside):
        folder = RunDir(tmp_path / "run")
        folder.path.mkdir()
        links(folder.path, outside)[name]()
        with pytest.raises(FolderError, match="is a link that leads out of the run folder"), folder.running(work):
            pytest.fail("the work began")
        assert not folder.status.exists()
        shutil.rmtree(folder.path)
    folder.path.mkdir()
    (folder.path / "wandb").mkdir()
    (folder.path / "wandb" / "latest-run").symlink_to("run-1")  # as the W&B client does
    with folder.running(work):
        pass


def test_a_run_again_leaves_what_links_lead_to(here: Path, outside: Outside) -> None:
    (here / "run").mkdir()
    (here / "run" / "config.yaml").symlink_to(outside.file)
    assert main([*TINY, "hydra.run.dir=run"]) == 2
    assert outside.is_untouched()


@pytest.mark.parametrize("name", ["wandb", ".wandb"])
def test_wandb_writes_through_no_link_of_a_sweep(name: str, tmp_path: Path, outside: Outside) -> None:
    (sweep := tmp_path / "sweep").mkdir()
    refuse_strange_folders(sweep)
    (sweep / name).symlink_to(outside.folder)
    with pytest.raises(FolderError, match=rf"{name}: is a link that leads out of"):
        refuse_strange_folders(sweep)


@pytest.mark.parametrize("name", ["wandb", ".wandb"])
def test_a_settings_file_of_the_working_folder_leads_no_login_elsewhere(
    name: str, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / name).mkdir()
    settings = here / name / "settings"
    settings.write_text("[default]\nmode = offline\nproject = mine\n")  # as `wandb init` and `wandb offline` write
    assert Wandb().check() == []
    for text in ("[default]\nbase_url = http://127.0.0.1:9\n", "[DEFAULT]\nBASE_URL: http://127.0.0.1:9\n[default]\n"):
        settings.write_text(text)
        words = [word for word in TINY if not word.startswith("tracking")]
        assert main([*words, "hydra.run.dir=run"]) == 2
        assert f"{settings}: sets base_url, and W&B would trust it" in capsys.readouterr().err
        assert not (here / "run").exists()
        with pytest.raises(FolderError, match="sets base_url"):
            refuse_strange_folders(tmp_path)
    settings.write_text("no settings")
    assert "cannot be read" in Wandb().check()[0]


def entry(root: Path, stage: str, key: str) -> Path:
    made = root / stage / key
    made.mkdir(parents=True)
    (made / "recipe.json").write_text('{"format": 1, "stage": "x"}')
    return made


def test_pruning_follows_no_links_and_takes_no_folders_of_others(tmp_path: Path, outside: Outside) -> None:
    root = tmp_path / "store"
    own = entry(root, "load", "a" * 32)
    entry(outside.folder.with_name("others"), "stage", "b" * 32)
    others = outside.folder.with_name("others")
    (root / "link").symlink_to(others / "stage")  # a stage
    (root / "load" / ("c" * 32)).symlink_to(others / "stage" / ("b" * 32))  # an entry
    (others / "stage" / ".ssh").mkdir()
    (root / "project" / ".git").mkdir(parents=True)  # the wrong folder given as a store
    half = root / "load" / f".{'d' * 32}.01234567"
    half.mkdir()
    (half / "out").symlink_to(outside.folder)
    (own / "out").symlink_to(outside.folder)
    assert main(["store", "prune", "--path", str(root), "--older-than", "0"]) == 0
    assert not own.exists()
    assert not half.exists()
    assert (root / "project" / ".git").exists()
    assert (others / "stage" / ".ssh").exists()
    assert (others / "stage" / ("b" * 32) / "recipe.json").exists()
    assert list(Store(root).listing()) == []


def pickled(path: Path, canary: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(Evil(canary)))


def torch_pickled(path: Path, canary: Path) -> None:
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state": Evil(canary)}, path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "adapter_model.bin"]
)
@pytest.mark.parametrize("write", [pickled, torch_pickled])
def test_a_checkpoint_runs_nothing(
    name: str, write: Callable[[Path, Path], None], strange_checkpoint: Path, outside: Outside,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """What a stranger's run that was cut off goes on from."""
    checkpoint = next(strange_checkpoint.glob("checkpoints/checkpoint-*"))
    write(checkpoint / name, outside.canary)
    if name == "adapter_model.bin":
        (checkpoint / "adapter_model.safetensors").unlink()
    code = main(["exec", str(strange_checkpoint)])
    assert code == (0 if name == "training_args.bin" else 1)  # which nobody reads
    assert "Traceback" not in capsys.readouterr().err


@pytest.fixture(scope="session")
def _cut_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run stopped behind its first checkpoint, as a kill leaves it."""
    import transformers

    folder = tmp_path_factory.mktemp("cut") / "run"

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    before = transformers.Trainer._save_checkpoint
    transformers.Trainer._save_checkpoint = lambda *a, **k: (before(*a, **k), stop())
    try:
        main([*TINY, "trainer.save_steps=2", f"hydra.run.dir={folder}"])
    finally:
        transformers.Trainer._save_checkpoint = before
    assert next(folder.glob("checkpoints/checkpoint-2/optimizer.pt"))
    return folder


@pytest.fixture
def strange_checkpoint(_cut_off: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_cut_off, tmp_path / "strange-run"))


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def code_beside(model: Path, outside: Outside) -> None:
    (model / "evil.py").write_text(f"open({str(outside.canary)!r}, 'w')\nclass Evil: pass\n")


def _no_safetensors(model: Path, outside: Outside) -> None:
    (model / "adapter_model.safetensors").unlink()
    torch_pickled(model / "adapter_model.bin", outside.canary)


def _bad_header(model: Path, outside: Outside) -> None:
    (model / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{" * 64)


def _lying_header(model: Path, outside: Outside) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (model / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def _tokenizer_code(model: Path, outside: Outside) -> None:
    code_beside(model, outside)
    edit(
        model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, tokenizer_class="Evil"
    )


def _template(text: str) -> Callable[[Path, Outside], None]:
    def write(model: Path, outside: Outside) -> None:
        (model / "chat_template.jinja").write_text(text.replace("CANARY", str(outside.canary)))

    return write


def _adapter(**values: Any) -> Callable[[Path, Outside], None]:
    def write(model: Path, outside: Outside) -> None:
        code_beside(model, outside)
        edit(model / "adapter_config.json", **values)

    return write


MODELS = {
    "pickled weights": (_no_safetensors, True),
    "a header without end": (_bad_header, True),
    "a header that lies": (_lying_header, True),
    "code for the tokenizer": (_tokenizer_code, None),
    "Jinja that reaches for Python": (_template(
        "{{ ''.__class__.__mro__[1].__subclasses__() }}"
        "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}"
        "{{ lipsum.__globals__['os'].mkdir('CANARY') }}"), True),
    "Jinja that includes": (_template("{% include '/etc/passwd' %}"), True),
    "Jinja that changes": (_template("{{ messages.append(messages) }}{{ messages.clear() }}"), True),
    "another base model": (_adapter(base_model_name_or_path="../../outside", revision="evil"), False),
    "a library to import": (
        _adapter(auto_mapping={"base_model_class": "Evil", "parent_library": "evil"}, task_type=None), True),
    "another kind of adapter": (_adapter(peft_type="XLORA", adapters={"0": "evil/adapter"}), True),
    "an adapter that loads a model": (_adapter(peft_type="SHADOW", shadow_model="evil"), True),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_model_runs_nothing(
    name: str, finished: Path, outside: Outside, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, fails = MODELS[name]
    write(finished / "model", outside)
    monkeypatch.chdir(finished / "model")
    monkeypatch.syspath_prepend(finished / "model")  # as `python -m` would
    code = main(["generate", str(finished), "hello", "--max-new-tokens", "2"])
    assert fails is None or (code != 0) == fails
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert not CONTROLS & set(said.out + said.err)


OTHER_ADAPTERS = (
    {"peft_type": "SHADOW", "shadow_model": "./evil"},
    {"peft_type": "PROMPT_TUNING", "tokenizer_name_or_path": "./evil"},
    {"peft_type": ["LORA"]},
    {"peft_type": "LORA", "auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"}},
    {"peft_type": "LORA", "megatron_config": {"a": 1}, "megatron_core": "evil"},
    {"peft_type": "LORA", "shadow_model": "./evil"},
)


@pytest.mark.parametrize("config", OTHER_ADAPTERS, ids=str)
def test_only_adapters_that_name_no_code_are_loaded(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(FolderError, match=r"adapter_config\.json: \w+(=.* must be 'LORA'| must not be set)"):
        model_io.load(tmp_path, lambda: None, lambda _: None)
    model = Pretrained(name_or_path=str(tmp_path))
    with pytest.raises(ModelError, match=r"adapter_config\.json: \w+(=.* must be 'LORA'| must not be set)"):
        model.load_weights(StageContext(Store(tmp_path / "store")), 0, FROZEN)


def test_what_training_saves_may_be_loaded(tmp_path: Path) -> None:
    peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q"], use_dora=True).save_pretrained(tmp_path)
    refuse_other_adapters(tmp_path / "adapter_config.json")


LOADERS = {"from_pretrained", "from_config", "SentenceTransformer"}
NO_CODE = {"PeftModel"}  # of a kind that is looked at before


def test_each_call_of_a_loader_says_whether_a_models_own_code_may_run() -> None:
    silent, calls = [], 0
    for file in sorted((Path(__file__).parents[2] / "sft_lab").rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or ast.unparse(call.func).rpartition(".")[2] not in LOADERS:
                continue
            calls += 1
            owner = ast.unparse(call.func).split(".")[-2:][0]
            keys = {key.arg: key.value for key in call.keywords if key.arg}
            spread = [ast.unparse(key.value) for key in call.keywords if not key.arg]
            refused = "trust_remote_code" in keys and ast.unparse(keys["trust_remote_code"]) == "False"
            if not (refused or any(text.endswith(".trust()") for text in spread) or owner in NO_CODE):
                silent.append(f"{file.name}:{call.lineno}")
    assert calls > 10
    assert silent == []


def base(folder: Path, finished: Path, **config: Any) -> list[str]:
    """A model folder of a stranger, and the words that take it."""
    folder.mkdir()
    for file in (finished / "model").glob("token*"):
        shutil.copy(file, folder)
    edit_of = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, **config}
    (folder / "config.json").write_text(json.dumps(edit_of))
    others = [word for word in TINY if word != "model=tiny_random"]
    return [*others, "model=local", "template=chatml", f"model.name_or_path={folder}"]


@pytest.mark.slow
def test_a_base_model_runs_nothing(
    finished: Path, tmp_path: Path, outside: Outside, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code = {"auto_map": dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "evil.Evil")}
    words = base(tmp_path / "m1", finished, **code, model_type="evil")
    code_beside(tmp_path / "m1", outside)
    for trusted in ("", "another"):
        monkeypatch.setenv(TRUST, trusted)
        assert f"set {TRUST}={tmp_path / 'm1'} to let it run" in refused(words, capsys)

    words = base(tmp_path / "m2", finished)
    torch_pickled(tmp_path / "m2" / "pytorch_model.bin", outside.canary)
    assert "weights are a pickle (pytorch_model.bin)" in refused(words, capsys)

    words = base(tmp_path / "m3", finished)
    (tmp_path / "m3" / "model.safetensors").write_bytes(struct.pack("<Q", 2**62))
    assert "cannot be loaded" in refused(words, capsys)


@pytest.mark.slow
def test_code_of_the_one_model_that_the_user_names_runs(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = {"auto_map": dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "own.Own")}
    words = base(tmp_path / "m1", finished, **code, model_type="own")
    (tmp_path / "m1" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    monkeypatch.setenv(TRUST, str(tmp_path / "m1"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    refused(words, capsys)  # it is no model; but it ran
    assert (tmp_path / "ran").exists()


@pytest.mark.slow
def test_an_embedder_runs_nothing(
    tmp_path: Path, outside: Outside, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "embedder"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    code_beside(folder, outside)
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}]))
    (folder / "config_sentence_transformers.json").write_text("{}")
    words = [word for word in TINY if word != "dedup=exact"] + [
        "dedup=semantic",
        f"dedup.embedder.name_or_path={folder}",
        "dedup.embedder.sha256=null",
    ]
    torch_pickled(folder / "pytorch_model.bin", outside.canary)
    assert "no .safetensors file there, and pickles are not loaded" in refused(words, capsys)
    (folder / "model.safetensors").write_bytes(b"\0" * 16)
    assert "evil.Evil" in refused(words, capsys)


@pytest.mark.slow
def test_rows_of_strangers_are_data(tmp_path: Path, outside: Outside, capsys: pytest.CaptureFixture[str]) -> None:
    """A parquet file whose schema asks for a pickled type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    evil = pickle.dumps(Evil(outside.canary))
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": evil}
    text = pa.field("prompt", pa.string(), metadata=metadata)
    table = pa.table(
        [["a"] * 40, [f"b{n}" for n in range(40)]], schema=pa.schema([text, pa.field("completion", pa.string())])
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    words = [*TINY, "dataset=file", f"dataset.path={tmp_path / 'rows.parquet'}", f"hydra.run.dir={tmp_path / 'run'}"]
    assert main(["prepare", *words, "split.min_eval_rows=1"]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err
