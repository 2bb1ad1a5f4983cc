"""The state of a run as it is now: its status may say that it is running although its process has died."""

from __future__ import annotations

import datetime
import os
import socket
from pathlib import Path
from typing import Any

from sft_lab.core.types import RunState

CUT_OFF, NOT_STARTED, BROKEN = "cut off", "not started", "broken"
CLOCK_SLACK = datetime.timedelta(seconds=2)  # a status has its time to the second


def current_state(status: dict[str, Any]) -> str:
    """Return the state in the content of ``status.json``; ``cut off`` where it was running on this machine."""
    if not status:
        return NOT_STARTED
    state, host = str(status.get("state", BROKEN)), status.get("host")
    if state != RunState.RUNNING or host is None:
        return state
    if host != socket.gethostname():
        return f"{RunState.RUNNING} on {host}"
    return RunState.RUNNING if _is_alive(status.get("pid"), str(status.get("time", ""))) else CUT_OFF


def _is_alive(pid: object, since: str) -> bool:
    """Return whether the process that wrote a status still runs, and not a later one with the same number.

    Args:
        pid: its number.
        since: when it wrote the status, ISO 8601.
    """
    try:
        # The fields behind the name, which may hold spaces and brackets: state first, start time as the 20th.
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
    except (OSError, ValueError, IndexError):
        return False
    if stat[0] in "ZX":  # dead, and not yet removed from the table
        return False
    try:
        written = datetime.datetime.fromisoformat(since)
    except ValueError:
        return True
    age = datetime.timedelta(seconds=uptime - int(stat[19]) / os.sysconf("SC_CLK_TCK"))
    return datetime.datetime.now(datetime.UTC) - age <= written + CLOCK_SLACK
