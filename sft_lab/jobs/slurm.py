"""Jobs submitted to Slurm by submitit, as one array; each executes a job folder on a machine of the cluster.

A job's result is read from its folder, and ``squeue`` tells whether it still runs: ``sacct`` works only where Slurm
keeps accounts. submitit's pickled results are never opened, since a sweep folder may be a stranger's.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sft_lab.core import interrupt, tolerant_readers
from sft_lab.core.errors import FolderError, UserError
from sft_lab.core.io import write_json
from sft_lab.core.log import log
from sft_lab.core.run_dir import RunDir
from sft_lab.jobs.supervise import Backend, Ending, Failure, SupervisedJob, read_status, supervise
from sft_lab.jobs.sweep_folder import HASHED
from sft_lab.jobs.worker import execute_on_cluster
from sft_lab.run.launch_config import JOB_VARIABLE, Cluster

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

    from sft_lab.run.launch_config import Slurm

SUBMITIT_DIR = ".submitit"  # beside the job folders: submitit's batch script, its pickles, and what the jobs printed
POLL_SECONDS = 1.0  # between two checks of the folders
QUEUE_SECONDS = 10.0  # between two calls of squeue, one for all jobs
KILL_SECONDS = 900.0  # for Slurm to end a job after its SIGTERM
# Slurm's states of a finished job, and our own for one that is no longer in the queue.
GONE = "no longer in the queue"
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
    GONE,
}


def launch(jobs: list[tuple[str, RunDir]], launcher: Slurm, work: str) -> list[Failure]:
    """Submit the jobs that are not queued yet, and wait for all of them.

    Args:
        jobs: title and folder of each.
        launcher: resources of each job.
        work: what they do in their folders.

    Raises:
        UserError: if the cluster rejects the jobs.
    """
    if not jobs:
        return []
    queued = _find_queued(jobs, launcher.cluster, work)
    queued_folders = {job.folder.path for job in queued}
    queued += _submit([job for job in jobs if job[1].path not in queued_folders], launcher, work)
    return supervise(SlurmArray(queued, launcher.cluster), work)


def batch_script(folders: list[RunDir], launcher: Slurm) -> str:
    """Return the batch script with which ``launch`` would submit the folders; empty if it would submit none to Slurm.

    Nothing is written, and Slurm is only needed to ask for jobs that an earlier command has submitted.

    Args:
        folders: of unfinished jobs.
        launcher: resources of each job.
    """
    noted = _noted_jobs([("", folder) for folder in folders], launcher.cluster)
    queue = _ask_queue(launcher.cluster, [job.job_id for _, job in noted])
    queued = [job for _, job in noted if queue is None or not queue.get(job.job_id, QueueState(GONE)).has_ended]
    count = len(folders) - len(queued)
    if launcher.cluster is Cluster.local or not count:
        return ""
    from sft_lab.jobs.slurm_executor import slurm_executor

    logs = folders[0].path.parent / SUBMITIT_DIR
    return slurm_executor(launcher, logs, _queue_name(folders[0])).script(count)


def _queue_name(folder: RunDir) -> str:
    """Return the name of a job in the queue: its sweep's, or that of a single run, which is often just a time."""
    # The folder of a sweep that is only planned has no marker yet, but its jobs' names end with their hash.
    is_of_sweep = folder.sweep or HASHED.search(folder.path.name)
    return folder.path.parent.name if is_of_sweep else f"sft_lab-{folder.path.name}"


