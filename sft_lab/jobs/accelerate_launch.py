"""Several processes that train one job together: the data stages here, then ``accelerate launch ... exec JOB_DIR``."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sft_lab.core.errors import JobError
from sft_lab.core.hardware import rank
from sft_lab.core.io import LONG, open_file, read_json, read_text
from sft_lab.core.log import log
from sft_lab.core.run_dir import FAILED, FINISHED
from sft_lab.run import resource_errors
from sft_lab.run.launch_config import devices

if TYPE_CHECKING:
    from sft_lab.core.run_dir import RunDir
    from sft_lab.run.config import Run

PATIENCE = 90.0  # seconds; accelerate gives its processes 30 to end before it kills them
LOOK = 0.2  # seconds between two looks at the job
OUTPUT = "accelerate.log"  # what the processes printed, beside run.log
_EXIT = re.compile(r"rank\s*: (\d+)[^\n]*\n\s*exitcode\s*: -(\d+)")  # torchrun's list of those that a signal ended
_LINE = re.compile(r"\S+ \S+ (DEBUG|INFO|WARNING|ERROR) (.*)")  # of run.log


@dataclass(frozen=True)
class Machine:
    """This machine among those that share a job, by the names that clusters and torchrun use for it.

    Attributes:
        rank: its number, ``NODE_RANK``; 0 prepares the data and writes.
        address: of the machine with number 0, ``MASTER_ADDR``.
        port: there, ``MASTER_PORT``; 0: any that is free, on one machine.
    """

    rank: int
    address: str
    port: int

    @classmethod
    def here(cls) -> Self:
        """Read the environment; one machine alone needs to say nothing."""
        told = os.environ
        return cls(int(told.get("NODE_RANK", "0")), told.get("MASTER_ADDR", ""), int(told.get("MASTER_PORT", "29500")))

    def output(self, folder: RunDir) -> Path:
        """Give the file for what this machine's processes print."""
        return folder.path / f"{self.rank or ''}{OUTPUT}"


def assists(run: Run) -> bool:
    """Whether this process only does along what another one does, which holds the run folder and writes there."""
    return bool(rank()) or (run.launch.distributed and rank() is None and Machine.here().rank != 0)


def execute(run: Run, folder: RunDir) -> None:
    """Carry out a run whose training several processes share.

    Raises:
        UserError: for input that turns out wrong when the data stages read it.
        JobError: when a process fails or dies.
    """
    machine = Machine.here()
    if machine.rank == 0:
        run.fill_store(folder)
        folder.release(wholly=True)  # for the first of the processes that train
    else:
        run.prepare(run.context(folder=folder))  # waits for what machine 0 computes, where the store is shared
    began = time.monotonic()
    with machine.output(folder).open("wb") as output:
        process = subprocess.Popen(
            command(run, folder, machine), env=_environment(run), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            _follow(process, folder)
        except BaseException:
            _stop(process)
            raise
    if process.returncode or (machine.rank == 0 and folder.state() != FINISHED):
        raise JobError(_said(folder, machine, time.monotonic() - began))


def command(run: Run, folder: RunDir, machine: Machine) -> list[str]:
    """Give the command that starts this machine's processes."""
    launch = run.launch
    config = folder.inputs / "launch.config_file" / launch.accelerate_config().name  # as it was read
    if launch.num_machines == 1:
        where = ["--main_process_port", "0"]  # jobs beside this one have ports of their own
    else:
        where = ["--machine_rank", str(machine.rank), "--main_process_ip", machine.address,
                 "--main_process_port", str(machine.port)]  # fmt: skip
    return [
        sys.executable, "-P", "-m", "accelerate.commands.launch",
        "--config_file", str(config if config.is_file() else launch.accelerate_config()),
        "--num_processes", str(launch.num_processes), "--num_machines", str(launch.num_machines), *where,
        "-m", "sft_lab", "exec", str(folder.path),
    ]  # fmt: skip


def _environment(run: Run) -> dict[str, str]:
    here = run.launch.num_processes // run.launch.num_machines
    threads = max(1, (os.cpu_count() or 1) // here)
    # PYTHONSAFEPATH: as -P; a torch.py may lie in the working folder.
    told = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONSAFEPATH": "1"}
    return told if devices() else told | {"ACCELERATE_USE_CPU": "true"}


def _follow(process: subprocess.Popen[bytes], folder: RunDir) -> None:
    """Wait, and say what the job's log says."""
    at = folder.log.stat().st_size if folder.log.exists() else 0
    over = False
    while not over:
        over = process.poll() is not None  # before the last look at the log
        if folder.log.exists():
            with open_file(folder.log) as lines:
                lines.seek(at)
                new = lines.read()
            whole = new[: new.rfind(b"\n") + 1]
            at += len(whole)
            for line in whole.decode("utf-8", errors="replace").splitlines():
                if told := _LINE.match(line):
                    log.log(logging.getLevelNamesMapping()[told[1]], "%s", told[2])
        if not over:
            time.sleep(LOOK)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the processes to end, and wait until they have: the job goes on from there another time."""
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _said(folder: RunDir, machine: Machine, seconds: float) -> str:
    """Say why the job failed: which process was killed, else what the processes or the status told."""
    status = read_json(folder.status) if folder.status.exists() else {}
    file = machine.output(folder)
    printed = read_text(file, LONG, errors="replace")
    told = re.findall(rf"^sft-lab: (?:{re.escape(folder.path.name)}: )?(.*)", printed, re.MULTILINE)
    if status.get("state") == FAILED:
        told.append(str(status["error"]))
    # The others lose their connection when one dies, and torchrun then ends them: what they say is not the reason.
    killed = [(rank, int(code)) for rank, code in _EXIT.findall(printed) if int(code) != signal.SIGTERM]
    if killed:
        rank, code = killed[0]
        message = f"process {rank} of the training was killed by {signal.Signals(code).name} after {seconds:.0f} s"
        message += "; the same command goes on from the last checkpoint"
    else:
        told.sort(key=lambda one: resource_errors.LOST in one)
        message = told[0] if told else f"a process of the training failed; see {file}"
    if machine.rank == 0 and not str(status.get("error")).endswith(message) and not folder.is_held():
        folder.mark_failed(message)
    return message
