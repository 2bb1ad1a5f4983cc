"""Launch options: how jobs are started. ``sft_lab/jobs`` carries them out."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sft_lab.core.bounds import Bounded, bounded
from sft_lab.core.errors import require
from sft_lab.core.gpus import visible_gpus
from sft_lab.core.interrupt import REQUEUE_SECONDS
from sft_lab.core.packages import saved_path

ACCELERATE_CONFIGS = Path(__file__).parents[1] / "jobs" / "accelerate"  # that are shipped
DDP = "MULTI_GPU"  # accelerate's name for a copy of the model in each process
NOTICE_SECONDS = 90  # before the end of a job; submitit asks Slurm for it
JOB_VARIABLE = "SFT_LAB_JOB"  # an environment variable that is set where a cluster executes a job


@dataclass
class Launcher(Bounded):
    """What every launch option has: how many processes train one job.

    Attributes:
        num_processes: that train a job together, over all machines; one for each GPU. accelerate starts them.
        num_machines: over which they are spread evenly.
        config_file: of accelerate: a shipped one by its name (``ddp``, ``fsdp``, ``deepspeed_zero3``), or a path;
            null: ``ddp`` where there are several processes.
    """

    num_processes: int = bounded(1, at_least=1)
    num_machines: int = bounded(1, at_least=1)
    config_file: str | None = None

    def __post_init__(self) -> None:
        """Refuse processes that cannot be spread evenly; make a config file's path absolute."""
        super().__post_init__()
        is_multiple = self.num_processes % self.num_machines == 0
        require(is_multiple, "num_processes", self.num_processes, f"a multiple of num_machines={self.num_machines}")
        if self.config_file is not None and not self.config_file.isidentifier():
            self.config_file = saved_path(self.config_file)

    @property
    def processes_per_machine(self) -> int:
        """How many processes of a job work on each machine."""
        return self.num_processes // self.num_machines

    @property
    def distributed(self) -> bool:
        """Whether accelerate starts the processes of a job; a copy of the model in one process needs none."""
        return self.num_processes > 1 or (self.config_file is not None and self.distributed_type() != DDP)

    @property
    def several_machines(self) -> bool:
        """Whether jobs work on other machines than this one, and so share its folders."""
        return self.num_machines > 1

    @property
    def is_remote(self) -> bool:
        """Whether jobs are executed by other machines alone, so that this one needs no GPU."""
        return False

    def missing_packages(self) -> list[str]:
        """Return the packages that this launcher lacks."""
        return []

    def missing_requirements(self) -> list[str]:
        """Return what this machine lacks to start jobs this way; a job that has begun needs none of it."""
        return self.missing_packages()

    def cluster_request(self) -> str:
        """Return what each job asks of a cluster; nothing without one."""
        return ""

    def unused_gpus(self, *, in_sweep: bool) -> str:  # noqa: ARG002 - of launchers that do not choose the GPUs
        """Return how many GPUs are used where some are not, and what would use all; empty where all are used.

        Args:
            in_sweep: whether there are more jobs that could use them.
        """
        return ""

    def _unused_by_job(self, gpus: int) -> str:
        """Return the same for a job that has this number of GPUs on each of its machines to itself."""
        used = self.processes_per_machine
        if used >= gpus:
            return ""
        rows = f"{gpus / used:.3g} times the rows in each step"
        return (
            f"{_used_gpus(used, gpus)}: launch.num_processes={gpus * self.num_machines} would train the job on all of "
            f"them, with {rows}"
        )

    def check(self) -> list[str]:
        """Return problems with the config file, or with what several machines need."""
        problems = []
        if self.config_file is not None and not self.accelerate_config().is_file():
            shipped = ", ".join(sorted(file.stem for file in ACCELERATE_CONFIGS.glob("*.yaml")))
            problems.append(f"launch.config_file={self.config_file}: no such file; available: {shipped}")
        if self.num_machines > 1 and not self.is_remote and not os.environ.get("MASTER_ADDR"):
            problems.append(
                f"launch.num_machines={self.num_machines}: each machine must know the others; use launch=slurm, or run "
                "`sft-lab exec JOB_DIR` on each with NODE_RANK, MASTER_ADDR and MASTER_PORT set"
            )
        return problems

    def missing_devices(self) -> list[str]:
        """Return what the processes of a job lack on this machine."""
        if not self.distributed:
            return []
        gpus, kind = visible_gpus(), self.distributed_type()
        if kind != DDP and not gpus:
            # accelerate would put a full copy into each process, and not say so
            return [f"launch.config_file={self.config_file}: {kind} needs GPUs, and there are none; use ddp"]
        if gpus and len(gpus) < self.processes_per_machine:
            limit = len(gpus) * self.num_machines
            problem = f"must be at most {limit}, one per GPU that this process can use"
            remedy = f"set {limit}, and raise trainer.gradient_accumulation_steps for as many rows in a step"
            return [f"launch.num_processes={self.num_processes}: {problem}; {remedy}"]
        if kind == "DEEPSPEED" and not find_spec("deepspeed"):
            return [f"launch.config_file={self.config_file}: needs DeepSpeed; run: pip install deepspeed"]
        return []

    def distributed_type(self) -> str:
        """Return the ``distributed_type`` of accelerate's config; a file that is missing is refused elsewhere."""
        file = self.accelerate_config()
        text = file.read_text("utf-8") if file.is_file() else ""
        match = re.search(r"^distributed_type:\s*['\"]?(\w+)", text, re.MULTILINE)
        return match[1] if match else DDP

    def accelerate_config(self) -> Path:
        """Return the path of the config that accelerate reads."""
        name = self.config_file or "ddp"
        return ACCELERATE_CONFIGS / f"{name}.yaml" if name.isidentifier() else Path(name)


