"""Wrong run folders, for every command that takes one, and wrong surroundings."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wrong_input import PREPARE, SMALL, Wrong
from wrong_words import written

Change = Callable[[Path], object]


@functools.cache
def finished_run() -> Path:
    """The folder of a run as it is at its end, as far as commands look at it."""
    import peft

    from sft_lab.config import compose
    from sft_lab.core import parquet
    from sft_lab.core.context import StageContext
    from sft_lab.core.store import Store
    from sft_lab.training import model_io

    place = Path(tempfile.mkdtemp())
    run, made = compose([*SMALL, "evaluation.general=null"]), place / "run"
    made.mkdir()
    (made / "config.yaml").write_text(run.to_yaml())
    files = {"status.json": {"state": "finished"}, "manifest.json": {"job": run.hash}, "summary.json": {},
             "waterfall.json": {"stages": [], "held_out": []}}  # fmt: skip
    for name, content in files.items():
        (made / name).write_text(json.dumps({"format": 1, **content}))
    (made / "metrics.jsonl").write_text("")
    for name, schema in (("dropped", parquet.DROPPED), ("eval", parquet.EVAL)):
        parquet.write(made / f"{name}.parquet", {column: [] for column in schema}, schema)
    context = StageContext(Store(place / "store"), lambda: run.model.tokenizer(context))
    renderer = run.template.bind(context)
    model = peft.get_peft_model(
        run.model.load(context, 1), peft.LoraConfig(target_modules="all-linear", r=1, task_type="CAUSAL_LM")
    )
    model_io.save(model, context.tokenizer, renderer.jinja, made / "model", end_ids=renderer.end_ids)
    return made


def folder(what: str, command: str, change: Change | None = None, *, quick: bool = False) -> Wrong:
    """A command on the folder ``run``: a finished run that was changed, or none."""

    def make(here: Path) -> None:
        if change is not None:
            shutil.copytree(finished_run(), here / "run")
            change(here / "run")

    return Wrong("run folders", f"`{command}`: {what}", command.split(" ")[1:], make, quick=quick)


def no_run(what: str, command: str, make: Change) -> Wrong:
    return Wrong("run folders", f"`{command}`: {what}", command.split(" ")[1:], make, quick=True)


def put(name: str, content: str) -> Change:
    return lambda run: (run / name).write_text(content)


def edited(before: str, after: str) -> Change:
    def change(run: Path) -> None:
        text = (run / "config.yaml").read_text()
        assert before in text
        (run / "config.yaml").write_text(text.replace(before, after, 1))

    return change


def removed(name: str) -> Change:
    def change(run: Path) -> None:
        with contextlib.suppress(NotADirectoryError):
            shutil.rmtree(run / name)
            return
        (run / name).unlink()

    return change


def half(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text[: text.index("dedup:")])


def status(**content: Any) -> Change:
    return put("status.json", json.dumps({"format": 1, **content}))


def talk(what: str, content: str, *words: str) -> Wrong:
    """A file of a conversation that no model can go on with; it is read before the run's folder is looked at."""
    command = ["generate", "run", "--messages", "talk.json", *words]
    return Wrong("conversations", f"`sft-lab {' '.join(command)}`: {what}", command, written("talk.json", content),
                 quick=True)  # fmt: skip


def around(what: str, *words: str, make: Change = lambda _: None, **more: Any) -> Wrong:
    environment = {name: more.pop(name) for name in list(more) if name.isupper()}
    return Wrong("environment", what, list(words), make, environment, **more)


