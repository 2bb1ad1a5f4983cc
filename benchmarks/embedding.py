"""How fast texts become vectors, beside ``SentenceTransformer.encode`` with its defaults, in one process.

    OMP_WAIT_POLICY=passive python benchmarks/embedding.py
    OMP_WAIT_POLICY=passive python benchmarks/embedding.py conversations.jsonl.gz --rounds 7 --enforce

FILE holds conversations, one a line (ShareGPT); without it the starter set, whose short texts say little about speed.
Ours starts with an empty store and pays for loading the model and for writing; encode's model is loaded before.

Goals: at least 2 times as fast; every cosine to fp32 at least 0.999; at 0.95 the rows kept differ in at most 1 of
1,000. They are enforced (``--enforce``: exit 1) on two cores with bf16. On a shared machine only ratios mean something,
so the contenders take turns, and a ratio is the median of those of neighbors in time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import MINILM, STARTER, Goals, answers, machine, measure

from sft_lab.core.context import StageContext
from sft_lab.core.store import Store
from sft_lab.dedup.embed import _precision, embed
from sft_lab.dedup.select import Keep, representatives
from sft_lab.dedup.texts import Texts
from sft_lab.dedup.vector_search import build


def kept_at(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """Which rows stay, in source order: bool, shape (rows,)."""
    rows = np.arange(len(vectors))
    return representatives(build(vectors, threshold, 50_000_000), rows, rows, Keep.first)[0]


def main() -> None:
    """Read the command line, measure, hold the figures against the goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", default=STARTER, metavar="FILE")
    parser.add_argument("--rows", type=int, help="only the first so many")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--enforce", action="store_true", help="exit 1 when a goal is missed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(machine("sentence-transformers", "transformers"))

    with tempfile.TemporaryDirectory() as folder:
        texts = answers(arguments.file, StageContext(Store(Path(folder) / "rows")))[: arguments.rows]
        model = MINILM.load()
        result: dict[str, np.ndarray] = {}

        def ours() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as store:
                result["ours"] = embed(Texts.of_list(texts), MINILM, StageContext(Store(Path(store))))

        def theirs() -> None:
            result["encode"] = model.encode(texts, show_progress_bar=False)

        MINILM.load().encode(texts[:8])  # the first batch of a process is slow
        seconds = measure({"ours": ours, "encode": theirs}, arguments.rounds, warm_up=False)

    print(f"{len(texts)} answers, {len(set(texts))} different; ours in {_precision()}")
    for name, times in seconds.items():
        rates = sorted(len(texts) / time for time in times)
        print(f"  {name:7} {statistics.median(rates):6.1f} texts/s, from {rates[0]:.1f} to {rates[-1]:.1f}")
    ratios = sorted(mine / its for mine, its in zip(seconds["encode"], seconds["ours"], strict=True))
    print(
        f"  ratio of the best times {min(seconds['encode']) / min(seconds['ours']):.2f}, "
        f"by rounds from {ratios[0]:.2f} to {ratios[-1]:.2f}"
    )
    true = result["encode"] / np.linalg.norm(result["encode"], axis=1, keepdims=True)
    different = int((kept_at(result["ours"], 0.95) != kept_at(true, 0.95)).sum())
    goals = Goals("embedding")
    goals.ratio("times as fast as SentenceTransformer.encode", seconds["encode"], seconds["ours"], least=2)
    goals.hold("lowest cosine to fp32", float((result["ours"] * true).sum(axis=1).min()), least=0.999)
    goals.hold("rows kept differently at 0.95", different, most=max(1, len(texts) // 1000))
    goals.end(enforce=arguments.enforce)


if __name__ == "__main__":
    main()
