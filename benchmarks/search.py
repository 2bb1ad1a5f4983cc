"""Whether a search of 20 trials finds the better half of a known valley although it is killed twice: ten sampler seeds.

    python benchmarks/search.py              # about 15 minutes on two idle cores
    python benchmarks/search.py --seeds 3    # the first three

The valley is the held-out loss of the tiny random model over the learning rate, from 1e-3 to 100: four steps learn
little at its lower end and too roughly at its upper one. A grid of 11 rates maps it first, and shows which half of the
range, by factors, holds its lowest point. Then ``sft-lab search`` runs once for each seed. SIGKILL ends it, the whole
process group, a moment after its 6th and its 13th trial, and the same command goes on.

Goals: the best trial lies in the better half for at least 9 of 10 seeds; no trial is lost or proposed twice, and no
finished job is run again. (One that was killed while it wrote its results goes on from its last checkpoint.)
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Goals, machine

from sft_lab.core.io import read_json

AXIS, LOW, MIDDLE, HIGH = "trainer.learning_rate", 1e-3, 10**-0.5, 1e2
GRID = [f"{LOW * 10 ** (number / 2):.3g}" for number in range(11)]
TRIALS, KILLED_AFTER = 20, (6, 13)
JOB = ["model=tiny_random", "trainer=smoke", "dedup=exact", "decontaminate.method=exact", "tracking=local", "threads=1",
       "dataset.limit=60", "split.max_eval_rows=8", "evaluation.outputs=0", "evaluation.prompts=[]",
       "evaluation.general=null", "evaluation.baseline.examples=0"]  # fmt: skip
HPARAMS = f"""
hydra:
  sweeper:
    sampler: {{_target_: optuna.samplers.TPESampler, seed: SEED}}
    n_trials: {TRIALS}
    params: {{{AXIS}: "tag(log, interval({LOW:g},{HIGH:g}))"}}
"""


def command(folder: str, *rest: str) -> list[str]:
    return [sys.executable, "-m", "sft_lab", "search", *JOB, "store.path=store", f"hydra.sweep.dir={folder}", *rest]


def trials_in(folder: Path) -> list[dict[str, Any]]:
    """Return the trials that have ended, none before the search has begun."""
    record = folder / "search.json"
    return list(read_json(record)["trials"]) if record.exists() else []


def rate(trial: dict[str, Any]) -> float:
    return float(trial["values"][AXIS])


def map_valley(root: Path) -> list[dict[str, Any]]:
    """Return the trials of the grid, best first, and print their losses."""
    over = ["--over", f"{AXIS}={','.join(GRID)}", "--sampler", "grid"]
    subprocess.run(command("grid", *over), cwd=root, check=True, capture_output=True)
    trials = trials_in(root / "grid")
    print("valley:", "  ".join(f"{rate(trial):g}: {trial['loss']:.4f}" for trial in trials), flush=True)
    return sorted(trials, key=lambda trial: float(trial["loss"]))


def finished(folder: Path) -> dict[str, int]:
    """Return when each finished job wrote its summary; it is finished a moment later, when its state says so."""
    states = {path.parent: read_json(path)["state"] for path in folder.glob("*/status.json")}
    return {job.name: (job / "summary.json").stat().st_mtime_ns for job in states if states[job] == "finished"}


def kill_after(trials: int, folder: Path, words: list[str], delay: float) -> None:
    """Start the search, and kill it a moment after its nth trial."""
    process = subprocess.Popen(
        words, cwd=folder.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while len(trials_in(folder)) < trials:
        if process.poll() is not None:
            raise SystemExit(f"{folder.name} ended by itself with {process.returncode} before its trial {trials}")
        time.sleep(0.02)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def search(root: Path, seed: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the trials of a search that was killed twice, and what became of trials that should not."""
    name = f"seed{seed}"
    (root / "hparams_search" / f"{name}.yaml").write_text(HPARAMS.replace("SEED", str(seed)), encoding="utf-8")
    folder, words, moments = root / name, command(name, f"hparams_search={name}"), random.Random(seed)
    before: list[dict[str, Any]] = []
    written: dict[str, int] = {}
    for number in KILLED_AFTER:
        kill_after(number, folder, words, moments.uniform(0, 1.5))
        before += trials_in(folder)
        written = finished(folder) | written
    end = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    if end.returncode:
        return trials_in(folder), [f"exit {end.returncode}: {end.stderr[-500:]}"]
    trials = trials_in(folder)
    jobs = [trial["job"] for trial in trials]
    losses = {job: read_json(folder / job / "summary.json")["eval/loss"] for job in finished(folder)}
    problems = [f"lost: {trial}" for trial in before if trial not in trials]
    problems += [f"proposed twice: {job}" for job in set(jobs) if jobs.count(job) > 1]
    problems += [f"run again: {job}" for job, moment in written.items() if finished(folder).get(job) != moment]
    problems += [
        f"begun in vain: {path.parent.name}" for path in folder.glob("*/config.yaml") if path.parent.name not in jobs
    ]
    problems += [f"not as its job: {trial}" for trial in trials if trial["loss"] != losses.get(trial["job"])]
    return trials, [*problems, *([f"{len(trials)} trials"] if len(trials) != TRIALS else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--enforce", action="store_true", help="exit 1 when a goal is missed")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(machine("optuna"))
    better, faulty = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "hparams_search").mkdir()
        valley = map_valley(root)
        is_lower = rate(valley[0]) < MIDDLE
        print(f"better half: {f'{LOW:g} to' if is_lower else 'above'} {MIDDLE:.3g}")
        for seed in range(1, arguments.seeds + 1):
            trials, problems = search(root, seed)
            best = min((trial for trial in trials if trial["outcome"] == "finished"), key=lambda trial: trial["loss"])
            inside = [(rate(trial) < MIDDLE) == is_lower for trial in trials]
            better += (rate(best) < MIDDLE) == is_lower
            faulty += bool(problems)
            print(
                f"seed {seed:2}: best {best['loss']:.4f} (grid {valley[0]['loss']:.4f}) at {rate(best):.3g}, "
                f"{'lower' if rate(best) < MIDDLE else 'upper'} half; {sum(inside[:10])} of the first 10 and "
                f"{sum(inside[10:])} of the last {len(inside[10:])} trials in the better half; {len(trials)} trials, "
                f"{'; '.join(problems) or 'none lost, none repeated'}",
                flush=True,
            )
    goals = Goals("a search of 20 trials, killed twice")
    goals.hold("share of seeds that found the better half", better / arguments.seeds, least=0.9)
    goals.hold("searches that lost or repeated a trial", faulty, most=0)
    if arguments.enforce and goals.missed:  # unlike a speed it depends on no machine
        raise SystemExit(f"missed: {'; '.join(goals.missed)}")


if __name__ == "__main__":
    main()
