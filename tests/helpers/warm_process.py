"""One process that has imported everything and run once; each attempt is a fork of it, so 500 take minutes.

What is here is carried out in that process: the worker of the ``warm`` fixture's pool.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import durable_writes as durable

ROWS = 40
# Timings, and where the clock or the machine's load enters.
NOT_RESULTS = {"tokens_per_second", "seconds", "train_seconds", "measuring_seconds", "watching_share"}
_folder = Path()


def begin(folder: Path) -> None:
    """Make the rows, import everything and run once."""
    global _folder  # noqa: PLW0603 - this process has one
    _folder = folder
    write_rows(folder / "rows.jsonl")
    assert run(words(folder / "first" / "run"), folder / "first") == 0, output_of(folder / "first").read_text()
    gc.freeze()  # what is here by now is not looked through again in every fork


def folder() -> Path:
    """Where this process's attempts lie."""
    return _folder


def write_rows(path: Path) -> None:
    """Write small conversations that no stage drops."""
    things = ["river", "bridge", "lantern", "orchard", "copper", "violin", "harbor", "meadow", "glacier", "pepper",
              "canyon", "saddle"]  # fmt: skip
    with path.open("w", encoding="utf-8") as file:
        for number in range(ROWS):
            one, two, three = (things[(number * step + step) % 12] for step in (1, 5, 7))
            asked = f"What of the {one} and the {two}, number {number}?"
            told = f"The {one} is {number} steps from the {three}, beside the {two}."
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
            file.write(json.dumps({"messages": turns}) + "\n")


def words(folder: Path, *sweep: str) -> list[str]:
    """Give the command: a real run, small, with a checkpoint at every step; with further words a sweep."""
    return [
        "dataset=file", f"dataset.path={_folder / 'rows.jsonl'}", "split.eval_share=0.4", "filter=answered",
        "decontaminate.method=exact", "dedup=minhash", "model=tiny_random", "trainer=smoke", "threads=1",
        "tracking=local", "evaluation.prompts=[]", "evaluation.outputs=0", "evaluation.general=null",
        "trainer.max_steps=2", "trainer.save_steps=1", "trainer.eval_steps=2",
        f"hydra.{'sweep' if sweep else 'run'}.dir={folder}", *sweep,
    ]  # fmt: skip


def output_of(root: Path) -> Path:
    """Where ``run`` keeps what was printed: beside ``root``, since it is no write of the run."""
    return root.with_suffix(".log")


