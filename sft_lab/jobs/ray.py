"""Jobs as tasks of Ray: each executes its folder in a worker process of its own, which Ray starts again if it dies."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.core import console
from sft_lab.core.errors import SftLabError, UserError
from sft_lab.core.run_dir import RunDir
from sft_lab.core.store import default_root
from sft_lab.jobs.supervise import Watched
from sft_lab.jobs.worker import Failure, execute, terminable
from sft_lab.run.launch_config import AT_WORK, devices

if TYPE_CHECKING:
    from sft_lab.run.launch_config import Ray

PATIENCE = 60.0  # seconds that jobs at work have to end well when the sweep is stopped
LOOK = 1.0  # seconds between two looks at the jobs
OBJECTS = 80 * 2**20  # bytes for objects that tasks share; ours share none, and Ray takes no less


def launch(jobs: list[tuple[str, RunDir]], launcher: Ray, work: str) -> list[Failure]:
    """Hand every job to Ray, and wait for all.

    Args:
        jobs: title and folder of each.
        launcher: which cluster, and what each job gets.
        work: what they shall do in the folders.

    Raises:
        UserError: if there is no such cluster, or none of its machines can hold a job.
    """
    if not jobs:
        return []
    # Before Ray is imported: it reads this then.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    with _connected(launcher), terminable():
        gpus = _gpus(launcher)
        # max_calls: a process serves one job, so that a job ends with its process, and its memory too.
        task = ray.remote(num_cpus=launcher.num_cpus, num_gpus=gpus, max_calls=1, max_retries=launcher.max_retries)(
            _task
        )
        threads = max(1, launcher.num_cpus // launcher.num_processes)
        store = str(default_root())
        working = {
            task.remote(str(folder.path), work, threads, store): Watched(title, folder) for title, folder in jobs
        }
        before = {one.folder.path: one.told for one in working.values()}
        failures: list[Failure] = []
        try:
            while working:
                ended, _ = ray.wait(list(working), num_returns=1, timeout=LOOK)
                for one in working.values():
                    one.look()
                for task_of_ray in ended:
                    one = working.pop(task_of_ray)
                    told, otherwise = _result(task_of_ray)
                    failures += one.end(work, before[one.folder.path], otherwise, told)
        except BaseException:
            _stop(list(working))
            raise
    return failures


def _task(path: str, work: str, threads: int, store: str) -> dict[str, Any] | None:
    """Execute a folder; what a worker process of Ray's does.

    Args:
        path: the folder.
        work: what to do in it.
        threads: of the processor's arithmetic, for each process of the job.
        store: the default one of the machine where the command was given; the cluster may have been started elsewhere.
    """
    console.prepare()
    os.environ.update({"OMP_NUM_THREADS": str(threads), "SFT_LAB_STORE": store, AT_WORK: path})
    try:
        failure = execute(RunDir(Path(path)), work)
    except SftLabError as error:
        return {"message": str(error), "by_input": isinstance(error, UserError)}
    return {"message": failure.message, "by_input": failure.by_input} if failure else None


@contextmanager
def _connected(launcher: Ray) -> Iterator[None]:
    """Join the cluster, or make one of this machine and end it afterwards."""
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    try:
        if launcher.address:
            _knock(launcher.address)
            ray.init(address=launcher.address, **quiet)
        else:
            # "local" even where $RAY_ADDRESS names another; reached from this machine alone, since who reaches a
            # cluster of Ray's can run anything on it.
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECTS, num_gpus=len(devices()),
                     _node_ip_address="127.0.0.1", **quiet)  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"launch.address={launcher.address}: no cluster of Ray's to be reached ({said}); start one with "
            "`ray start --head`, set RAY_AUTH_MODE=token if it wants one, or leave the address out for one of "
            "this machine"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """See whether somebody answers at ``host:port``; Ray itself would try for minutes.

    Raises:
        OSError, ValueError: if nobody does, or it is no such address.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=10).close()


def _gpus(launcher: Ray) -> int:
    """Give the GPUs of a job, and refuse what no machine of the cluster has: Ray would wait for one for ever."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    most = int(max((one.get("GPU", 0) for one in machines), default=0))
    gpus = launcher.num_gpus if launcher.num_gpus is not None else (launcher.num_processes if most else 0)
    if not any(one.get("CPU", 0) >= launcher.num_cpus and one.get("GPU", 0) >= gpus for one in machines):
        has = ", ".join(sorted({f"{one.get('CPU', 0):.0f} cores, {one.get('GPU', 0):.0f} GPUs" for one in machines}))
        raise UserError(
            f"launch.num_cpus={launcher.num_cpus}, num_gpus={gpus}: no machine of the cluster has as many "
            f"(they have {has}); lower launch.num_cpus or launch.num_gpus"
        )
    return gpus


def _result(task: Any) -> tuple[dict[str, Any] | None, str]:
    """Give what a job told of its failure, and why its process ended where it could tell nothing."""
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(task), "ended without a word"
    except RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return None, f"its process died, and was not started again by Ray ({type(error).__name__}: {lines[0]})"


def _stop(tasks: list[Any]) -> None:
    """Take back what has not begun, and end the rest as Ctrl-C does: it goes on from there another time."""
    import ray

    with suppress(Exception):  # the cluster itself may be gone
        for task in tasks:
            ray.cancel(task)
        ray.wait(tasks, num_returns=len(tasks), timeout=PATIENCE)
