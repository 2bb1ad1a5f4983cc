"""How long a user waits before anything happens: ``sft-lab --cfg job`` and ``--help`` against ``import hydra``.

Run it: python benchmarks/start_up.py [rounds]
The three are started in turn, so that a busy machine slows all alike; what is said is the median of each round's
ratio to ``import hydra``. Goal: at most 2.5 for --cfg job (Hydra's own printing composes twice).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

from common import Goals

COMMANDS = {
    "import hydra": [sys.executable, "-c", "import hydra"],
    "sft-lab --cfg job": [sys.executable, "-m", "sft_lab", "--cfg", "job"],
    "sft-lab --help": [sys.executable, "-m", "sft_lab", "--help"],
}


def seconds(command: list[str], folder: str) -> float:
    """Wall time of one process, in a folder without options of its own."""
    began = time.perf_counter()
    environment = os.environ | {"SFT_LAB_STORE": folder}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - began


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS.values():
            seconds(command, folder)  # the first start writes bytecode
        took = {name: [] for name in COMMANDS}
        for _ in range(rounds):
            for name, command in COMMANDS.items():
                took[name].append(seconds(command, folder))
    base = took["import hydra"]
    for name, times in took.items():
        ratio = statistics.median(mine / its for mine, its in zip(times, base, strict=True))
        print(
            f"{name:<18} median {statistics.median(times):.3f} s   best {min(times):.3f} s   {ratio:.2f} x import hydra"
        )
    goals = Goals("start-up")
    goals.ratio("--cfg job: time relative to `import hydra`", took["sft-lab --cfg job"], base, most=2.5)
    goals.ratio("--help: time relative to `import hydra`", took["sft-lab --help"], base)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
