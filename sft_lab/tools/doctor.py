"""``sft-lab doctor``: check this machine for what runs need, and for changes since a run. It changes nothing."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from sft_lab import config as configs
from sft_lab.core import plugins, tolerant_readers
from sft_lab.core.errors import ConfigError
from sft_lab.core.hardware import fast_bf16
from sft_lab.core.hub import unreachable_hub
from sft_lab.core.run_discovery import open_run_dir
from sft_lab.core.store import Store, default_root
from sft_lab.core.text import count_of
from sft_lab.jobs import environment
from sft_lab.run.launch_config import Ray, Slurm
from sft_lab.tools.diagnosis import Diagnosis, Severity, note, ok, problem
from sft_lab.tools.doctor_packages import (
    check_bundled_packages,
    check_conflicts,
    check_faiss,
    check_packages,
    declared_requirements,
    version_of,
)
from sft_lab.tools.push import login_problems
from sft_lab.tracking.config import Mode, Wandb

TESTED_PYTHON = (3, 11)
MIN_FREE_DISK = 1e9  # bytes; a checkpoint of the bundled model with all weights is larger

_TRUE = re.compile("1|on|yes|true", re.IGNORECASE)

# Environment variables with an effect that users do not expect: name, when it has one, and which.
VARIABLES: tuple[tuple[str, Callable[[str], object], str], ...] = (
    ("TRANSFORMERS_CACHE", bool, "is ignored by Transformers 5; set HF_HOME"),
    ("WANDB_DISABLED", bool, "is ignored by Transformers 5 and here; use tracking=local or WANDB_MODE=disabled"),
    ("WANDB_LOG_MODEL", bool, "has no effect here: no weights are sent to W&B; sft-lab push publishes a model"),
    ("WANDB_WATCH", bool, "has no effect here: gradients are not sent; metrics.jsonl has their norm"),
    ("WANDB_DIR", bool, "has no effect here: W&B's files go into the run or sweep folder"),
    ("HF_HUB_OFFLINE", _TRUE.fullmatch, "is set: only models and data already downloaded can be used"),
    ("TRANSFORMERS_OFFLINE", _TRUE.fullmatch, "is set: the old name of HF_HUB_OFFLINE, with the same effect"),
    ("HF_DATASETS_OFFLINE", _TRUE.fullmatch, "is set: affects only datasets; HF_HUB_OFFLINE affects models too"),
    ("TOKENIZERS_PARALLELISM", _TRUE.fullmatch, "is set: data-loading processes can hang; unset it"),
    ("OMP_NUM_THREADS", lambda value: value.isdigit() and int(value) < _core_count(), "leaves cores idle; unset it"),
)


def diagnose_machine() -> list[Diagnosis]:
    """Return the state of Python, packages, devices, folders, Hub, W&B and launchers."""
    return [
        *check_python(),
        *check_packages(declared_requirements()),
        *check_conflicts(),
        *check_variables(),
        *check_devices(),
        *check_faiss(),
        *check_store(default_root()),
        *check_folders(),
        *check_login(),
        *check_network(),
        *check_wandb(),
        *check_bundled_packages(),
        *check_launchers(),
        *check_plugins(),
    ]


def diagnose_run(path: Path) -> tuple[list[str], list[Diagnosis]]:
    """Return what has changed since a run, and problems that would keep it from running again.

    Raises:
        UserError: if there is no such run, or its files cannot be read.
    """
    folder = open_run_dir(path)
    run = configs.load(folder.config)
    manifest = tolerant_readers.read(folder.manifest)
    differences = environment.differences(manifest, environment.current(run)) if manifest else None
    return environment.lines(differences), [problem("run", message) for message in run.check()]


def print_diagnoses(lines: list[str], diagnoses: list[Diagnosis]) -> int:
    """Print lines and diagnoses, and return the exit code: 1 with a problem, else 0."""
    sys.stdout.write("".join(f"{line}\n" for line in [*lines, *map(str, diagnoses)]))
    return int(any(diagnosis.severity == Severity.PROBLEM for diagnosis in diagnoses))


def check_python() -> Iterator[Diagnosis]:
    """Yield the version of Python and the operating system."""
    version = f"{platform.python_version()} on {platform.platform(terse=True)}"
    if sys.platform.startswith("linux") and sys.version_info[:2] == TESTED_PYTHON:
        yield ok("python", version)
    else:
        tested = ".".join(map(str, TESTED_PYTHON))
        yield note("python", f"{version}; sft_lab is tested with Python {tested} on Linux")


def check_variables() -> Iterator[Diagnosis]:
    """Yield environment variables whose effect may surprise."""
    for name, has_effect, effect in VARIABLES:
        value = os.environ.get(name, "").strip()
        if value and has_effect(value):
            yield note("variable", f"{name}={value} {effect}")


def _core_count() -> int:
    return len(os.sched_getaffinity(0))


def check_devices() -> Iterator[Diagnosis]:
    """Yield the GPUs, then the processor: bf16, threads and cores."""
    import torch

    cuda = torch.version.cuda
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        names = ", ".join(f"{card.name} {card.total_memory / 1e9:.0f} GB" for card in cards)
        yield ok("devices", f"{names}, {'with' if fast_bf16('cuda') else 'without'} bf16 (CUDA {cuda})")
        if not importlib.util.find_spec("bitsandbytes"):
            yield note("devices", "trainer=qlora needs bitsandbytes; run: pip install 'sft_lab[gpu]'")
    elif shutil.which("nvidia-smi"):
        build = f"CUDA {cuda}" if cuda else "a CPU build"
        yield problem(
            "devices",
            f"nvidia-smi is installed, but torch {torch.__version__} ({build}) finds no GPU; install the torch build "
            "for the driver's CUDA version, see https://pytorch.org/get-started",
        )
    elif cuda:
        yield note(
            "devices",
            f"torch {torch.__version__} is built for CUDA {cuda}, but there is no NVIDIA driver: the CPU is used; if "
            "there is a GPU, install its driver",
        )

    threads, cores = torch.get_num_threads(), _core_count()
    bf16 = "with bf16" if fast_bf16("cpu") else "without bf16 (float32 is used)"
    processor = f"processor {bf16}; {count_of(threads, 'thread')} on {count_of(cores, 'core')}"
    if threads > cores:
        yield note("devices", f"{processor}: more threads than cores slows it down; set threads={cores}")
    else:
        yield ok("devices", processor)


def check_store(root: Path) -> Iterator[Diagnosis]:
    """Yield the state of the stage store, its size and the free disk space."""
    if message := _disk_problem(
        root, "set store.path or SFT_LAB_STORE to a folder you can write to, or sft-lab store prune"
    ):
        yield problem("store", message)
    elif problems := Store(root).check():
        yield problem("store", problems[0])
    else:
        size = sum(entry.size for entry in Store(root).listing())
        free = shutil.disk_usage(_nearest_existing(root)).free
        yield ok("store", f"{root}: {size / 1e9:,.2f} GB, {free / 1e9:,.1f} GB free")


def check_folders() -> Iterator[Diagnosis]:
    """Yield problems with the other folders that are written: the Hub's cache, and runs."""
    cache = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    hydra_keys = "set hydra.run.dir and hydra.sweep.dir, or start in a writable folder with free space"
    for topic, folder, remedy in (
        ("downloads", Path(cache).expanduser(), "set HF_HOME to a writable folder with free space"),
        ("runs", Path.cwd(), hydra_keys),
    ):
        if message := _disk_problem(folder, remedy):
            yield problem(topic, message)


