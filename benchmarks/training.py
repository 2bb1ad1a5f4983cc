"""How fast training is: our loss heads against a plain PyTorch loop, and a whole run against a short TRL script.

Run it: python benchmarks/training.py [heads|script] [rounds]
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import peft
import torch

from sft_lab import compose
from sft_lab.bench import Bench
from sft_lab.training.options import Lora, LossHead, LossOn, Precision
from sft_lab.training.trl import Watch, train

ROWS, LENGTH = 2, 512  # of a batch; tokens of a row


def blocks(bench: Bench, count: int) -> datasets.Dataset:
    """Rows of 512 tokens of the starter set, every token trained: the loss head has the most to do."""
    run = compose(["model=smollm2_135m_bundled", "dedup=none", "decontaminate.method=none", "dataset.limit=null"])
    rows = run.prepare(bench).train.tokens
    ids = [token for row in rows["input_ids"] for token in row]
    made = [ids[start : start + LENGTH] for start in range(0, count * LENGTH, LENGTH)]
    assert len(made[-1]) == LENGTH
    return datasets.Dataset.from_dict({"input_ids": made, "labels": made})


class Turns:
    """Lets one thread work at a time, in order: each does a step and hands on, so a busy machine slows all alike."""

    def __init__(self, count: int) -> None:
        self.count, self.turn, self.changed = count, 0, threading.Condition()
        self.wall: list[list[float]] = [[] for _ in range(count)]
        self.cpu: list[list[float]] = [[] for _ in range(count)]

    def begin(self, who: int) -> None:
        """Wait for the first turn."""
        with self.changed:
            self.changed.wait_for(lambda: self.turn == who)
        self.began = time.perf_counter(), time.process_time()

    def hand_on(self, who: int) -> None:
        """Note what the step took, and wait for the next turn."""
        self.wall[who].append(time.perf_counter() - self.began[0])
        self.cpu[who].append(time.process_time() - self.began[1])
        with self.changed:
            self.turn = (who + 1) % self.count
            self.changed.notify_all()
        self.begin(who)


def plain_loop(model: Any, _: Bench, rows: datasets.Dataset, step_done: Callable[[], None]) -> None:
    """LoRA on all linear layers, autocast in bf16, AdamW, clipping: nothing else."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    model = peft.get_peft_model(model, config).train()
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.0)
    while True:
        for start in range(0, len(rows), ROWS):
            ids = torch.tensor(rows[start : start + ROWS]["input_ids"])
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
            step_done()


def ours(head: LossHead, **knobs: Any) -> Any:
    """Our training with a loss head."""

    def run(model: Any, bench: Bench, rows: datasets.Dataset, step_done: Callable[[], None]) -> None:
        options = Lora(
            max_steps=10_000, per_device_train_batch_size=ROWS, logging_steps=1, save_steps=10_000, loss_head=head,
            max_length=LENGTH, loss_on=LossOn.all, precision=Precision.bf16, learning_rate=2e-4, **knobs,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            watch = Watch(None, lambda _: step_done())
            train(model, bench.tokenizer, rows, options, folder=Path(folder), seed=1, watch=watch)

    return run


CONTENDERS = {
    "plain PyTorch loop": plain_loop,
    "loss_head=plain": ours(LossHead.plain),
    "loss_head=plain packed": ours(LossHead.plain, packing=True),
    "loss_head=trl": ours(LossHead.trl),
}


def heads(rounds: int) -> None:
    """Time of a step of 2 x 512 tokens, wall and processor, beside the plain loop's step of the same round."""
    run = compose(["model=smollm2_135m_bundled"])
    bench = Bench(run.store.open(), lambda: run.model.tokenizer(bench))
    rows = blocks(bench, ROWS * 4)
    turns = Turns(len(CONTENDERS))

    def contend(who: int, work: Any, model: Any) -> None:
        turns.begin(who)
        work(model, bench, rows, lambda: turns.hand_on(who))

    at_work = []
    for who, work in enumerate(CONTENDERS.values()):
        model = run.model.load(bench, seed=1)
        at_work.append(threading.Thread(target=contend, args=(who, work, model), daemon=True))
    for thread in at_work:
        thread.start()
    while len(turns.wall[-1]) <= rounds:
        time.sleep(1)
        if not all(thread.is_alive() for thread in at_work):
            raise SystemExit("a contender has failed")
    loop = None
    for name, wall, cpu in zip(CONTENDERS, turns.wall, turns.cpu, strict=True):
        wall, cpu = wall[1 : rounds + 1], cpu[1 : rounds + 1]  # the first step warms up
        loop = loop or (wall, cpu)
        ratios = [[its / mine for its, mine in zip(*pair, strict=True)] for pair in zip(loop, (wall, cpu), strict=True)]
        said = [f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})" for found in ratios]
        tokens = ROWS * LENGTH
        print(
            f"{name:<24} best {tokens / min(wall):4.0f} tokens/s, median {tokens / statistics.median(wall):4.0f}   "
            f"of the loop's speed: {said[0]} by wall time, {said[1]} by processor time"
        )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    heads(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
