"""Stages that live outside the package: what docs/own_stage.md shows is made and run; what is wrong is told."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import PATIENCE

from sft_lab import config
from sft_lab.cli.main import main
from sft_lab.config import registry
from sft_lab.core import option_files, plugins
from sft_lab.core.errors import ConfigError
from sft_lab.core.run_dir import RunDir
from sft_lab.core.types import Work
from sft_lab.jobs import processes
from sft_lab.run.launch_config import Processes
from sft_lab.run.schemas import SCHEMAS
from sft_lab.tools import doctor
from sft_lab.tools.diagnosis import Severity

PAGE = Path(__file__).parents[2] / "docs" / "own_stage.md"
CHOSEN = "filter=[answered,wordy]"


def block(language: str) -> str:
    """The page's only block in a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return found


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


@pytest.fixture(autouse=True)
def _alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working folder, and nothing of a plug-in behind the test."""
    monkeypatch.setenv("SFT_LAB_STORE", str(here / "store"))
    monkeypatch.setenv(plugins.VARIABLE, "")
    before, path = set(sys.modules), list(sys.path)
    yield
    monkeypatch.undo()
    sys.path[:] = path
    for name in [name for name in set(sys.modules) - before if name.startswith(("my_stages", "sft_lab_wordy", "odd"))]:
        del sys.modules[name]
    registry.register_plugins()
    assert not any(plugins.origin(schema) for kinds in SCHEMAS.values() for schema in kinds.values())


@pytest.fixture
def local(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's module in the working folder."""
    write(here / "my_stages.py", block("python"))
    write(here / "conf/filter/wordy.yaml", block("yaml"))
    monkeypatch.setenv(plugins.VARIABLE, "my_stages")
    return here


def package(folder: Path) -> None:
    """The page's package."""
    write(folder / "pyproject.toml", block("toml"))
    write(folder / "sft_lab_wordy/__init__.py", block("python"))
    write(folder / "sft_lab_wordy/conf/filter/wordy.yaml", block("yaml"))


def installed(site: Path, version: str = "1.0") -> None:
    """The page's package as an installer leaves it."""
    package(site)
    info = site / "sft_lab_wordy-1.0.dist-info"
    write(info / "METADATA", f"Metadata-Version: 2.1\nName: sft-lab-wordy\nVersion: {version}\n")
    write(info / "entry_points.txt", "[sft_lab.stages]\nwordy = sft_lab_wordy\n")


WHOLE = "@dataclass\nclass A(Filter):\n  def select(self, rows, context): ...\n"


def module(text: str, name: str = "odd") -> None:
    head = "from dataclasses import dataclass\nfrom sft_lab.data.filters import Filter, filter_schemas\n"
    write(Path(f"{name}.py"), head + text)


def refused(overrides: list[str]) -> str:
    with pytest.raises(ConfigError) as told:
        config.compose(overrides)
    return str(told.value)


# --- composing ---------------------------------------------------------------------------------------------------


