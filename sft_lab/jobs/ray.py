"""Jobs as Ray tasks: each executes a job folder in its own worker process, which Ray restarts if it dies."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sft_lab.core.errors import UserError
from sft_lab.core.gpus import visible_gpus
from sft_lab.core.ray_cluster import connected
from sft_lab.core.run_dir import RunDir
from sft_lab.core.store import default_root
from sft_lab.core.text import count_of
from sft_lab.jobs.supervise import Backend, Ending, Failure, SupervisedJob, supervise
from sft_lab.jobs.worker import execute_on_cluster
from sft_lab.run.launch_config import JOB_VARIABLE

if TYPE_CHECKING:
    from sft_lab.run.launch_config import Ray

STOP_SECONDS = 60.0  # for running jobs to end cleanly when the sweep is stopped
POLL_SECONDS = 1.0  # between two checks of the jobs


def launch(jobs: list[tuple[str, RunDir]], launcher: Ray, work: str) -> list[Failure]:
    """Submit every job to Ray, and wait for all of them.

    Args:
        jobs: title and folder of each.
        launcher: which cluster, and what each job gets.
        work: what they do in their folders.

    Raises:
        UserError: if there is no such cluster, or a job fits on none of its machines.
    """
    if not jobs:
        return []
    with connected(launcher.address, "launch.address", len(visible_gpus())):
        return supervise(RayTasks(jobs, launcher, work), work)


class RayTasks(Backend):
    """The tasks of a sweep on the cluster that this process is connected to."""

    def __init__(self, jobs: list[tuple[str, RunDir]], launcher: Ray, work: str) -> None:
        import ray

        # max_calls: each process executes one job, so that its memory is freed when it ends.
        remote = ray.remote(
            num_cpus=launcher.num_cpus,
            num_gpus=_gpus_per_job(launcher),
            max_calls=1,
            max_retries=launcher.max_retries,
        )(execute_on_cluster)
        threads = max(1, launcher.num_cpus // launcher.num_processes)
        # The store of the machine where the command was given; the cluster may have been started elsewhere.
        environment = {"OMP_NUM_THREADS": str(threads), "SFT_LAB_STORE": str(default_root())}

        self.jobs = [SupervisedJob(title, folder) for title, folder in jobs]
        self._jobs_by_task = {
            remote.remote(str(job.folder.path), work, {**environment, JOB_VARIABLE: str(job.folder.path)}): job
            for job in self.jobs
        }

    def poll(self) -> list[tuple[SupervisedJob, Ending]]:
        """Return the jobs whose tasks have ended."""
        import ray

        ended, _ = ray.wait(list(self._jobs_by_task), num_returns=1, timeout=POLL_SECONDS)
        return [(self._jobs_by_task.pop(task), _ending(task)) for task in ended]

    def stop(self) -> None:
        """Cancel tasks that have not begun, and interrupt the rest as Ctrl-C does; they can be resumed."""
        import ray

        tasks = list(self._jobs_by_task)
        with suppress(Exception):  # the cluster itself may be gone
            for task in tasks:
                ray.cancel(task)
            ray.wait(tasks, num_returns=len(tasks), timeout=STOP_SECONDS)


def _ending(task: Any) -> Ending:
    import ray
    from ray.exceptions import RayError

    try:
        failure = ray.get(task)
    except RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return Ending(f"its process died, and Ray did not restart it ({type(error).__name__}: {lines[0]})")
    return Ending("ended without an error", **(failure or {}))


def _gpus_per_job(launcher: Ray) -> int:
    """Return the GPUs that each job gets.

    Raises:
        UserError: if no machine of the cluster has enough GPUs or cores: Ray would wait for one forever.
    """
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    sizes = {(int(machine.get("CPU", 0)), int(machine.get("GPU", 0))) for machine in machines}
    gpus = launcher.num_gpus
    if gpus is None:
        gpus = launcher.num_processes if any(size[1] for size in sizes) else 0

    if not any(cores >= launcher.num_cpus and cards >= gpus for cores, cards in sizes):
        listed = ", ".join(f"{count_of(cores, 'core')} and {count_of(cards, 'GPU')}" for cores, cards in sorted(sizes))
        raise UserError(
            f"launch.num_cpus={launcher.num_cpus}, num_gpus={gpus}: no machine in the cluster has that many "
            f"(they have {listed}); lower launch.num_cpus or launch.num_gpus"
        )
    return gpus
