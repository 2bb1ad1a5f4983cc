"""Every YAML in conf/ and experiments/ is composed and built, and is the manual: what it is, a command, its knobs."""

from __future__ import annotations

import importlib.util
import re
import shlex
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sft_lab import config
from sft_lab.core.errors import ConfigError
from sft_lab.core.option_files import shipped
from sft_lab.dedup.embed import Embedder
from sft_lab.run.config import Run
from sft_lab.run.schemas import SCHEMAS

CONF, EXPERIMENTS = shipped("conf"), shipped("experiments")

# How many options there are at least. Deleting one is a decision, made here too.
COUNTS = {
    "dataset": 6, "decontaminate": 1, "dedup": 4, "dedup/embedder": 7, "evaluation": 1, "filter": 6, "launch": 4,
    "engine": 2,
    "model": 7, "split": 3, "split/filter": 4, "template": 8, "tracking": 2, "trainer": 5, "experiment": 6,
}  # fmt: skip

# Values for what an option leaves open.
GIVEN = {"dataset.path": "rows.jsonl", "dataset.name": "owner/name", "model.name_or_path": "owner/name",
         "template.path": "my.jinja", "split.path": "held_out.jsonl",
         "dataset.sources": "{a: {path: rows.jsonl}}"}  # fmt: skip


def option_files() -> dict[str, Path]:
    found = {f"{file.parent.relative_to(CONF)}={file.stem}": file for file in sorted(CONF.glob("*/**/*.yaml"))}
    return found | {f"experiment={file.stem}": file for file in sorted(EXPERIMENTS.glob("*.yaml"))}


FILES = option_files()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """An empty working folder with the files that the commands in the comments speak of."""
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "my_conversations.jsonl", "my.jsonl", "held_out.jsonl"):
        Path(name).write_text('{"prompt": "a", "answer": "b"}\n')
    Path("decisions.csv").write_text("id,decision\n")
    Path("my.jinja").write_text("{{ messages }}")
    Path("my-model").mkdir()
    Path("my-model/config.json").write_text("{}")
    Path("my-model/tokenizer.json").touch()


def test_the_options_of_every_group_are_found():
    groups = [name.partition("=")[0] for name in FILES]
    assert set(groups) == set(COUNTS)
    found = {group: groups.count(group) for group in COUNTS}
    assert {group: (count, COUNTS[group]) for group, count in found.items() if count < COUNTS[group]} == {}


# To be mended: these say no command.


@pytest.mark.parametrize(
    "name",
    FILES,
)
def test_option_says_what_it_is_and_gives_a_command(name):
    comments, commands = spoken(FILES[name])
    assert comments[0].endswith("."), f"{FILES[name]}: the first comment says what it is, in a sentence"
    assert commands, f"{FILES[name]}: no line 'Try it: sft-lab ...'"


# What a machine may lack, and how the option then says so, after it has been composed and built.
HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes")
HAS_TRACKIO = importlib.util.find_spec("trackio")
NEEDS = (
    {}
    if HAS_BITSANDBYTES
    else dict.fromkeys(["trainer=qlora", "experiment=mistral7b_sharegpt_qlora"], "pip install bitsandbytes")
)
NEEDS |= {} if HAS_TRACKIO else {"tracking=trackio": "needs the package trackio"}


@pytest.mark.parametrize("name", FILES)
def test_option_and_its_commands_compose_and_build(name):
    if name in NEEDS:
        with pytest.raises(ConfigError, match=NEEDS[name]):
            config.compose_jobs([name], multirun=False)
        return
    group, option = name.split("=")
    seen = []
    for command in spoken(FILES[name])[1]:
        words = shlex.split(command)
        plan = config.compose_jobs([word for word in words if word != "-m"], multirun="-m" in words)
        assert plan.jobs
        seen += str(chosen(plan, group)).split("+")
    if option not in seen:
        open_keys = re.findall(r"^ *(\w+): (?:\?\?\?|\{\} +# name)", FILES[name].read_text(), re.MULTILINE)
        given = [f"{group}.{key}={GIVEN[f'{group}.{key}']}" for key in open_keys]
        assert chosen(config.compose_jobs([name, *given], multirun=False), group) == option


def spoken(file: Path) -> tuple[list[str], list[str]]:
    """The comments before the first key, and the overrides of the commands among them."""
    comments = [line.lstrip("# ").strip() for line in file.read_text().splitlines() if line.startswith("#")]
    said = [line for line in comments if not line.startswith("@package")]
    found = [re.match(r"(?:Try|Run) it: sft-lab(.*?)(?: {3,}.*)?$", line) for line in said]
    return said, [match.group(1) for match in found if match]


def chosen(plan: config.Plan, group: str) -> str | None:
    if group == "experiment":
        return plan.name
    choice = plan.jobs[0].run.choices[group]
    return "+".join(choice) if isinstance(choice, list) else choice