def _disk_problem(folder: Path, remedy: str) -> str:
    """Return why a folder cannot be written or lacks space; empty if it is fine."""
    existing = _nearest_existing(folder)
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        return f"{folder}: cannot be written; {remedy}"
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_DISK:
        return f"{folder}: {free / 1e9:,.1f} GB free, needs {MIN_FREE_DISK / 1e9:.0f}; {remedy}"
    return ""


def _nearest_existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def check_login() -> Iterator[Diagnosis]:
    """Yield whether there is a login for the Hub."""
    problems = login_problems()
    if not problems:
        endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        yield ok("hub", f"logged in; {endpoint}")
    elif problems[0].startswith("no login"):
        yield note("hub", f"{problems[0]} (not needed for public models and data)")
    else:
        yield problem("hub", problems[0])


def check_network() -> Iterator[Diagnosis]:
    """Yield a note if the Hub does not answer; offline mode does not contact it."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and (reason := unreachable_hub()):
        remedy = "check the network and its proxy, or set HF_ENDPOINT to a mirror"
        yield note("hub", f"{reason}: only models and data already downloaded can be used; {remedy}")


def check_wandb() -> Iterator[Diagnosis]:
    """Yield where W&B records would go, and why."""
    package = importlib.util.find_spec("wandb")
    if package and package.origin and not (Path(package.origin).parent / "bin" / "wandb-core").is_file():
        yield problem(
            "wandb",
            f"wandb {version_of('wandb') or ''} lacks bin/wandb-core, which writes its records; "
            "run: pip install --force-reinstall --only-binary=:all: wandb, or use tracking=local",
        )

    mode, variable = Wandb().resolved_mode(), os.environ.get("WANDB_MODE", "").strip().lower()
    modes = [mode.name for mode in Mode if mode is not Mode.auto]
    if variable and variable not in modes:
        limits = f"must be one of {', '.join(modes)}"
        yield problem("wandb", f"WANDB_MODE={variable}: {limits}; unset it or set one of them")
    elif variable:
        yield ok("wandb", f"{mode}, as set by WANDB_MODE")
    elif mode == "online":
        yield ok("wandb", "online: logged in")
    else:
        yield note("wandb", "offline: not logged in; runs are kept here until `wandb sync`; run `wandb login`")


def check_launchers() -> Iterator[Diagnosis]:
    """Yield whether the clients of Slurm and Ray are installed, without contacting a cluster."""
    for launcher in (Slurm(), Ray()):
        if missing := launcher.missing_requirements():
            yield note("launch", missing[0])
        else:
            yield ok("launch", f"launch={type(launcher).__name__.lower()} can be used")


def check_plugins() -> Iterator[Diagnosis]:
    """Yield the stages of plug-ins and ``SFT_LAB_STAGES``, imported as a run would import them."""
    for plugin in plugins.named():
        try:
            stages, _ = plugin.load()
            configs.register_plugins()
        except ConfigError as error:
            yield problem("plug-in", str(error))
        else:
            yield ok("plug-in", f"{plugin}: {', '.join(stages)}")
