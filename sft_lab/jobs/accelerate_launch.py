"""Training of one job by several processes: data stages first, then ``accelerate launch ... exec JOB_DIR``."""

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

from sft_lab.core.errors import JobError, UserError
from sft_lab.core.gpus import visible_gpus
from sft_lab.core.hardware import rank
from sft_lab.core.interrupt import Request, deferred
from sft_lab.core.io import LONG, open_file, read_text
from sft_lab.core.log import log
from sft_lab.core.types import RunState, Work
from sft_lab.jobs.supervise import (
    POLL_SECONDS,
    Backend,
    Ending,
    Failure,
    SupervisedJob,
    read_status,
    signal_name,
    stop_processes,
    supervise,
)
from sft_lab.run import resource_errors
from sft_lab.run.execute import training_turn

if TYPE_CHECKING:
    from sft_lab.core.run_dir import RunDir
    from sft_lab.run.config import Run

STOP_SECONDS = 90.0  # accelerate gives its processes 30 to end before it kills them
OUTPUT = "accelerate.log"  # what the processes printed, beside run.log
_SIGNALS = re.compile(r"rank\s*: (\d+)[^\n]*\n\s*exitcode\s*: -(\d+)")  # torchrun's list of those that a signal ended
_LOG_LINE = re.compile(r"\S+ \S+ (DEBUG|INFO|WARNING|ERROR) (.*)")  # of run.log


@dataclass(frozen=True)
class Machine:
    """This machine's part in a job that several machines share, named as torchrun names it.

    Attributes:
        rank: number of this machine, ``NODE_RANK``; machine 0 prepares the data and writes the run folder.
        address: address of machine 0, ``MASTER_ADDR``.
        port: port on machine 0, ``MASTER_PORT``; 0 takes any free one, on a single machine.
    """

    rank: int
    address: str
    port: int

    @classmethod
    def from_environment(cls) -> Self:
        """Return this machine as the environment describes it; a job on one machine needs no variables.

        Raises:
            UserError: if a variable is not a number.
        """
        numbers = {name: os.environ.get(name, usual) for name, usual in (("NODE_RANK", "0"), ("MASTER_PORT", "29500"))}
        for name, value in numbers.items():
            if not (value.isascii() and value.isdecimal()):
                raise UserError(f"{name}={value}: must be a whole number; correct it, or unset it")
        return cls(int(numbers["NODE_RANK"]), os.environ.get("MASTER_ADDR", ""), int(numbers["MASTER_PORT"]))

    def output(self, folder: RunDir) -> Path:
        """Return the file for what this machine's processes print."""
        return folder.path / f"{self.rank or ''}{OUTPUT}"


def is_assistant(run: Run) -> bool:
    """Return whether this process only assists another one, which holds the run folder and writes there."""
    is_other_machine = run.launch.distributed and rank() is None and Machine.from_environment().rank != 0
    return bool(rank()) or is_other_machine


def execute(run: Run, folder: RunDir) -> None:
    """Execute a run that several processes train together.

    Raises:
        UserError: if the data stages find the input wrong.
        JobError: when a process fails or dies.
    """
    machine = Machine.from_environment()
    if visible_gpus():  # a process that has used a GPU keeps some of its memory, which training needs
        prepare_data_in_child(folder, machine)
    else:
        prepare_data(run, folder)
    with training_turn(run, folder) as has_to_train:
        if not has_to_train:
            return
        if failure := _run_processes(folder, machine, command(run, folder, machine), _environment(run)):
            raise JobError(failure.message)


def prepare_data(run: Run, folder: RunDir) -> None:
    """Run the data stages in this process; machines other than the first wait for its results."""
    if Machine.from_environment().rank == 0:
        run.fill_store(folder)
        folder.release(wholly=True)  # for the first of the processes that train
    else:
        run.prepare(run.context(folder=folder))  # where the store is shared


def prepare_data_in_child(folder: RunDir, machine: Machine) -> None:
    """Run the data stages in a child process.

    Raises:
        UserError, JobError: if the process failed.
    """
    folder.release(wholly=True)
    command = [sys.executable, "-P", "-m", "sft_lab", "exec", str(folder.path), "--work", Work.DATA]
    if failure := _run_processes(folder, machine, command, dict(os.environ)):
        raise (UserError if failure.by_input else JobError)(failure.message)


def _run_processes(folder: RunDir, machine: Machine, command: list[str], environment: dict[str, str]) -> Failure | None:
    """Run a command that works in the folder, pass its log on, and return its failure."""
    position = folder.log.stat().st_size if folder.log.exists() else 0
    with machine.output(folder).open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    job = AccelerateJob(title="", folder=folder, process=process, machine=machine, log_position=position)
    # submitit's own handler would requeue the job while its processes are still training.
    with deferred("sft-lab: stopping the job's processes, with a checkpoint", (signal.SIGUSR2,)) as request:
        return next(iter(supervise(AccelerateLauncher(job, request), Work.RUN)), None)


