"""Several jobs at once: each a process that executes its folder, on a device or a part of the cores of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sft_lab.core.io import LONG, read_json, read_text
from sft_lab.core.log import log
from sft_lab.core.run_dir import RunDir
from sft_lab.jobs.worker import Failure, terminable

if TYPE_CHECKING:
    from sft_lab.run.launch_config import Processes

PATIENCE = 60.0  # seconds a job has to end well when the sweep is stopped; it may be writing a checkpoint
LOOK = 0.2  # seconds between two looks at the jobs
OUTPUT = "output.log"  # what a job's process printed, beside run.log


@dataclass
class _Working:
    """A job at work."""

    title: str
    folder: RunDir
    place: str
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    began: float


def launch(jobs: list[tuple[str, RunDir]], launcher: Processes, work: str) -> list[Failure]:
    """Start each job as soon as there is a place for it, and wait for all.

    Args:
        jobs: title and folder of each.
        launcher: how many at once, and where.
        work: what ``exec`` shall do in the folders.
    """
    free = launcher.places()[: max(1, len(jobs))]
    threads = max(1, (os.cpu_count() or 1) // len(free))
    waiting, working, failures = list(jobs), list[_Working](), list[Failure]()
    with terminable():
        try:
            while waiting or working:
                while waiting and free:
                    title, folder = waiting.pop(0)
                    working.append(_start(title, folder, _take(free, folder), threads, work))
                time.sleep(LOOK)
                for one in [one for one in working if one.process.poll() is not None]:
                    working.remove(one)
                    free.append(one.place)
                    failures += _end(one)
        except BaseException:
            _stop(working)
            raise
    return failures


def _take(free: list[str], folder: RunDir) -> str:
    """Take a free place for a job; where a process of an earlier command is at work on it, that process's own."""
    at_work = folder.holder() if folder.is_held() else None
    if at_work and at_work.host == socket.gethostname():
        with suppress(OSError):
            for word in Path(f"/proc/{at_work.pid}/environ").read_text(errors="replace").split("\0"):
                name, _, place = word.partition("=")
                if name == "CUDA_VISIBLE_DEVICES" and place in free:
                    free.remove(place)
                    return place
    return free.pop(0)


def _start(title: str, folder: RunDir, place: str, threads: int, work: str) -> _Working:
    # Set before the process begins: torch looks at both once, when it is imported.
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if place:
        environment["CUDA_VISIBLE_DEVICES"] = place
    # Behind what is there: a process of an earlier command may be at work still, and print into it.
    output = (folder.path / OUTPUT).open("ab")
    # -P: with -m alone Python would import from the working folder first, and a torch.py may lie there.
    command = [sys.executable, "-P", "-m", "sft_lab", "exec", str(folder.path), "--work", work]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    if folder.is_held():
        log.info("%s: is being worked on by %s; waiting for it", title, folder.holder() or "another process")
    else:
        log.info("%s: started%s, %d threads", title, f" on GPU {place}" if place else "", threads)
    return _Working(title, folder, place, process, output, time.monotonic())


def _end(one: _Working) -> list[Failure]:
    one.output.close()
    code, seconds = one.process.returncode, time.monotonic() - one.began
    if code == 0:
        summary = read_json(one.folder.summary) if one.folder.summary.exists() else {}
        log.info("%s: finished in %.0f s  %s", one.title, seconds, summary.get("verdict", ""))
        return []
    if code < 0:
        name = signal.Signals(-code).name
        likely = "; the system may have run out of memory" if -code == signal.SIGKILL else ""
        message = f"killed by {name} after {seconds:.0f} s{likely}"
        if not one.folder.is_held():  # by whom it waited for
            one.folder.mark_failed(message)
    else:
        message = _said(one.folder)
    log.info("%s: failed: %s", one.title, message)
    return [Failure(one.folder, message, by_input=code == 2)]


def _said(folder: RunDir) -> str:
    """What the job told of its failure: its status, else the last line it printed."""
    status = read_json(folder.status) if folder.status.exists() else {}
    if "error" in status:
        return str(status["error"])
    lines = read_text(folder.path / OUTPUT, LONG, errors="replace").strip().splitlines()
    return lines[-1].removeprefix("sft-lab: ") if lines else f"see {folder.path / OUTPUT}"


def _stop(working: list[_Working]) -> None:
    """Ask every job to end, as SIGTERM ends one alone, and wait until it has: it goes on from there another time."""
    for one in working:
        one.process.terminate()
    deadline = time.monotonic() + PATIENCE
    for one in working:
        try:
            one.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
        one.output.close()
