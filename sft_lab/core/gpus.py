"""The GPUs that this process may use, without torch, which would occupy one."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from functools import cache

from sft_lab.core.hardware import rank
from sft_lab.core.log import log

DEVICE_FILES = ("/dev/nvidia0", "/dev/dxg")  # of the Linux driver and of WSL's
VISIBLE = "CUDA_VISIBLE_DEVICES"  # read once, when a process initializes CUDA


def visible_gpus() -> list[str]:
    """Return the GPUs that may be used, by their CUDA names."""
    allowed = os.environ.get(VISIBLE)
    if allowed is not None:
        names = [name.strip() for name in allowed.split(",")]
        return names[: names.index("-1")] if "-1" in names else [name for name in names if name]
    return [*installed_gpus()]


@cache
def installed_gpus() -> list[str]:
    """Return the numbers of the GPUs that the driver lists; cached, since the query takes a tenth of a second."""
    if not shutil.which("nvidia-smi"):
        return []
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number, line in enumerate(listing.stdout.splitlines()) if line.startswith("GPU ")]


def has_gpu() -> bool:
    """Return whether the system has an NVIDIA GPU that this process may use.

    A container may have the device and no ``nvidia-smi``. Asking PyTorch would take a second to import it.
    """
    if os.environ.get(VISIBLE) is not None and not visible_gpus():
        return False
    return bool(shutil.which("nvidia-smi")) or any(map(os.path.exists, DEVICE_FILES))


def use_one_gpu(unused: str = "") -> None:
    """Hide all GPUs but the first from a process that trains alone.

    Transformers counts every visible GPU, and TRL refuses more than one in a process.

    Args:
        unused: what would use the other GPUs too, for the log.
    """
    gpus = visible_gpus()
    if rank() is not None or len(gpus) < 2:
        return
    os.environ[VISIBLE] = gpus[0]
    log.info(
        "device: GPU %s, one of %d; %s=%s chooses another%s",
        gpus[0],
        len(gpus),
        VISIBLE,
        gpus[1],
        f". {unused}" if unused else "",
    )


def gpu_is_in_use() -> bool:
    """Return whether this process has initialized CUDA."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def release_memory() -> None:
    """Free the memory of models no longer in use; a trainer and its parts form reference cycles."""
    gc.collect()
    if gpu_is_in_use():
        sys.modules["torch"].cuda.empty_cache()
