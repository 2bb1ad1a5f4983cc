"""Out of memory: told with the numbers and the knobs to turn."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "word", "named"),
    [
        ("training", "trainer.per_device_train_batch_size=64", "a training batch is 64 rows of up to 1200 tokens"),
        ("measuring", "evaluation.batch_tokens=60000", "an evaluation batch has 60000 tokens"),
    ],
)
def test_a_batch_too_large(here: Path, tiny: list[str], stage: str, word: str, named: str) -> None:
    rows = [{"question": f"Question {n}?", "answer": " ".join(f"{n}.{m}" for m in range(200))} for n in range(300)]
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = [*tiny, "dataset=file", "dataset.path=rows.jsonl", "dataset.limit=null", "trainer.max_length=1200",
             "split.max_eval_rows=64", "evaluation.prompts=[]", "evaluation.outputs=0", "evaluation.general=null",
             "evaluation.baseline.examples=0", "evaluation.baseline.system_prompt=null", word]  # fmt: skip
    script = Path(__file__).with_name("little_memory.py")
    done = subprocess.run([sys.executable, str(script), "300", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    told = done.stderr.rstrip().splitlines()[-1]
    assert told.startswith(f"sft-lab: out of memory in {stage} (")
    assert named in told
    assert "Traceback" not in done.stderr
    assert json.loads(Path("run/status.json").read_text())["state"] == "failed"
