"""Jobs as tasks of Ray: each executes its folder in a worker process of its own, which Ray starts again if it dies."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sft_lab.core.errors import UserError
from sft_lab.core.run_dir import RunDir
from sft_lab.core.store import default_root
from sft_lab.jobs.supervise import Backend, Ending, Failure, SupervisedJob, supervise
from sft_lab.jobs.worker import execute_on_cluster
from sft_lab.run.launch_config import JOB_VARIABLE, visible_gpus

if TYPE_CHECKING:
    from sft_lab.run.launch_config import Ray

STOP_SECONDS = 60.0  # that jobs at work have to end well when the sweep is stopped
POLL_SECONDS = 1.0  # between two checks of the jobs
OBJECT_STORE_BYTES = 80 * 2**20  # for objects that tasks share; ours share none, and Ray takes no less


def launch(jobs: list[tuple[str, RunDir]], launcher: Ray, work: str) -> list[Failure]:
    """Hand every job to Ray, and wait for all.

    Args:
        jobs: title and folder of each.
        launcher: which cluster, and what each job gets.
        work: what they do in their folders.

    Raises:
        UserError: if there is no such cluster, or none of its machines can hold a job.
    """
    if not jobs:
        return []
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported
    with _connected(launcher):
        return supervise(RayTasks(jobs, launcher, work), work)


class RayTasks(Backend):
    """The tasks of a sweep on the cluster that this process is connected to."""

    def __init__(self, jobs: list[tuple[str, RunDir]], launcher: Ray, work: str) -> None:
        import ray

        # max_calls: a process serves one job, so that a job ends with its process, and its memory too.
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
        """Cancel what has not begun, and end the rest as Ctrl-C does: it goes on from there another time."""
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
        return Ending(f"its process died, and was not started again by Ray ({type(error).__name__}: {lines[0]})")
    return Ending("ended without an error", **(failure or {}))


@contextmanager
def _connected(launcher: Ray) -> Iterator[None]:
    """Join the cluster, or start one on this machine and end it afterwards."""
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    try:
        if launcher.address:
            _require_answer(launcher.address)
            ray.init(address=launcher.address, **quiet)
        else:
            # "local" even where $RAY_ADDRESS names another; reached from this machine alone, since who reaches a
            # cluster of Ray's can run anything on it.
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                num_gpus=len(visible_gpus()),
                _node_ip_address="127.0.0.1",
                **quiet,
            )
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"launch.address={launcher.address}: no Ray cluster answers there ({reason}); start one with "
            "`ray start --head`, set RAY_AUTH_MODE=token if it requires a token, or leave the address out to use "
            "this machine alone"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Connect to ``host:port`` once; Ray itself would try for minutes.

    Raises:
        OSError, ValueError: if nobody answers, or it is no such address.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=10).close()


def _gpus_per_job(launcher: Ray) -> int:
    """Return the GPUs that each job gets.

    Raises:
        UserError: if no machine of the cluster has as many, or enough cores: Ray would wait for one for ever.
    """
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    sizes = {(int(machine.get("CPU", 0)), int(machine.get("GPU", 0))) for machine in machines}
    gpus = launcher.num_gpus
    if gpus is None:
        gpus = launcher.num_processes if any(size[1] for size in sizes) else 0

    if not any(cores >= launcher.num_cpus and cards >= gpus for cores, cards in sizes):
        listed = ", ".join(f"{cores} cores and {cards} GPUs" for cores, cards in sorted(sizes))
        raise UserError(
            f"launch.num_cpus={launcher.num_cpus}, num_gpus={gpus}: no machine of the cluster has as many "
            f"(they have {listed}); lower launch.num_cpus or launch.num_gpus"
        )
    return gpus
