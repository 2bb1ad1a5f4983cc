"""What sft_lab does on a GPU: every trainer, memory, speed and digits, as a table for docs/gpu.md. Needs no network.

python benchmarks/gpu.py [PART ...]     parts: runs memory fsdp training graph embedding; all by default, some minutes
python benchmarks/gpu.py --small        a dry run, on a processor too: small shapes, what needs a GPU is left out

Models are made here, with random weights: SmolLM2-135M's shape for speed, the tiny one of the tests for digits. A part
that fails is a line of the table, and the others go on. Never run by us on a GPU.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import numpy as np
import peft
import torch
import transformers
import trl
from common import answers, machine

from sft_lab import compose
from sft_lab.core.context import StageContext
from sft_lab.core.errors import JobError
from sft_lab.core.gpus import release_memory
from sft_lab.dedup import embed_batches, vector_search
from sft_lab.dedup.embed import Embedder
from sft_lab.training.callbacks import Watch
from sft_lab.training.config import Lora, LossOn
from sft_lab.training.tiny_random import TOKENIZER_FOLDER, TinyRandom
from sft_lab.training.train import train

HAS_GPU = torch.cuda.is_available()
SMALL = "--small" in sys.argv
STEPS = 4 if SMALL else 20
BASE = [
    "model=tiny_random", "tracking=local", "dataset.limit=120", "dedup=exact", "decontaminate.method=exact",
    "split.max_eval_rows=16", f"trainer.max_steps={STEPS}", "trainer.logging_steps=1", f"trainer.eval_steps={STEPS}",
    f"trainer.save_steps={STEPS}", "evaluation.outputs=2", "evaluation.max_new_tokens=16", "trainer.learning_rate=1e-3",
]  # fmt: skip
EXACT = ["trainer.precision=fp32", "model.dtype=float32"]


class Table:
    """Results, printed as they come and again at the end, the failures last."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []
        self.failures: list[tuple[str, str]] = []

    def add(self, name: str, result: str) -> None:
        self.rows.append((name, result))
        print(f"{name}: {result}", flush=True)

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Let the other parts go on if this one fails."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is belongs into the table
            self.failures.append((name, f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}"))
            traceback.print_exc()
        release_memory()

    def write(self) -> int:
        device = torch.cuda.get_device_name() if HAS_GPU else "no GPU"
        lines = [f"| {name} | {result} |\n" for name, result in [*self.rows, *self.failures]]
        print(f"\n| what | result |\n|---|---|\n{''.join(lines)}\n{device}; {machine('transformers', 'trl', 'peft')}")
        return int(bool(self.failures))


def losses(folder: Path) -> list[float]:
    events = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [event["train/loss"] for event in events if "train/loss" in event]


def on_processor(overrides: list[str], folder: Path) -> None:
    """The same run in a process that sees no GPU."""
    command = [sys.executable, "-m", "sft_lab", *overrides, f"hydra.run.dir={folder}", f"store.path={folder}-store"]
    subprocess.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True, capture_output=True)


def runs(table: Table, root: Path) -> None:
    """Whole runs of every trainer; those in float32 beside the processor's."""
    trainers: dict[str, list[str]] = {
        "full, fp32": ["trainer=full", *EXACT],
        "lora, fp32": ["trainer=lora", *EXACT],
        "full": ["trainer=full"],
        "full, packed": ["trainer=full", "trainer.packing=true"],
        "lora": ["trainer=lora"],
        "lora, packed": ["trainer=lora", "trainer.packing=true"],
        "dora": ["trainer=dora"],
    }
    if HAS_GPU:
        trainers["lora, fp16"] = ["trainer=lora", "trainer.precision=fp16"]
        trainers["full, fp16"] = ["trainer=full", "trainer.precision=fp16"]
        if importlib.util.find_spec("bitsandbytes"):
            trainers["qlora"] = ["trainer=qlora"]
            trainers["qlora, packed"] = ["trainer=qlora", "trainer.packing=true"]
            trainers["qlora, fp16"] = ["trainer=qlora", "trainer.precision=fp16"]
    for name, words in trainers.items():
        with table.attempt(f"run {name}"):
            folder, overrides = root / name.replace(", ", "-"), [*BASE, *words]
            summary = compose([*overrides, f"store.path={root / 'store'}"]).execute(folder)
            result = f"held-out loss {summary['base/eval_loss']:.4f} to {summary['eval/loss']:.4f}"
            if HAS_GPU:
                result += f", {torch.cuda.memory_allocated() / 1e6:.0f} MB left"
            if "fp32" in name and HAS_GPU:
                on_processor(overrides, root / f"{folder.name}-cpu")
                pairs = zip(losses(folder), losses(root / f"{folder.name}-cpu"), strict=True)
                result += f"; training loss at most {max(abs(a - b) for a, b in pairs):.1e} from the processor's"
            table.add(f"run {name}", result)


