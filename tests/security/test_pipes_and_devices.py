"""A pipe, a device or a link out of the folder in the place of a run's file: one message, no hang, little memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE

LIMITED = (
    "import resource as r, sys; r.setrlimit(r.RLIMIT_AS, (6 * 2**30,) * 2); "
    "from sft_lab.cli.main import main; sys.exit(main())"
)
CALLS = [["runs", "."], ["compare", "run", "--out", "compared"], ["exec", "run"], ["promote", "run", "kept"]]


@pytest.mark.slow
@pytest.mark.parametrize("words", CALLS, ids=lambda words: words[0])
@pytest.mark.parametrize("name", ["status.json", "config.yaml"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_no_command_hangs(here: Path, kind: str, name: str, words: list[str]) -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text("format: 1\n")
    Path("run/status.json").write_text('{"state": "finished"}')
    Path("run", name).unlink()
    os.mkfifo(f"run/{name}") if kind == "pipe" else Path("run", name).symlink_to("/dev/zero")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *words], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stdout + done.stderr
