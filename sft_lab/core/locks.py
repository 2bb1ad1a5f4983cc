"""File locks, on which the store and the run folders rest: who holds one, and whether a file system keeps them."""

from __future__ import annotations

import fcntl
import logging
import os
import pwd
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sft_lab.core.errors import FolderError

if TYPE_CHECKING:
    from filelock import BaseFileLock

MOUNTS = Path("/proc/self/mounts")
# Mount options under which a lock holds on one machine alone: of NFS, Lustre, OCFS2, SMB and AFS.
LOCAL = {"nolock", "local_lock=all", "local_lock=flock", "localflock", "localflocks", "nobrl", "flock=local"}
# File systems that leave flock to the kernel of each machine (two mounts of the first two gave one lock to two holders;
# https://github.com/openssh/openssh-portable/pull/66, https://github.com/s3fs-fuse/s3fs-fuse/issues/2137).
LOCAL_KINDS = {"fuse.sshfs", "fuse.rclone", "fuse.s3fs"}

TELL_AFTER = 2.0  # seconds of waiting for another process's lock, after which the log says for whom
log = logging.getLogger("sft_lab")


class Holder(NamedTuple):
    """The process that holds a lock, as it has written into the lock's file."""

    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def file_lock(file: Path) -> BaseFileLock:
    """Return a lock between processes: whoever holds it is named in its file, and its death frees it."""
    # A soft lock, which filelock takes where there is no flock, outlives a killed holder.
    return _lock_class()(file, fallback_to_soft=False, on_acquired=_sign)


@lru_cache
def _lock_class() -> type[BaseFileLock]:
    from filelock import FileLock

    class Lock(FileLock):
        """A lock whose file, where it is there and cannot be opened, is named with its owner."""

        def _acquire(self) -> None:
            try:
                super()._acquire()
            except OSError as error:
                file = Path(self.lock_file)
                if not os.path.lexists(file):
                    raise
                raise FolderError(
                    f"{file}: this lock file of {_owner(file)} cannot be opened ({error.strerror}); if none of their "
                    "processes is at work, let them remove it, or choose another folder: hydra.run.dir or "
                    "hydra.sweep.dir for a run's, store.path or SFT_LAB_STORE for the store's"
                ) from error

    return Lock


def _owner(file: Path) -> str:
    user = file.lstat().st_uid
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def _sign(handle: int) -> None:
    with suppress(OSError):  # a full disk takes no name, and keeps locks all the same
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{socket.gethostname()} {os.getpid()}\n".encode(), 0)


def holder(file: Path) -> Holder | None:
    """Return who holds a lock that cannot be had; None where its file does not say."""
    try:
        host, pid = file.read_text(encoding="utf-8", errors="replace").split()
        return Holder(host, int(pid))
    except (OSError, ValueError):
        return None


@contextmanager
def holding(file: Path, title: str) -> Iterator[None]:
    """Hold a lock; while another process has it, wait, and say for whom.

    Args:
        file: of the lock.
        title: what it guards.
    """
    from filelock import Timeout

    lock = file_lock(file)
    try:
        lock.acquire(timeout=TELL_AFTER)
    except Timeout:
        log.info("%s: waiting for %s, which is at work on it", title, holder(file) or "another process")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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