def run(command: list[str], root: Path) -> int:
    """Carry out a command line in this process, with its store and its output below ``root``."""
    from sft_lab.cli.main import main

    root.mkdir(parents=True, exist_ok=True)
    os.environ["SFT_LAB_STORE"] = str(root / "store")
    output = os.open(output_of(root), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    before = os.dup(1), os.dup(2)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        return main(command)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(before[0], 1)
        os.dup2(before[1], 2)
        for one in (output, *before):
            os.close(one)


def forked(work: Callable[[], int]) -> int:
    """Begin ``work`` in a process and a process group of its own, and give its id."""
    pid = os.fork()
    if not pid:
        os.setsid()
        try:
            os._exit(work())
        finally:
            os._exit(70)
    return pid


def exit_code(pid: int) -> int:
    """Wait for a process: its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@dataclass
class Attempt:
    """What became of a run that was killed and started again."""

    number: int
    killed_in: durable.Write
    went_on: bool = False
    problems: list[str] = field(default_factory=list)


def undisturbed() -> list[durable.Write]:
    """Run once to the end; give its durable writes, and keep it beside the others."""
    work, whole = _folder / "work", _folder / "whole"
    ended = durable.trace(lambda: run(words(work / "run"), work), work)
    assert ended.code == 0, output_of(work).read_text()
    work.rename(whole)
    return ended.writes


def killed_and_resumed(number: int, piece: int) -> Attempt:
    """Kill a fresh run in its durable write of this number, start the same command again, and look at what is there."""
    work, whole = _folder / "work", _folder / "whole"
    shutil.rmtree(work, ignore_errors=True)
    command = words(work / "run")
    ended = durable.trace(lambda: run(command, work), work, number, piece)
    attempt = Attempt(number, ended.writes[-1])
    if ended.code != -9:
        attempt.problems.append(f"was not killed but ended with {ended.code}")
    output_of(work).unlink()
    code = exit_code(forked(lambda: run(command, work)))
    said = output_of(work).read_text()
    if code:
        attempt.problems.append(f"the same command ended with {code}: {said[-300:]}")
        return attempt
    attempt.went_on = "resuming from checkpoint-" in said
    attempt.problems += [
        *run_differences(whole / "run", work / "run"),
        *store_differences(whole / "store", work / "store"),
    ]
    return attempt


def run_differences(whole: Path, resumed: Path) -> list[str]:
    """Say what in a run folder is not as the undisturbed run left it: files too many or too few, other results."""
    problems = [f"{name}: left behind" for name in sorted(_names(resumed) - _names(whole))]
    problems += [f"{name}: is missing" for name in sorted(_names(whole) - _names(resumed))]
    if problems:
        return problems
    for name in ("summary.json", "metrics.jsonl", "waterfall.json"):
        problems += [f"{name}: {one}" for one in _differences(results(whole / name), results(resumed / name))]
    for name in ("model/adapter_model.safetensors", "eval.parquet", "dropped.parquet", "config.yaml"):
        if (resumed / name).read_bytes() != (whole / name).read_bytes():
            problems.append(f"{name}: other bytes")
    if (state := json.loads((resumed / "status.json").read_text())["state"]) != "finished":
        problems.append(f"status.json says {state}")
    return problems


def store_differences(whole: Path, resumed: Path) -> list[str]:
    """Say what in a store is not as the undisturbed run left it: entries, broken ones, locks, and what prune leaves."""
    from filelock import FileLock, Timeout

    from sft_lab.core import integrity, store

    problems = []
    entries = {(found.stage, found.key) for found in store.Store(resumed).listing()}
    if entries != {(found.stage, found.key) for found in store.Store(whole).listing()}:
        problems.append(f"the store holds {sorted(entries)}")
    for stage, key in sorted(entries):
        if damage := integrity.damage(resumed / stage / key):
            problems.append(f"store: {stage}/{key}: {damage}")
    for lock in resumed.glob(".locks/*"):
        try:
            FileLock(lock, timeout=0).acquire().lock.release()
        except Timeout:
            problems.append(f"store: {lock.name} is held")
    store.Store(resumed).prune(older_than=3600)
    if left := _names(resumed) - {f"{stage}/{key}/{name.name}" for stage, key in entries
                                  for name in (resumed / stage / key).iterdir()} - _locks(resumed):  # fmt: skip
        problems.append(f"store: left behind after prune: {sorted(left)}")
    return problems


def _locks(store: Path) -> set[str]:
    return {f".locks/{found.name}" for found in store.glob(".locks/*")}


def _names(folder: Path) -> set[str]:
    return {str(found.relative_to(folder)) for found in folder.rglob("*") if not found.is_dir()} | {
        f"{found.relative_to(folder)}/" for found in folder.rglob("*") if found.is_dir() and not any(found.iterdir())
    }


def _differences(whole: list[dict[str, Any]], resumed: list[dict[str, Any]]) -> list[str]:
    if len(whole) != len(resumed):
        return [f"{len(resumed)} lines instead of {len(whole)}"]
    return [
        f"{key} is {new.get(key)} instead of {old.get(key)}"
        for old, new in zip(whole, resumed, strict=True)
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def results(file: Path) -> list[dict[str, Any]]:
    text = file.read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else [json.loads(text)]
    return [{name: value for name, value in one.items() if name not in NOT_RESULTS} for one in found]
