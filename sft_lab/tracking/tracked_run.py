"""What a mirror shows about a run besides its events: name, kind of job, and the summary as flat values."""

from __future__ import annotations

import re
import secrets
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from sft_lab.core.io import digest, flat
from sft_lab.core.run_names import option_names, set_values
from sft_lab.core.tolerant_readers import read
from sft_lab.core.types import Work

if TYPE_CHECKING:
    from sft_lab.core.run_dir import RunDir

MAX_NAME = 128  # characters of a name, as W&B has it
_NAMING_GROUPS = ("dataset", "dedup", "model", "trainer")  # whose options tell one run from another
_ID = re.compile(r"[0-9a-f-]{12,40}")
_CLOCK = re.compile(r"\d\d-\d\d-\d\d(-\d+)?")  # the name of a folder that the user has not named


@dataclass(frozen=True)
class TrackedRun:
    """A run as its mirrors know it.

    Attributes:
        folder: of the run.
        id: kept in the folder, so that a resumed run stays the same run.
        config: as saved.
        work: what is done in the folder, one of ``Work``.
        first_step: the optimizer step after which training goes on; 0 for one that begins.
    """

    folder: RunDir
    id: str
    config: dict[str, Any]
    work: str = Work.RUN
    first_step: int = 0

    @property
    def job_type(self) -> str:
        """The kind of job: ``train``, ``prepare``, ``evaluate``, or ``search`` for a trial of a search."""
        if self.work in (Work.PREPARE, Work.EVALUATE):
            return str(self.work)
        return "search" if self.folder.trial.exists() else "train"

    @property
    def group(self) -> str | None:
        """The name of the sweep's folder; None for a single run."""
        return self.folder.sweep.name if self.folder.sweep else None

    def name(self, chosen: str | None = None) -> str:
        """Return the name: of a sweep's job what differs, of others the folder's if the user named it, else options.

        Args:
            chosen: the user's own, which stands before what differs in a sweep and is all of another run's name.
        """
        if not self.folder.sweep:
            return (chosen or self._own_name())[:MAX_NAME]
        differences = self.folder.path.name.rpartition("-")[0]
        folders = (path.name for path in self.folder.sweep.iterdir() if path != self.folder.path)
        if any(name.rpartition("-")[0] == differences for name in folders):  # as hydra.sweep.subdir may name them
            differences = self.folder.path.name
        return "-".join(filter(None, (chosen, differences)))[:MAX_NAME] or self.folder.path.name

    def _own_name(self) -> str:
        folder, options = self.folder.path.name, option_names(self.config, _NAMING_GROUPS)
        if not options or not _CLOCK.fullmatch(folder):
            return folder
        return "-".join([*options, *set_values(self.folder.hydra)])


def tracking_id(folder: RunDir, job: str) -> str:
    """Return the id in a folder's manifest, else a new one: the same job in two folders is two runs.

    Older versions wrote none: the id was the job's hash in a sweep, and had a part made of the path elsewhere.

    Args:
        folder: of the run.
        job: the hash of its config.
    """
    noted = read(folder.manifest, [])
    if _ID.fullmatch(noted.get("tracking_id") or ""):
        return str(noted["tracking_id"])
    if noted.get("job") == job:
        return job if folder.sweep else f"{job}-{digest(str(folder.path.absolute()))[:4]}"
    return f"{job}-{secrets.token_hex(4)}"


def summary_values(summary: dict[str, Any]) -> dict[str, Any]:
    """Return a summary as single values with dotted keys, which can be columns and axes.

    The evidence is ``evidence.<rule>.value`` and so on; a rule's second line has ``_2`` behind the rule.
    """
    evidence: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    for finding in summary.get("evidence", []):
        rule = str(finding["rule"])
        counts[rule] += 1
        name = rule if counts[rule] == 1 else f"{rule}_{counts[rule]}"
        evidence[name] = {key: value for key, value in finding.items() if key != "rule"}
    values = flat({**summary, **({"evidence": evidence} if evidence else {})})
    return {name: _single(value) for name, value in values.items()}


def _single(value: Any) -> Any:
    if isinstance(value, Enum):  # W&B would take its name, HEALTHY, where the summary has its value
        return value.value
    return str(value) if isinstance(value, list | dict) else value
