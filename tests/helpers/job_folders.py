"""Run folders as a run writes them, with chosen losses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sft_lab.core.io import write_json, write_text
from sft_lab.core.run_dir import RunDir

ROWS = 64
CONFIG: dict[str, Any] = {
    "format": 1,
    "dataset": {"kind": "file", "path": "rows.jsonl", "limit": 100},
    "dedup": {"kind": "exact", "keep": "first"},
    "template": {"kind": "auto"},
    "model": {"kind": "pretrained", "name_or_path": "owner/base"},
    "trainer": {"kind": "lora", "learning_rate": 1e-4, "max_steps": 20},
    "tracking": {"kind": "local"},
    "seed": 1,
    "choices": {"dataset": "file", "dedup": "exact", "template": "auto", "model": "base", "trainer": "lora"},
}
TOKENS = np.random.default_rng(0).integers(20, 200, ROWS)
NATS_PER_TOKEN = np.random.default_rng(1).normal(2.0, 0.4, ROWS)  # of each row


def make_config(**changes: Any) -> dict[str, Any]:
    """Return CONFIG with changes at dotted keys, their dots written as two underscores; None removes a key."""
    config: dict[str, Any] = json.loads(json.dumps(CONFIG))
    for key, value in changes.items():
        *path, last = key.split("__")
        node = config
        for part in path:
            node = node.setdefault(part, {})
        if value is None:
            node.pop(last, None)
        else:
            node[last] = value
    return config


def nats_of(worse: float = 1.0, seed: int = 0, *, seeds_move: float = 0.003, rows_move: float = 0.01) -> np.ndarray:
    """Return the nats of each row: its setting's factor, times its seed's, times what the seed did to the row."""
    chance = np.random.default_rng([seed, round(worse * 1e6)])
    moved = np.exp(chance.normal(0, seeds_move)) * np.exp(chance.normal(0, rows_move, ROWS))
    nats: np.ndarray = TOKENS * NATS_PER_TOKEN * worse * moved
    return nats


def write_job(
    path: Path, nats: np.ndarray | None = None, *, state: str = "finished", fingerprint: str = "f" * 64,
    tokens: np.ndarray = TOKENS, ids: list[str] | None = None, saved: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = None, error: str | None = None, tuned: str = "an answer", prompt: str = "a prompt",
    train_fingerprint: str | None = None, **changes: Any,
) -> RunDir:  # fmt: skip
    """Write the folder of a run; without nats it has not finished."""
    folder = RunDir(path)
    write_text(folder.config, yaml.safe_dump(saved or make_config(**changes), allow_unicode=True))
    write_json(folder.status, {"state": state, "work": "run", **({"error": error} if error else {})})
    write_json(folder.manifest, {"held_out_fingerprint": fingerprint, "train_fingerprint": train_fingerprint})
    write_json(folder.waterfall, {"stages": [{"stage": "load", "rows_in": 100, "rows_kept": 90, "dropped": {}}]})
    events: list[dict[str, Any]] = [{"step": 0, "epoch": 0.0, "eval/loss": 2.5, "eval/bits_per_byte": 0.9}]
    events += [
        {"step": step, "epoch": step / 20, "train/loss": 2.4 - step / 100, "train/num_tokens": 50 * step}
        for step in (5, 10)
    ]
    events += [{"step": 10, "epoch": 0.5, "eval/loss": 2.3, "eval/bits_per_byte": 0.8}]
    write_text(folder.metrics, "".join(json.dumps(event) + "\n" for event in events))
    if nats is None:
        return folder
    base = tokens * 2.5
    size = tokens * 4
    loss = float(nats.sum() / tokens.sum())
    write_json(
        folder.summary,
        {
            "eval/loss": loss, "eval/bits_per_byte": float(nats.sum() / math.log(2) / size.sum()),
            "base/eval_loss": 2.5, "base/eval_bits_per_byte": float(base.sum() / math.log(2) / size.sum()),
            "gap": 0.05, "steps": 20, "epochs": 1.0, "train_rows": 90, "train_tokens": 1000,
            "best_eval_loss": loss, "best_step": 20, "converged_at": 10,
            "verdict": "healthy", "seconds": 12.0, **(summary or {}),
        },
    )  # fmt: skip
    columns = {"id": ids or [f"row-{number}" for number in range(len(tokens))]}
    for name, losses in (("base", base), ("tuned", nats)):
        columns |= {f"{name}/nll": losses.astype(float), f"{name}/tokens": tokens, f"{name}/bytes": size}
    pq.write_table(pa.table(columns), folder.eval)
    write_text(folder.samples, json.dumps({"prompt": prompt, "base": "b", "prompted_base": "p", "tuned": tuned}) + "\n")
    write_text(folder.report, "<p>report</p>")
    return folder


def write_grid(root: Path) -> Path:
    """Write a sweep of 12 jobs: 3 learning rates x 2 dedup options x 2 seeds; the rate of 1e-3 is 5% better."""
    write_json(root / "sweep.json", {})
    for rate, worse in ((1e-4, 1.05), (3e-4, 1.04), (1e-3, 1.0)):
        for option in ("none", "exact"):
            for seed in (1, 2):
                write_job(
                    root / f"learning_rate={rate:g}-dedup={option}-seed={seed}", nats_of(worse, seed), seed=seed,
                    trainer__learning_rate=rate, dedup={"kind": option}, choices__dedup=option,
                )  # fmt: skip
    return root
