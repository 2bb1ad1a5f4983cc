"""Run one command with little memory beyond what its libraries take: python little_memory.py MIB WORDS..."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from sft_lab.cli.main import main

if __name__ == "__main__":
    mib, *words = sys.argv[1:]
    assert main([*words, "evaluation.batch_tokens=256", "trainer.per_device_train_batch_size=1",
                 "trainer.max_steps=1", "hydra.run.dir=small"]) == 0  # fmt: skip
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(mib) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.exit(main([*words, "hydra.run.dir=run"]))
