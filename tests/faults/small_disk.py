"""Run in a mount namespace of its own: one command on disks too small for it, and again when there is room.

    unshare --map-root-user --mount python small_disk.py FOLDER KIB... -- WORDS...

Prints a JSON line for each size: exit code, message and status of the first attempt, what was left in the store, then
exit code, summary and metrics of the second.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sft_lab.cli.main import main
from sft_lab.core.store import Store


def attempt(words: list[str]) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main([*words, "hydra.run.dir=run"])
    return code, said.getvalue()


def half_written() -> list[str]:
    """Name what an interrupted computation left; finished blocks are no such thing, the next attempt reads them."""
    folders = {path for path in Path("store").glob("*/.*") if path.parent.name != ".locks"}
    blocks = {block for folder in folders if folder.suffix == ".blocks" for block in folder.glob("*.arrow")}
    files = {file for folder in folders for file in folder.iterdir()}
    return sorted(map(str, (folders | files) - blocks - {block.parent for block in blocks}))


def on_disk(folder: Path, size: int, words: list[str]) -> dict[str, Any]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(folder)], check=True)
    os.chdir(folder)
    try:
        code, said = attempt(words)
        status = json.loads(Path("run/status.json").read_text())
        half = half_written()
        listed = len(list(Store(Path("store")).listing()))
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        again, _ = attempt(words)
        summary = json.loads(Path("run/summary.json").read_text())
        left = [str(path) for path in Path("store").glob("*/.*") if path.parent.name != ".locks"]
        metrics = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
        return {"size": size, "code": code, "said": said, "status": status, "half": half, "listed": listed,
                "again": again, "left": left, "summary": summary, "metrics": metrics}  # fmt: skip
    finally:
        os.chdir("/")
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


if __name__ == "__main__":
    place, *rest = sys.argv[1:]
    middle = rest.index("--")
    os.environ["SFT_LAB_STORE"] = str(Path(place) / "store")
    for kib in rest[:middle]:
        sys.__stdout__.write(f"{json.dumps(on_disk(Path(place), int(kib), rest[middle + 1 :]))}\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]