EMPTY, AS_FILE = (lambda here: (here / "run").mkdir()), written("run", "x")
SWEEP = written("run/sweep.json", "{}")
TOO_LONG = "x" * 300
CASES = [
    *(folder("no such folder", f"sft-lab {command}", quick=True)
      for command in ("exec run", "runs run", "compare run", "replay run", "promote run mine", "generate run Hi?",
                      "merge run", "export run --to gguf", "push run me/it", "doctor run")),
    no_run("an empty folder", "sft-lab exec run", EMPTY),
    no_run("an empty folder", "sft-lab compare run", EMPTY),
    no_run("a file that is not a saved config", "sft-lab replay run", AS_FILE),
    no_run("a file", "sft-lab merge run", AS_FILE),
    no_run("a sweep", "sft-lab promote run mine", SWEEP),
    folder("half a config", "sft-lab exec run", half),
    folder("a config of another format", "sft-lab exec run", edited("format: 1", "format: 2")),
    folder("a config that reads the environment", "sft-lab exec run", edited("seed: 42", "seed: ${oc.env:HOME}")),
    folder("a config with an unknown key", "sft-lab doctor run", edited("seed: 42", "sed: 42")),
    folder("a config with an unknown kind", "sft-lab promote run mine", edited("kind: exact", "kind: frob")),
    folder("a config that is binary", "sft-lab replay run", lambda run: (run / "config.yaml").write_bytes(b"\xff\0")),
    folder("status.json is not JSON", "sft-lab exec run", put("status.json", "{")),
    folder("status.json is a list", "sft-lab merge run", put("status.json", "[]")),
    folder("status.json has 100,000 nested lists", "sft-lab replay run", put("status.json", "[" * 100_000)),
    folder("status.json has no state", "sft-lab push run me/it", status()),
    folder("the run failed", "sft-lab generate run Hi?", status(state="failed")),
    folder("only data was prepared", "sft-lab generate run Hi?",
           status(state="finished", work="prepare")),
    folder("manifest.json is a list", "sft-lab replay run", put("manifest.json", "[]")),
    folder("summary.json is missing", "sft-lab replay run", removed("summary.json")),
    folder("an unknown key as an override", "sft-lab replay run sed=1", lambda _: None),
    folder("a replay into the run itself", "sft-lab replay run --out run", lambda _: None),
    folder("an unknown number to sort by", "sft-lab compare run --rank-by eval/los", lambda _: None),
    folder("--lowest-first without a number", "sft-lab compare run --lowest-first", lambda _: None),
    folder("a name with a path in it", "sft-lab promote run ../mine", lambda _: None),
    folder("an empty prompt", "sft-lab generate run ", lambda _: None),
    *(Wrong("conversations", f"`evaluation.messages=talk.json`: {what}",
            [*SMALL, "hydra.run.dir=run", "evaluation.messages=talk.json"], make)
      for what, make in (("no such file", lambda _: None),
                         ("ends with an answer", written("talk.json", '[{"role": "assistant", "content": "Hi"}]')))),
    talk("an empty file", ""),
    talk("no message", "[]"),
    talk("half a list", '[{"role": "user"'),
    talk("a broken line", '[{"role": "user", "content": "Hi"}]\n{"messages": ['),
    talk("no messages in the object", '{"prompt": "Hi"}'),
    talk("an unknown role", '[{"role": "narrator", "content": "Hi"}]'),
    talk("ends with an answer", '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]'),
    talk("a tool without a name", '{"messages": [{"role": "user", "content": "Hi"}], "tools": [{"type": "function"}]}'),
    talk("a prompt as well", "[]", "Hi?"),
    talk("a system message as well", "[]", "--system", "Be brief."),
    folder("a folder instead of a file", "sft-lab generate run --messages run", lambda _: None),
    folder("tools that the template does not write", "sft-lab generate run --messages run/t.json",
           put("t.json", '{"messages": [{"role": "user", "content": "Hi"}], "tools": [{"name": "look"}]}')),
    folder("a length below 1", "sft-lab generate run Hi? --max-new-tokens 0", lambda _: None),
    folder("a length beyond any model", "sft-lab generate run Hi? --max-new-tokens 1000000", lambda _: None),
    folder("a temperature near 0", "sft-lab generate run Hi? --temperature 1e-320", lambda _: None),
    folder("the model is missing", "sft-lab generate run Hi?", removed("model")),
    folder("the adapter is truncated", "sft-lab generate run Hi?",
           lambda run: (run / "model/adapter_model.safetensors").write_bytes(b"x" * 20)),
    folder("the adapter is missing", "sft-lab merge run", removed("model/adapter_model.safetensors")),
    folder("the adapter's config is not JSON", "sft-lab merge run", put("model/adapter_config.json", "{")),
    folder("the tokenizer is not JSON", "sft-lab generate run Hi?", put("model/tokenizer.json", "{")),
    folder("the chat template is missing", "sft-lab generate run Hi?", removed("model/chat_template.jinja")),
    folder("the chat template is broken", "sft-lab merge run", put("model/chat_template.jinja", "{% for")),
    folder("summary.json is not a summary", "sft-lab merge run",
           put("summary.json", '{"format": 1, "verdict": 7, "evidence": 3, "eval/loss": "low"}')),
    folder("an existing output folder", "sft-lab merge run --out run", lambda _: None),
    folder("an existing output folder", "sft-lab export run --to ollama --out run", lambda _: None),
    folder("the chat template is missing", "sft-lab export run --to ollama", removed("model/chat_template.jinja")),
    folder("not a repository name", "sft-lab push run ../it", lambda _: None),
    folder("no login", "sft-lab push run me/it", put("model/README.md", "x")),
    around("the store is a file", *PREPARE, make=written("store", "x"), SFT_LAB_STORE="{here}/store"),
    around("the store cannot be created", *PREPARE, "store.path=/proc/store"),
    around("the store's name is too long", *PREPARE, f"store.path=/tmp/{TOO_LONG}"),
    around("a store to list that does not exist", "store", "list", "--path", "nowhere", quick=True),
    around("a store to list that is a file", "store", "list", make=written("store", "x"), quick=True,
           SFT_LAB_STORE="{here}/store"),
    around("a negative age for pruning", "store", "prune", "--older-than", "-1", quick=True),
    around("the run folder cannot be created", *PREPARE, "hydra.run.dir=/proc/run"),
    around("the run folder is below a file", *PREPARE, "hydra.run.dir=data/run", make=written("data", "x")),
    around("the run folder is a file", *PREPARE, "hydra.run.dir=data", make=written("data", "x")),
    around("the run folder has other files in it", *PREPARE, "hydra.run.dir=data", make=written("data/my.txt", "x")),
    around("the run folder's name is too long", *PREPARE, f"hydra.run.dir={TOO_LONG}"),
    around("outputs is a file", "prepare", *SMALL, make=written("outputs", "x")),
    around("the sweep folder is a file", "-m", *SMALL, "seed=1,2", "hydra.sweep.dir=data", make=written("data", "x")),
    around("the sweep folder's record is not JSON", "-m", *SMALL, "seed=1,2", "hydra.sweep.dir=data",
           make=written("data/sweep.json", "[")),
    around("W&B online without a login", "plan", "tracking=wandb", "tracking.mode=online", WANDB_API_KEY=None,
           NETRC="{here}/netrc", WANDB_BASE_URL="https://wandb.example.org"),
    around("WANDB_MODE misspelt", "plan", "tracking=wandb", WANDB_MODE="offlin"),
    around("no home", "plan", "dedup.threshold=7", HOME=None, XDG_CACHE_HOME=None, SFT_LAB_STORE=None, fresh=True),
    around("an unwritable home, OMP_NUM_THREADS=abc, a one-column terminal", *PREPARE, HOME="/proc/nowhere",
           XDG_CACHE_HOME=None, SFT_LAB_STORE=None, OMP_NUM_THREADS="abc", COLUMNS="1", fresh=True),
    around("an Arabic name with LANG=C", "plan", "dataset=file", "dataset.path='محادثات.jsonl'", LANG="C", LC_ALL="C",
           fresh=True),
    around("no folder for temporary files", "plan", "dedup.threshold=7", TMPDIR="/nowhere", fresh=True),
    around("a data set on the Hub, and no network", *PREPARE, "dataset=hub", "dataset.name=nobody/nothing",
           HF_HUB_OFFLINE="1"),
]  # fmt: skip
