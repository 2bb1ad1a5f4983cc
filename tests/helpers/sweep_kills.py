"""Sweeps killed at moments of time, and processes that come together; carried out in the warm process."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import warm_process as warm
from patience import PATIENCE, wait_until

from sft_lab.data.filters.answered import Answered

GRID = "trainer.learning_rate=1e-3,2e-3,4e-3"
PROCESSES = ["launch=processes", "launch.at_once=2"]


@dataclass
class Killed:
    """What became of a sweep that was killed again and again.

    Attributes:
        kills: how often and whom: the whole group, the sweep's own process, or one of its jobs.
        resumes: how often the same command was given again.
        problems: what is not as the undisturbed sweep left it.
    """

    kills: Counter[str] = field(default_factory=Counter)
    resumes: int = 0
    problems: list[str] = field(default_factory=list)


def _command(root: Path, launch: list[str]) -> list[str]:
    return ["-m", *warm.words(root / "sweep", GRID, *launch)]


def _begin(root: Path, launch: list[str]) -> int:
    """Start a sweep in a process group of its own: a fork, or where jobs are processes themselves a new process."""
    if not launch:
        return warm.forked(partial(warm.run, _command(root, launch), root))
    root.mkdir(exist_ok=True)
    with warm.output_of(root).open("a") as output:
        command = [sys.executable, "-m", "sft_lab", *_command(root, launch)]
        place = {**os.environ, "SFT_LAB_STORE": str(root / "store")}
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, env=place).pid


def undisturbed(launch: list[str]) -> float:
    """Let a sweep run to its end; give its seconds."""
    whole = _whole(launch)
    began = time.monotonic()
    code = warm.exit_code(_begin(whole, launch))
    assert code == 0, warm.output_of(whole).read_text()
    return time.monotonic() - began


def _whole(launch: list[str]) -> Path:
    return warm.folder() / ("whole_processes" if launch else "whole_serial")


def killed(launch: list[str], seed: int, most: int, seconds: float) -> Killed:
    """Start one sweep again and again, killed up to ``most`` times at random moments, until it has finished.

    Args:
        launch: overrides that choose the launcher.
        seed: of the moments and of who is killed.
        most: kills.
        seconds: that an undisturbed sweep takes; the moments are spread over it.
    """
    root = warm.folder() / "work_sweep"
    shutil.rmtree(root, ignore_errors=True)
    warm.output_of(root).unlink(missing_ok=True)
    found, draw = Killed(), random.Random(seed)
    finished: dict[str, int] = {}
    for _ in range(most):
        pid = _begin(root, launch)
        time.sleep(draw.uniform(0, seconds))
        victim = draw.choice(["group", "parent", "worker"] if launch else ["group"])
        if _kill(pid, victim):
            found.kills[victim] += 1
        code = warm.exit_code(pid)
        found.problems += _done_again(root, finished)
        if code == 0:
            break
        if victim == "parent":  # its jobs work on; the same command leaves those alone
            _wait_for_group(pid) if draw.random() < 0.5 else None
        found.resumes += 1
    deadline = time.monotonic() + PATIENCE
    while code := warm.exit_code(_begin(root, launch)):
        said = warm.output_of(root).read_text()[-600:]
        if "another process is working here" not in said or time.monotonic() > deadline:
            found.problems.append(f"the same command ended with {code}: {said}")
            break
        found.resumes += 1
        time.sleep(2)
    found.problems += _done_again(root, finished)
    found.problems += _compare(_whole(launch), root)
    return found


def _kill(pid: int, victim: str) -> bool:
    """Kill by SIGKILL; False where there is nobody any more."""
    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        return False
    if victim == "group":
        os.killpg(pid, signal.SIGKILL)
    elif victim == "parent":
        os.kill(pid, signal.SIGKILL)
    else:
        jobs = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not jobs:
            return False
        os.kill(int(jobs[0]), signal.SIGKILL)
    return True


def _wait_for_group(group: int) -> None:
    def is_gone() -> bool:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(is_gone)


def _done_again(root: Path, finished: dict[str, int]) -> list[str]:
    """Say which jobs were done again after they had finished, and note those that have now."""
    problems = []
    for status in root.glob("sweep/*/status.json"):
        if json.loads(status.read_text())["state"] == "finished":
            written = (status.parent / "summary.json").stat().st_mtime_ns
            if finished.setdefault(status.parent.name, written) != written:
                problems.append(f"{status.parent.name}: done again")
    return problems


def _compare(whole: Path, resumed: Path) -> list[str]:
    names = [sorted(path.name for path in root.glob("sweep/*")) for root in (whole, resumed)]
    if names[0] != names[1]:
        return [f"the sweep folder holds {names[1]} instead of {names[0]}"]
    problems = []
    for job in (path for path in (whole / "sweep").glob("[!.]*") if path.is_dir()):
        found = warm.run_differences(job, resumed / "sweep" / job.name)
        problems += [f"{job.name}: {one}" for one in found]
    return problems + warm.store_differences(whole / "store", resumed / "store")


def together(number: int) -> tuple[Counter[tuple[str, str]], int]:
    """Start as many runs at once on one cold store.

    Returns:
        How many of them computed each stage result; how many different results they came to.
    """
    root = warm.folder() / "together"
    pids = [warm.forked(partial(warm.run, warm.words(root / f"run{one}"), root)) for one in range(number)]
    codes = [warm.exit_code(pid) for pid in pids]
    assert not any(codes), warm.output_of(root).read_text()
    computed, results = Counter[tuple[str, str]](), set[str]()
    for one in range(number):
        stages = json.loads((root / f"run{one}" / "manifest.json").read_text())["stages"]
        computed.update({(stage["stage"], stage["key"]): 0 for stage in stages})
        computed.update((stage["stage"], stage["key"]) for stage in stages if not stage["hit"])
        results.add(json.dumps([warm.results(root / f"run{one}" / name) for name in ("summary.json", "metrics.jsonl")]))
    return computed, len(results)


def _run_that_stops_in_a_stage(command: list[str], root: Path) -> object:
    def stop(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGSTOP)
        return select(*arguments)

    select, Answered.select = Answered.select, stop  # type: ignore[method-assign]
    return warm.run(command, root)


def holder_dies() -> dict[str, object]:
    """Stop a run in the middle of a stage, start another that needs the stage, and kill the first.

    Returns:
        ``waited``: whether the second left the stage alone as long as the first was alive; how the first ``died``;
        ``code`` of the second, ``again`` of the first one's command given again; ``differences`` of the two folders.
    """
    root = warm.folder() / "holder"
    first = warm.forked(partial(_run_that_stops_in_a_stage, warm.words(root / "first"), root))
    writing = wait_until(lambda: list(root.glob("store/filter.answered/.*")))
    second = warm.forked(partial(warm.run, warm.words(root / "second"), root))
    log = root / "second" / "run.log"
    wait_until(
        lambda: (
            log.exists() and f"process {first} on {socket.gethostname()} is working on it; waiting" in log.read_text()
        )
    )
    waited = list((root / "store" / "filter.answered").iterdir()) == writing
    os.kill(first, signal.SIGKILL)
    died, code = warm.exit_code(first), warm.exit_code(second)
    again = warm.exit_code(warm.forked(partial(warm.run, warm.words(root / "first"), root)))
    differences = warm.run_differences(root / "second", root / "first")
    return {"waited": waited, "died": died, "code": code, "again": again, "differences": differences}
