"""The data stages, whole processes in turn: ours, a tutorial's script, and the same script with semhash for dedup.
Then ``sft-lab prepare`` beside what SFTTrainer prepares, on many rows.

    python benchmarks/data_stages.py
    python benchmarks/data_stages.py conversations.jsonl.gz --rounds 3 --enforce
    python benchmarks/data_stages.py conversations.jsonl.gz --only trainer --rows 17333

FILE holds conversations, one a line (ShareGPT); without it the starter set. The script does what tutorials do: the
first two turns, tokens of both counted, at most 1,024 together, replies embedded by SentenceTransformer.encode, FAISS's
two nearest neighbors, rows above 0.95 dropped, the chat template, saved to disk; the cache of ``datasets`` is on. With
semhash, embedding and dedup are its own, by the same embedder. Tokenizer, embedder and thresholds are equal for all.
Ours does more: held-out rows and decontamination, reasons of what is dropped, a report with figures. Each contender
keeps its caches from one process to the next: cold is the first process, then the same again, then another threshold
(0.9). Ours finds the bundled model converted, which is no data stage and done once for a user.

Goal: no slower than the script, in any of the three. On the starter set imports are most of everybody's time; on
thousands of rows embedding is, which ours does once.

Beside SFTTrainer nothing is deduplicated or filtered: all turns, the bundled tokenizer and its template, two worker
processes for each. The rows of FILE are repeated, each time with another first word, until there are ``--rows``.
SFTTrainer renders, tokenizes and cuts to 2,048 tokens; ours also holds rows out, labels answers alone, and writes the
report. Goals: at most 0.6 of its time, in no more memory (PSS of all processes).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it

from common import STARTER, Goals, machine, watched

from sft_lab import compose
from sft_lab.core.context import StageContext
from sft_lab.core.packages import package_path
from sft_lab.core.store import Store

# What one would write without sft_lab.
SCRIPT = """
import gzip, json, sys
import datasets, faiss, numpy, sentence_transformers, transformers
source, tokenizer_path, embedder, dedup, threshold, out = sys.argv[1:]
threshold = float(threshold)
tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_path)
opened = gzip.open if source.endswith(".gz") else open
with opened(source, "rt") as file:
    lines = [line for line in file if line.strip()]
texts = []
for line in lines:
    try:
        turns = json.loads(line).get("conversations") or []
    except (ValueError, AttributeError):
        continue
    turns = [turn for turn in turns if isinstance(turn, dict)]
    words = [str(turn.get("value") or turn.get("text") or turn.get("content") or "") for turn in turns]
    if len(words) >= 2:
        texts.append({"human": words[0], "gpt": words[1]})
data = datasets.Dataset.from_list(texts)

def count(row):
    return {"tokens": len(tokenizer(row["human"])["input_ids"]) + len(tokenizer(row["gpt"])["input_ids"])}

data = data.map(count).filter(lambda row: 0 < row["tokens"] <= 1024)
model = sentence_transformers.SentenceTransformer(embedder, device="cpu")
if dedup == "semhash":
    import semhash
    records = [{"text": row["gpt"] or " ", "row": number} for number, row in enumerate(data)]
    index = semhash.SemHash.from_records(records, columns=["text"], model=model)
    kept = sorted(record["row"] for record in index.self_deduplicate(threshold=threshold).selected)
else:
    vectors = model.encode(data["gpt"], normalize_embeddings=True, show_progress_bar=False)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    nearest = index.search(vectors, 2)[0][:, 1]
    kept = [row for row, cosine in enumerate(nearest) if cosine < threshold]
data = data.select(kept)

def template(row):
    messages = [{"role": "user", "content": row["human"]}, {"role": "assistant", "content": row["gpt"]}]
    return {"text": tokenizer.apply_chat_template(messages, tokenize=False)}

data.map(template).save_to_disk(out)
print(len(data))
"""
TRAINER_SCRIPT = """
import sys
from datasets import load_dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer
source, tokenizer_path, out = sys.argv[1:]
roles = {**dict.fromkeys(["human", "user"], "user"), "system": "system"}
roles |= dict.fromkeys(["gpt", "assistant", "chatgpt", "bing", "bard"], "assistant")

def messages(row):
    turns = [turn for turn in row["conversations"] if turn["from"] in roles]
    return {"messages": [{"role": roles[turn["from"]], "content": turn["value"]} for turn in turns]}

