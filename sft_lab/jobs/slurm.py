"""Jobs handed to Slurm by submitit: one array; each of its jobs executes a job folder on a machine of the cluster.

What became of a job is read from its folder, and whether it is still there is asked of ``squeue``: ``sacct`` answers
only where Slurm keeps accounts. submitit's pickled results are not opened: a sweep folder may be a stranger's.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sft_lab.core import console
from sft_lab.core.errors import FolderError, SftLabError, UserError
from sft_lab.core.io import read_json, write_json
from sft_lab.core.log import log
from sft_lab.core.run_dir import RunDir
from sft_lab.jobs.supervise import Watched, status_of
from sft_lab.jobs.worker import Failure, execute, terminable
from sft_lab.run.launch_config import AT_WORK, Cluster, devices

if TYPE_CHECKING:
    from submitit import AutoExecutor
    from submitit.helpers import DelayedSubmission

    from sft_lab.run.launch_config import Slurm

PLACE = ".submitit"  # beside the job folders: submitit's batch script, its pickles, and what the jobs printed
LOOK = 1.0  # seconds between two looks at the folders
ASK = 10.0  # seconds between two questions to squeue, one for all jobs
KILL = 900.0  # seconds that Slurm may take to end what it has sent SIGTERM
ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "REVOKED",
    "TIMEOUT",
}
STOPPED = 128 + signal.SIGTERM


@dataclass(frozen=True)
class Attempt:
    """What submitit carries to the cluster: a folder to be executed there, again if Slurm takes the machine away.

    Attributes:
        threads: of the processor's arithmetic, where nothing on that machine says otherwise.
    """

    path: str
    work: str
    threads: int

    def __call__(self) -> None:
        """Execute the folder; what failed is left beside submitit's files, readable without unpickling."""
        from submitit import JobEnvironment

        console.prepare()
        here = JobEnvironment()
        os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))
        os.environ[AT_WORK] = here.job_id
        if here.num_nodes > 1:
            port = 20_000 + int(here.raw_job_id) % 20_000
            rank, first = str(here.node), here.hostnames[0]
            os.environ.update(NODE_RANK=rank, MASTER_ADDR=first, MASTER_PORT=str(port))
        try:
            failure = execute(RunDir(Path(self.path)), self.work)
        except SftLabError as error:
            failure = Failure(RunDir(Path(self.path)), str(error), by_input=isinstance(error, UserError))
        except SystemExit as stop:
            if stop.code == STOPPED and here.cluster == "slurm":
                _wait_for_slurm()
            raise
        if failure and here.global_rank == 0:
            told = {"message": failure.message, "by_input": failure.by_input}
            write_json(_failure(Path(here.paths.folder), here.job_id), told)

    def checkpoint(self) -> DelayedSubmission:
        """Answer submitit what to start when the job is queued again: the same, which goes on from its checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _wait_for_slurm() -> None:
    """Leave the last word to Slurm, which has sent SIGTERM: the job's folder is in order, its work is interrupted.

    Of a job that ends itself now Slurm would say it is done. One that is being pre-empted waits for the signal on which
    submitit queues it again, or for the kill after which Slurm does; a cancelled one for the kill.
    """
    deadline = time.monotonic() + KILL
    while time.monotonic() < deadline:
        time.sleep(1)


class _Standing(NamedTuple):
    """How a job stands in the queue: Slurm's state of it, and its reason for one that waits."""

    state: str
    reason: str = ""


_GONE = _Standing("gone from the queue")


@dataclass
class _Queued(Watched):
    """A job in the queue or at work.

    Attributes:
        job_id: Slurm's, ``12_0`` in an array.
        logs: submitit's folder.
        before: the folder's status when the job was submitted.
        missed: whether the queue did not have it when it was asked the last time.
    """

    job_id: str = ""
    logs: Path = Path()
    before: dict[str, Any] = field(default_factory=dict)
    missed: bool = False


