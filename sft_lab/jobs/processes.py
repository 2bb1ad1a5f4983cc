"""Several jobs at once on this machine, each a child process with its own GPU or share of the cores."""

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
from typing import TYPE_CHECKING

from sft_lab.core.io import LONG, read_text
from sft_lab.core.log import log
from sft_lab.core.run_dir import RunDir
from sft_lab.core.text import count_of
from sft_lab.jobs.supervise import (
    POLL_SECONDS,
    Backend,
    Ending,
    Failure,
    SupervisedJob,
    signal_name,
    stop_processes,
    supervise,
)

if TYPE_CHECKING:
    from sft_lab.run.launch_config import Processes

STOP_SECONDS = 60.0  # for a job to end cleanly when the sweep is stopped; it may be writing a checkpoint


def launch(jobs: list[tuple[str, RunDir]], launcher: Processes, work: str) -> list[Failure]:
    """Start each job as soon as a device is free, and wait for all of them.

    Args:
        jobs: title and folder of each.
        launcher: how many at once, and on which devices.
        work: what they do in their folders.
    """
    return supervise(ChildProcesses(jobs, launcher, work), work)


@dataclass(eq=False)
class ProcessJob(SupervisedJob):
    """A job that waits for a device or is executed by a child process.

    Attributes:
        process: None until it is started.
        device: GPUs as in ``CUDA_VISIBLE_DEVICES``; empty: the processor.
    """

    process: subprocess.Popen[bytes] | None = None
    device: str = ""

    def log_progress(self) -> None:
        """Log nothing: the start was logged when the device was chosen."""

    def start(self, device: str, threads: int, work: str) -> None:
        """Start the process.

        Args:
            device: the device that the job gets.
            threads: CPU threads.
            work: run the job, or only prepare its data.
        """
        # Set before the process begins: torch reads both once, when it is imported.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if device:
            environment["CUDA_VISIBLE_DEVICES"] = device
        # -P: otherwise -m would make Python import from the working folder first, where there may be a torch.py.
        command = [sys.executable, "-P", "-m", "sft_lab", "exec", str(self.folder.path), "--work", work]

        # Appended: a process of an earlier command may still be at work, and print into the file.
        with self.folder.output.open("ab") as output:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self.device, self.started = device, time.monotonic()

        if self.folder.is_held():
            holder = self.folder.holder() or "another process"
            log.info("%s: %s is working on it; waiting", self.title, holder)
        else:
            gpu = f" on GPU {device}" if device else ""
            log.info("%s: started%s, %s", self.title, gpu, count_of(threads, "thread"))

    def ending(self, code: int) -> Ending:
        """Return how the process ended.

        Args:
            code: its exit code, negative for a signal.
        """
        if code == 0:
            return Ending("ended without a result")
        if code > 0:
            return Ending(self._last_line(), by_input=code == 2)
        likely = "; the system may have run out of memory" if -code == signal.SIGKILL else ""
        reason = f"killed by {signal_name(-code)} after {self.seconds:.0f} s{likely}"
        return Ending(reason, was_killed=True)

    def _last_line(self) -> str:
        """Return the last line that the process printed: its error if it could not write a status."""
        lines = read_text(self.folder.output, LONG, errors="replace").strip().splitlines()
        return lines[-1].removeprefix("sft-lab: ") if lines else f"see {self.folder.output}"


class ChildProcesses(Backend):
    """Child processes, as many at once as there are devices."""

    def __init__(self, jobs: list[tuple[str, RunDir]], launcher: Processes, work: str) -> None:
        self.jobs: list[ProcessJob] = [ProcessJob(title, folder) for title, folder in jobs]
        self._waiting = list(self.jobs)
        self._free_devices = launcher.device_groups()[: max(1, len(jobs))]
        self._threads = max(1, (os.cpu_count() or 1) // len(self._free_devices))
        self._work = work

    def poll(self) -> list[tuple[SupervisedJob, Ending]]:
        """Start jobs while devices are free, and return those that have ended."""
        while self._waiting and self._free_devices:
            job = self._waiting.pop(0)
            job.start(take_device(self._free_devices, job.folder), self._threads, self._work)
        time.sleep(POLL_SECONDS)

        endings: list[tuple[SupervisedJob, Ending]] = []
        for job in self.jobs:
            if job.process and (code := job.process.poll()) is not None:
                self._free_devices.append(job.device)
                endings.append((job, job.ending(code)))
        return endings

    def stop(self) -> None:
        """Send every process SIGTERM."""
        stop_processes([job.process for job in self.jobs if job.process], STOP_SECONDS)


def take_device(free: list[str], folder: RunDir) -> str:
    """Remove a free device for a job from the list, and return it.

    If a process of an earlier command works on the job, the device is the one that it uses.
    """
    holder = folder.holder() if folder.is_held() else None
    if holder and holder.host == socket.gethostname():
        with suppress(OSError):
            environment = Path(f"/proc/{holder.pid}/environ").read_text(errors="replace").split("\0")
            for device in free:
                if f"CUDA_VISIBLE_DEVICES={device}" in environment:
                    free.remove(device)
                    return device
    return free.pop(0)
