"""Every command in the docs is one that works, and every link in them leads somewhere."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote

import pytest
import yaml

from sft_lab import config, search
from sft_lab.cli import arguments
from sft_lab.cli.command_help import ABOUT
from sft_lab.core.errors import ConfigError
from sft_lab.data.messages import RecordReason
from sft_lab.data.template_layout import RenderReason

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NOTEBOOK = ROOT / "docs/colab.ipynb"
PLACEHOLDER = re.compile(r"\b[A-Z]{3,}\b|\.\.\.")  # what a reader must put in: such a line is parsed and not composed
COMPOSED = ("train", "prepare", "plan")
# What a machine may lack: a command that is right otherwise is refused for it, after it has been composed.
LACKING = re.compile(r"needs GPUs|NVIDIA GPU|pip install")
# Files that the commands speak of, in the folder they are composed in.
ROWS = [
    "my_conversations.jsonl",
    "my_chats.jsonl.gz",
    "turns.jsonl",
    "tools.jsonl",
    "thoughts.jsonl",
    "my.jsonl",
    "my.csv",
    "rows.jsonl",
    "chats.jsonl",
    "more.jsonl",
    "held_out.jsonl",
    "benchmark.jsonl",
]


def cells(kind: str) -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def text_of(page: Path) -> str:
    """The text of a page; of the notebook as Markdown, its cells of commands as code blocks."""
    if page != NOTEBOOK:
        return page.read_text(encoding="utf-8")
    commands = "".join(f"```\n{cell}\n```\n" for cell in cells("code"))
    return "\n\n".join(cells("markdown")) + "\n\n" + re.sub("^!", "", commands, flags=re.MULTILINE)


def without_fences(text: str) -> str:
    return re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)


def lines_in_fences(text: str) -> Iterator[str]:
    for block in re.findall(r"^( *)```[^\n]*\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        yield from re.sub(r" *\\\n *", " ", block[1]).splitlines()  # a command may go on in the next line


def commands() -> dict[str, str]:
    """Each distinct command, and the page where it was found first: lines of code blocks, and those in sentences."""
    found: dict[str, str] = {}
    for page in (*PAGES, NOTEBOOK):
        text = text_of(page)
        inline = re.findall(r"`(sft-lab [^`]* [^`]*|sft-lab [^`]*=[^`]*)`", without_fences(text).replace("\n", " "))
        for said in (*map(str.strip, lines_in_fences(text)), *inline):
            if said.startswith("sft-lab ") and page.name != "wrong_inputs.md":
                found.setdefault(said, page.name)
    return found


COMMANDS = commands()


def words_of(command: str) -> list[str]:
    """The words behind ``sft-lab``, as the command line gets them: ``train`` may be left out."""
    words = shlex.split(command, comments=True)[1:]
    words = words[: words.index("<")] if "<" in words else words
    return words if words and (words[0] in ABOUT or words[0] in ("--help", "--version")) else ["train", *words]


def is_composed(command: str) -> bool:
    if COMMANDS[command] == "own_stage.md":  # with the stage that the page makes: tests/config/test_own_stage.py
        return False
    return words_of(command)[0] in COMPOSED and not PLACEHOLDER.search(command)


def test_commands_are_found():
    assert len(COMMANDS) > 40
    assert len(set(COMMANDS.values())) > 8


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_parsed(command):
    words = words_of(command)
    if words[0].startswith("--"):
        return
    _, overrides = arguments.parse(words)
    assert all("=" in word or word == "..." for word in overrides)


@pytest.mark.slow  # a quarter of a second each
@pytest.mark.parametrize("command", [said for said in COMMANDS if is_composed(said)])
def test_a_command_composes(command, tmp_path, monkeypatch):
    given, overrides = arguments.parse(words_of(command))
    monkeypatch.chdir(tmp_path)
    for name in ROWS:
        Path(name).write_text('{"prompt": "a", "answer": "b"}\n')
    Path("outputs/2026-11-22/11-00-00").mkdir(parents=True)
    for place in (".", "outputs/2026-11-22/11-00-00"):
        Path(place, "review.csv").write_text("id,decision\n")
    Path("experiments").mkdir()
    Path("experiments/best.yaml").write_text("# @package _global_\nseed: 7\n")
    Path("experiments/support.yaml").write_text(experiment_of_the_docs())
    try:
        plan = config.compose_jobs(overrides, multirun=given.multirun, to_start=False)
    except ConfigError as error:
        problems = str(error).splitlines()
        if all(map(LACKING.search, problems[len(problems) > 1 :])):
            pytest.skip(str(error))
        raise
    assert plan.jobs
    assert plan.swept or not given.multirun


def experiment_of_the_docs() -> str:
    """The experiment file that the page on options shows."""
    page = (ROOT / "docs/options.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml\n(# @package.*?)^```", page, re.MULTILINE | re.DOTALL)
    return str(text)


def test_the_experiment_file_and_the_command_of_the_recipe_are_the_same_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("experiments").mkdir()
    Path("experiments/support.yaml").write_text(experiment_of_the_docs())
    (recipe,) = [command for command in COMMANDS if re.match("sft-lab plan .*model=mistralai/Mistral-7B-v0.3", command)]
    _, overrides = arguments.parse(words_of(recipe))
    assert config.compose_config(["+experiment=support"]) == config.compose_config(overrides)


SEARCHES = [command for command in COMMANDS if words_of(command)[0] == "search" and "hparams_search=" not in command]


@pytest.mark.slow
@pytest.mark.parametrize("command", SEARCHES)
def test_a_search_composes(command):
    options, overrides = arguments.parse(words_of(command))
    space, _ = search.read_command(overrides, [axis for axes in options.over for axis in axes])
    assert len(space.probe().jobs) > 1


@pytest.mark.parametrize(
    ("heading", "reasons"),
    [("Rows that cannot be used", RecordReason), ("What a template cannot render", RenderReason)],
)
def test_the_page_on_data_explains_each_reason_that_the_code_has(heading: str, reasons: Any) -> None:
    """The types are complete: mypy refuses a row that is dropped for any other reason."""
    section = (ROOT / "docs/data.md").read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    first_cells = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    explained = [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(explained) == sorted(get_args(reasons))


@pytest.mark.parametrize("language", ["ar", "ro"])
def test_a_translated_readme_has_the_commands_of_the_original(language):
    """In their order, so that a command that changes is changed in every language; comments may be missing."""

    def typed(name: str) -> list[list[str]]:
        lines = [*map(str.strip, lines_in_fences((ROOT / name).read_text(encoding="utf-8")))]
        return [shlex.split(line, comments=True) for line in lines if re.match("(make|pip|sft-lab) ", line)]

    assert len(typed("README.md")) > 8
    assert typed(f"README.{language}.md") == typed("README.md")


def test_the_arabic_readme_shows_the_output_of_the_original():
    """Its figures are spoken of below, and are those of the same runs."""

    def printed(name: str) -> list[str]:
        blocks = re.findall(r"^```\n(.*?)^```$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        return [block for block in blocks if not re.match("(make|pip|sft-lab) ", block)]

    assert len(printed("README.md")) > 1
    assert printed("README.ar.md") == printed("README.md")


@pytest.mark.parametrize("page", [ROOT / "README.ar.md", ROOT / "docs/quickstart.ar.md"], ids=lambda page: page.name)
def test_a_sign_at_the_edge_of_code_stays_there_in_arabic(page):
    """Between Arabic words `-m` would be shown as m-, unless its element has a direction of its own."""
    text = re.sub(r'<(\w+) dir="ltr">[^<]*</\1>', "", without_fences(page.read_text(encoding="utf-8")))
    code = re.findall(r"`([^`]*)`", text)
    assert code
    assert [part for part in code if not re.fullmatch(r"\w([^\s]*\w)?", part, re.ASCII)] == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as a code host makes them."""
    headings = re.findall(r"^#+ (.+)$", without_fences(page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = [re.sub(r"[`*]|\[(.*?)\]\(.*?\)", r"\1", heading).strip().lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", [*PAGES, NOTEBOOK], ids=lambda page: page.name)
def test_a_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_fences(text_of(page))):
        if re.match("https?://|mailto:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_relative_to(ROOT), f"{page.name}: {target} leads out of the repository"
        assert file.is_file(), f"{page.name}: {target} is not there"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target} has no such heading"


def test_every_page_is_in_the_index():
    """A code host shows no toctree, so the index has a list too; and the site's builder refuses a page in neither."""
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    listed = {name.partition("#")[0] for name in re.findall(r"\]\(([\w./#-]+\.md[^)]*)\)", index)}
    in_toctree = {f"{line}.md" for line in lines_in_fences(index) if re.fullmatch(r"[\w./]+", line)}
    there = {page.name if page.parent.name == "docs" else f"../{page.name}" for page in PAGES} - {"index.md"}
    assert listed >= there
    assert in_toctree == there


def test_the_notebook_opens_and_keeps_no_output():
    """What nbformat 4.4 asks of a notebook; that its Python is Python is ruff's to say."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 4)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in notebook["cells"]:
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        if cell["cell_type"] == "markdown":
            assert cell.keys() == {"cell_type", "metadata", "source"}
            continue
        assert cell.keys() == {"cell_type", "execution_count", "metadata", "outputs", "source"}
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert sum(page == NOTEBOOK.name for page in COMMANDS.values()) > 8
    for page in ("docs/index.md", "docs/gpu.md"):
        assert f"({NOTEBOOK.name})" in (ROOT / page).read_text(encoding="utf-8")


def test_workflows_use_what_is_there():
    """They cannot be run here: at least they are YAML, and scripts, make targets and extras they name exist."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    called, targets, used = set(), set(), set()
    for file in sorted((ROOT / ".github/workflows").glob("*.yml")):
        for job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].values():
            said = "\n".join(step.get("run", "") for step in job["steps"])
            called |= {line for line in said.splitlines() if line.startswith(".ci/")}
            targets |= set(re.findall(r"^make ([\w-]+)", said, re.MULTILINE))
            used |= {name for names in re.findall(r"'\.\[([\w,]+)\]'", said) for name in names.split(",")}
    assert called == {".ci/run"}
    assert (ROOT / ".ci/run").is_file()
    assert targets == {"test-all", "docs"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert used
    assert used <= extras.keys()


@pytest.mark.slow  # trains the tiny model three times and loads the bundled embedder
def test_the_python_examples_give_what_they_say(tmp_path, monkeypatch):
    """A comment behind an expression is what it gives; three dots stand for anything."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    compared = 0
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        lines = code.splitlines()
        for node in ast.parse(code).body:
            source = ast.get_source_segment(code, node) or ""
            comment = lines[(node.end_lineno or 0) - 1].partition("  # ")[2]
            if not isinstance(node, ast.Expr):
                exec(source, names)
                continue
            pattern = ".*".join(map(re.escape, comment.split("...")))
            value = repr(eval(source, names))
            assert re.fullmatch(pattern, value), f"{source}: {value}"
            compared += 1
    assert compared > 15