@dataclass
class Serial(Launcher):
    """Jobs one after another, in this process."""

    def unused_gpus(self, *, in_sweep: bool) -> str:
        """Return whether the jobs leave GPUs unused, since only one of them trains at a time."""
        used, gpus = self.processes_per_machine, len(visible_gpus())
        if in_sweep and (at_once := gpus // used) > 1:
            return f"{_used_gpus(used, gpus)}: launch=processes would train {at_once} jobs at once"
        return self._unused_by_job(gpus)


@dataclass
class Processes(Launcher):
    """Several jobs at once on this machine, each a process of its own.

    Attributes:
        at_once: how many; null: one for each GPU, without any one for each two cores.
    """

    at_once: int | None = bounded(None, at_least=1)

    def unused_gpus(self, *, in_sweep: bool) -> str:
        """Return whether a job that is alone leaves GPUs unused."""
        return "" if in_sweep else self._unused_by_job(len(visible_gpus()))

    def device_groups(self) -> list[str]:
        """Return the GPUs of each of the jobs that run at once, as in ``CUDA_VISIBLE_DEVICES``; ``""``: the processor.

        More jobs than devices wait: two trainings on one GPU are slower than one after the other, and may not fit.
        """
        gpus, size = visible_gpus(), self.processes_per_machine
        if not gpus:
            return [""] * (self.at_once or max(1, (os.cpu_count() or 1) // 2))
        groups = [",".join(gpus[start : start + size]) for start in range(0, len(gpus) - size + 1, size)]
        return (groups or [",".join(gpus)])[: self.at_once]


class Cluster(Enum):
    """Where submitit runs the jobs: on Slurm, or in processes of this machine, to try it without Slurm."""

    slurm = "slurm"
    local = "local"


@dataclass
class Slurm(Launcher):
    """Jobs of a Slurm cluster, sent there by submitit as one array; ``num_machines`` is Slurm's ``--nodes``.

    Attributes:
        cluster: ``slurm``, or submitit's ``local`` executor.
        partition, account, qos, constraint: as sbatch takes them; null: the cluster's default.
        timeout_min: minutes that Slurm gives a job; one that needs more is queued again and goes on.
        max_num_timeout: how often; then the job ends as failed.
        gpus_per_node: of each machine; null: one for each process there; 0: none.
        cpus_per_task: cores of each machine.
        mem_gb: memory of each machine in GB; null: the cluster's default.
        array_parallelism: jobs at work at once, at most.
        setup: shell lines before the job, such as ``module load cuda``.
        additional_parameters: of sbatch, by their names there.
        srun_args: further arguments of srun, which starts the job inside the batch script.
    """

    cluster: Cluster = Cluster.slurm
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    timeout_min: int = bounded(240, at_least=3)  # Slurm's notice comes 90 s before the end, or 60 s earlier still
    max_num_timeout: int = bounded(10, at_least=0)
    gpus_per_node: int | None = None
    cpus_per_task: int = bounded(4, at_least=1)
    mem_gb: float | None = bounded(None, above=0)
    array_parallelism: int = bounded(256, at_least=1)
    setup: list[str] = field(default_factory=list)
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    srun_args: list[str] = bounded([], added=True)

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        super().__post_init__()
        gpus, each = self.gpus_per_node, self.processes_per_machine
        is_enough = gpus in (None, 0) or gpus >= each
        require(is_enough, "gpus_per_node", gpus, f"at least {each}, one per process on each machine")
        local = self.cluster is Cluster.local
        require(not local or self.num_machines == 1, "num_machines", self.num_machines, "1 with cluster=local")
        earliest = self._notice_seconds + 60  # Slurm may send it a minute early
        limit = f"more than the {earliest} s before its end when Slurm may already send its notice"
        require(self.timeout_min * 60 > earliest, "timeout_min", self.timeout_min, limit)
        empty = [name for name, value in self.additional_parameters.items() if value is None]
        require(
            not empty, "additional_parameters", f"{{{', '.join(empty)}: null}}", "values; leave the name out instead"
        )
        numbered = "array" in self.additional_parameters
        require(not numbered, "additional_parameters", "array", "without array, which numbers the jobs of a sweep")

    @property
    def several_machines(self) -> bool:
        """Whether the command waits on one machine and the jobs work on others."""
        return self.cluster is Cluster.slurm

    @property
    def is_remote(self) -> bool:
        """Whether this is a login node."""
        return self.cluster is Cluster.slurm and JOB_VARIABLE not in os.environ

    def missing_packages(self) -> list[str]:
        """Return whether submitit is missing."""
        return _missing_package("submitit", "slurm")

    def missing_requirements(self) -> list[str]:
        """Return problems with submitit and with Slurm's own commands."""
        if problems := self.missing_packages():
            return problems
        commands = ("sbatch", "srun", "squeue") if self.cluster is Cluster.slurm else ()
        missing = [command for command in commands if not shutil.which(command)]
        return [
            f"launch=slurm: {command} is not on PATH; run the command on a login node of a Slurm cluster, or with "
            "launch.cluster=local to try it on this machine"
            for command in missing[:1]
        ]

    @property
    def gpus(self) -> int:
        """GPUs of each machine."""
        return self.processes_per_machine if self.gpus_per_node is None else self.gpus_per_node

    def unused_gpus(self, *, in_sweep: bool) -> str:  # noqa: ARG002 - each job has machines of its own
        """Return whether a job leaves GPUs unused that it has asked for."""
        return self._unused_by_job(self.gpus)

    def sbatch_options(self) -> dict[str, Any]:
        """Return the additional options under the names that submitit has for its own, which they replace."""
        own = {name.replace("-", "_"): value for name, value in self.additional_parameters.items()}
        if "open_mode" in own:  # the one name that submitit writes with a hyphen
            own["open-mode"] = own.pop("open_mode")
        return own

    @property
    def requeue_seconds(self) -> int:
        """Seconds that a job has for a safe point after Slurm's notice; the last 30 are for requeueing it."""
        return max(1, self._notice_seconds - NOTICE_SECONDS + REQUEUE_SECONDS)

    @property
    def _notice_seconds(self) -> int:
        """Seconds before a job's end at which Slurm sends its notice."""
        notice = re.search(r"USR2@(\d+)", str(self.additional_parameters.get("signal")))
        return int(notice[1]) if notice else NOTICE_SECONDS

    def cluster_request(self) -> str:
        """Return what each job asks of sbatch."""
        if self.cluster is Cluster.local:
            return "nothing, since launch.cluster=local runs it on this machine"
        options = {
            "nodes": self.num_machines, "gpus_per_node": self.gpus, "cpus_per_task": self.cpus_per_task,
            "mem": f"{self.mem_gb:g}GB" if self.mem_gb else None, "time": f"{self.timeout_min} min",
            "partition": self.partition, "account": self.account, "qos": self.qos, "constraint": self.constraint,
            **self.sbatch_options(),
        }  # fmt: skip
        return ", ".join(f"{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None)


@dataclass
class Ray(Launcher):
    """Jobs as Ray tasks; Ray chooses a machine with enough cores and GPUs for each.

    Attributes:
        address: of a running cluster, ``auto`` or ``host:port``; null: one on this machine, started for the sweep.
        num_cpus: cores of each job.
        num_gpus: GPUs of each job; null: one for each of its processes where the cluster has GPUs, else none.
        max_retries: how often a job is started again whose process died; it goes on from its checkpoint.
    """

    address: str | None = None
    num_cpus: int = bounded(2, at_least=1)
    num_gpus: int | None = bounded(None, at_least=0)
    max_retries: int = bounded(3, at_least=0)

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        super().__post_init__()
        require(self.num_machines == 1, "num_machines", self.num_machines, "1: a Ray task runs on one machine")

    @property
    def several_machines(self) -> bool:
        """Whether a running cluster is used, which may have several."""
        return self.address is not None

    @property
    def is_remote(self) -> bool:
        """Whether a running cluster executes the jobs, and this process is not one of its own."""
        return self.address is not None and JOB_VARIABLE not in os.environ

    def missing_packages(self) -> list[str]:
        """Return whether Ray is missing."""
        return _missing_package("ray", "ray")

    def cluster_request(self) -> str:
        """Return what each job asks of Ray."""
        gpus = f"one for each of {self.num_processes} processes, where it has any"
        return f"num_cpus={self.num_cpus}, num_gpus={gpus if self.num_gpus is None else self.num_gpus}"


def _used_gpus(used: int, gpus: int) -> str:
    return f"{used} of {gpus} GPUs {'is' if used == 1 else 'are'} used"


def _missing_package(package: str, extra: str) -> list[str]:
    if find_spec(package):
        return []
    return [f"launch={extra}: the package {package} is not installed; run: pip install 'sft_lab[{extra}]'"]
