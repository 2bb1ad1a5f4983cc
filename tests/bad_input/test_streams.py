"""Standard output that is closed, full, or read no further."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from wrong_input import REPOSITORY

COMMAND = f"{sys.executable} -m sft_lab --cfg job"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (f"{COMMAND} >&-", 0, ""),
        (f"{COMMAND} dedup.threshold=7 2>&-", 2, ""),
        (f"{COMMAND} | true", 0, ""),
        (f"{COMMAND} > /dev/full", 1, "sft-lab: standard output: cannot be written (No space left on device)"),
    ],
)
def test_whoever_reads_no_further_gets_no_traceback(line, code, says, tmp_path):
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(says)
    assert bool(done.stderr) == bool(says)
    assert list(tmp_path.iterdir()) == []
