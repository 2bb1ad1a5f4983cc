"""A home folder and a name for a user id without an account, as in a container started with ``--user``."""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

from sft_lab.core.errors import UserError
from sft_lab.core.log import log


def ensure() -> None:
    """Set LOGNAME and HOME for a user id that the system has no account for.

    Without them some libraries raise, and others make a folder named ``~``.

    Raises:
        UserError: if no private folder can be made.
    """
    user = os.getuid()
    try:
        pwd.getpwuid(user)
    except KeyError:
        os.environ.setdefault("LOGNAME", f"uid{user}")  # which getpass.getuser reads first
        if not os.environ.get("HOME"):
            folder = os.environ["HOME"] = str(_temporary(user))
            log.info("user id %d has no home folder: caches go to %s; set HOME to choose another folder", user, folder)


def _temporary(user: int) -> Path:
    """Return a private folder, the same each time: logins and the store may be kept in it."""
    folder = Path(tempfile.gettempdir(), f"sft_lab-{user}")
    problem = ""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if status.st_uid != user or status.st_mode & 0o022 or folder.is_symlink():
            problem = "others can write to it"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise UserError(
            f"{folder}: {problem}, and user id {user} has no home folder; set HOME to a folder that you own"
        )
    return folder
