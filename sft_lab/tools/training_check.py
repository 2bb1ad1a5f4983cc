"""``sft-lab doctor --train``: ten steps of each trainer option on each device that is here, and a table of it.

Each attempt is a whole run in a process of its own: only so is its peak of memory its own, and only so can one that
dies be told. All of it lies in a temporary folder, the store too.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sft_lab import config as configs
from sft_lab.core.errors import ConfigError
from sft_lab.core.io import parse_json, read_json, write_json, write_text
from sft_lab.core.log import log
from sft_lab.core.run_dir import RunDir
from sft_lab.run.launch_config import visible_gpus
from sft_lab.tracking import manifest

TRAINERS = ("lora", "dora", "qlora", "full")
STEPS = 10
PATIENCE = 1800  # seconds for one attempt; a large model on a slow processor takes long
PEAK = "peak.json"
# Small in everything but the training itself.
SMALL = (
    f"trainer.max_steps={STEPS}", "trainer.logging_steps=1", f"trainer.eval_steps={STEPS}",
    f"trainer.save_steps={STEPS}", "dataset.limit=40", "dedup=exact", "decontaminate.method=exact",
    "split.max_eval_rows=8", "tracking=local", "launch=serial",
)  # fmt: skip


@dataclass(frozen=True)
class Tried:
    """One line of the table.

    Attributes:
        cells: device, trainer, precision, loss head, losses, tokens/s, peak memory, result.
        failed: whether it should have worked and did not.
    """

    cells: tuple[str, ...]
    failed: bool = False


HEADS = ("device", "trainer", "precision", "loss head", f"loss, step 1 to {STEPS}", "tokens/s", "peak memory", "result")


def attempts(model: str) -> Iterator[Tried]:
    """Try every trainer on every device, the processor first.

    Args:
        model: an option of the group ``model``.

    Raises:
        ConfigError: if there is no such option.
    """
    with tempfile.TemporaryDirectory(prefix="sft-lab-doctor-") as folder:
        for device, visible in [("cpu", ""), *((f"cuda:{name}", name) for name in visible_gpus())]:
            for trainer in TRAINERS:
                yield _try(Path(folder), device, visible, trainer, model)


def _try(root: Path, device: str, visible: str, trainer: str, model: str) -> Tried:
    """Make the run's folder, let a process execute it, and read what it left."""
    words = [f"trainer={trainer}", f"model={model}", f"store.path={root / 'store'}", *SMALL]
    if model == "tiny_random":  # a random model has far to go, and ten steps at the usual rates would not show it
        words.append("trainer.learning_rate=1e-2")
    if trainer == "qlora" and not visible:
        return Tried((device, trainer, *[""] * 5, "left out: needs an NVIDIA GPU"))
    try:
        run = configs.compose(words)
    except ConfigError as error:
        if trainer != "qlora":  # of the model, or of all; nothing that a table could tell
            raise
        return Tried((device, trainer, *[""] * 5, f"left out: {error}"))
    folder = RunDir(root / f"{device.replace(':', '-')}-{trainer}")
    folder.path.mkdir()
    write_text(folder.config, run.to_yaml())
    log.info("%s %s: %d steps", device, trainer, STEPS)
    output = folder.path / "output.log"
    with output.open("wb") as file:
        command = [sys.executable, "-P", "-m", "sft_lab.tools.training_check", str(folder.path)]
        try:
            code = subprocess.run(
                command, env={**os.environ, "CUDA_VISIBLE_DEVICES": visible}, stdin=subprocess.DEVNULL, stdout=file,
                stderr=file, timeout=PATIENCE, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            return Tried((device, trainer, *[""] * 5, f"FAILED: not done after {PATIENCE} s"), failed=True)
    if code:
        return Tried((device, trainer, *[""] * 5, f"FAILED: {_why(folder, code)}"), failed=True)
    told, is_finite = _told(folder)
    return Tried((device, trainer, *told, "ok" if is_finite else "FAILED: the loss is no number"), failed=not is_finite)


def _why(folder: RunDir, code: int) -> str:
    """Say in a line why a process ended badly."""
    status = read_json(folder.status) if folder.status.exists() else {}
    lines = (folder.path / "output.log").read_text(encoding="utf-8", errors="replace").split("\n")
    said = status.get("error") or next((line for line in reversed(lines) if line.strip()), "")
    return " ".join(str(said).split())[:300] + (f" (signal {-code})" if code < 0 else "")


def _told(folder: RunDir) -> tuple[tuple[str, ...], bool]:
    """Read what a finished attempt left, and whether every loss was a number."""
    events = [parse_json(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    losses = [event["train/loss"] for event in events if "train/loss" in event]
    head = re.findall(r"loss_head=(\w+)", folder.log.read_text(encoding="utf-8"))
    cells = (
        read_json(folder.manifest)["precision"],
        head[-1],
        f"{losses[0]:.3f} to {losses[-1]:.3f}",
        f"{read_json(folder.summary)['tokens_per_second']:,.0f}",
        f"{read_json(folder.path / PEAK)['bytes'] / 1e9:.2f} GB",
    )
    return cells, len(losses) == STEPS and all(map(math.isfinite, losses))


def _execute(folder: Path) -> None:
    """Carry out one attempt in this process, and note the most memory it held: of the GPU where there is one."""
    import resource

    from sft_lab.core import console

    console.prepare()
    configs.load(folder / "config.yaml").execute(folder)

    import torch

    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    held = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident
    write_json(folder / PEAK, {"bytes": held})


def show(model: str) -> int:
    """Print the table in Markdown, to be pasted into a README, and give the exit code: 1 if an attempt failed."""
    tried = list(attempts(model))
    here = manifest.hardware()
    hardware = ", ".join([f"{here['processor']} ({here['cores']} cores)", *here["gpus"]])
    versions = manifest.versions()
    lines = [HEADS, ("---",) * len(HEADS), *(one.cells for one in tried)]
    table = "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "trl", "peft"))
    said = (
        f"model={model}; memory of the process, or taken on the GPU; {hardware}; Python {versions['python']}, "
        f"{libraries}; {manifest.now()[:10]}"
    )
    sys.stdout.write(f"\n{table}\n{said}\n")
    return int(any(one.failed for one in tried))


if __name__ == "__main__":
    _execute(Path(sys.argv[1]))