def memory(table: Table, root: Path) -> None:
    """A GPU that is too small: the error says what to lower, and the next run trains."""
    if not HAS_GPU:
        table.add("out of memory", "left out: no GPU")
        return
    with table.attempt("out of memory"):
        room = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(max(1e-3, 60e6 / room))
        big = ["trainer=full", "trainer.per_device_train_batch_size=256", "model.hidden_size=1024"]
        try:
            compose([*BASE, *big, f"store.path={root / 'store'}"]).execute(root / "too-large")
            table.add("out of memory", "it fitted: lower the fraction")
        except JobError as error:
            table.add("out of memory", str(error)[:200])
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    release_memory()
    with table.attempt("the run after it"):
        summary = compose([*BASE, "trainer=lora", f"store.path={root / 'store'}"]).execute(root / "after")
        left = torch.cuda.memory_allocated() / 1e6
        table.add("the run after it", f"held-out loss {summary['eval/loss']:.4f}, {left:.0f} MB left")


def fsdp(table: Table, root: Path) -> None:
    """Sharded training with one process: the path of several, if not their speed."""
    if not HAS_GPU:
        table.add("fsdp, one process", "left out: no GPU")
        return
    with table.attempt("fsdp, one process"):
        folder = root / "fsdp"
        words = ["trainer=full", "launch.config_file=fsdp", f"hydra.run.dir={folder}", f"store.path={root / 'store'}"]
        command = [sys.executable, "-m", "sft_lab", *BASE, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        result = f"loss {losses(folder)[-1]:.4f}" if not done.returncode else f"FAILED: {done.stderr[-300:]}"
        table.add("fsdp, one process", result)


def training(table: Table, root: Path) -> None:
    """LoRA on SmolLM2-135M's shape: tokens a second, ours and plain TRL's, twice each, and their losses."""
    rows_of_batch, length, steps, warm = (2, 64, 4, 1) if SMALL else (16, 1024, 40, 10)
    shape = {"hidden_size": 64, "num_hidden_layers": 2} if SMALL else {"hidden_size": 576, "num_hidden_layers": 30}
    config = transformers.LlamaConfig(
        vocab_size=49_152, intermediate_size=1536, num_attention_heads=1 if SMALL else 9, tie_word_embeddings=True,
        num_key_value_heads=1 if SMALL else 3, max_position_embeddings=8192, dtype="bfloat16", **shape,
    )  # fmt: skip
    transformers.set_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(root / "smol")
    ids = np.random.default_rng(0).integers(5, 4000, size=(rows_of_batch * steps, length)).tolist()
    rows = datasets.Dataset.from_dict({"input_ids": ids, "labels": ids})
    context = StageContext(load_tokenizer=lambda: TinyRandom().tokenizer(StageContext()))
    common = {"max_steps": steps, "per_device_train_batch_size": rows_of_batch, "learning_rate": 2e-4}

    def loaded() -> Any:
        model = transformers.AutoModelForCausalLM.from_pretrained(root / "smol", dtype=torch.bfloat16)
        return model.to("cuda" if HAS_GPU else "cpu")

    def ours(record: Callable[[float], None]) -> None:
        watch = Watch(None, lambda event: record(event["train/loss"]) if "train/loss" in event else None)
        options = Lora(**common, logging_steps=1, save_steps=10_000, max_length=length, loss_on=LossOn.all)
        with tempfile.TemporaryDirectory() as folder:
            train(loaded(), context.tokenizer, rows, options, folder=Path(folder), seed=1, watch=watch)

    def plain(record: Callable[[float], None]) -> None:
        class Record(transformers.TrainerCallback):
            def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
                if "loss" in logs:
                    record(logs["loss"])

        with tempfile.TemporaryDirectory() as folder:
            args = trl.SFTConfig(
                output_dir=folder, seed=1, data_seed=1, bf16=True, use_cpu=not HAS_GPU, report_to="none",
                logging_steps=1, save_strategy="no", max_length=length, lr_scheduler_type="cosine", warmup_steps=0.03,
                optim="adamw_torch_fused", activation_checkpointing=False, gradient_checkpointing=None,
                disable_tqdm=True, dataset_kwargs={"skip_prepare_dataset": True}, **common,
            )  # fmt: skip
            adapter = peft.LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
            trl.SFTTrainer(
                model=loaded(), args=args, train_dataset=rows, processing_class=context.tokenizer,
                callbacks=[Record()], peft_config=adapter,
            ).train()  # fmt: skip

    curves: dict[str, list[float]] = {}
    for name, contender in (("plain TRL", plain), ("ours", ours), ("plain TRL, again", plain), ("ours, again", ours)):
        with table.attempt(f"training, {name}"):
            ends: list[float] = []
            curve = curves.setdefault(name, [])

            def record(loss: float, ends: list[float] = ends, curve: list[float] = curve) -> None:
                if HAS_GPU:
                    torch.cuda.synchronize()
                ends.append(time.perf_counter())
                curve.append(loss)

            if HAS_GPU:
                torch.cuda.reset_peak_memory_stats()
            contender(record)
            step = statistics.median(np.diff(ends[warm:]))
            peak = f", peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if HAS_GPU else ""
            table.add(f"training, {name}", f"{rows_of_batch * length / step:,.0f} tokens/s{peak}")
    pairs = zip(curves.get("ours", []), curves.get("plain TRL", []), strict=False)
    table.add("training, losses beside plain TRL's", f"at most {max(abs(a - b) for a, b in pairs):.1e} apart")


def graph(table: Table, root: Path) -> None:  # noqa: ARG001 - as every part
    """Pairs of near vectors: ours, and the two nearest of each by FAISS on all cores and on the GPU."""
    size = 4_000 if SMALL else 100_000
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((size, 384), np.float32)
    vectors[size // 2 :] = vectors[: size - size // 2] + 0.4 * rng.standard_normal((size - size // 2, 384), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def seconds(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(3):
            began = time.perf_counter()
            work()
            if HAS_GPU:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return min(times)

    with table.attempt("graph"):
        found = vector_search.build(vectors, 0.8, 50_000_000)
        ours = seconds(lambda: vector_search.build(vectors, 0.8, 50_000_000))
        table.add(f"graph, {size:,} vectors, ours", f"{ours:.2f} s, {len(found.left):,} pairs")
    if importlib.util.find_spec("faiss"):
        import faiss

        with table.attempt("graph, FAISS"):
            index = faiss.IndexFlatIP(384)
            index.add(vectors)
            table.add("graph, FAISS on all cores, k=2", f"{seconds(lambda: index.search(vectors, 2)):.2f} s")
            if vector_search.gpus():
                on_gpu = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), 384)
                on_gpu.add(vectors)
                table.add("graph, FAISS on the GPU, k=2", f"{seconds(lambda: on_gpu.search(vectors, 2)):.2f} s")