def test_a_local_module_is_an_option_like_ours(local: Path) -> None:
    run = config.compose([CHOSEN, "filter.wordy.max_words=40"])
    assert run.filter["wordy"].max_words == 40
    assert run.choices["filter"] == ["answered", "wordy"]
    assert re.fullmatch(r"module my_stages \(source [0-9a-f]{12}\)", run.plugins["filter.wordy"])
    assert config.compose([]).plugins == {}
    assert "plugins" not in config.compose([]).saved()
    write(Path("config.yaml"), run.to_yaml())
    again = config.load(Path("config.yaml"))
    assert (again, again.hash) == (run, run.hash)
    assert refused([CHOSEN, "filter.wordy.max_word=1"]) == (
        "filter.wordy.max_word: unknown key; did you mean filter.wordy.max_words?"
    )
    assert refused([CHOSEN, "filter.wordy.max_words=many"]) == (
        "filter.wordy.max_words=many: must be a whole number, not 'many'"
    )
    assert refused(["plugins.x=y"]).startswith("plugins: records where stages come from")
    for command in re.findall("^sft-lab (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        words = [word for word in shlex.split(command) if word != "prepare"]
        plan = config.compose_jobs([word for word in words if word != "-m"], multirun="-m" in words)
        assert all("filter.wordy" in job.run.plugins for job in plan.jobs)
    assert "wordy" in option_files.listing()
    assert [diagnosis.message for diagnosis in doctor.check_plugins()] == ["module my_stages: filter.wordy"]


def test_the_working_folder_takes_no_module_s_place(local: Path) -> None:
    write(local / "wave.py", "raise RuntimeError('of the working folder')")
    write(local / "my_stages.py", block("python").replace("from dataclasses", "import wave\nfrom dataclasses"))
    sys.modules.pop("wave", None)
    path = list(sys.path)
    config.compose([CHOSEN])
    assert sys.path == path
    assert sys.modules["wave"].__file__ != str(local / "wave.py")


def test_an_installed_package_needs_no_variable(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = here / "site"
    installed(site)
    monkeypatch.syspath_prepend(str(site))
    listed = option_files.listing()
    assert re.search(r"^    wordy +Drop rows whose answer has too many words\.$", listed, re.MULTILINE)
    assert "sft_lab_wordy" not in sys.modules  # found, not imported
    run = config.compose([CHOSEN])
    assert run.plugins["filter.wordy"].startswith("sft-lab-wordy 1.0 (source ")
    file = here / "config.yaml"
    file.write_text(run.to_yaml())
    sys.path.remove(str(site))
    with pytest.raises(ConfigError, match=r"this run used filter.wordy from sft-lab-wordy 1.0 \(source \w+\), which "
                       "was not found; install it, or set SFT_LAB_STAGES to its module"):  # fmt: skip
        config.load(file)
    assert refused([CHOSEN]).startswith("filter=wordy: no such option; available: answered")


def test_another_version_is_another_job_and_no_job_to_go_on_with(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = here / "site"
    installed(site)
    monkeypatch.syspath_prepend(str(site))
    run = config.compose([CHOSEN, "model=tiny_random"])
    file = here / "config.yaml"
    file.write_text(run.to_yaml())
    assert config.load(file).check() == []
    installed(site, version="1.1")
    monkeypatch.syspath_prepend(str(here / "nothing"))  # another path: looked at again
    old, new = config.load(file), config.compose([CHOSEN, "model=tiny_random"])
    assert old.hash == run.hash != new.hash
    (problem,) = old.check()
    assert re.fullmatch(
        r"plugins.filter.wordy: this run was made with sft-lab-wordy 1.0 \(source \w+\), but sft-lab-wordy 1.1 "
        r"\(source \w+\) is installed; install the former again, or run it with the latter by sft-lab replay", problem,
    )  # fmt: skip
    assert new.check() == []


@pytest.mark.parametrize(
    ("text", "says"),
    {
        "no STAGES": ("", r"odd.py has no STAGES = {'filter.<kind>': <class>, ...}; docs/own_stage.md has an example"),
        "broken": ("1 / 0", r"plug-in module odd: cannot be imported \(ZeroDivisionError: division by zero\); fix it"),
        "lacks a module": ("import no_such_module", "No module named 'no_such_module'.*remove it from SFT_LAB_STAGES"),
        "no group": ("class A(Filter): ...\nSTAGES = {'polite': A}", r"STAGES\['polite'\]: must be a group, a dot"),
        "no group of it": ("class A(Filter): ...\nSTAGES = {'trainer.mine': A}", "groups are dataset, split, filter"),
        "a kind of ours": (f"{WHOLE}STAGES = {{'filter.length': A}}", "sft_lab already has a kind filter.length"),
        "a class of ours": ("STAGES = {'filter.mine': filter_schemas()['length']}", "already registered as another"),
        "no dataclass": (f"{WHOLE[11:]}STAGES = {{'filter.a': A}}", "A must be a @dataclass derived from"),
        "of another group": (f"{WHOLE}STAGES = {{'dedup.a': A}}", "must be a @dataclass derived from sft_lab"),
        "unfinished": ("@dataclass\nclass A(Filter):\n  x: int = 1\nSTAGES = {'filter.a': A}", "must also have select"),
        "a field of code": (f"{WHOLE}  f: type(abs) = abs\nSTAGES = {{'filter.a': A}}", "that configs do not support"),
    }.values(),
)  # fmt: skip
def test_a_plug_in_that_cannot_be_used_is_told(
    here: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    module(text)
    monkeypatch.setenv(plugins.VARIABLE, "odd")
    assert re.search(says, refused([]))
    assert re.search(says, refused([]))  # and again: nothing of it stays behind
    assert [diagnosis.severity for diagnosis in doctor.check_plugins()] == [Severity.PROBLEM]


def test_names_are_taken_once(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(f"{WHOLE}STAGES = {{'filter.wordy': A}}")
    monkeypatch.setenv(plugins.VARIABLE, "my_stages,odd")
    assert re.match(r"plug-in module odd: module my_stages \(source \w+\) already has a kind filter.wordy", refused([]))
    monkeypatch.setenv(plugins.VARIABLE, "no_such_stages")
    assert refused([]).startswith(f"SFT_LAB_STAGES=no_such_stages: no such module in {local} or on Python's path; ")
    installed(local / "site")
    write(local / "site/sft_lab_wordy/conf/filter/length.yaml", "")
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.syspath_prepend(str(local / "site"))
    assert refused([]).endswith("conf/filter/length.yaml: sft_lab already has an option with this name; choose another")


def test_a_config_brings_no_code_in(here: Path) -> None:
    write(here / "my_stages.py", "open('ran', 'w').close()")
    saved = config.compose(["model=tiny_random"]).saved()
    for noted in ({"filter.wordy": "my_stages"}, {"my_stages.Wordy": "module my_stages"}, ["my_stages"]):
        with pytest.raises(ConfigError, match=r"which was not found|must be a mapping"):
            config.from_saved({**saved, "plugins": noted}, "config.yaml")
    assert not Path("ran").exists()


def test_help_imports_no_plug_in(local: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "wordy" in capsys.readouterr().out
    assert "my_stages" not in sys.modules


# --- running ------------------------------------------------------------------------------------------------------


def stage_keys(folder: str) -> dict[str, tuple[str, bool]]:
    found = json.loads(Path(folder, "manifest.json").read_text())["stages"]
    return {one["stage"]: (one["key"], one["hit"]) for one in found}


@pytest.mark.slow
def test_the_page_followed(
    local: Path, monkeypatch: pytest.MonkeyPatch, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prepare", *tiny, CHOSEN, "filter.wordy.max_words=40"]
    assert main([*words, "hydra.run.dir=one"]) == 0
    stages = {one["stage"]: one for one in json.loads(Path("one/waterfall.json").read_text())["stages"]}
    dropped = stages["filter.wordy"]["dropped"]
    assert list(dropped) == ["wordy"]
    assert dropped["wordy"] > 0
    noted = json.loads(Path("one/manifest.json").read_text())["plugins"]
    assert noted == {"filter.wordy": config.load(Path("one/config.yaml")).plugins["filter.wordy"]}

    assert main(["replay", "one", "--out", "two"]) == 0
    assert "Result: equal" in capsys.readouterr().out
    assert stage_keys("two")["filter.wordy"] == (stage_keys("one")["filter.wordy"][0], True)

    monkeypatch.setenv(plugins.VARIABLE, "")
    for command in (["replay", "one"], ["exec", "one"], ["promote", "one", "kept"], ["doctor", "one"]):
        assert main(command) == 2
        assert "this run used filter.wordy from module my_stages" in capsys.readouterr().err
    assert main(words) == 2
    assert (
        "an option has kind wordy, which neither sft_lab nor any plug-in found here defines" in capsys.readouterr().err
    )
    assert main(["runs"]) == 0
    assert main(["compare", "one", "two"]) == 0

    write(local / "my_stages.py", block("python").replace("answer.split()", "answer.split('e')"))
    del sys.modules["my_stages"]
    monkeypatch.setenv(plugins.VARIABLE, "my_stages")
    assert main(["exec", "one"]) == 2
    assert "plugins.filter.wordy: this run was made with module my_stages" in capsys.readouterr().err
    assert main([*words, "hydra.run.dir=one"]) == 2
    assert "has a run with another config: plugins.filter.wordy was" in capsys.readouterr().err
    assert main(["replay", "one", "--out", "three"]) == 0
    said = capsys.readouterr().out
    assert "plug-in filter.wordy: was module my_stages (source" in said
    assert "filter.wordy kept" not in said
    keys = stage_keys("three")
    assert keys["filter.wordy"] != stage_keys("one")["filter.wordy"]
    assert keys["filter.wordy"][1] is False
    assert keys["filter.answered"] == (stage_keys("one")["filter.answered"][0], True)

    assert main(["promote", "three", "kept"]) == 0
    assert config.compose(["experiment=kept"]).hash == config.load(Path("three/config.yaml")).hash


EVERY = """
from dataclasses import dataclass
import numpy as np
from sft_lab.data.load import Dataset
from sft_lab.data.split import Split
from sft_lab.data.chat_template import Template
from sft_lab.dedup.exact import Dedup
from sft_lab.core.selection import Selection

@dataclass
class Counted(Dataset):
    rows: int = 40
    def named(self): return f"dataset.rows={self.rows}"
    def fingerprint(self, store): return f"counted-{self.rows}"
    def records(self, store):
        yield from (("", {"prompt": f"What is {n}?", "answer": f"One less than {n + 1}."}) for n in range(self.rows))

@dataclass
class Fifth(Split):
    def is_held_out(self, rows): return np.array(["5" in text for text in rows.column("prompt")])

@dataclass
class Half(Dedup):
    def select(self, rows, context):
        return Selection.of(rows, ["" if n % 2 else "even" for n in range(len(rows))])

@dataclass
class Bare(Template):
    def named(self): return "template=bare"
    def jinja(self, tokenizer):
        return "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' else ' ' }}{% endfor %}"

STAGES = {"dataset.counted": Counted, "split.fifth": Fifth, "dedup.half": Half, "template.bare": Bare}
"""


@pytest.mark.slow
def test_every_group_that_can_be_plugged(here: Path, monkeypatch: pytest.MonkeyPatch, tiny: list[str]) -> None:
    write(here / "odd.py", EVERY)
    for group, kind in (("dataset", "counted"), ("split", "fifth"), ("dedup", "half"), ("template", "bare")):
        write(here / f"conf/{group}/{kind}.yaml", f"# Odd.\ndefaults:\n  - /schema/{group}/{kind}@_here_\n  - _self_\n")
    monkeypatch.setenv(plugins.VARIABLE, "odd")
    chosen = ["dataset=counted", "split=fifth", "split.min_eval_rows=1", "dedup=half", "template=bare"]
    rest = [word for word in tiny if not word.startswith("dedup=")]
    assert main([*rest, *chosen, "hydra.run.dir=run"]) == 0
    flow = {one["stage"]: one for one in json.loads(Path("run/waterfall.json").read_text())["stages"]}
    assert flow["split"]["dropped"] == {"held_out": 4}
    assert flow["dedup.half"]["dropped"]["even"] > 10
    assert set(json.loads(Path("run/manifest.json").read_text())["plugins"]) == {
        "dataset.counted", "split.fifth", "dedup.half", "template.bare"
    }  # fmt: skip
    assert main(["replay", "run", "--out", "again"]) == 0


@pytest.mark.slow
def test_a_process_of_a_sweep_finds_a_local_module(local: Path, tiny: list[str]) -> None:
    folder = RunDir(local / "job")
    write(folder.config, config.compose([*tiny, CHOSEN, "filter.wordy.max_words=20"]).to_yaml())
    assert processes.launch([("job", folder)], Processes(at_once=1), Work.PREPARE) == []
    (wordy,) = [one for one in json.loads(folder.waterfall.read_text())["stages"] if one["stage"] == "filter.wordy"]
    assert 0 < wordy["rows_kept"] < wordy["rows_in"]


@pytest.mark.slow
def test_the_page_s_package_installed(here: Path) -> None:
    package(here / "source")
    site, work = here / "site", here / "work"
    work.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(here / "source")], check=True, timeout=PATIENCE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(PAGE.parents[1])])}
    done = subprocess.run(
        [sys.executable, "-m", "sft_lab", "--cfg", "job", "-p", "filter", "filter=[wordy]"],
        cwd=work, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "wordy:\n  max_words: 100\n"


def test_code_that_is_loaded_is_named_by_its_own_source(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit after the import is not what runs; another process is told of it by ``Run.check``."""
    from sft_lab.core.plugins import Plugin

    file = here / "edited_stages.py"
    file.write_text("class Keep: ...\nSTAGES = {'filter.keep': Keep}\n")
    _, before = Plugin("edited_stages").load()
    file.write_text(file.read_text() + "# edited\n")
    assert Plugin("edited_stages").load()[1] == before
    monkeypatch.delitem(sys.modules, "edited_stages")
    importlib.invalidate_caches()
    assert Plugin("edited_stages").load()[1] != before
