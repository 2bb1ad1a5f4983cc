"""The world of a run: what its result rests on beside its config, then and now."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_lab.core import records
from sft_lab.core.errors import FolderError
from sft_lab.core.run_dir import SWEEP, RunDir
from sft_lab.run import inputs
from sft_lab.run.config import Run
from sft_lab.tracking import manifest
from sft_lab.training.config import resolve_precision

UNCOMMITTED = "uncommitted changes"


@dataclass(frozen=True)
class Difference:
    """Something that is not what it was; None where there was or is nothing."""

    name: str
    then: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name}: was {_shown(self.then)}, is {_shown(self.now)}"


def _shown(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{40,}", text) else text  # hashes


def run_folder(path: Path) -> RunDir:
    """Give the run folder at ``path``.

    Raises:
        FolderError: if it is none, saying what it is.
    """
    folder = RunDir(path.absolute())
    if folder.config.exists():
        return folder
    if not path.exists():
        raise FolderError(f"{path}: no such folder; `sft-lab runs` lists what there is")
    if (path / SWEEP).exists():
        raise FolderError(f"{path}: a sweep of several runs; give one of the run folders in it")
    raise FolderError(f"{path}: no run folder; it has no config.yaml; `sft-lab runs` lists what there is")


def read_manifest(folder: RunDir) -> dict[str, Any] | None:
    """Give a run's ``manifest.json``, None where the run never began.

    Raises:
        FolderError: if it cannot be read.
    """
    if not folder.manifest.exists():
        return None
    return records.read(folder.manifest)


def here(run: Run) -> dict[str, Any]:
    """Describe the world as it is now, in the words of ``manifest.json``: what a run of this config would note."""
    import torch

    return {
        "git": manifest.git_state(),
        "packages": manifest.versions(),
        "plugins": run.plugged(),
        **inputs.here(run, run.store.open()),
        "hardware": manifest.hardware(),
        "threads": run.threads or torch.get_num_threads(),
        "precision": resolve_precision(run.trainer.precision),
    }


def differences(old_manifest: dict[str, Any], run: Run) -> list[Difference]:
    """Say what is different now from what an old run noted.

    Args:
        old_manifest: of the old run.
        run: its config, which says what is read and how many threads work.
    """
    return between(old_manifest, here(run))


def between(then: dict[str, Any], now: dict[str, Any]) -> list[Difference]:
    """Compare two manifests: commit, versions, plug-ins, data, hardware, threads, precision.

    What the old one did not note, because it stopped before or is of an older sft_lab, is not compared.
    """
    found = []
    old_git, new_git = part(then, "git"), part(now, "git")
    if "commit" in old_git:
        found.append(Difference("git commit", old_git["commit"], new_git.get("commit")))
    if old_git.get("dirty") and new_git.get("dirty"):  # two sets of changes that nobody wrote down may be any two
        found.append(Difference(UNCOMMITTED, "yes", "yes, the same or others"))
    elif "dirty" in old_git:
        found.append(Difference(UNCOMMITTED, _yes(old_git["dirty"]), _yes(new_git.get("dirty"))))
    for name, title in (("packages", ""), ("plugins", "plug-in "), ("hardware", "hardware ")):
        old, new = part(then, name), part(now, name)
        found += [Difference(f"{title}{key}", old.get(key), new.get(key)) for key in old]
    found += [Difference(name, *hashes) for name, hashes in inputs.changed(then, now).items()]
    found += [
        Difference(name, then[name], now[name]) for name in ("threads", "precision") if {name} <= then.keys() & now
    ]
    return [one for one in found if one.then != one.now]


def part(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Give a part of a manifest, nothing where there is none."""
    found = content.get(name)
    return found if isinstance(found, dict) else {}


def _yes(flag: object) -> str | None:
    return None if flag is None else "yes" if flag else "no"


def lines(differs: list[Difference] | None) -> list[str]:
    """Say the differences, one a line; None: the old run noted nothing."""
    if differs is None:
        return ["World: nothing is known of the old one."]
    if not differs:
        return ["World: the same (commit, versions, data, hardware, threads, precision)."]
    return [f"World: {counted(differs)}", *(f"  {one}" for one in differs)]


def counted(differs: list[Difference]) -> str:
    """Say how many there are."""
    return "1 difference" if len(differs) == 1 else f"{len(differs)} differences"