def knobs(file: Path) -> list[tuple[int, str, str]]:
    """Lines ``key: scalar`` of an option: number, key and comment; the defaults list is left out."""
    found, in_defaults = [], False
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if re.match(r"\S", line):
            in_defaults = line.startswith("defaults:")
        match = re.match(r" *['\"]?(\w+)['\"]?: *('[^']*'|\"[^\"]*\"|[^#\s][^#]*?)? *(#.*)?$", line)
        if match and not in_defaults and match.group(2):
            found.append((number, match.group(1), match.group(3) or ""))
    return found


def field_names(schema: type) -> set[str]:
    hints = [field.default_factory for field in fields(schema) if is_dataclass(field.default_factory)]
    return {field.name for field in fields(schema)}.union(*(field_names(inner) for inner in hints))


# Knobs whose name and value say it all, in the words of the library they belong to.
PLAIN = {
    "name", "name_or_path", "path", "sha256", "format", "config", "split", "eval_split", "weight_decay", "revision",
    "scripts", "prompt", "tags", "hidden_size", "num_hidden_layers", "num_attention_heads",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("experiment=")])
def test_every_knob_is_of_its_schema_and_explained(name):
    group = name.partition("=")[0]
    schemas = (
        [Embedder]
        if group == "dedup/embedder"
        else [*SCHEMAS[group.rpartition("/")[2]].values(), *SCHEMAS["split"].values()]
    )
    known = set().union(*(field_names(schema) for schema in schemas), set(SCHEMAS))
    for number, key, comment in knobs(FILES[name]):
        assert key in known, f"{FILES[name]}, line {number}: {key} is no field of a schema"
        assert comment or key in PLAIN, f"{FILES[name]}, line {number}: {key} has no comment"


def test_the_first_file_is_a_commented_defaults_list_of_every_group():
    text = (CONF / "config.yaml").read_text()
    entries = OmegaConf.create(text).defaults
    groups = [next(iter(entry)) for entry in entries if not isinstance(entry, str)]
    assert sorted(groups) == sorted([*SCHEMAS, "split/filter"])
    commented = set(re.findall(r"^  - (\w+):.*#", text, re.MULTILINE))
    assert commented == set(SCHEMAS) - {group for group in groups if group not in commented and group == "launch"}
    for _, key, comment in knobs(CONF / "config.yaml"):
        assert key in field_names(Run)
        assert comment


def test_an_option_shows_every_knob_of_its_schema_once_somewhere():
    """The YAML is the manual: a knob that no option shows would be found by reading code only."""
    hidden = {
        ("model", "init_kwargs"),  # outside what sft_lab promises
    }
    for group, kinds in SCHEMAS.items():
        shown = {key for name, file in FILES.items() if name.startswith(f"{group}=") for key in all_keys(file)}
        missing = {field.name for schema in kinds.values() for field in fields(schema)} - shown
        if group == "dedup":
            missing -= {"embedder"}  # a group of its own
        if group == "decontaminate":
            missing -= {"embedder"}
        if group == "split":
            missing -= {"filter"}  # another
        if group == "tracking":
            missing -= {"mirrors"}  # which options fill, chosen as a list
        assert {(group, key) for key in missing} <= hidden


# Options that stand for a kind of their group: what they set is what the kind's dataclass has by default.
DEFAULT_OPTIONS = {
    ("evaluation", "evaluation"): "default",
    ("decontaminate", "decontaminate"): "default",
    ("model", "pretrained"): "local",
    ("model", "gguf"): "smollm2_135m_bundled",
    ("template", "jinja"): "file",
}
# What makes the one bundled GGUF file: no default of the kind.
OPTION_ONLY = {"model.original"}


@pytest.mark.parametrize(("group", "kind"), [(group, kind) for group, kinds in SCHEMAS.items() for kind in kinds])
def test_an_option_repeats_the_defaults_of_its_dataclass(group, kind):
    """Defaults live in the dataclass; the YAML repeats them for the reader."""
    option = DEFAULT_OPTIONS.get((group, kind), kind)
    content = OmegaConf.to_container(OmegaConf.load(FILES[f"{group}={option}"]))
    content.pop("defaults", None)
    defaults = OmegaConf.to_container(OmegaConf.structured(SCHEMAS[group][kind]), enum_to_str=True)
    differences = {
        f"{group}.{key}": (value, defaults[key])
        for key, value in content.items()
        if value != defaults[key] and defaults[key] != "???" and f"{group}.{key}" not in OPTION_ONLY
    }
    assert differences == {}


def test_the_first_file_repeats_the_defaults_of_a_run():
    content = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))
    content.pop("defaults")
    defaults = OmegaConf.to_container(OmegaConf.structured(Run))
    assert content == {key: defaults[key] for key in content}


def all_keys(file: Path) -> set[str]:
    def walk(node) -> set[str]:
        if not isinstance(node, dict):
            return set()
        return {str(key) for key in node}.union(*(walk(child) for child in node.values()))

    return walk(OmegaConf.to_container(OmegaConf.load(file)))