def launch(jobs: list[tuple[str, RunDir]], launcher: Slurm, work: str) -> list[Failure]:
    """Submit what is not in the queue already, and wait for all.

    Args:
        jobs: title and folder of each.
        launcher: what each gets.
        work: what they shall do in the folders.

    Raises:
        UserError: if the cluster takes no such jobs.
    """
    if not jobs:
        return []
    queued = _found_again(jobs, launcher.cluster, work)
    there = {one.folder.path for one in queued}
    queued += _submit([job for job in jobs if job[1].path not in there], launcher, work)
    with terminable():
        try:
            return _wait(queued, launcher.cluster, work)
        except (KeyboardInterrupt, SystemExit):
            _say_goodbye(queued, launcher.cluster)
            raise


def _found_again(jobs: list[tuple[str, RunDir]], cluster: Cluster, work: str) -> list[_Queued]:
    """Give the jobs that an earlier command has submitted and that are not over."""
    noted = []
    for title, folder in jobs:
        note = _note(folder)
        if note.get("cluster") == cluster.name:
            logs, before = Path(str(note.get("logs"))), dict(note.get("before") or {})
            noted.append((note, _Queued(title, folder, before, job_id=str(note["job_id"]), logs=logs, before=before)))
    standings = _standings(cluster, [one.job_id for _, one in noted])
    if standings is None:
        raise UserError("launch=slurm: squeue does not answer, so nobody knows what is queued; try again later")
    found = []
    for note, one in noted:
        if standings.get(one.job_id, _GONE).state in {*ENDED, _GONE.state}:
            one.folder.queued.unlink(missing_ok=True)
            continue
        if note.get("work") != work:
            raise FolderError(f"{one.folder.path}: job {one.job_id} is to do something else here ({note.get('work')}); "
                              f"wait until it is done, or scancel {one.job_id}")  # fmt: skip
        log.info("%s: job %s is in the queue or at work; waiting for it", one.title, one.job_id)
        found.append(one)
    return found


