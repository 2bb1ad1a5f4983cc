"""How often the verdict is wrong: runs made to show one sign each, and healthy ones, over several draws of data.

    python benchmarks/verdicts.py                                # 42 runs of the tiny random model, about 12 minutes
    python benchmarks/verdicts.py --model bundled                # 6 of the bundled model, about 15 minutes; or both
    python benchmarks/verdicts.py --file conversations.jsonl.gz  # on conversations of your own (ShareGPT)

The settings below were written down before the first of these runs was made. Where a rule or limit was changed after
it, the draws were too (docs/verdicts.md tells of each change). Each setting of the tiny model is run on three draws:
another order of the source, of which the first rows are trained, and another seed. Held-out rows stay.

Goals: at least 90% of the runs get the verdict they were made for, and no healthy one gets another.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it

from common import Goals, machine

from sft_lab import compose

DRAWS = (14, 15, 16)  # 11 to 13 before a limit was changed: docs/verdicts.md
COMMON = ["tracking=local", "evaluation.prompts=[]", "evaluation.general=null", "evaluation.baseline.examples=0",
          "evaluation.baseline.system_prompt=null", "evaluation.watch_probe=false", "dedup=exact",
          "decontaminate.method=exact"]  # fmt: skip
WRONG_END = ["template=file", "template.path=package:sft_lab/data/templates/wrong_end.jinja"]
TINY = ["model=tiny_random", "trainer=full", "split.max_eval_rows=24", "trainer.eval_steps=0.125"]
BUNDLED = ["split.max_eval_rows=12", "trainer.eval_steps=0.25", "evaluation.outputs=4"]


def setting(rows: int | None, rate: str, duration: str, *more: str) -> list[str]:
    """Words of one setting; duration: ``num_train_epochs=4`` or ``max_steps=16``."""
    limit = "null" if rows is None else rows
    return [f"dataset.limit={limit}", f"trainer.learning_rate={rate}", f"trainer.{duration}", *more]


SETTINGS: dict[str, list[list[str]]] = {
    "healthy": [setting(150, "3e-3", "num_train_epochs=4"), setting(150, "5e-3", "num_train_epochs=3")],
    "underfitting": [setting(100, "1e-6", "num_train_epochs=4"), setting(100, "3e-6", "num_train_epochs=1")],
    "undertrained": [
        setting(150, "5e-4", "max_steps=16", "trainer.logging_steps=1"),
        setting(150, "2e-4", "max_steps=24", "trainer.logging_steps=1"),
    ],
    "overfitting": [setting(40, "1e-3", "num_train_epochs=12"), setting(60, "3e-3", "num_train_epochs=15")],
    "memorizing": [setting(12, "3e-3", "num_train_epochs=60"), setting(16, "2e-3", "num_train_epochs=80")],
    "diverged": [
        setting(100, "30", "num_train_epochs=4", "trainer.max_grad_norm=0"),
        setting(100, "10", "num_train_epochs=2", "trainer.max_grad_norm=0"),
    ],
    "template_not_learned": [
        setting(150, "3e-3", "num_train_epochs=4", *WRONG_END),
        setting(150, "5e-3", "num_train_epochs=3", *WRONG_END),
    ],
}
OF_BUNDLED: list[tuple[str, list[str]]] = [
    ("healthy", setting(100, "2e-4", "num_train_epochs=1")),
    ("healthy", setting(60, "1e-4", "num_train_epochs=2")),
    ("underfitting", setting(20, "1e-6", "num_train_epochs=1")),
    ("memorizing", setting(12, "1e-3", "num_train_epochs=12")),
    ("diverged", setting(20, "0.1", "num_train_epochs=1")),
    ("template_not_learned", setting(60, "5e-4", "num_train_epochs=2", *WRONG_END)),
]


def verdict(words: list[str], folder: Path) -> str:
    """Make one run and give its verdict."""
    return str(compose(words).execute(folder)["verdict"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, metavar="FILE", help="conversations instead of the starter set")
    parser.add_argument("--model", choices=("tiny", "bundled", "both"), default="tiny", help="whose runs")
    parser.add_argument("--enforce", action="store_true", help="exit 1 when a goal is missed")
    arguments = parser.parse_args()
    data = ["dataset=file", f"dataset.path={arguments.file.absolute()}", "filter.length.max_tokens=256",
            "split.max_eval_tokens=256"] if arguments.file else []  # fmt: skip
    logging.getLogger("sft_lab").setLevel(logging.ERROR)
    print(machine())
    runs = [
        (made_for, [*COMMON, *data, *TINY, *words, f"dataset.shuffle_seed={draw}", f"seed={draw}"])
        for made_for, settings in SETTINGS.items()
        for words in settings
        for draw in DRAWS
        if arguments.model != "bundled"
    ]
    if arguments.model != "tiny":
        drawn = [f"dataset.shuffle_seed={DRAWS[0]}", f"seed={DRAWS[0]}"]
        runs += [(made_for, [*COMMON, *data, *BUNDLED, *words, *drawn]) for made_for, words in OF_BUNDLED]
    found: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number, (made_for, words) in enumerate(runs):
            given = verdict(words, Path(folder) / str(number))
            found[made_for, given] += 1
            print(
                f"{number + 1:3} {made_for:21} -> {given:21} {' '.join(words[len(COMMON) + len(data) :])}", flush=True
            )
    table(found)
    agreed = sum(count for (made_for, given), count in found.items() if made_for == given)
    alarms = sum(count for (made_for, given), count in found.items() if made_for == "healthy" != given)
    goals = Goals("verdicts")
    goals.hold("runs that got the verdict they were made for", agreed / len(runs), least=0.9)
    goals.hold("healthy runs that got another", alarms, most=0)
    goals.end(enforce=arguments.enforce)


def table(found: Counter[tuple[str, str]]) -> None:
    """Print the confusion table: a line for each sign, a column for each verdict."""
    names = [*SETTINGS, *sorted({given for _, given in found} - SETTINGS.keys())]
    sys.stdout.write(f"\n{'made for / verdict':22}" + "".join(f"{name[:13]:>14}" for name in names) + "\n")
    for made_for in SETTINGS:
        cells = (found[made_for, given] or "." for given in names)
        sys.stdout.write(f"{made_for:22}" + "".join(f"{cell:>14}" for cell in cells) + "\n")


if __name__ == "__main__":
    main()
