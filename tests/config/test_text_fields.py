"""A field that is text keeps the user's letters; every path of a saved config means the same in any folder."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from sft_lab.cli import main
from sft_lab.config import compose, compose_jobs, load
from sft_lab.config.text_fields import quote_text
from sft_lab.core.errors import ConfigError

NAMED = ["model=local", "model.name_or_path=a/b", "dedup=exact", "decontaminate.method=exact"]


@pytest.mark.parametrize("text", ["1.10", "1e5", "12e4567", "true", "False", "inf", "nan", "1_000", "0x10", "007"])
def test_a_text_is_what_was_written(text: str) -> None:
    run = compose([*NAMED, f"model.revision={text}", f"tracking.project={text}", f"tracking.tags=[{text},x]"])
    assert (run.model.revision, run.tracking.project, run.tracking.tags) == (text, text, [text, "x"])
    quoted = compose([*NAMED, f"model.revision='{text}'", f"tracking.project='{text}'", f"tracking.tags=['{text}',x]"])
    assert quoted.hash == run.hash


@pytest.mark.parametrize("sweep", ["1.10,2.0", "choice(1.10,2.0)", "'1.10',2.0"])
def test_each_text_of_a_sweep(sweep: str) -> None:
    plan = compose_jobs([*NAMED, f"model.revision={sweep}"], multirun=True)
    assert [job.run.model.revision for job in plan.jobs] == ["1.10", "2.0"]
    assert [job.axes for job in plan.jobs] == [{"model.revision": "1.10"}, {"model.revision": "2.0"}]


def test_null_and_numbers_stay_what_they_are() -> None:
    run = compose([*NAMED, "tracking.project=null", "trainer.learning_rate=1e-5", "+trainer.sft_config.tf32=false"])
    assert (run.tracking.project, run.trainer.learning_rate, run.trainer.sft_config) == (None, 1e-5, {"tf32": False})
    words = ["seed=1", "trainer.learning_rate=1e-5,1e-4", "split.filter=[length]", "model.revision=range(1,3)"]
    assert [quote_text(word) for word in words] == words


IN_FILES = {
    "experiments/mine.yaml": "defaults: [override /model: local]\nmodel: {name_or_path: a/b, revision: 1.10}",
    "experiments/sweep.yaml": """\
defaults: [override /model: local]
model: {name_or_path: a/b}
hydra:
  mode: MULTIRUN
  sweeper: {params: {model.revision: 1.10}}
""",
    "conf/model/mine.yaml": """\
defaults: [/schema/model/pretrained@_here_, _self_]
name_or_path: a/b
revision: 1.10
""",
}


@pytest.mark.parametrize(
    ("file", "word"), list(zip(IN_FILES, ["experiment=mine", "experiment=sweep", "model=mine"], strict=True))
)
def test_a_text_in_a_file_is_what_stands_there(file: str, word: str, here: Path) -> None:
    (here / file).parent.mkdir(parents=True)
    (here / file).write_text(IN_FILES[file], encoding="utf-8")
    run = compose_jobs([word], multirun=False).jobs[0].run
    assert run.model.revision == "1.10"
    (here / "config.yaml").write_text(run.to_yaml(), encoding="utf-8")
    assert load(here / "config.yaml").hash == run.hash
    assert load(here / "config.yaml", ["model.revision=2.10"]).model.revision == "2.10"


def test_paths_are_absolute_and_names_of_the_hub_stay(here: Path) -> None:
    for name in ("model", "embedder"):
        (here / name).mkdir()
        (here / name / "config.json").write_text("{}", encoding="utf-8")
        (here / name / "tokenizer.json").touch()
        (here / name / "model.safetensors").write_bytes(b"")
    for name in ("rows.jsonl", "held.jsonl", "chat.jinja", "ask.jsonl", "ddp.yaml", "ds.json"):
        (here / name).write_text("distributed_type: MULTI_GPU", encoding="utf-8")
    run = compose([
        "model=local", "model.name_or_path=model", "dataset=file", "dataset.path=rows.jsonl", "split=file",
        "split.path=held.jsonl", "template=file", "template.path=./chat.jinja", "dedup=semantic",
        "dedup.embedder.name_or_path=embedder", "decontaminate.against=[rows.jsonl]", "evaluation.domain=ask.jsonl",
        "launch.config_file=ddp.yaml", "store.path=store", "+trainer.sft_config.deepspeed=ds.json",
    ])  # fmt: skip
    paths = [
        run.model.name_or_path, run.dataset.path, run.split.path, run.template.path, run.dedup.embedder.name_or_path,
        run.decontaminate.against[0], run.evaluation.domain, run.launch.config_file, run.store.path,
        run.trainer.sft_config["deepspeed"],
    ]  # fmt: skip
    assert [Path(path).parent for path in paths] == [here] * len(paths)
    with pytest.raises(ConfigError, match=f"model.name_or_path={here}/gone: no such folder"):
        compose(["model=local", "model.name_or_path=./gone"])
    hub = compose([*NAMED, "dedup=semantic", "dedup.embedder.name_or_path=c/d"])
    assert (hub.model.name_or_path, hub.dedup.embedder.name_or_path) == ("a/b", "c/d")


@pytest.mark.parametrize(
    ("name", "says"), [(b"dollar${x}", r"\$\{"), (b"bad\xff", "UTF-8"), (b"hf_finetuningDatasetsArabic", "a token")]
)
def test_a_folder_whose_name_no_config_can_hold_is_refused_first(
    name: bytes, says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = os.fsencode(here) + b"/" + name
    os.mkdir(folder)  # noqa: PTH102 - no text
    with contextlib.chdir(folder):  # type: ignore[type-var]
        assert main.main(["model=tiny_random", "dedup=exact", "decontaminate.method=exact", "store.path=store"]) == 2
        said = capsys.readouterr().err
    assert re.search(f"{says}.*(in another)", said), said
    assert os.listdir(folder) == []  # noqa: PTH208


def test_composing_leaves_a_callers_hydra_alone(here: Path) -> None:
    (here / "config.yaml").write_text("theirs: 1", encoding="utf-8")
    with initialize_config_dir(str(here), version_base="1.3"):
        compose(NAMED)
        with pytest.raises(ConfigError):
            compose(["dedup=no"])
        assert hydra_compose("config").theirs == 1
    assert not GlobalHydra.instance().is_initialized()