def embedding(table: Table, root: Path) -> None:
    """Texts a second: ours, and SentenceTransformer's own encode."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    with table.attempt("embedding"):
        folder = root / "mini"
        shape = {"hidden_size": 384, "num_hidden_layers": 1 if SMALL else 6, "intermediate_size": 1536}
        config = transformers.BertConfig(**shape, num_attention_heads=12)
        transformers.BertModel(config).save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(TOKENIZER_FOLDER, model_max_length=256).save_pretrained(folder)
        word = Transformer(str(folder), max_seq_length=256)
        model = SentenceTransformer(modules=[word, Pooling(384)], device="cuda" if HAS_GPU else "cpu")
        some = answers("package:sft_lab/starter/conversations.jsonl", StageContext())
        texts = [f"{number} {text[:1000]}" for number, text in enumerate(some * (1 if SMALL else 40))]
        lengths = [min(256, len(ids)) for ids in model.tokenizer(texts)["input_ids"]]
        order = sorted(range(len(texts)), key=lambda index: -lengths[index])
        embedder, precision = Embedder("a/b"), embed_batches.precision()
        contenders = {
            "ours": lambda: embed_batches.encode_texts(
                model, [texts[i] for i in order], [lengths[i] for i in order], embedder, precision, lambda _: None
            ),
            "SentenceTransformer": lambda: model.encode(texts, batch_size=256 if HAS_GPU else 32),
        }
        for name, encode in contenders.items():
            model.encode(texts[:64])
            began = time.perf_counter()
            encode()
            table.add(f"embedding, {name}", f"{len(texts) / (time.perf_counter() - began):,.0f} texts/s")


PARTS = {part.__name__: part for part in (runs, memory, fsdp, training, graph, embedding)}


def main() -> int:
    chosen = [name for name in sys.argv[1:] if not name.startswith("--")] or list(PARTS)
    table = Table()
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            gc.collect()
            PARTS[name](table, Path(folder))
    return table.write()


if __name__ == "__main__":
    sys.exit(main())