data = load_dataset("json", data_files=source, split="train")
data = data.map(messages, remove_columns=data.column_names, num_proc=2)
data = data.filter(lambda row: len(row["messages"]) > 1)
model = LlamaForCausalLM(LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1))
config = SFTConfig(out, max_length=2048, dataset_num_proc=2, report_to=[], use_cpu=True, bf16=False)
tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
trainer = SFTTrainer(model, args=config, train_dataset=data, processing_class=tokenizer)
print(len(trainer.train_dataset))
"""
OURS, TUTORIAL, SEMHASH = "sft-lab prepare", "the tutorial's script", "the script with semhash"
KINDS = {"cold": 0.95, "again": 0.95, "next threshold": 0.9}


def contenders(root: Path, number: int) -> dict[str, dict[str, str]]:
    """The environment of each contender: caches of its own for this round."""
    shutil.copytree(root / "converted", root / f"0{number}")
    return {
        name: {**os.environ, "HF_HOME": str(root / f"{place}{number}"), "SFT_LAB_STORE": str(root / f"{place}{number}")}
        for place, name in enumerate((OURS, TUTORIAL, SEMHASH))
    }


def repeated(file: str, rows: int, path: Path) -> None:
    """Write the conversations of a file again and again, each time with another first word."""
    opened = gzip.open if file.endswith(".gz") else open
    with opened(file, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines if line.strip()]
    with path.open("w", encoding="utf-8") as output:
        for number in range(rows):
            record, copies = records[number % len(records)], number // len(records)
            turns = [
                {"from": turn["from"], "value": f"{copies} {turn['value']}" if copies else turn["value"]}
                for turn in record["conversations"]
            ]
            output.write(json.dumps({"id": f"talk{number}", "conversations": turns}, ensure_ascii=False) + "\n")


def beside_trainer(file: str, rows: int, rounds: int, goals: Goals) -> None:
    """Prepare many rows cold, in turn with SFTTrainer."""
    run = compose(["tracking=local"])
    seconds: dict[str, list[float]] = {"ours": [], "trainer": []}
    memory: dict[str, list[float]] = {"ours": [], "trainer": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        repeated(file, rows, root / "rows.jsonl")
        context = StageContext(Store(root / "converted"), lambda: run.model.tokenizer(context))
        context.tokenizer.save_pretrained(root / "tokenizer")
        for number in range(rounds):
            cache, out = root / f"cache{number}", root / f"out{number}"
            shutil.copytree(root / "converted", cache)
            environment = {**os.environ, "HF_HOME": str(cache), "SFT_LAB_STORE": str(cache)}
            commands = {
                "ours": ["-m", "sft_lab", "prepare", "dataset=file", f"dataset.path={root / 'rows.jsonl'}",
                         "dataset.turns=all", "dedup=none", "filter=none", "decontaminate.method=exact",
                         "trainer.max_length=2048", "split.max_eval_tokens=2048", "engine.workers=2",
                         "tracking=local", f"hydra.run.dir={out}"],
                "trainer": ["-c", TRAINER_SCRIPT, str(root / "rows.jsonl"), str(root / "tokenizer"), str(out)],
            }  # fmt: skip
            for name in list(commands)[:: 1 if number % 2 else -1]:
                took, most = watched([sys.executable, *commands[name]], environment)
                print(f"  {name:8} {took:6.1f} s, {most:.2f} GiB", flush=True)
                seconds[name].append(took)
                memory[name].append(most)
                shutil.rmtree(out)
            shutil.rmtree(cache)
    goals.ratio(
        f"prepare {rows:,} rows: time relative to SFTTrainer's preparation",
        seconds["ours"],
        seconds["trainer"],
        most=0.6,
    )
    goals.ratio("its memory, relative to SFTTrainer's preparation", memory["ours"], memory["trainer"], most=1.0)


def main() -> None:
    """Read the command line, let all take turns, hold the figures against the goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", default=STARTER, metavar="FILE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["script", "trainer"], help="one of the two parts")
    parser.add_argument("--rows", type=int, default=17_333, help="rows beside SFTTrainer")
    parser.add_argument("--enforce", action="store_true", help="exit 1 when a goal is missed")
    arguments = parser.parse_args()
    scripts = ["sentence-transformers", "faiss-cpu", "semhash"] if arguments.only != "trainer" else []
    print(machine("datasets", "trl", *scripts))
    file = str(package_path(arguments.file).absolute())
    goals = Goals("data stages")
    if arguments.only != "trainer":
        beside_script(file, arguments.rounds, goals)
    if arguments.only != "script":
        beside_trainer(file, arguments.rows, arguments.rounds, goals)
    goals.end(enforce=arguments.enforce)


def beside_script(file: str, rounds: int, goals: Goals) -> None:
    """Let ours and the scripts take turns: cold, again, and with another threshold."""
    words = ["dataset=file", f"dataset.path={file}", "template=chatml", "dedup=semantic", "tracking=local"]
    run = compose(words)
    embedder = str(package_path(run.dedup.embedder.name_or_path))
    seconds: dict[tuple[str, str], list[float]] = {}
    rows: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        context = StageContext(Store(root / "converted"), lambda: run.model.tokenizer(context))
        context.tokenizer.chat_template = run.template.jinja(context.tokenizer)
        context.tokenizer.save_pretrained(root / "tokenizer")
        for number in range(rounds):
            environments = contenders(root, number)
            order = list(environments)[number % 3 :] + list(environments)[: number % 3]
            for kind, threshold in KINDS.items():
                for name in order:
                    out = root / f"out{number}-{kind}-{order.index(name)}"
                    if name == OURS:
                        command = [
                            "-m",
                            "sft_lab",
                            "prepare",
                            *words,
                            f"dedup.threshold={threshold}",
                            f"hydra.run.dir={out}",
                        ]
                    else:
                        dedup = "semhash" if name == SEMHASH else "faiss"
                        command = [
                            "-c",
                            SCRIPT,
                            file,
                            str(root / "tokenizer"),
                            embedder,
                            dedup,
                            str(threshold),
                            str(out),
                        ]
                    began = time.perf_counter()
                    done = subprocess.run(
                        [sys.executable, *command], check=True, capture_output=True, text=True, env=environments[name]
                    )
                    seconds.setdefault((name, kind), []).append(time.perf_counter() - began)
                    rows[name] = done.stdout.split()[-1] if name != OURS else ""
    for (name, kind), took in seconds.items():
        print(f"  {name:24} {kind:15} {statistics.median(took):6.1f} s, from {min(took):.1f} to {max(took):.1f}")
    for kind, most in (("cold", 1.0), ("again", 1.0), ("next threshold", 1.0)):
        for peer in (TUTORIAL, SEMHASH):
            goals.ratio(f"prepare, {kind}: time relative to {peer}", seconds[OURS, kind], seconds[peer, kind],
                        **({"most": most} if peer == TUTORIAL else {}))  # fmt: skip


if __name__ == "__main__":
    main()
