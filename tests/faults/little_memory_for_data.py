"""Prepare a file with little memory beyond what a small one takes: MIB FILE WORDS..."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from sft_lab.cli.main import main

if __name__ == "__main__":
    mib, name, *words = sys.argv[1:]
    assert main(["prepare", *words, f"dataset.path=small-{name}", "hydra.run.dir=small"]) == 0
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(mib) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.exit(main(["prepare", *words, f"dataset.path={name}", "hydra.run.dir=run"]))
