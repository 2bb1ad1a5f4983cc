"""A home folder and a name for a user id that has neither, as in a container started with an id of its own."""

from __future__ import annotations

import logging
import os
import pwd
import tempfile
from pathlib import Path

from sft_lab.core.errors import UserError

log = logging.getLogger("sft_lab")


def ensure() -> None:
    """Set what our libraries ask the system for, where it knows nothing of this user id.

    Without it ``~`` is a folder of this name to some of them, and an error to others.

    Raises:
        UserError: if there is no folder to be had that is this user's alone.
    """
    user = os.getuid()
    try:
        pwd.getpwuid(user)
    except KeyError:
        os.environ.setdefault("LOGNAME", f"uid{user}")  # getpass.getuser looks here first
        if not os.environ.get("HOME"):
            folder = os.environ["HOME"] = str(_temporary(user))
            log.info("user id %d has no home folder: caches go to %s; set HOME for another", user, folder)


def _temporary(user: int) -> Path:
    """Make a folder of this user's alone, the same each time: logins and the store would lie in it."""
    folder = Path(tempfile.gettempdir(), f"sft_lab-{user}")
    problem = ""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.lstat()
        if about.st_uid != user or about.st_mode & 0o022 or folder.is_symlink():
            problem = "is not this user's alone"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise UserError(f"{folder}: {problem}; user id {user} has no home folder; set HOME to a folder of yours")
    return folder
