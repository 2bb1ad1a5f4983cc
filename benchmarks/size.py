"""How time, memory and disk of the data stages grow with the rows: ``sft-lab prepare`` in a fresh process and store.

    python benchmarks/size.py                                   # 10, 50 and 200 thousand rows, dedup=minhash
    python benchmarks/size.py --sizes 10000 --dedup semantic    # embedding is 99% of the time on a processor

The rows are made up: sentences of the starter set in random order, 20 to 400 words to an answer, a tenth of the rows
a near copy of another. Time is of each stage, as the manifest has it, and of the processor in all, which a busy machine
changes less; memory is the most that the process had resident; disk is the store and the run folder. Reckoned sizes go
on in a straight line from the two largest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it

from common import STARTER, machine

from sft_lab.core.context import StageContext
from sft_lab.core.io import read_json
from sft_lab.data.sources import File

RECKONED = (1_000_000, 10_000_000)
# A fresh process with the command in it, which says at last what it had resident.
CHILD = """
import resource, sys
from sft_lab.cli.main import main
code = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
print("USED", used.ru_maxrss, used.ru_utime + used.ru_stime)
sys.exit(code)
"""


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


def measure(rows: int, dedup: str, root: Path) -> dict[str, float]:
    """Seconds of each stage and in all, GB resident, MB of file, store and run folder."""
    source, store, folder = root / f"{rows}.jsonl", root / f"store{rows}", root / f"run{rows}"
    write(source, rows, random.Random(rows))
    words = ["prepare", "dataset=file", f"dataset.path={source}", f"dedup={dedup}", "model=tiny_random",
             "template=chatml", "tracking=local", f"store.path={store}", f"hydra.run.dir={folder}"]  # fmt: skip
    words += ["decontaminate.method=exact"] if dedup != "semantic" else []
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", CHILD, *words], check=True, stdout=subprocess.PIPE, text=True)
    took = time.perf_counter() - began
    peak, processor = map(float, done.stdout.split("USED")[1].split()[:2])
    found: dict[str, float] = {}
    for stage in read_json(folder / "manifest.json")["stages"]:
        found[stage["stage"]] = found.get(stage["stage"], 0) + stage["seconds"]
    rest = took - sum(found.values())
    found |= {
        "beside (start, report, dataset/)": rest,
        "in all, s": took,
        "processor, s": processor,
        "resident, GB": peak / 2**20,
    }
    return found | {"file, MB": source.stat().st_size / 1e6, "store, MB": disk(store), "run folder, MB": disk(folder)}


def main() -> None:
    """Read the command line, measure each size, print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 50_000, 200_000])
    parser.add_argument("--dedup", default="minhash")
    arguments = parser.parse_args()
    print(machine("datasets", "pyarrow"))
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for rows in arguments.sizes:
            found[rows] = measure(rows, arguments.dedup, Path(folder))
            print(rows, {name: round(value, 1) for name, value in found[rows].items()}, flush=True)
    if len(found) > 1:
        low, high = sorted(found)[-2:]
        for rows in RECKONED:
            found[rows] = {
                name: found[high][name] + (found[high][name] - found[low].get(name, 0)) / (high - low) * (rows - high)
                for name in found[high]
            }
    print("| |" + "|".join(f" {rows:,}{'' if rows in arguments.sizes else ' (reckoned)'} " for rows in found) + "|")
    print("|---" * (len(found) + 1) + "|")
    for name in found[max(arguments.sizes)]:
        print(f"| {name} |" + "|".join(f" {one.get(name, 0):,.1f} " for one in found.values()) + "|")


if __name__ == "__main__":
    main()