def command(run: Run, folder: RunDir, machine: Machine) -> list[str]:
    """Return the command that starts this machine's processes."""
    launch = run.launch
    config = folder.inputs / "launch.config_file" / launch.accelerate_config().name  # as it was read
    if launch.num_machines == 1:
        rendezvous = ["--main_process_port", "0"]  # any free port, since other jobs may run on this machine
    else:
        rendezvous = [
            "--machine_rank", str(machine.rank), "--main_process_ip", machine.address,
            "--main_process_port", str(machine.port),
        ]  # fmt: skip
    return [
        sys.executable, "-P", "-m", "accelerate.commands.launch",
        "--config_file", str(config if config.is_file() else launch.accelerate_config()),
        "--num_processes", str(launch.num_processes), "--num_machines", str(launch.num_machines), *rendezvous,
        "-m", "sft_lab", "exec", str(folder.path),
    ]  # fmt: skip


def _environment(run: Run) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // run.launch.processes_per_machine)
    # PYTHONSAFEPATH: as -P; a torch.py may lie in the working folder.
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONSAFEPATH": "1"}
    return environment if visible_gpus() else environment | {"ACCELERATE_USE_CPU": "true"}


@dataclass(eq=False, kw_only=True)
class AccelerateJob(SupervisedJob):
    """A job trained by the processes of one ``accelerate launch``.

    Attributes:
        process: the process of ``accelerate launch``.
        machine: this machine's part in the job.
        log_position: bytes of ``run.log`` that this process has logged itself, or passed on.
    """

    process: subprocess.Popen[bytes]
    machine: Machine
    log_position: int = 0

    def log_progress(self) -> None:
        """Pass on new lines of the job's log, which its first process writes."""
        if not self.folder.log.exists():
            return
        with open_file(self.folder.log) as file:
            file.seek(self.log_position)
            new = file.read()
        complete = new[: new.rfind(b"\n") + 1]
        self.log_position += len(complete)

        for line in complete.decode("utf-8", errors="replace").splitlines():
            if match := _LOG_LINE.match(line):
                log.log(logging.getLevelNamesMapping()[match[1]], "%s", match[2])

    def conclude(self, work: str, ending: Ending) -> Failure | None:  # noqa: ARG002 - always a run
        """Return the job's failure if it failed; the caller, ``worker.attempt``, logs it."""
        is_first = self.machine.rank == 0
        ended_well = (RunState.FINISHED, RunState.PRUNED)
        if self.process.returncode == 0 and (not is_first or self.folder.state() in ended_well):
            return None
        error = str(read_status(self.folder).get("error"))
        if is_first and not error.endswith(ending.reason) and not self.folder.is_held():
            self.folder.mark_failed(ending.reason)
        return Failure(self.folder, ending.reason, by_input=self.process.returncode == 2)

    def failure_message(self) -> str:
        """Return why the job failed: the process that was killed, else the error in its status or its output."""
        file = self.machine.output(self.folder)
        output = read_text(file, LONG, errors="replace")
        # When one dies, the others lose their connection and torchrun ends them: their errors are not the cause.
        for number, code in _SIGNALS.findall(output):
            if int(code) != signal.SIGTERM:
                name = signal_name(int(code))
                return (
                    f"training process {number} was killed by {name} after {self.seconds:.0f} s; "
                    f"{self.folder.exec_command()} resumes from the last checkpoint"
                )

        errors = re.findall(rf"^sft-lab: (?:{re.escape(self.folder.path.name)}: )?(.*)", output, re.MULTILINE)
        status = read_status(self.folder)
        if status.get("state") == RunState.FAILED:
            errors.append(str(status["error"]))
        errors.sort(key=lambda error: resource_errors.LOST in error)  # errors caused by another process's end come last
        return errors[0] if errors else f"a training process failed; see {file}"


class AccelerateLauncher(Backend):
    """The process of ``accelerate launch``, for one job."""

    def __init__(self, job: AccelerateJob, request: Request) -> None:
        self.jobs: list[AccelerateJob] = [job]
        self.request = request

    def poll(self) -> list[tuple[SupervisedJob, Ending]]:
        """Return the job once accelerate has ended; at a request to stop, stop it and obey."""
        time.sleep(POLL_SECONDS)
        if self.request:
            self.stop()
            self.request.obey()
        return [(job, Ending(job.failure_message())) for job in self.jobs if job.process.poll() is not None]

    def stop(self) -> None:
        """Ask the processes to save a checkpoint and exit."""
        stop_processes([job.process for job in self.jobs], STOP_SECONDS)