def _note(folder: RunDir) -> dict[str, Any]:
    """Give what an earlier command noted of the job, nothing where it is none of ours."""
    try:
        note = read_json(folder.queued)
        return note if re.fullmatch(r"\d+(_\d+)?", str(note["job_id"])) else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _submit(jobs: list[tuple[str, RunDir]], launcher: Slurm, work: str) -> list[_Queued]:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if not jobs:
        return []
    logs = jobs[0][1].path.parent / PLACE
    executor = executor_for(launcher, logs)
    threads = max(1, launcher.cpus_per_task * launcher.num_machines // launcher.num_processes)
    attempts = [Attempt(str(folder.path), work, threads) for _, folder in jobs]
    try:
        with executor.batch():
            handles = [executor.submit(attempt) for attempt in attempts]
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        said = [line for line in str(error).splitlines() if "error" in line.lower()] or [str(error)]
        raise UserError(f"launch=slurm: the cluster takes no such jobs ({said[-1].strip()})") from error
    queued = []
    for (title, folder), handle in zip(jobs, handles, strict=True):
        before = status_of(folder)
        note = {"cluster": launcher.cluster.name, "job_id": handle.job_id, "work": work, "logs": str(logs)}
        write_json(folder.queued, {**note, "before": before})
        queued.append(_Queued(title, folder, before, job_id=handle.job_id, logs=logs, before=before))
        log.info("%s: submitted as job %s", queued[-1].title, handle.job_id)
    return queued


def executor_for(launcher: Slurm, logs: Path) -> AutoExecutor:
    """Give submitit's executor with all that a job gets; it writes the batch script."""
    from submitit import AutoExecutor

    cluster, gpus = launcher.cluster.name, launcher.gpus
    if launcher.cluster is Cluster.local:
        gpus = min(gpus, len(devices()))
    # -P: with -m alone Python would import from the working folder first, and a torch.py may lie there.
    made = {"python": f"{shlex.quote(sys.executable)} -P", "max_num_timeout": launcher.max_num_timeout}
    executor = AutoExecutor(folder=logs, cluster=cluster, **{f"{cluster}_{key}": value for key, value in made.items()})
    executor.update_parameters(
        name=logs.parent.name,
        nodes=launcher.num_machines,
        tasks_per_node=1,
        timeout_min=launcher.timeout_min,
        gpus_per_node=gpus or None,
        cpus_per_task=launcher.cpus_per_task,
        mem_gb=launcher.mem_gb,
        stderr_to_stdout=True,
        slurm_partition=launcher.partition,
        slurm_account=launcher.account,
        slurm_qos=launcher.qos,
        slurm_constraint=launcher.constraint,
        slurm_array_parallelism=launcher.array_parallelism,
        slurm_additional_parameters=launcher.additional_parameters or None,
        **({f"{cluster}_setup": launcher.setup} if launcher.setup else {}),
    )
    return executor


def _wait(queued: list[_Queued], cluster: Cluster, work: str) -> list[Failure]:
    failures: list[Failure] = []
    reasons: set[str] = set()  # that were told
    asked = time.monotonic()
    while queued:
        time.sleep(LOOK)
        standings = None
        if cluster is Cluster.local or time.monotonic() - asked > ASK:
            standings, asked = _standings(cluster, [one.job_id for one in queued]), time.monotonic()
        for one in list(queued):
            one.look()
            over = (one.logs / f"{one.job_id}_0_result.pkl").exists()
            if not over and standings is not None:
                # Twice, since a folder on a network is seen a little later than the queue.
                gone = standings.get(one.job_id, _GONE).state in {*ENDED, _GONE.state}
                over, one.missed = gone and one.missed, gone
            if over:
                queued.remove(one)
                failures += _end(one, work, (standings or {}).get(one.job_id, _GONE).state)
        found = [(standings or {}).get(one.job_id, _GONE) for one in queued]
        _tell_waiting([one.reason for one in found if one.state == "PENDING"], reasons)
    return failures


def _tell_waiting(waiting: list[str], told: set[str]) -> None:
    """Say why jobs wait, each reason once: for some (a time limit above the partition's) they wait for ever."""
    for reason, jobs in Counter(waiting).items():
        if reason not in told | {"", "None"}:
            log.info("%s in the queue, says Slurm: %s", "1 job waits" if jobs == 1 else f"{jobs} jobs wait", reason)
            told.add(reason)


def _end(one: _Queued, work: str, state: str) -> list[Failure]:
    log_file = one.logs / f"{one.job_id}_0_log.out"
    begun = "" if status_of(one.folder) != one.before else " before its work began"
    told = _failure(one.logs, one.job_id)
    otherwise = f"job {one.job_id} ended{begun} ({state}); see {log_file}"
    failures = one.end(work, one.before, otherwise, read_json(told) if told.exists() else None)
    one.folder.queued.unlink(missing_ok=True)
    return failures


def _failure(logs: Path, job_id: str) -> Path:
    return logs / f"{job_id}_failure.json"


def _standings(cluster: Cluster, job_ids: list[str]) -> dict[str, _Standing] | None:
    """Ask how jobs stand, by their ids; those that are gone are left out, and None is no answer."""
    if not job_ids:
        return {}
    if cluster is Cluster.local:
        return {job_id: _Standing("RUNNING") for job_id in job_ids if _is_submitits(job_id)}
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T %r",
               "--jobs=" + ",".join(sorted({job_id.partition("_")[0] for job_id in job_ids}))]  # fmt: skip
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode and "Invalid job id" not in answer.stderr:
        log.debug("squeue: %s", answer.stderr.strip())
        return None
    lines = [line.split(maxsplit=2) for line in answer.stdout.splitlines() if " " in line]
    return {job_id: _Standing(*said) for job_id, *said in lines}


def _is_submitits(process: str) -> bool:
    """Whether a process of this machine is one of submitit's local jobs; a number is used again."""
    try:
        return b"submitit" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def _say_goodbye(queued: list[_Queued], cluster: Cluster) -> None:
    """Say that nobody has ended the jobs."""
    ids = ",".join(one.job_id for one in queued)
    where = queued[0].folder.path.parent
    if cluster is Cluster.slurm:
        log.warning("the jobs stay in Slurm's hands: squeue --jobs=%s; scancel ends one", ids)
    else:
        log.warning("the jobs work on, unless it was Ctrl-C in a terminal, which reaches jobs of this machine too")
    log.warning(
        "sft-lab runs %s says how they stand; the same command waits for them again, and submits none twice", where
    )
