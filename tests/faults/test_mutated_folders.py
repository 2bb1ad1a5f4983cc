"""One field of one file is not what a run writes: every command that reads the folder says so, and none breaks."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sft_lab.cli.main import main

SEED = 20261128
VALUES = ["text", None, 10**400, -1, 0.5, True, [], [[["deep"]]], {}, {"a": {"b": []}}, float("nan"), float("inf")]
SPOILED = {"empty": b"", "binary": bytes(range(256)), "null": b"null", "list": b"[1, 2]", "half": None}


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """Return a folder with a run, a prepared folder and the store they filled."""
    root = tmp_path_factory.mktemp("origin")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("SFT_LAB_STORE", str(root / "store"))
        assert main([*tiny, "hydra.run.dir=run"]) == 0
        assert main(["prepare", *tiny, "hydra.run.dir=prepared"]) == 0
    return root


def paths(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every field in nested data, of lists the first item alone."""
    children = (
        content.items() if isinstance(content, dict) else enumerate(content[:1] if isinstance(content, list) else [])
    )
    for key, value in children:
        yield (*path, key)
        yield from paths(value, (*path, key))


def mutated(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy with another value at a path; without the field where the value is Ellipsis."""
    copy = json.loads(json.dumps(content))
    node = copy
    for key in path[:-1]:
        node = node[key]
    if value is ...:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return copy


def mutations(file: Path) -> list[tuple[str, Callable[[], bytes]]]:
    """Return what may be done to a file: the name, and the bytes that then stand in it."""
    data = file.read_bytes()
    made: list[tuple[str, Callable[[], bytes]]] = [
        (kind, lambda spoiled=spoiled: data[: len(data) // 2] if spoiled is None else spoiled)
        for kind, spoiled in SPOILED.items()
    ]
    if file.suffix not in (".json", ".jsonl", ".yaml"):
        return made
    lines = file.suffix == ".jsonl"
    content = [json.loads(line) for line in data.splitlines()] if lines else yaml.safe_load(data)
    for path in paths(content):
        for value in [..., *VALUES]:

            def spoil(path: tuple[Any, ...] = path, value: Any = value) -> bytes:
                changed = mutated(content, path, value)
                if file.suffix == ".yaml":
                    return yaml.safe_dump(changed, sort_keys=False).encode()
                return ("\n".join(map(json.dumps, changed)) + "\n" if lines else json.dumps(changed)).encode()

            made.append((f"{'.'.join(map(str, path))}={str(value)[:20]}", spoil))
    return made


def call(words: list[str]) -> str:
    """Run a command in this process; return what is wrong with how it ended."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - what a user would see as a traceback
        return f"{type(error).__name__}: {error}"
    return "" if code in (0, 1, 2) and "Traceback" not in out.getvalue() else f"exit {code}: {out.getvalue()[-300:]}"


def commands(folder: str) -> list[list[str]]:
    return [["runs", "."], ["compare", folder, "--out", "compared"], ["promote", folder, "again", "--force"],
            ["doctor", folder], ["exec", folder]]  # fmt: skip


def fuzz(origin: Path, calls: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Spoil one file at a time, call a command, and put the file back; return what broke."""
    monkeypatch.chdir(origin)
    monkeypatch.setenv("SFT_LAB_STORE", str(origin / "store"))
    chance = random.Random(SEED)
    files = [file for folder in ("run", "prepared") for file in sorted((origin / folder).glob("*.*"))
             if file.suffix in (".json", ".jsonl", ".yaml", ".parquet")]  # fmt: skip
    files += sorted((origin / "store").rglob("recipe.json"))[:4]
    choices = {file: mutations(file) for file in files}
    broken = []
    for _ in range(calls):
        file = chance.choice(files)
        name, spoil = chance.choice(choices[file])
        folder = file.relative_to(origin).parts[0]
        words = ["store", "list"] if folder == "store" else chance.choice(commands(folder))
        if words[0] == "exec" and file.name in ("status.json", "config.yaml"):
            words = ["runs", "."]  # another state or config would train
        keep = origin / "kept"
        shutil.rmtree(keep, ignore_errors=True)
        if folder != "store":
            shutil.copytree(origin / folder, keep, symlinks=True)
        before = file.read_bytes()
        file.write_bytes(spoil())
        if problem := call(words):
            broken.append(f"{' '.join(words)} with {file.relative_to(origin)}: {name}: {problem}")
        if folder == "store":
            file.write_bytes(before)
        else:
            shutil.rmtree(origin / folder)
            keep.rename(origin / folder)
    return broken


@pytest.mark.slow
def test_sixty_calls(origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fuzz(origin, 60, monkeypatch) == []


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_many_calls(origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fuzz(origin, 1700, monkeypatch) == []
