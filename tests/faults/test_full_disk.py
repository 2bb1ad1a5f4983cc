"""The disk is full, wherever it happens: a clear error, status failed, what is finished stays, and it goes on."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft_lab.core.io import write_array
from sft_lab.run import resource_errors

NAMESPACE = ["unshare", "--map-root-user", "--mount"]
ENOUGH = 65536  # KiB
TIMES = ("second", "date", "share", "measuring")


def allowed() -> bool:
    try:
        return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def on_disks(folder: Path, sizes: list[int], words: list[str]) -> list[dict[str, Any]]:
    """What a command did on a disk of each size, in KiB; it takes up to 2 MiB."""
    more = ["trainer.max_steps=4", "trainer.save_steps=2", "trainer.eval_steps=2", "evaluation.prompts=[Hello]",
            "evaluation.max_new_tokens=4", "evaluation.outputs=2"]  # fmt: skip
    script = Path(__file__).with_name("small_disk.py")
    command = [*NAMESPACE, sys.executable, str(script), str(folder), *map(str, sizes), "--", *words, *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def same(content: Any) -> Any:
    """What must be equal: all but times and speeds."""
    if isinstance(content, dict):
        return {name: same(value) for name, value in content.items() if not any(word in name for word in TIMES)}
    return [same(item) for item in content] if isinstance(content, list) else content


def hold(undisturbed: dict[str, Any], found: dict[str, Any]) -> None:
    size = found["size"]
    if found["code"]:
        told = found["said"].rstrip().splitlines()[-1]
        assert found["code"] == 1, size
        assert told.startswith("sft-lab: no space left in "), told
        assert "Traceback" not in found["said"], size
        assert "Logging error" not in found["said"], size
        assert found["status"]["state"] == "failed", size
        assert "no space left" in found["status"]["error"], size
    assert found["half"] == [], size
    assert (found["again"], found["left"]) == (0, []), size
    assert same(found["summary"]) == same(undisturbed["summary"]), size
    assert same(found["metrics"]) == same(undisturbed["metrics"]), size


needs_disks = pytest.mark.skipif(not allowed(), reason="no mount namespaces for users here")


@pytest.mark.parametrize("size", [128, 4096, 5000, 8000])
def test_an_array_that_does_not_fit_is_an_error(tmp_path: Path, size: int) -> None:
    """Wherever its end is: of these, np.save takes one for written, and gives another no error number."""
    array = np.arange(1000, dtype=np.float64)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            write_array(tmp_path / "array.npy", array)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.errno in resource_errors.DISK_ERRORS


@pytest.mark.parametrize("shape", [(0,), (7,), (0, 3), (5, 3)])
@pytest.mark.parametrize("kind", [np.float16, np.int32, bool])
def test_an_array_is_written_as_numpy_writes_it(tmp_path: Path, shape: tuple[int, ...], kind: type) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(kind)
    write_array(tmp_path / "ours.npy", array)
    np.save(tmp_path / "theirs.npy", array)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()
    write_array(tmp_path / "ours.npy", array[::2].T)  # not contiguous
    assert np.array_equal(np.load(tmp_path / "ours.npy"), array[::2].T)


@pytest.mark.slow
@needs_disks
def test_store_checkpoint_and_model_do_not_fit(tmp_path: Path, tiny: list[str]) -> None:
    whole, *small = on_disks(tmp_path, [ENOUGH, 150, 800, 1100], tiny)
    assert (whole["code"], whole["half"]) == (0, [])
    assert [found["code"] for found in small] == [1, 1, 1]
    for found in small:
        hold(whole, found)


@pytest.mark.faults
@needs_disks
@pytest.mark.timeout(1800)
def test_every_size_of_disk(tmp_path: Path, tiny: list[str]) -> None:
    whole, *small = on_disks(tmp_path, [ENOUGH, *range(60, 3000, 60)], tiny)
    for found in small:
        hold(whole, found)
    failed = [found["size"] for found in small if found["code"]]
    assert failed
    print(f"{len(small)} sizes of disk, {len(failed)} too small (up to {max(failed)} KiB); all went on to the same end")
