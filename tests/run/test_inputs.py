"""Every file that a config names: read once, hashed, copied, and named where it has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_lab import compose
from sft_lab.cli.main import main
from sft_lab.core.errors import SourceError
from sft_lab.core.io import HashingReader, read_json
from sft_lab.core.run_dir import RunDir
from sft_lab.core.store import Store
from sft_lab.jobs import accelerate_launch, environment
from sft_lab.run import inputs
from sft_lab.tools.finished_run import open_run

CHATML = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def talks(file: Path, texts: list[str]) -> Path:
    lines = [{"prompt": f"Say {text}, please.", "completion": f"{text}, and once more: {text}."} for text in texts]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def words(here: Path, tiny: list[str]) -> list[str]:
    """A command line that names files by every key that can."""
    talks(here / "rows.jsonl", [f"number {n}" for n in range(40)])
    talks(here / "held.jsonl", [f"item {n}" for n in range(10)])
    for name in ("benchmark", "general", "domain"):
        talks(here / f"{name}.jsonl", [f"{name} {n}" for n in range(4)])
    (here / "decisions.csv").write_text("id,decision\n")
    (here / "chat.jinja").write_text(CHATML)
    (here / "ddp.yaml").write_text("distributed_type: MULTI_GPU\n")
    model = compose(["model=tiny_random"])
    context = model.context()
    model.model.load(context, seed=1).save_pretrained(here / "base")
    context.tokenizer.save_pretrained(here / "base")
    return [
        *(word for word in tiny if not word.startswith("model=")), "dataset=file", "dataset.path=rows.jsonl",
        "split=file", "split.path=held.jsonl", "filter=[answered,reviewed]", "filter.reviewed.path=decisions.csv",
        "decontaminate.against=[benchmark.jsonl]", "evaluation.general=general.jsonl", "evaluation.domain=domain.jsonl",
        "template=file", "template.path=chat.jinja", "model=local", f"model.name_or_path={here}/base",
        "launch.config_file=./ddp.yaml",
    ]  # fmt: skip


FILES = {
    "dataset.path": "rows.jsonl", "split.path": "held.jsonl", "filter.reviewed.path": "decisions.csv",
    "decontaminate.against.0": "benchmark.jsonl", "evaluation.general": "general.jsonl",
    "evaluation.domain": "domain.jsonl", "template.path": "chat.jinja", "launch.config_file": "ddp.yaml",
}  # fmt: skip


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.slow
def test_every_named_file_is_hashed_copied_and_named_when_it_changes(here: Path, words: list[str]) -> None:
    compose(words).prepare_only("run")
    manifest = read_json(Path("run/manifest.json"))
    assert manifest["inputs"].keys() == {*FILES, "model.name_or_path"}
    for key, name in FILES.items():
        assert manifest["inputs"][key] == {"path": str(here / name), "sha256": sha256(here / name)}
        assert Path("run/inputs", key, name).read_bytes() == (here / name).read_bytes()
    assert inputs.changes(compose(words), manifest) == []
    started = accelerate_launch.command(compose(words), RunDir(here / "run"), accelerate_launch.Machine(0, "", 0))
    assert str(here / "run/inputs/launch.config_file/ddp.yaml") in started

    for key, file in {**FILES, "model.name_or_path": "base/tokenizer_config.json"}.items():
        path = here / file
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        (change,) = inputs.changes(compose(words), manifest)
        assert change.startswith(f"{key}={here / file if key in FILES else here / 'base'} (was ")
        path.write_bytes(before)
    run = compose(words)
    assert inputs.changes(run, manifest) == []
    (here / "domain.jsonl").unlink()
    (change,) = inputs.changes(run, manifest)
    assert "domain.jsonl (was " in change
    assert "now cannot be read" in change


def test_a_manifest_of_before_is_compared_by_what_it_notes(here: Path, words: list[str]) -> None:
    run = compose(words)
    noted: dict[str, Any] = {"dataset_fingerprint": run.data_fingerprint(run.store.open())}
    (here / "chat.jinja").write_text(CHATML + " ")
    assert inputs.changes(compose(words), noted) == []
    assert inputs.changes(compose(words), {}) == []
    talks(here / "rows.jsonl", ["another"])
    (change,) = inputs.changes(compose(words), noted)
    assert change.startswith("dataset fingerprint (was ")


@pytest.mark.parametrize("hostile", [[], "x", {"template.path": "x"}, {"template.path": {"sha256": ["x"]}}])
def test_nonsense_in_a_manifest_is_no_traceback(here: Path, tiny: list[str], hostile: Any) -> None:
    assert isinstance(inputs.changes(compose(tiny), {"inputs": hostile}), list)


def test_files_of_one_name_and_many_files_of_a_glob(here: Path, tiny: list[str]) -> None:
    for folder in ("a", "b"):
        Path(folder).mkdir()
        talks(here / folder / "rows.jsonl", [f"{folder} {n}" for n in range(40)])
    run = compose([*tiny, "dataset=file", "dataset.path=*/rows.jsonl", "split.eval_share=0.3"])
    run.prepare_only("run")
    copies = Path("run/inputs/dataset.path")
    assert sorted(file.relative_to(copies) for file in copies.rglob("*.jsonl")) == [
        Path("a/rows.jsonl"), Path("b/rows.jsonl"),
    ]  # fmt: skip
    talks(here / "a" / "more.jsonl", [f"x{n}" * 100 for n in range(4000)])
    assert (here / "a" / "more.jsonl").stat().st_size > inputs.MAX_COPIED
    run = compose([*tiny, "dataset=file", "dataset.path=a/more.jsonl", "split.eval_share=0.3"])
    inputs.copy(run, RunDir(here / "large"), run.store.open())
    assert not Path("large").exists()


def test_a_file_that_changes_after_the_first_look_is_refused(here: Path) -> None:
    """Benchmarks and questions are hashed for the manifest before they are read: two contents are no run."""
    file = talks(here / "rows.jsonl", ["a"])
    store = Store(here / "store")
    store.sha256(file)
    talks(file, ["b"])
    with pytest.raises(SourceError, match=r"rows\.jsonl: has changed since this run first read it"):
        store.record_sha256(file, HashingReader(file))


@pytest.fixture
def edited() -> Callable[[Path], None]:
    return lambda file: file.write_text(file.read_text().replace("m.role + '", "m.role + ' "))


@pytest.mark.slow
def test_a_template_edited_on_the_way_is_not_saved_and_afterwards_is_told(
    here: Path, tiny: list[str], edited: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    talks(here / "rows.jsonl", [f"number {n}" for n in range(60)])
    template = here / "chat.jinja"
    template.write_text(CHATML)
    (here / "decisions.csv").write_text("id,decision\n")
    words = [*tiny, "dataset=file", "dataset.path=rows.jsonl", "split.eval_share=0.3", "template=file",
             "template.path=chat.jinja", "filter=[answered,reviewed]", "filter.reviewed.path=decisions.csv",
             "hydra.run.dir=run"]  # fmt: skip
    run = compose(words[:-1])
    assert run.check() == []  # reads it, as every command does before it begins
    edited(template)
    (here / "decisions.csv").write_text("nonsense")
    run.execute("run")
    assert Path("run/inputs/template.path/chat.jinja").read_text() == CHATML
    assert Path("run/inputs/filter.reviewed.path/decisions.csv").read_text() == "id,decision\n"
    assert open_run(Path("run")).renderer.jinja == CHATML
    (here / "decisions.csv").write_text("id,decision\n")

    assert main(words) == 2
    told = capsys.readouterr().err
    assert "the data has changed since this run: template.path=" in told
    assert "chat.jinja (was " in told
    assert "already finished" not in told
    old = {**read_json(Path("run/manifest.json")), "git": {}}
    (difference,) = environment.differences(old, environment.current(compose(words[:-1])))
    assert difference.name == f"template.path={template}"
    template.write_text(CHATML)
    assert main(words) == 0
    assert "already finished" in capsys.readouterr().err


def test_the_folder_of_an_embedder_is_a_named_file_where_it_is_loaded(here: Path, tiny: list[str]) -> None:
    pooling = here / "embedder" / "1_Pooling" / "config.json"
    pooling.parent.mkdir(parents=True)
    for name in ("model.safetensors", "modules.json", "1_Pooling/config.json"):
        (here / "embedder" / name).write_text("{}")
    words = [*tiny, "dedup=semantic", f"dedup.embedder.name_or_path={here}/embedder"]
    store = Store(here / "store")
    noted = {"inputs": inputs.hashes(compose(words), store)}
    assert "dedup.embedder.name_or_path" in noted["inputs"]
    assert not any("embedder" in key for key in inputs.hashes(compose(tiny), store))
    pooling.write_text('{"pooling_mode": "cls"}')
    (change,) = inputs.changes(compose(words), noted)
    assert change.startswith(f"dedup.embedder.name_or_path={here}/embedder (was ")
