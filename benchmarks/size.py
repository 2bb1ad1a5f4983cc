"""How time, memory and disk of the data stages grow with the rows: ``sft-lab prepare`` in a fresh process and store.

    python benchmarks/size.py                                   # 10 and 100 thousand rows, dedup=minhash
    python benchmarks/size.py --sizes 1000000                   # a million: half an hour, 20 GB of disk
    python benchmarks/size.py --sizes 10000 --dedup semantic    # embedding is 99% of the time on a processor

The rows are made up: sentences of the starter set in random order, 20 to 400 words to an answer, a tenth of the rows
a near copy of another. Time is of each stage, as the manifest has it, and of the processor in all, which a busy machine
changes less; memory is the most that all its processes had together (PSS); disk is the store and the run folder.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it

from common import STARTER, machine, watched

from sft_lab.core.context import StageContext
from sft_lab.core.io import read_json
from sft_lab.data.sources import File


def sentences() -> list[str]:
    """The sentences of the starter set's answers."""
    answers = File(path=STARTER)(StageContext()).rows.column("answer")
    return [part for answer in answers for part in answer.split(". ") if len(part) > 20]


def write(path: Path, rows: int, rng: random.Random) -> None:
    """Write so many conversations."""
    known = sentences()
    last = ""
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            if last and rng.random() < 0.1:
                answer = last.replace(" the ", " that ", 1)
            else:
                answer, words = "", rng.randint(20, 400)
                while len(answer.split()) < words:
                    answer += rng.choice(known) + ". "
            last = answer
            turns = [{"from": "human", "value": f"{rng.choice(known)}? ({number})"}, {"from": "gpt", "value": answer}]
            file.write(json.dumps({"id": str(number), "conversations": turns}) + "\n")


def disk(folder: Path) -> float:
    """Megabytes in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def processor_seconds() -> float:
    """Seconds that the processes which this one started and waited for had a processor."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(rows: int, dedup: str, root: Path) -> dict[str, float]:
    """Seconds of each stage and in all, GB of memory, MB of file, store and run folder."""
    source, store, folder = root / f"{rows}.jsonl", root / f"store{rows}", root / f"run{rows}"
    write(source, rows, random.Random(rows))
    words = ["prepare", "dataset=file", f"dataset.path={source}", f"dedup={dedup}", "model=tiny_random",
             "template=chatml", "tracking=local", f"store.path={store}", f"hydra.run.dir={folder}"]  # fmt: skip
    words += ["decontaminate.method=exact"] if dedup != "semantic" else []
    before = processor_seconds()
    took, memory = watched([sys.executable, "-m", "sft_lab", *words], dict(os.environ))
    processor = processor_seconds() - before
    found: dict[str, float] = {}
    for stage in read_json(folder / "manifest.json")["stages"]:
        found[stage["stage"]] = found.get(stage["stage"], 0) + stage["seconds"]
    rest = took - sum(found.values())
    found |= {
        "beside (start, report, dataset/)": rest,
        "in all, s": took,
        "processor, s": processor,
        "memory, GB": memory,
    }
    return found | {"file, MB": source.stat().st_size / 1e6, "store, MB": disk(store), "run folder, MB": disk(folder)}


def main() -> None:
    """Read the command line, measure each size, print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dedup", default="minhash")
    arguments = parser.parse_args()
    print(machine("datasets", "pyarrow"))
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for rows in arguments.sizes:
            found[rows] = measure(rows, arguments.dedup, Path(folder))
            print(rows, {name: round(value, 1) for name, value in found[rows].items()}, flush=True)
    print("| |" + "|".join(f" {rows:,} " for rows in found) + "|")
    print("|---" * (len(found) + 1) + "|")
    for name in found[max(arguments.sizes)]:
        print(f"| {name} |" + "|".join(f" {one.get(name, 0):,.1f} " for one in found.values()) + "|")


if __name__ == "__main__":
    main()
