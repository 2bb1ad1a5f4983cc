"""Whether a folder's file system keeps file locks: the store and the run folders rest on them."""

from __future__ import annotations

import fcntl
import os
import re
import uuid
from functools import lru_cache
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
# Mount options under which a lock holds on one machine alone: of NFS, Lustre, OCFS2, SMB and AFS.
LOCAL = {"nolock", "local_lock=all", "local_lock=flock", "localflock", "localflocks", "nobrl", "flock=local"}
# File systems that leave flock to the kernel of each machine (two mounts of the first two gave one lock to two holders;
# https://github.com/openssh/openssh-portable/pull/66, https://github.com/s3fs-fuse/s3fs-fuse/issues/2137).
LOCAL_KINDS = {"fuse.sshfs", "fuse.rclone", "fuse.s3fs"}


def distrust(folder: Path, *, several_machines: bool) -> str:
    """Say why locks in a folder cannot be trusted; nothing when they can.

    Args:
        folder: it need not exist; what counts is the file system it is or would be on.
        several_machines: whether the lock must hold between machines too.
    """
    while not os.path.exists(folder) and folder != folder.parent:  # noqa: PTH110 - False where no such path can be
        folder = folder.parent
    if several_machines and (said := _local(folder.resolve())):
        return said
    return _refused(folder)


@lru_cache
def _refused(folder: Path) -> str:
    """Take one lock twice, through two open files: the second must be refused."""
    # A store in use has files for it; looking at that one, as a plan does, leaves no trace.
    used = next((file for file in folder.glob("*.lock") if not file.name.startswith(".")), None)
    file = used or folder / f".sft_lab-{uuid.uuid4().hex[:8]}.lock"
    handles = []
    try:
        handles.append(os.open(file, os.O_RDWR if used else os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        handles.append(os.open(file, os.O_RDWR))
    except OSError:  # not to be written: that is told by whoever wants to write
        return ""
    else:
        return _of_two(folder, *handles)
    finally:
        for handle in handles:
            os.close(handle)
        if handles and not used:
            file.unlink(missing_ok=True)


def _of_two(folder: Path, first: int, second: int) -> str:
    try:
        for handle in (first, second):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # some file systems say EACCES for EAGAIN
        return ""
    except OSError as error:
        return f"the file system of {folder} keeps no file locks ({error.strerror})"
    return f"the file system of {folder} gives one lock to two processes at once"


def _local(folder: Path) -> str:
    """Look at how the folder's file system is mounted."""
    place, kind, options = Path("/"), "", set[str]()
    for line in MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        _, point, found, words, *_ = line.split(" ")
        # A blank in a path stands there as \040. What is mounted later lies above what was there.
        at = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), point))
        if folder.is_relative_to(at) and at.is_relative_to(place):
            place, kind, options = at, found, set(words.split(","))
    wrong = sorted(options & LOCAL)
    if not wrong and kind not in LOCAL_KINDS:
        return ""
    how = f"{place} ({kind}) is mounted with {wrong[0]}" if wrong else f"{place} is mounted by {kind.partition('.')[2]}"
    return f"{how}: its locks hold on one machine alone, and jobs run on others"
