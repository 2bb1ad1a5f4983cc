"""Run every benchmark and write one table, in docs/benchmarks.md: ``make bench``.

    python benchmarks/table.py                              # on the starter set, about half an hour
    python benchmarks/table.py conversations.jsonl.gz       # on conversations of your own (ShareGPT)
    python benchmarks/table.py --only start_up sweep        # some; figures of the others stay as they are
    python benchmarks/table.py --enforce                    # exit 1 when a goal is missed on the reference machine

What is measured and how stands at the top of each benchmark. A figure is the median of quotients of neighbors in time,
with the least and the greatest of them; seconds of a shared machine mean little. Peers run from their own packages.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import FIGURES, is_reference, machine

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PAGE = HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- figures of make bench -->", "<!-- end of figures -->"
# Each with its words; FILE stands for the conversations, where it takes some.
BENCHMARKS = {
    "start_up": [],
    "data_stages": ["FILE"],
    "embedding": ["FILE"],
    "neighbor_graph": ["FILE", "--sizes", "11000", "50000"],
    "sweep": ["FILE"],
    "training": ["all"],
}
PEERS = ("transformers", "trl", "peft", "datasets", "sentence-transformers", "faiss-cpu", "semhash", "hydra-core")


def figures(name: str, words: list[str], source: str | None) -> list[dict[str, object]]:
    """Run one benchmark in a process of its own and take its figures."""
    given = [source] if source else []
    command = [
        sys.executable,
        str(HERE / f"{name}.py"),
        *(part for word in words for part in (given if word == "FILE" else [word])),
    ]
    print(f"\n== {name}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "figures.jsonl"
        subprocess.run(command, check=True, env={**os.environ, FIGURES: str(told)})
        return [json.loads(line) for line in told.read_text(encoding="utf-8").splitlines()]


def table(results: dict[str, object]) -> str:
    """Give the table in Markdown."""
    lines = [
        f"Measured {results['date']} on {results['machine']}; on {results['source']}.", "",
        "| what | figure | range | goal |", "|---|---|---|---|",
    ]  # fmt: skip
    about = None
    for name in BENCHMARKS:
        for figure in results["figures"].get(name, []):
            if figure["about"] != about:
                about = figure["about"]
                lines.append(f"| **{about}** (`benchmarks/{name}.py`) | | | |")
            spread = " to ".join(f"{one:.3g}" for one in figure["spread"]) if figure["spread"] else ""
            goal = f"{figure['goal']}{'' if figure['met'] else ', **missed**'}"
            lines.append(f"| {figure['what']} | {figure['value']:.4g} | {spread} | {goal} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line, run, write results.json and the page's table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--enforce", action="store_true")
    arguments = parser.parse_args()
    source = str(Path(arguments.file).absolute()) if arguments.file else None
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"figures": {}}
    results = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": machine(*PEERS).replace("\n", "; "),
        "source": "a user's file" if source else "the starter set and made-up vectors",
        "figures": before["figures"] | {name: figures(name, BENCHMARKS[name], source) for name in arguments.only},
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{table(results)}{END}{rest.partition(END)[2]}", encoding="utf-8")
    missed = [figure["what"] for found in results["figures"].values() for figure in found if not figure["met"]]
    print(f"\n{table(results)}\nwritten: {RESULTS}, {PAGE}")
    if missed and not is_reference():
        print("goals are not enforced here: they are those of two cores with bf16")
    elif missed and arguments.enforce:
        raise SystemExit(f"missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
