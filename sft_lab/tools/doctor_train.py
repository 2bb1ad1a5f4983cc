"""``sft-lab doctor --train``: ten steps of each trainer option on each device of this machine, as a table.

Each attempt is a whole run in its own process, so that its peak memory can be measured and a crash is survived.
Everything, including the store, is in a temporary folder.
"""

from __future__ import annotations

import importlib.util
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
from sft_lab.core.gpus import visible_gpus
from sft_lab.core.io import parse_json, read_json, write_json, write_text
from sft_lab.core.log import log
from sft_lab.core.run_dir import RunDir
from sft_lab.core.text import one_line
from sft_lab.tracking import manifest

TRAINERS = ("lora", "dora", "qlora", "full")
STEPS = 10
TIMEOUT = 1800  # seconds for one attempt; a large model on a slow processor takes long
PEAK_MEMORY = "peak.json"
MAX_ERROR = 300  # characters
HEADINGS = (
    "device",
    "trainer",
    "precision",
    "loss head",
    f"loss, step 1 to {STEPS}",
    "tokens/s",
    "peak memory",
    "result",
)

# Small in everything but the training itself.
OVERRIDES = (
    f"trainer.max_steps={STEPS}",
    "trainer.logging_steps=1",
    f"trainer.eval_steps={STEPS}",
    f"trainer.save_steps={STEPS}",
    "dataset.limit=40",
    "dedup=exact",
    "decontaminate.method=exact",
    "split.max_eval_rows=8",
    "tracking=local",
    "launch=serial",
)


@dataclass(frozen=True)
class TrainingAttempt:
    """A trainer option on a device: one row of the table.

    Attributes:
        device: ``cpu`` or ``cuda:0``.
        trainer: option of the group ``trainer``.
        result: ``ok``, or why the attempt failed or was skipped.
        measured: precision, loss head, losses, tokens/s and peak memory; empty without a finished run.
        has_failed: whether it failed although it should work.
    """

    device: str
    trainer: str
    result: str
    measured: tuple[str, ...] = ("",) * 5
    has_failed: bool = False

    @property
    def cells(self) -> tuple[str, ...]:
        """The row's cells, in the order of ``HEADINGS``."""
        return (self.device, self.trainer, *self.measured, self.result)


def try_trainers(model: str) -> Iterator[TrainingAttempt]:
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


def _try(root: Path, device: str, visible: str, trainer: str, model: str) -> TrainingAttempt:
    """Train in a separate process, and return the attempt."""
    if trainer == "qlora" and not importlib.util.find_spec("bitsandbytes"):
        return TrainingAttempt(device, trainer, "skipped: needs bitsandbytes")
    overrides = [f"trainer={trainer}", f"model={model}", f"store.path={root / 'store'}", *OVERRIDES]
    if model == "tiny_random":  # at the usual rates, ten steps would hardly change random weights
        overrides.append("trainer.learning_rate=1e-2")
    try:
        run = configs.compose(overrides)
    except ConfigError as error:
        if trainer != "qlora":  # the model is at fault, and so every row
            raise
        return TrainingAttempt(device, trainer, f"skipped: {error}")

    folder = RunDir(root / f"{device.replace(':', '-')}-{trainer}")
    folder.path.mkdir()
    write_text(folder.config, run.to_yaml())
    log.info("%s %s: %d steps", device, trainer, STEPS)
    if problem := _run_process(folder, visible):
        return TrainingAttempt(device, trainer, f"FAILED: {problem}", has_failed=True)
    measured, is_finite = _read_measurements(folder)
    result = "ok" if is_finite else "FAILED: a loss is not a number"
    return TrainingAttempt(device, trainer, result, measured, has_failed=not is_finite)


def _run_process(folder: RunDir, visible: str) -> str:
    """Execute the run in a process that sees the given GPU, and return its error; empty on success."""
    command = [sys.executable, "-P", "-m", "sft_lab.tools.doctor_train", str(folder.path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": visible}
    with folder.output.open("wb") as file:
        try:
            code = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=TIMEOUT,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return f"not finished after {TIMEOUT} s"
    if not code:
        return ""

    status = read_json(folder.status) if folder.status.exists() else {}
    lines = folder.output.read_text(encoding="utf-8", errors="replace").split("\n")
    error = status.get("error") or next((line for line in reversed(lines) if line.strip()), "")
    signal = f" (signal {-code})" if code < 0 else ""
    return f"{one_line(error, MAX_ERROR)}{signal}"


def _read_measurements(folder: RunDir) -> tuple[tuple[str, ...], bool]:
    """Return the measured cells of a finished attempt, and whether every loss is a finite number."""
    events = [parse_json(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    losses = [event["train/loss"] for event in events if "train/loss" in event]
    loss_heads = re.findall(r"loss_head=(\w+)", folder.log.read_text(encoding="utf-8"))
    cells = (
        read_json(folder.manifest)["precision"],
        loss_heads[-1],
        f"{losses[0]:.3f} to {losses[-1]:.3f}",
        f"{read_json(folder.summary)['tokens_per_second']:,.0f}",
        f"{read_json(folder.path / PEAK_MEMORY)['bytes'] / 1e9:.2f} GB",
    )
    return cells, len(losses) == STEPS and all(map(math.isfinite, losses))


def print_attempts(model: str) -> int:
    """Print the table in Markdown, to be pasted into a README, and return the exit code: 1 if an attempt failed."""
    attempts = list(try_trainers(model))
    rows = [HEADINGS, ("---",) * len(HEADINGS), *(attempt.cells for attempt in attempts)]
    table = "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in rows)

    machine, versions = manifest.hardware(), manifest.versions()
    hardware = ", ".join([f"{machine['processor']} ({machine['cores']} cores)", *machine["gpus"]])
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "trl", "peft"))
    caption = (
        f"model={model}; memory of the process, or allocated on the GPU; {hardware}; Python {versions['python']}, "
        f"{libraries}; {manifest.now()[:10]}"
    )
    sys.stdout.write(f"\n{table}\n{caption}\n")
    return int(any(attempt.has_failed for attempt in attempts))


def _execute(folder: Path) -> None:
    """Execute one attempt in this process, and write its peak memory: of the GPU where there is one."""
    import resource

    from sft_lab.core import console

    console.prepare()
    configs.load(folder / "config.yaml").execute(folder)

    import torch

    unit = 1 if sys.platform == "darwin" else 1024  # bytes; what the system counts in
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident
    write_json(folder / PEAK_MEMORY, {"bytes": peak})


if __name__ == "__main__":
    _execute(Path(sys.argv[1]))
