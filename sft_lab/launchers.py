"""Launch options: how the jobs of a sweep are started. ``jobs/`` carries them out."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from sft_lab.errors import require


@dataclass
class Launcher:
    """What every launch option has."""


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
        require(self.at_once is None or self.at_once >= 1, "at_once", self.at_once, "at least 1, or null")

    def places(self) -> list[str]:
        """Give the device of each of the jobs that run at once, ``""`` for the processor.

        More jobs than devices wait: two trainings on one GPU are slower than one after the other, and may not fit.
        """
        found = devices()
        if found:
            return found[: self.at_once]
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
