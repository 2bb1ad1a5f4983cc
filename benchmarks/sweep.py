"""What a sweep of 12 jobs costs beside its trainings: 4 dedup thresholds x 3 learning rates on the tiny model.

    python benchmarks/sweep.py
    python benchmarks/sweep.py conversations.jsonl.gz --parallel --enforce

FILE holds conversations, one a line (ShareGPT); without it the starter set. Data stages are timed by themselves: the
twelve one after another over one store, of which the first is the cold one, and two with a store each, which is
our own program with the store off. Then the sweep is really run, by the command, and once more when it is finished;
beside it single runs of its first jobs, each with nothing stored.

Goals: data stages of the whole sweep at most 1.05 times those of one cold job; under 2 seconds for each further job
beside training, evaluation and samples; the finished sweep again in under 3 seconds; with two
jobs at once, at most 1.1 times the computing of one at a time.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import Goals, machine

from sft_lab import compose
from sft_lab.core.context import StageContext
from sft_lab.core.io import read_json
from sft_lab.core.store import Store

THRESHOLDS, RATES = (0.8, 0.9, 0.95, 0.99), (1e-3, 2e-3, 4e-3)
TWO_AT_ONCE = ["launch=processes", "launch.at_once=2"]
MODEL_STAGES = ("model", "base", "base_answers")
TINY = ["model=tiny_random", "trainer=smoke", "tracking=local"]


def prepare(words: list[str], store: Path) -> float:
    """Seconds of the data stages of one job."""
    run = compose(words)
    context = StageContext(Store(store), lambda: run.model.tokenizer(context))
    _ = context.tokenizer
    began = time.perf_counter()
    run.prepare(context)
    return time.perf_counter() - began


def computed(command: list[str], place: Path) -> float:
    """Seconds that all jobs of a sweep together computed data stages for, over a store of its own."""
    subprocess.run(
        [*command, f"store.path={place / 'store'}", f"hydra.sweep.dir={place / 'jobs'}", "threads=1"],
        check=True,
        capture_output=True,
    )
    stages = [stage for path in (place / "jobs").glob("*/manifest.json") for stage in read_json(path)["stages"]]
    return sum(stage["seconds"] for stage in stages if not stage["hit"] and stage["stage"] not in MODEL_STAGES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE")
    parser.add_argument("--jobs-off", type=int, default=2, help="jobs to time with the store off; the rest is reckoned")
    parser.add_argument("--parallel", action="store_true", help="two jobs at once too; a thread each, in both sweeps")
    parser.add_argument("--singles", type=int, default=3, help="single runs to time; twelve are reckoned from them")
    parser.add_argument("--enforce", action="store_true", help="exit 1 when a goal is missed")
    arguments = parser.parse_args()
    data = ["dataset=file", f"dataset.path={arguments.file.absolute()}"] if arguments.file else []
    words = [*TINY, *data]
    grid = [[*words, f"dedup.threshold={one}", f"trainer.learning_rate={rate}"] for one in THRESHOLDS for rate in RATES]
    print(machine())
    goals = Goals("a sweep of 12 jobs")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # Loading libraries and models for the first time is no part of a stage.
        prepare([*TINY, "dataset.limit=20"], root / "warm")
        jobs = [prepare(job, root / "sweep") for job in grid]
        cold, sweep = jobs[0], sum(jobs)  # the first job of a sweep is a cold one; another would be noise beside it
        off = [prepare(job, root / f"off{number}") for number, job in enumerate(grid[: arguments.jobs_off])]
        without = sum(off) / len(off) * len(grid)
        print(f"data stages: one cold job {cold:.2f} s; 12 jobs {sweep:.2f} s; with the store off {without:.0f} s")
        command = [sys.executable, "-m", "sft_lab", "-m", *words, f"store.path={root / 'sweep'}",
                   f"hydra.sweep.dir={root / 'jobs'}", f"dedup.threshold={','.join(map(str, THRESHOLDS))}",
                   f"trainer.learning_rate={','.join(map(str, RATES))}"]  # fmt: skip
        if arguments.parallel:
            alone, together = computed(command, root / "a"), computed([*command, *TWO_AT_ONCE], root / "b")
            print(f"computing data stages: one job at once {alone:.1f} s, two {together:.1f} s, over all jobs")
            goals.hold("computing data stages with two jobs at once, of one at a time", together / alone, most=1.1)
        times = []
        for _ in range(2):
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times.append(time.perf_counter() - began)
        summaries = [read_json(path) for path in sorted((root / "jobs").glob("*/summary.json"))]
        beside = statistics.median(
            found["seconds"] - found["train_seconds"] - found["measuring_seconds"] for found in summaries
        )
        print(f"the sweep {times[0]:.1f} s; a job beside training and measuring {beside:.2f} s (median)")
        print(f"the finished sweep again {times[1]:.2f} s")
        singles = []
        for number, job in enumerate(grid[: arguments.singles]):
            began = time.perf_counter()
            place = [f"store.path={root / f'single{number}'}", f"hydra.run.dir={root / f'run{number}'}"]
            subprocess.run([sys.executable, "-m", "sft_lab", *job, *place], check=True, capture_output=True)
            singles.append(time.perf_counter() - began)
        alone = statistics.median(singles) * len(grid)
        print(f"single runs with nothing stored: {' '.join(f'{one:.1f}' for one in singles)} s; of twelve {alone:.0f}")
    spread = (times[0] / max(singles) / len(grid), times[0] / min(singles) / len(grid))
    goals.hold("wall time relative to 12 single runs (estimated from 3)", times[0] / alone, spread=spread)
    goals.hold("data stages of 12 jobs, relative to one cold job", sweep / cold, most=1.05)
    goals.hold("seconds per further job, without training and measuring", beside, most=2)
    goals.hold("seconds to run the finished sweep again", times[1], most=3)
    goals.end(enforce=arguments.enforce)


if __name__ == "__main__":
    main()
