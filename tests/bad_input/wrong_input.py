"""A wrong input: how it is made, tried, and what the user is told. Their table is docs/wrong_inputs.md."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
# A run that takes seconds, or is refused before it begins.
SMALL = ["model=tiny_random", "dedup=exact", "decontaminate.method=exact", "tracking=local", "threads=1"]
TRAIN = [*SMALL, "hydra.run.dir=run"]
PREPARE = ["prepare", *TRAIN]


@dataclass(frozen=True)
class Wrong:
    """One row of the table.

    Attributes:
        place: where the mistake is: config, overrides, files, ...
        what: what is wrong, for a reader.
        words: of the command line; ``{here}`` is the working folder.
        make: writes what the command line speaks of into the working folder.
        environment: variables to set, ``{here}`` as above; None takes one away.
        fresh: whether it needs a process of its own.
        quick: whether it is refused before anything is composed.
        fails: whether the input was accepted, so that the job fails: exit 1, and its folder stays.
    """

    place: str
    what: str
    words: list[str]
    make: Callable[[Path], object] = field(default=lambda _: None)
    environment: dict[str, str | None] = field(default_factory=dict)
    fresh: bool = False
    quick: bool = False
    fails: bool = False


@dataclass(frozen=True)
class Told:
    """What came of it.

    Attributes:
        code: of the exit.
        out: standard output.
        err: standard error.
        left: files and folders that are there now and were not before, or the other way round; half-made entries of the
            store, and locks that are held.
    """

    code: int
    out: str
    err: str
    left: list[str]

    @property
    def messages(self) -> list[str]:
        """What the program said in its own name; argparse puts its usage before."""
        return re.split(r"^sft-lab[a-z ]*: (?:error: )?", self.err, flags=re.MULTILINE)[1:]


def tried(wrong: Wrong, root: Path) -> Told:
    """Try it in folders of its own below ``root``."""
    here, store = root / "here", root / "store"
    here.mkdir()
    wrong.make(here)
    before = _tree(here)
    words = [word.replace("{here}", str(here)) for word in wrong.words]
    changes = {"SFT_LAB_STORE": str(store), "HF_TOKEN": None, "HOME": str(here), **wrong.environment}
    changes = {name: value and value.replace("{here}", str(here)) for name, value in changes.items()}
    code, out, err = (_in_a_process if wrong.fresh else _in_this_process)(words, here, changes)
    left = sorted(_tree(here) ^ before) + _half_made(store)
    return Told(code, _normal(out, root), _normal(err, root), left)


def _tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _half_made(store: Path) -> list[str]:
    from filelock import FileLock, Timeout

    if not store.is_dir():
        return []
    left = [str(path) for path in store.glob("*/.*") if path.parent.name != ".locks"]
    for lock in store.glob(".locks/*"):
        try:
            FileLock(lock, timeout=0).acquire().lock.release()
        except Timeout:
            left.append(str(lock))
    return left


def _in_this_process(words: list[str], here: Path, changes: dict[str, str | None]) -> tuple[int, str, str]:
    from sft_lab.cli import main

    out, err = io.StringIO(), io.StringIO()
    with (
        _environment(changes),
        contextlib.chdir(here),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = main.main(words)
        except SystemExit as exit_:  # argparse
            code = int(exit_.code or 0)
    logs = [one for one in logging.getLogger("sft_lab").handlers if isinstance(one, logging.FileHandler)]
    assert not logs, "a run's log is still open"
    return code, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def _environment(changes: dict[str, str | None]) -> Iterator[None]:
    before = dict(os.environ)
    for name, value in changes.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _in_a_process(words: list[str], here: Path, changes: dict[str, str | None]) -> tuple[int, str, str]:
    with _environment({"PYTHONPATH": str(REPOSITORY), **changes}):
        done = subprocess.run(
            [sys.executable, "-m", "sft_lab", *words],
            cwd=here,
            capture_output=True,
            check=False,
            timeout=240,
            stdin=subprocess.DEVNULL,
        )
    out, err = (text.decode(errors="backslashreplace") for text in (done.stdout, done.stderr))
    return done.returncode, out, err


def _normal(text: str, root: Path) -> str:
    """Take out what is another time and on another machine something else."""
    for path, name in (
        (f"{root}/here/", ""),
        (f"{root}/here", "the working folder"),
        (f"{root}/store", "the store"),
        (str(REPOSITORY), "sft_lab"),
        (tempfile.gettempdir(), "/tmp"),
    ):
        text = text.replace(path, name)
    text = re.sub(r"at most \d+, four per core", "at most 8, four per core", text)
    text = re.sub(r"x{10,}\.\.\. \(\d+ characters\)", "xxx... (300 characters)", text)  # behind a path of any length
    return re.sub(r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d(-\d+)?", "DATE/TIME", text)
