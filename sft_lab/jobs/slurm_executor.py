"""submitit's executors with the resources of a job, and the batch script that they submit."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

from submitit import LocalExecutor, SlurmExecutor

from sft_lab.core.gpus import visible_gpus

if TYPE_CHECKING:
    from pathlib import Path

    from sft_lab.run.launch_config import Slurm

# -P: otherwise -m would make Python import from the working folder first, where there may be a torch.py.
PYTHON = f"{shlex.quote(sys.executable)} -P"


class ScriptExecutor(SlurmExecutor):
    """submitit's executor for Slurm, which can also show its batch script, even on a machine without Slurm."""

    @classmethod
    def affinity(cls) -> int:
        """Return a positive number: the launcher looks for Slurm's commands itself, and a script needs none."""
        return 1

    def update_parameters(self, **resources: Any) -> None:
        """Set the resources of a job by the names that all executors of submitit share."""
        super().update_parameters(**self._convert_parameters(resources))

    def script(self, jobs: int) -> str:
        """Return the batch script for a number of jobs; the executor cannot submit any after that."""
        if jobs > 1:
            self.parameters["map_count"] = jobs  # as submitit does before it submits an array
        return self._make_submission_file_text(self._submitit_command_str, uid="")


def slurm_executor(launcher: Slurm, logs: Path, name: str) -> ScriptExecutor:
    """Return the executor that submits jobs to Slurm.

    Args:
        launcher: the resources of a job.
        logs: submitit's folder.
        name: of the jobs in the queue.
    """
    executor = ScriptExecutor(logs, launcher.max_num_timeout, python=PYTHON)
    executor.update_parameters(
        **_resources(launcher, name, launcher.gpus),
        **_if_set(
            partition=launcher.partition,
            account=launcher.account,
            qos=launcher.qos,
            constraint=launcher.constraint,
            array_parallelism=launcher.array_parallelism,
            additional_parameters=_with_requeue(launcher.sbatch_options()),
            srun_args=launcher.srun_args,
        ),
    )
    return executor


def local_executor(launcher: Slurm, logs: Path, name: str) -> LocalExecutor:
    """Return the executor that starts jobs as processes of this machine; the arguments are as above."""
    executor = LocalExecutor(logs, launcher.max_num_timeout, python=PYTHON)
    executor.update_parameters(**_resources(launcher, name, min(launcher.gpus, len(visible_gpus()))))
    return executor


def _with_requeue(options: dict[str, Any]) -> dict[str, Any]:
    """Return sbatch's options with ``--requeue``, which some clusters demand; what is set to false is left out."""
    ours = {} if "no_requeue" in options else {"requeue": True}
    return {name: value for name, value in (ours | options).items() if value is not False}


def _resources(launcher: Slurm, name: str, gpus: int) -> dict[str, Any]:
    return _if_set(
        name=name,
        nodes=launcher.num_machines,
        tasks_per_node=1,
        timeout_min=launcher.timeout_min,
        gpus_per_node=gpus,
        cpus_per_task=launcher.cpus_per_task,
        mem_gb=launcher.mem_gb,
        stderr_to_stdout=True,
        setup=launcher.setup,
    )


def _if_set(**values: Any) -> dict[str, Any]:
    """Return the values without those that are null, 0 or empty, which leave the choice to Slurm."""
    return {name: value for name, value in values.items() if value}
