"""File locks: a file system that keeps none, or on one machine alone, is refused; many processes make one result."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import PATIENCE, wait_until

from sft_lab.core import locks
from sft_lab.core.store import Store

MANY = 16
PROCESSES = multiprocessing.get_context("spawn")
RECIPES = [{"version": 1, "params": {"a": number}, "input": "x"} for number in range(4)]

# In place of the C library's flock: what a file system without locks answers.
NO_LOCKS = "#include <errno.h>\nint flock(int file, int what) { errno = %s; return -1; }\n"
TWO_HOLDERS = "int flock(int file, int what) { return 0; }\n"


@pytest.fixture
def flock(tmp_path: Path):
    """Build a library to be loaded before the C library, from a text that defines flock."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")

    def build(text: str) -> dict[str, str]:
        source, library = tmp_path / "flock.c", tmp_path / "flock.so"
        source.write_text(text)
        subprocess.check_call(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)])
        return {**os.environ, "LD_PRELOAD": str(library)}

    return build


def sft_lab(folder: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sft_lab", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (NO_LOCKS % "ENOLCK", "does not support file locks (No locks available)"),
        (NO_LOCKS % "ENOSYS", "does not support file locks (Function not implemented)"),
        (NO_LOCKS % "EOPNOTSUPP", "does not support file locks (Operation not supported)"),
        (TWO_HOLDERS, "lets two processes hold the same lock"),
    ],
)
def test_a_store_without_locks_is_refused(tmp_path: Path, tiny: list[str], flock, text: str, said: str) -> None:
    (tmp_path / "work").mkdir()
    store = tmp_path / "store"
    done = sft_lab(tmp_path / "work", flock(text), *tiny, f"store.path={store}", "hydra.run.dir=runs/one")
    assert done.returncode == 2, done.stderr
    assert f"store.path={store}: the file system of {tmp_path} {said}; set store.path or SFT_LAB_STORE" in done.stderr
    assert list((tmp_path / "work").iterdir()) == []
    assert not store.exists()


@pytest.mark.slow
def test_a_lock_is_never_replaced_by_a_softer_one(tmp_path: Path, flock) -> None:
    """Where there is no flock, filelock would take a file's existence for a lock, and a killed holder keeps it."""
    code = ("import sys; from pathlib import Path; from sft_lab.core.store import Store\n"
            "with Store(Path(sys.argv[1])).lock('x'): print('held')")  # fmt: skip
    command = [sys.executable, "-c", code, str(tmp_path / "store")]
    free = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (free.returncode, free.stdout) == (0, "held\n")
    done = subprocess.run(command, env=flock(NO_LOCKS % "ENOSYS"), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Function not implemented" in done.stderr
    assert "held" not in done.stdout


def test_a_file_system_with_locks_is_trusted_and_left_as_it_was(tmp_path: Path) -> None:
    locks._test_locks.cache_clear()
    assert locks.lock_problem(tmp_path / "not" / "yet", several_machines=True) == ""
    assert list(tmp_path.iterdir()) == []
    assert (
        locks.lock_problem(Path("/proc/sft_lab"), several_machines=False) == ""
    )  # not to be written is told elsewhere


@pytest.mark.parametrize(
    ("kind", "options", "wrong"),
    [
        ("nfs", "rw,vers=3,nolock,local_lock=all,addr=10.0.0.1", "local_lock=all"),
        ("nfs", "rw,vers=3,local_lock=flock,addr=10.0.0.1", "local_lock=flock"),
        ("nfs", "rw,vers=3,local_lock=posix,addr=10.0.0.1", ""),  # flock goes to the server
        ("nfs4", "rw,vers=4.2,local_lock=none", ""),
        ("lustre", "rw,localflock,lazystatfs", "localflock"),
        ("lustre", "rw,flock,lazystatfs", ""),
        ("ocfs2", "rw,localflocks,coherency=full", "localflocks"),
        ("cifs", "rw,vers=3.1.1,nobrl", "nobrl"),
        ("fuse.sshfs", "rw,user_id=0", "by sshfs"),
        ("fuse.juicefs", "rw,user_id=0", ""),
    ],
)
def test_locks_that_hold_on_one_machine_are_refused_for_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: str, wrong: str
) -> None:
    home = tmp_path / "a home"
    home.mkdir()
    point = str(home).replace(" ", "\\040")
    mounts = tmp_path / "mounts"
    lines = ["/dev/vda / ext4 rw,relatime 0 0", f"server:/home {point} {kind} {options} 0 0",
             f"tmpfs {point}/own tmpfs rw 0 0"]  # fmt: skip
    mounts.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(locks, "MOUNTS", mounts)
    said = locks.lock_problem(home / "store", several_machines=True)
    assert bool(said) == bool(wrong)
    if wrong:
        how = f"is mounted {wrong}" if wrong.startswith("by ") else f"({kind}) is mounted with {wrong}"
        assert said.startswith(f"{home} {how}, so its locks work on one machine only")
        told = Store(home / "store").check(several_machines=True)
        assert told == [f"store.path={home / 'store'}: {said}; set store.path or SFT_LAB_STORE to another folder"]
    assert locks.lock_problem(home / "store", several_machines=False) == ""
    (home / "own").mkdir()
    assert locks.lock_problem(home / "own", several_machines=True) == ""  # mounted above it


