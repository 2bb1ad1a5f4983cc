"""Out of memory in the data stages: told with the stage, and with remedies for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sft_lab.config import compose
from sft_lab.core.context import StageContext
from sft_lab.core.errors import JobError
from sft_lab.core.store import Store
from sft_lab.run import resource_errors


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_source_too_large(here: Path, tiny: list[str], name: str) -> None:
    rows = [{"question": f"Question {n}?", "answer": f"{n}. " * 300} for n in range(40_000)]
    small = rows[:300]
    texts = {"rows.json": json.dumps, "rows.jsonl": lambda some: "".join(f"{json.dumps(row)}\n" for row in some)}
    Path(name).write_text(texts[name](rows))
    Path(f"small-{name}").write_text(texts[name](small))
    script = Path(__file__).with_name("little_memory_for_data.py")
    words = [*tiny, "dataset=file", "dataset.limit=null", "split.eval_share=0"]
    done = subprocess.run(
        [sys.executable, str(script), "100", name, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.rstrip().splitlines()[-1]
    assert "out of memory in load (" in last
    assert "training batch" not in last
    assert json.loads(Path("run/status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize(
    ("stage", "named", "not_named"),
    [
        ("load", ["out of memory in load (", "engine.block", "dataset.max_record_mb"], "trainer."),
        ("neighbors", ["out of memory in neighbors (", "dataset.limit", "dedup=exact"], "trainer."),
        ("tokenize", ["out of memory in tokenize (", "dataset.limit"], "trainer."),
        ("base", ["out of memory in measuring (", "evaluation.batch_tokens"], "trainer."),
    ],
)
def test_the_stage_and_what_helps_it(
    tmp_path: Path, tiny: list[str], stage: str, named: list[str], not_named: str
) -> None:
    run = compose(tiny)

    def compute(_: Path) -> None:
        raise MemoryError("Unable to allocate 64.0 GiB")

    with pytest.raises(JobError) as error, resource_errors.explained(run, tmp_path):
        StageContext(Store(tmp_path / "store")).stage(stage, {"version": 1}, compute)
    for words in named:
        assert words in str(error.value)
    assert not_named not in str(error.value)
