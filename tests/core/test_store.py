"""The stage store: each result is computed once, by the first process, and written atomically."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE, wait_until

from sft_lab.core import locks
from sft_lab.core.context import StageContext
from sft_lab.core.errors import FolderError
from sft_lab.core.integrity import RECIPE
from sft_lab.core.io import digest, read_json
from sft_lab.core.run_dir import LOCK, RunDir
from sft_lab.core.store import Store, default_root
from sft_lab.core.store_view import NotStored, StoreView

RECIPE_OF = {"version": 1, "params": {"a": 1}, "input": "x"}
PROCESSES = multiprocessing.get_context("spawn")


def write_one(folder: Path) -> None:
    (folder / "one.txt").write_text("1", encoding="utf-8")


def never(folder: Path) -> None:
    raise AssertionError(folder)


def test_an_entry_is_computed_once_and_says_what_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = store.entry("filter", RECIPE_OF, write_one)
    assert (entry.hit, (entry.path / "one.txt").read_text("utf-8")) == (False, "1")
    said = read_json(entry.path / RECIPE)
    assert list(said.pop("files")) == ["one.txt"]
    assert said == {"format": 1, "stage": "filter", **RECIPE_OF}
    again = Store(tmp_path).entry("filter", dict(reversed(RECIPE_OF.items())), never)
    assert (again.hit, again.path, again.key) == (True, entry.path, entry.key)
    assert entry.path == tmp_path / "filter" / entry.key


@pytest.mark.parametrize(
    ("stage", "more"),
    [("dedup", {}), ("filter", {"version": 2}), ("filter", {"params": {"a": 2}}), ("filter", {"params": {"a": 1.5}}),
     ("filter", {"input": "y"}), ("filter", {"tokenizer": "t"})],
)  # fmt: skip
def test_all_of_a_recipe_matters(tmp_path: Path, stage: str, more: dict[str, Any]) -> None:
    store = Store(tmp_path)
    one, other = store.entry("filter", RECIPE_OF, write_one), store.entry(stage, {**RECIPE_OF, **more}, write_one)
    assert not other.hit
    assert one.path != other.path


def test_a_failed_computation_leaves_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        write_one(folder)
        raise ValueError("no")

    store = Store(tmp_path)
    with pytest.raises(ValueError, match="no"):
        store.entry("filter", RECIPE_OF, fails)
    assert list((tmp_path / "filter").iterdir()) == []
    assert not store.entry("filter", RECIPE_OF, write_one).hit


def _count_slowly(root: str, ready: Any) -> None:
    def compute(folder: Path) -> None:
        with (Path(root) / "counter").open("a", encoding="utf-8") as file:
            file.write("x")
        time.sleep(0.3)
        write_one(folder)

    ready.wait()
    entry = Store(Path(root)).entry("filter", RECIPE_OF, compute)
    assert (entry.path / "one.txt").exists()


def test_processes_that_come_together_compute_once(tmp_path: Path) -> None:
    ready = PROCESSES.Barrier(4)
    processes = [PROCESSES.Process(target=_count_slowly, args=(str(tmp_path), ready)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "counter").read_text("utf-8") == "x"
    assert len(list(Store(tmp_path).listing())) == 1


def _hang(root: str) -> None:
    def compute(folder: Path) -> None:
        write_one(folder)
        (Path(root) / "begun").touch()
        signal.pause()

    Store(Path(root)).entry("filter", RECIPE_OF, compute)


def test_a_killed_writer_blocks_nobody_and_the_next_one_clears_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process = PROCESSES.Process(target=_hang, args=(str(tmp_path),))
    process.start()
    wait_until((tmp_path / "begun").exists)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(PATIENCE)
    store = Store(tmp_path)
    assert list(store.listing()) == []
    assert len(list((tmp_path / "filter").iterdir())) == 1
    monkeypatch.setattr(locks, "LOG_AFTER", 0)
    with caplog.at_level(logging.INFO, "sft_lab"):
        assert not store.entry("filter", RECIPE_OF, write_one).hit
    assert not caplog.messages  # it waited for nobody
    assert [path.name for path in (tmp_path / "filter").iterdir()] == [found.key for found in store.listing()]


def flip(file: Path) -> None:
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda entry: flip(entry / "deep" / "two.bin"), "deep/two.bin has changed since it was written"),
        (lambda entry: (entry / "one.txt").write_text(""), "one.txt has 0 bytes instead of 1"),
        (lambda entry: (entry / "one.txt").unlink(), "one.txt is missing"),
        (lambda entry: (entry / RECIPE).write_text('{"form'), "its recipe.json does not list its files"),
        (lambda entry: (entry / RECIPE).unlink(), "its recipe.json does not list its files"),
    ],
)
def test_a_damaged_entry_is_said_and_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], object], said: str
) -> None:
    def compute(folder: Path) -> None:
        write_one(folder)
        (folder / "deep").mkdir()
        (folder / "deep" / "two.bin").write_bytes(b"2" * 3_000_000)

    place = Store(tmp_path).entry("filter", RECIPE_OF, compute).path
    harm(place)
    with pytest.raises(NotStored):  # a plan does not count on it
        StoreView(tmp_path).entry("filter", RECIPE_OF, never)
    list(Store(tmp_path).listing())
    assert not caplog.messages
    assert not Store(tmp_path).entry("filter", RECIPE_OF, compute).hit
    assert caplog.messages == [f"store: {place}: {said}; it is computed again"]
    again = Store(tmp_path)
    assert again.entry("filter", RECIPE_OF, never).hit
    flip(place / "one.txt")
    assert again.entry("filter", RECIPE_OF, never).hit  # a process looks at an entry once


def test_listing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert list(Store(tmp_path / "none").listing()) == []
    store.entry("load", RECIPE_OF, write_one)
    store.entry("filter", RECIPE_OF, write_one)
    one, two = store.listing()
    assert (one.stage, two.stage, one.params) == ("filter", "load", {"a": 1})
    assert one.size == sum(file.stat().st_size for file in one.path.iterdir())
    assert 0 <= one.idle < 60


def test_prune_by_age_and_stage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old = [store.entry(stage, RECIPE_OF, write_one) for stage in ("load", "filter", "dedup")]
    for entry in old:
        os.utime(entry.path / RECIPE, (0, time.time() - 7200))
    assert store.entry("dedup", RECIPE_OF, never).hit  # being used makes it young
    assert [found.stage for found in store.prune(3600, stage="dedup")] == []
    assert [found.stage for found in store.prune(3600, stage="load")] == ["load"]
    assert [found.stage for found in store.prune(3600)] == ["filter"]
    assert [found.stage for found in store.listing()] == ["dedup"]
    assert [found.stage for found in store.prune(0)] == ["dedup"]
    assert not store.entry("load", RECIPE_OF, write_one).hit


def test_prune_after_a_prune_that_was_killed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = store.entry("load", RECIPE_OF, write_one)
    leftover = entry.path.with_name(f".{entry.key}.pruned")
    shutil.copytree(entry.path, leftover)
    assert [pruned.key for pruned in store.prune(0)] == [entry.key]
    assert not leftover.exists()


def test_prune_leaves_alone_what_is_being_written(tmp_path: Path) -> None:
    store, writing, go_on = Store(tmp_path), threading.Event(), threading.Event()

    def compute(folder: Path) -> None:
        write_one(folder)
        writing.set()
        assert go_on.wait(PATIENCE)
        assert (folder / "one.txt").exists()

    thread = threading.Thread(target=lambda: store.entry("filter", RECIPE_OF, compute))
    thread.start()
    assert writing.wait(PATIENCE)
    assert Store(tmp_path).prune(0) == []
    assert thread.is_alive()  # and was not waited for
    go_on.set()
    thread.join(PATIENCE)
    assert store.entry("filter", RECIPE_OF, never).hit


def test_a_store_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/sft_lab")):
        with pytest.raises(FolderError, match=r"cannot be written .*; set store.path or SFT_LAB_STORE"):
            Store(root).entry("filter", RECIPE_OF, never)


def test_a_read_only_store_serves_what_it_holds(tmp_path: Path) -> None:
    entry = Store(tmp_path).entry("filter", RECIPE_OF, write_one)
    folders = [tmp_path, tmp_path / ".locks", entry.path.parent, entry.path]
    for folder in folders:
        folder.chmod(0o500)
    try:
        assert Store(tmp_path).entry("filter", RECIPE_OF, never).hit
        if os.geteuid():  # root writes wherever it likes
            with pytest.raises(FolderError, match="cannot be written"):
                Store(tmp_path).entry("dedup", RECIPE_OF, write_one)
    finally:
        for folder in folders:
            folder.chmod(0o700)


def test_entries_have_the_modes_of_the_users_mask(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        entry = Store(tmp_path).entry("filter", RECIPE_OF, write_one)
    finally:
        os.umask(mask)
    assert entry.path.stat().st_mode & 0o777 == 0o755


def test_where_the_store_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFT_LAB_STORE", "~/here")
    assert default_root() == Path.home() / "here"
    monkeypatch.delenv("SFT_LAB_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert default_root() == Path("/cache/sft_lab")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_root() == Path.home() / ".cache" / "sft_lab"


def test_what_a_result_had_to_say_is_said_again(tmp_path: Path) -> None:
    recipe = {"version": 1, "params": {}, "input": "x"}
    first = StageContext(Store(tmp_path))
    first.stage("look", recipe, lambda _: first.notice("look: half of the rows are odd"))
    second = StageContext(Store(tmp_path))
    assert second.stage("look", recipe, lambda _: pytest.fail("computed twice")).hit
    assert second.notices == first.notices == ["look: half of the rows are odd"]


def test_who_waits_for_another_process_says_for_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "LOG_AFTER", 0.1)
    code = ("import sys, time; from pathlib import Path; from sft_lab.core.store import Store\n"
            "with Store(Path(sys.argv[1])).lock('tokenize-0123456789abcdef'):\n"
            "    print('held', flush=True); sys.stdin.read()")  # fmt: skip
    command = [sys.executable, "-c", code, str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    logged = logging.Handler()
    logged.emit = lambda _: holder.kill()  # type: ignore[method-assign] - once it is waited for
    logging.getLogger("sft_lab").addHandler(logged)
    try:
        with caplog.at_level(logging.INFO, "sft_lab"), Store(tmp_path).lock("tokenize-0123456789abcdef"):
            pass
    finally:
        logging.getLogger("sft_lab").removeHandler(logged)
    holder.communicate()
    who = f"process {holder.pid} on {socket.gethostname()}"
    assert caplog.messages == [f"store: tokenize 0123456789ab: {who} is working on it; waiting"]


@pytest.mark.parametrize("kind", ["gone", "damaged", "file"])
def test_a_link_or_file_in_an_entrys_place_is_replaced_and_not_followed(kind: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    entry = Store(store).entry("filter", RECIPE_OF, write_one)
    shutil.rmtree(entry.path)
    elsewhere = tmp_path / "elsewhere"
    if kind == "damaged":
        elsewhere.mkdir()
        (elsewhere / "recipe.json").write_text("{}")
    if kind == "file":
        entry.path.write_text("a file")
    else:
        entry.path.symlink_to(elsewhere)
    assert not Store(store).entry("filter", RECIPE_OF, write_one).hit
    assert Store(store).entry("filter", RECIPE_OF, never).hit
    assert not entry.path.is_symlink()
    assert [path.name for path in elsewhere.glob("*")] == (["recipe.json"] if kind == "damaged" else [])


@contextmanager
def another_users(*files: Path) -> Iterator[None]:
    """Make files that this process may not open: root becomes nobody, others take their own rights away."""
    user = os.geteuid()
    for file in files:
        file.touch()
        file.chmod(0o600 if user == 0 else 0)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_lock_file_of_another_user_is_named_with_its_owner() -> None:
    owner = pwd.getpwuid(os.geteuid()).pw_name
    with tempfile.TemporaryDirectory() as made:  # other users cannot enter pytest's own folders
        for folder in (root := Path(made), root / "run", root / ".locks", root / "filter"):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o777)
        run = RunDir(root / "run")
        name = f"filter-{digest({'stage': 'filter', **RECIPE_OF})[:32]}.lock"
        with another_users(root / ".locks" / name, run.path / LOCK):
            with pytest.raises(FolderError, match=rf"{name}: this lock file, owned by {owner}, .*SFT_LAB_STORE"):
                Store(root).entry("filter", RECIPE_OF, never)
            with pytest.raises(FolderError, match=rf"{LOCK}: this lock file, owned by {owner}, .*hydra\.run\.dir"):
                run.claim()
            assert not run.is_held()