# --- on a machine of the cluster -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SlurmTask:
    """The task that submitit sends to the cluster: execute a folder, and again if Slurm pre-empts the job.

    Attributes:
        path: path of the folder.
        work: run it, or only prepare its data.
        threads: CPU threads, unless OMP_NUM_THREADS is set on that machine.
        requeue_seconds: for a safe point after Slurm's notice.
    """

    path: str
    work: str
    threads: int
    requeue_seconds: int = interrupt.REQUEUE_SECONDS  # the default is that of a task that an older version submitted

    def __call__(self) -> None:
        """Execute the folder; a failure is written beside submitit's files as JSON, to be read without unpickling."""
        from submitit import JobEnvironment

        submitted = JobEnvironment()
        environment = {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self.threads)),
            JOB_VARIABLE: submitted.job_id,
            interrupt.REQUEUE_VARIABLE: str(self.requeue_seconds),
        }
        if submitted.num_nodes > 1:
            port = 20_000 + int(submitted.raw_job_id) % 20_000
            environment |= {
                "NODE_RANK": str(submitted.node), "MASTER_ADDR": submitted.hostnames[0], "MASTER_PORT": str(port)
            }  # fmt: skip
        try:
            failure = execute_on_cluster(self.path, self.work, environment)
        except SystemExit as stop:
            # SIGUSR2 here is that of a machine other than the first, which alone has the job requeued.
            if stop.code in (128 + signal.SIGTERM, 128 + signal.SIGUSR2) and submitted.cluster == "slurm":
                _wait_for_slurm()
            raise
        if failure and submitted.global_rank == 0:
            write_json(_failure_file(Path(submitted.paths.folder), submitted.job_id), failure)

    def checkpoint(self) -> DelayedSubmission:
        """Return the task to start when the job is queued again: the same one, which resumes from its checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _wait_for_slurm() -> None:
    """Wait for Slurm to end this job after its SIGTERM; the job's folder is in order, its work interrupted.

    If the job exited, Slurm would count it as completed. A pre-empted job waits for the signal on which submitit
    queues it again, or for the kill after which Slurm does; a cancelled job waits for the kill.
    """
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:
        time.sleep(1)


# --- where the command was given -----------------------------------------------------------------------------------


class QueueState(NamedTuple):
    """A job in Slurm's queue: its state, and the reason why it waits."""

    state: str
    reason: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether the job is over."""
        return self.state in ENDED


@dataclass(eq=False)
class QueuedJob(SupervisedJob):
    """A job in the queue or at work; its ``status_before`` is its status when it was submitted.

    Attributes:
        job_id: Slurm's id, ``12_0`` in an array.
        logs: submitit's folder.
        was_missing: whether it was missing from the queue at the last check.
    """

    job_id: str = ""
    logs: Path = Path()
    was_missing: bool = False

    def has_ended(self, queue: dict[str, QueueState] | None) -> bool:
        """Return whether the job is over, judged by submitit's result or the queue; ``None`` if that was not asked."""
        if (self.logs / f"{self.job_id}_0_result.pkl").exists():
            return True
        if queue is None:
            return False
        # Checked twice, since a network folder may be updated a little later than the queue.
        is_missing = queue.get(self.job_id, QueueState(GONE)).has_ended
        was_missing, self.was_missing = self.was_missing, is_missing
        return is_missing and was_missing

    def ending(self, state: str) -> Ending:
        """Return how the job ended.

        Args:
            state: its state in Slurm.
        """
        before_work = "" if read_status(self.folder) != self.status_before else " before its work began"
        log_file = self.logs / f"{self.job_id}_0_log.out"
        reason = f"job {self.job_id} ended{before_work} ({state}); see {log_file}"
        failure = tolerant_readers.read(_failure_file(self.logs, self.job_id), [])
        if "message" not in failure:
            return Ending(reason)
        return Ending(reason, str(failure["message"]), by_input=bool(failure.get("by_input")))

    def conclude(self, work: str, ending: Ending) -> Failure | None:
        """Conclude as usual, and remove the note that the job is queued."""
        failure = super().conclude(work, ending)
        self.folder.queued.unlink(missing_ok=True)
        return failure


class SlurmArray(Backend):
    """The jobs of a sweep that are queued or running."""

    def __init__(self, jobs: list[QueuedJob], cluster: Cluster) -> None:
        self.jobs: list[QueuedJob] = jobs
        self._cluster = cluster
        self._asked_at = time.monotonic()
        self._logged_reasons: set[str] = set()

    def poll(self) -> list[tuple[SupervisedJob, Ending]]:
        """Return the jobs that have ended, and log why others wait."""
        time.sleep(POLL_SECONDS)
        queue = None
        if self._cluster is Cluster.local or time.monotonic() - self._asked_at > QUEUE_SECONDS:
            queue, self._asked_at = _ask_queue(self._cluster, [job.job_id for job in self.jobs]), time.monotonic()

        endings: list[tuple[SupervisedJob, Ending]] = []
        waiting = []
        for job in self.jobs:
            state = (queue or {}).get(job.job_id, QueueState(GONE))
            if job.has_ended(queue):
                endings.append((job, job.ending(state.state)))
            elif state.state == "PENDING":
                waiting.append(state.reason)
        self._log_waiting(waiting)
        return endings

    def _log_waiting(self, reasons: list[str]) -> None:
        """Log why jobs wait, each reason once; for some (a time limit above the partition's) they wait forever."""
        for reason, jobs in Counter(reasons).items():
            if reason not in self._logged_reasons | {"", "None"}:
                waiting = "1 job waits" if jobs == 1 else f"{jobs} jobs wait"
                log.info("%s in Slurm's queue: %s", waiting, reason)
                self._logged_reasons.add(reason)

    def stop(self) -> None:
        """Log that the jobs keep running: nothing has ended them."""
        if self._cluster is Cluster.slurm:
            ids = ",".join(job.job_id for job in self.jobs)
            log.warning("the jobs stay in Slurm's queue: squeue --jobs=%s lists them, scancel cancels one", ids)
        else:
            log.warning("the jobs continue, unless Ctrl-C reached them too, since they run on this machine")
        sweep = self.jobs[0].folder.path.parent
        log.warning("sft-lab runs %s shows their states; the same command waits for them and submits none again", sweep)