def _work(root: str, number: int, ready: object) -> None:
    """Want four results in an order of one's own; each says who computed it, and takes a while over it.

    While there is a file ``unfinished``, none comes to its end.
    """

    def compute(folder: Path) -> None:
        with (Path(root) / "computed").open("a", encoding="utf-8") as file:
            file.write("x")
        for part in range(8):
            (folder / f"{part}.txt").write_text(str(number) * 1000, encoding="utf-8")
            time.sleep(0.01)
        wait_until(lambda: not (Path(root) / "unfinished").exists())

    order = random.Random(number).sample(RECIPES, len(RECIPES))
    ready.wait()  # type: ignore[attr-defined]
    (Path(root) / f"started-{number}").touch()
    for recipe in order:
        entry = Store(Path(root)).entry("filter", recipe, compute)
        assert len({file.read_text() for file in entry.path.glob("*.txt")}) == 1


@pytest.mark.slow
def test_many_processes_compute_each_result_once(tmp_path: Path) -> None:
    ready = PROCESSES.Barrier(MANY)
    processes = [PROCESSES.Process(target=_work, args=(str(tmp_path), one, ready)) for one in range(MANY)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0] * MANY
    assert (tmp_path / "computed").read_text() == "x" * len(RECIPES)
    assert len(list(Store(tmp_path).listing())) == len(RECIPES)


@pytest.mark.faults
def test_many_processes_of_which_some_are_killed(tmp_path: Path) -> None:
    """Whoever is killed leaves nothing that another would take for a result, and no lock."""
    draw = random.Random(1)
    ready = PROCESSES.Barrier(MANY + 1)
    processes = [PROCESSES.Process(target=_work, args=(str(tmp_path), one, ready)) for one in range(MANY)]
    for process in processes:
        process.start()
    (tmp_path / "unfinished").touch()
    ready.wait()
    wait_until(lambda: len(list(tmp_path.glob("started-*"))) == MANY)  # who dies in the barrier holds all others there
    killed = draw.sample(processes, MANY // 2)
    for number, process in enumerate(killed):
        time.sleep(draw.uniform(0, 0.06))
        os.kill(process.pid or 0, signal.SIGKILL)
        if number == MANY // 4:
            (tmp_path / "unfinished").unlink()
    for process in processes:
        process.join(PATIENCE)
    survivors = [process.exitcode for process in processes if process not in killed]
    assert survivors == [0] * (MANY - MANY // 2)
    assert sum(process.exitcode == -signal.SIGKILL for process in killed) > MANY // 4
    assert len(list(Store(tmp_path).listing())) == len(RECIPES)
    begun = len((tmp_path / "computed").read_text())
    assert len(RECIPES) <= begun <= len(RECIPES) + len(killed)
    assert not list((tmp_path / "filter").glob(".*"))
