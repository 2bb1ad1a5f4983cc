"""How fast texts become vectors, beside ``SentenceTransformer.encode`` with its defaults, in one process.

Then how the static embedder distilled from the same model (``dedup/embedder=static_bundled``) compares: texts a second,
and which of the model's pairs it has at its own thresholds. The table in docs/dedup_threshold.md is of this.

    OMP_WAIT_POLICY=passive python benchmarks/embedding.py
    OMP_WAIT_POLICY=passive python benchmarks/embedding.py conversations.jsonl.gz --rounds 7 --enforce

FILE holds conversations, one a line (ShareGPT); without it the starter set, whose short texts say little about speed.
Ours starts with an empty store and pays for loading the model and for writing; encode's model is loaded before. The
static embedder has been distilled before; how long that took is printed. ``--turns``: every answer of a conversation,
for the table alone.

Goals: at least 2 times as fast; every cosine to fp32 at least 0.999; at 0.95 the rows kept differ in at most 1 of
1,000; the static embedder at least 50 times as fast as encode. They are enforced (``--enforce``: exit 1) on two cores
with bf16. On a shared machine only ratios mean something, so the contenders take turns, and a ratio is the median of
those of neighbors in time.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import MINILM, STARTER, Goals, answers, machine, measure

from sft_lab.core.context import StageContext
from sft_lab.core.store import Store
from sft_lab.dedup.embed import embed
from sft_lab.dedup.embed_batches import precision
from sft_lab.dedup.exact import Keep
from sft_lab.dedup.keep_rules import representatives
from sft_lab.dedup.texts import Texts, nodes_of
from sft_lab.dedup.vector_search import build

STATIC = dataclasses.replace(MINILM, distill=256)


def kept_at(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """Which rows stay, in source order: bool, shape (rows,)."""
    rows = np.arange(len(vectors))
    return representatives(build(vectors, threshold, 50_000_000), rows, rows, Keep.first)[0]


def turns(file: str) -> list[str]:
    """Every answer of each conversation of a ShareGPT file."""
    with (gzip.open if file.endswith(".gz") else open)(file, "rt", encoding="utf-8") as lines:
        conversations = [json.loads(line)["conversations"] for line in lines]
    return [turn["value"] for conversation in conversations for turn in conversation
            if turn["from"] == "gpt" and turn["value"].strip()]  # fmt: skip


def compare_pairs(texts: list[str], vectors: np.ndarray, static: np.ndarray) -> None:
    """Print how many of the model's pairs the static embedder has at thresholds of its own, and how many others."""
    first = np.unique(nodes_of(Texts.of_list(texts))[1], return_index=True)[1]
    pairs = {name: np.triu(part @ part.T, 1) for name, part in (("model", vectors[first]), ("static", static[first]))}
    print(f"{len(first)} different texts; static threshold: pairs; of the model's pairs, found, and others, at")
    for threshold in (0.8, 0.85, 0.88, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99):
        near = pairs["static"] >= threshold
        line = f"  {threshold:.2f}: {int(near.sum()):9}"
        for level in (0.9, 0.95):
            wanted = pairs["model"] >= level
            hit = int((near & wanted).sum())
            line += f"   {level}: {hit} of {int(wanted.sum())}, {int(near.sum()) - hit} others"
        rows = (near | near.T).any(1).mean()
        print(f"{line}   rows with such a neighbor: {rows:.1%}")


def main() -> None:
    """Read the command line, measure, hold the figures against the goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", default=STARTER, metavar="FILE")
    parser.add_argument("--rows", type=int, help="only the first so many")
    parser.add_argument("--turns", action="store_true", help="every answer of a conversation; without encode")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--enforce", action="store_true", help="exit 1 when a goal is missed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(machine("sentence-transformers", "transformers"))

    with tempfile.TemporaryDirectory() as folder:
        context = StageContext(Store(Path(folder) / "rows"))
        texts = turns(arguments.file) if arguments.turns else answers(arguments.file, context)
        texts = texts[: arguments.rows]
        model = MINILM.load(context)
        began = time.perf_counter()
        STATIC.load(context)
        print(f"distilled in {time.perf_counter() - began:.0f} s")
        result: dict[str, np.ndarray] = {}

        def ours() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as store:
                result["ours"] = embed(Texts.of_list(texts), MINILM, StageContext(Store(Path(store))))

        def theirs() -> None:
            result["encode"] = model.encode(texts, show_progress_bar=False)

        def static() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as store:
                shutil.copytree(context.store.root / "distill", Path(store) / "distill")
                result["static"] = embed(Texts.of_list(texts), STATIC, StageContext(Store(Path(store))))

        model.encode(texts[:8])  # the first batch of a process is slow
        contenders = {"ours": ours, "encode": theirs, "static": static}
        if arguments.turns:  # for the pairs alone
            del contenders["encode"]
        seconds = measure(contenders, arguments.rounds, warm_up=False)

    print(f"{len(texts)} answers, {len(set(texts))} different; ours in {precision()}")
    for name, times in seconds.items():
        rates = sorted(len(texts) / time for time in times)
        print(f"  {name:7} {statistics.median(rates):6.1f} texts/s, from {rates[0]:.1f} to {rates[-1]:.1f}")
    compare_pairs(texts, result["ours"], result["static"])
    if arguments.turns:
        return
    ratios = sorted(mine / its for mine, its in zip(seconds["encode"], seconds["ours"], strict=True))
    print(
        f"  ratio of the best times {min(seconds['encode']) / min(seconds['ours']):.2f}, "
        f"by rounds from {ratios[0]:.2f} to {ratios[-1]:.2f}"
    )
    true = result["encode"] / np.linalg.norm(result["encode"], axis=1, keepdims=True)
    different = int((kept_at(result["ours"], 0.95) != kept_at(true, 0.95)).sum())
    goals = Goals("embedding")
    goals.ratio("speed relative to SentenceTransformer.encode", seconds["encode"], seconds["ours"], least=2)
    goals.hold("lowest cosine to fp32", float((result["ours"] * true).sum(axis=1).min()), least=0.999)
    goals.ratio("static: times as fast as encode", seconds["encode"], seconds["static"], least=50)
    goals.ratio("static: times as fast as ours", seconds["ours"], seconds["static"])
    goals.hold("rows kept differently at 0.95", different, most=max(1, len(texts) // 1000))
    goals.end(enforce=arguments.enforce)


if __name__ == "__main__":
    main()