def _find_queued(jobs: list[tuple[str, RunDir]], cluster: Cluster, work: str) -> list[QueuedJob]:
    """Return the jobs that an earlier command submitted and that are not over.

    Raises:
        UserError: if squeue fails, or a queued job is to do other work in its folder.
    """
    queued = _noted_jobs(jobs, cluster)
    queue = _ask_queue(cluster, [job.job_id for _, job in queued])
    if queue is None:
        raise UserError("launch=slurm: squeue does not answer, so the state of the queue is unknown; try again later")

    still_queued = []
    for note, job in queued:
        if queue.get(job.job_id, QueueState(GONE)).has_ended:
            job.folder.queued.unlink(missing_ok=True)
            continue
        if note.get("work") != work:
            raise FolderError(
                f"{job.folder.path}: job {job.job_id} is queued here for other work ({note.get('work')}); "
                f"wait until it ends, or scancel {job.job_id}"
            )
        log.info("%s: job %s is queued or running; waiting for it", job.title, job.job_id)
        still_queued.append(job)
    return still_queued


def _noted_jobs(jobs: list[tuple[str, RunDir]], cluster: Cluster) -> list[tuple[dict[str, Any], QueuedJob]]:
    """Return the jobs that an earlier command submitted, with its notes; some may be over."""
    noted = []
    for title, folder in jobs:
        note = _read_note(folder)
        if note.get("cluster") == cluster.name:
            job = QueuedJob(title, folder, dict(note.get("before") or {}), note["job_id"], Path(note["logs"]))
            noted.append((note, job))
    return noted


def _read_note(folder: RunDir) -> dict[str, Any]:
    """Return an earlier command's note about the job; empty if it is not a valid one."""
    note = tolerant_readers.read(folder.queued, [])
    return note if re.fullmatch(r"\d+(_\d+)?", note.get("job_id", "")) and "logs" in note else {}


def _submit(jobs: list[tuple[str, RunDir]], launcher: Slurm, work: str) -> list[QueuedJob]:
    """Submit jobs as one array, and write the queue's job id into each folder."""
    if not jobs:
        return []
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from sft_lab.jobs.slurm_executor import local_executor, slurm_executor

    logs = jobs[0][1].path.parent / SUBMITIT_DIR
    executor_of = local_executor if launcher.cluster is Cluster.local else slurm_executor
    executor = executor_of(launcher, logs, _queue_name(jobs[0][1]))
    threads = max(1, launcher.cpus_per_task * launcher.num_machines // launcher.num_processes)
    try:
        with executor.batch():
            handles = [
                executor.submit(SlurmTask(str(folder.path), work, threads, launcher.requeue_seconds))
                for _, folder in jobs
            ]
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        lines = [line for line in str(error).splitlines() if "error" in line.lower()] or [str(error)]
        raise UserError(f"launch=slurm: the cluster rejected the jobs ({lines[-1].strip()})") from error

    queued = []
    for (title, folder), handle in zip(jobs, handles, strict=True):
        before = read_status(folder)
        note = {"cluster": launcher.cluster.name, "job_id": handle.job_id, "work": work, "logs": str(logs)}
        write_json(folder.queued, {**note, "before": before})
        queued.append(QueuedJob(title, folder, before, handle.job_id, logs))
        log.info("%s: submitted as job %s", queued[-1].title, handle.job_id)
    return queued


def _failure_file(logs: Path, job_id: str) -> Path:
    return logs / f"{job_id}_failure.json"


def _ask_queue(cluster: Cluster, job_ids: list[str]) -> dict[str, QueueState] | None:
    """Return the states of jobs by id, without those that are gone; None if squeue does not answer."""
    if not job_ids:
        return {}
    if cluster is Cluster.local:
        return {job_id: QueueState("RUNNING") for job_id in job_ids if _is_submitit_process(job_id)}
    arrays = sorted({job_id.partition("_")[0] for job_id in job_ids})
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T %r", f"--jobs={','.join(arrays)}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode and "Invalid job id" not in answer.stderr:
        log.debug("squeue: %s", answer.stderr.strip())
        return None
    lines = [line.split(maxsplit=2) for line in answer.stdout.splitlines() if " " in line]
    return {job_id: QueueState(*state) for job_id, *state in lines}


def _is_submitit_process(pid: str) -> bool:
    """Return whether a process is one of submitit's local jobs; process numbers are reused."""
    try:
        return b"submitit" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
