"""What doctor says of one part of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial


class Severity(StrEnum):
    """How serious a diagnosis is."""

    OK = "ok"
    NOTE = "note"  # it works, with a remark
    PROBLEM = "problem"  # the message has the remedy


@dataclass(frozen=True)
class Diagnosis:
    """The state of one part of this machine.

    Attributes:
        severity: whether something must be done.
        topic: the part, such as ``packages`` or ``store``.
        message: what its state is.
    """

    severity: Severity
    topic: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity:<8} {self.topic:<9} {self.message}"


ok, note, problem = (partial(Diagnosis, severity) for severity in Severity)
