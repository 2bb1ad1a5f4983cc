"""The environment of a run, which its result depends on besides its config: then and now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sft_lab.core.text import count_of
from sft_lab.run import inputs
from sft_lab.run.identity import plugin_origins
from sft_lab.tracking import manifest
from sft_lab.training.config import resolve_precision

if TYPE_CHECKING:
    from sft_lab.run.config import Run

UNCOMMITTED = "uncommitted changes"


@dataclass(frozen=True)
class Difference:
    """A value that has changed; None where there was or is none."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name}: was {inputs.shorten(self.old)}, is {inputs.shorten(self.new)}"

    def as_record(self) -> dict[str, Any]:
        """Return it as ``replay.json`` holds it."""
        return {"name": self.name, "then": self.old, "now": self.new}


def current(run: Run) -> dict[str, Any]:
    """Return the environment that ``manifest.json`` would record for a run of this config now."""
    import torch

    return {
        "git": manifest.git_state(),
        "packages": manifest.versions(),
        "plugins": plugin_origins(run),
        **inputs.current(run, run.store.open()),
        "hardware": manifest.hardware(),
        "threads": run.threads or torch.get_num_threads(),
        "precision": resolve_precision(run.trainer.precision),
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[Difference]:
    """Compare two manifests: commit, versions, plug-ins, data, hardware, threads, precision.

    A field that the old manifest lacks, because the run stopped early or sft_lab was older, is not compared.

    Args:
        old: a manifest.
        new: a later one, or what ``current`` returns.
    """
    compared = _git_differences(part(old, "git"), part(new, "git"))
    for name, title in (("packages", ""), ("plugins", "plug-in "), ("hardware", "hardware ")):
        old_part, new_part = part(old, name), part(new, name)
        compared += [Difference(f"{title}{key}", old_part.get(key), new_part.get(key)) for key in old_part]

    compared += [Difference(name, *hashes) for name, hashes in inputs.differences(old, new).items()]
    compared += [
        Difference(name, old[name], new[name]) for name in ("threads", "precision") if name in old and name in new
    ]
    return [difference for difference in compared if difference.old != difference.new]


def _git_differences(old: dict[str, Any], new: dict[str, Any]) -> list[Difference]:
    compared = [Difference("git commit", old["commit"], new.get("commit"))] if "commit" in old else []
    if old.get("dirty") and new.get("dirty"):  # uncommitted changes may differ, as they are not recorded
        compared.append(Difference(UNCOMMITTED, "yes", "yes, perhaps different ones"))
    elif "dirty" in old:
        yes_or_no = {None: None, True: "yes", False: "no"}
        compared.append(Difference(UNCOMMITTED, yes_or_no[old["dirty"]], yes_or_no[new.get("dirty")]))
    return compared


def part(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a mapping in a manifest; empty if it is missing."""
    value = content.get(name)
    return value if isinstance(value, dict) else {}


def lines(items: list[Difference] | None) -> list[str]:
    """Return the differences as lines of text; ``None`` means that the old run recorded no environment."""
    if items is None:
        return ["Environment: not recorded by the old run."]
    if not items:
        return ["Environment: the same (commit, versions, data, hardware, threads, precision)."]
    return [f"Environment: {count_of(len(items), 'difference')}", *(f"  {difference}" for difference in items)]
