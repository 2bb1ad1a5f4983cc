"""Launch options: how the jobs of a sweep are started. ``jobs/`` carries them out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sft_lab.errors import require

CONFIGS = Path(__file__).parent / "jobs" / "accelerate"  # the accelerate configs that are shipped


@dataclass
class Launcher:
    """What every launch option has: how many processes train one job.

    Attributes:
        num_processes: that train a job together, over all machines; one for each GPU. accelerate starts them.
        num_machines: that they are spread over, as many on each.
        config_file: of accelerate: a shipped one by its name (``ddp``, ``fsdp``, ``deepspeed_zero3``), or a path;
            null: ``ddp`` where there are several processes.
    """

    num_processes: int = 1
    num_machines: int = 1
    config_file: str | None = None

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require(self.num_processes >= 1, "num_processes", self.num_processes, "at least 1")
        require(self.num_machines >= 1, "num_machines", self.num_machines, "at least 1")
        fits = self.num_processes % self.num_machines == 0
        require(fits, "num_processes", self.num_processes, f"a multiple of num_machines={self.num_machines}")

    @property
    def distributed(self) -> bool:
        """Whether accelerate starts the processes of a job."""
        return self.num_processes > 1 or self.config_file is not None

    def check(self) -> list[str]:
        """Look for the config file, and for what several machines need."""
        problems = []
        if self.config_file is not None and not self.accelerate_config().is_file():
            shipped = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
            problems.append(f"launch.config_file={self.config_file}: no such file; shipped are {shipped}")
        elif self.distributed and not devices() and (kind := self._kind()) != "MULTI_GPU":
            # accelerate would put a whole copy into each process, and not say so
            problems.append(f"launch.config_file={self.config_file}: {kind} needs GPUs, and there are none; use ddp")
        elif self.distributed and self._kind() == "DEEPSPEED" and not find_spec("deepspeed"):
            problems.append(f"launch.config_file={self.config_file}: needs DeepSpeed; run: pip install deepspeed")
        if self.num_machines > 1 and not os.environ.get("MASTER_ADDR"):
            problems.append(
                f"launch.num_machines={self.num_machines}: each machine must know the others; use launch=slurm, or run "
                "`sft-lab exec JOB_DIR` on each with NODE_RANK, MASTER_ADDR and MASTER_PORT set"
            )
        return problems

    def _kind(self) -> str:
        """What accelerate's config calls the way of sharing the work."""
        found = re.search(
            r"^distributed_type:\s*['\"]?(\w+)", self.accelerate_config().read_text("utf-8"), re.MULTILINE
        )
        return found[1] if found else "MULTI_GPU"

    def accelerate_config(self) -> Path:
        """Give the file that accelerate reads."""
        name = self.config_file or "ddp"
        return CONFIGS / f"{name}.yaml" if name.isidentifier() else Path(name).expanduser().absolute()


@dataclass
class Serial(Launcher):
    """Jobs one after another, in this process."""


@dataclass
class Processes(Launcher):
    """Several jobs at once on this machine, each a process of its own.

    Attributes:
        at_once: how many; null: one for each GPU, without any one for each two cores.
    """

    at_once: int | None = None

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        super().__post_init__()
        require(self.at_once is None or self.at_once >= 1, "at_once", self.at_once, "at least 1, or null")

    def places(self) -> list[str]:
        """Give the device of each of the jobs that run at once, ``""`` for the processor.

        More jobs than devices wait: two trainings on one GPU are slower than one after the other, and may not fit.
        """
        found = devices()
        if found:
            each = max(1, self.num_processes // self.num_machines)
            shares = [",".join(found[at : at + each]) for at in range(0, len(found) - each + 1, each)]
            return shares[: self.at_once]
        return [""] * (self.at_once or max(1, (os.cpu_count() or 1) // 2))


def devices() -> list[str]:
    """GPUs that may be used, by the names CUDA knows them by; found without torch, which would take hold of one."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        names = [name.strip() for name in allowed.split(",")]
        return names[: names.index("-1")] if "-1" in names else [name for name in names if name]
    if not shutil.which("nvidia-smi"):
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]
