"""File locks of the store and the run folders: taking one, who holds it, and whether a file system supports them."""

from __future__ import annotations

import fcntl
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
from sft_lab.core.io import TEMPORARY
from sft_lab.core.log import log

if TYPE_CHECKING:
    from filelock import BaseFileLock

MOUNTS = Path("/proc/self/mounts")
# Mount options that make locks local to one machine: of NFS, Lustre, OCFS2, SMB and AFS.
LOCAL = {"nolock", "local_lock=all", "local_lock=flock", "localflock", "localflocks", "nobrl", "flock=local"}
# File systems whose locks are local to each machine (two mounts of the first two gave one lock to two holders;
# https://github.com/openssh/openssh-portable/pull/66, https://github.com/s3fs-fuse/s3fs-fuse/issues/2137).
LOCAL_KINDS = {"fuse.sshfs", "fuse.rclone", "fuse.s3fs"}

LOG_AFTER = 2.0  # seconds of waiting for a lock before its holder is logged


class Holder(NamedTuple):
    """The process that holds a lock, as the lock's file names it."""

    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def file_lock(file: Path) -> BaseFileLock:
    """Return a lock between processes; its file names the holder, and it is freed when the holder dies."""
    # filelock's fallback without flock, a soft lock, would outlive a killed holder.
    return _lock_class()(file, fallback_to_soft=False, on_acquired=_sign)


@lru_cache
def _lock_class() -> type[BaseFileLock]:
    from filelock import FileLock

    class Lock(FileLock):
        """A lock whose error names the owner of a file that cannot be opened."""

        def _acquire(self) -> None:
            try:
                super()._acquire()
            except OSError as error:
                file = Path(self.lock_file)
                if not os.path.lexists(file):
                    raise
                raise FolderError(
                    f"{file}: this lock file, owned by {_owner(file)}, cannot be opened ({error.strerror}); ask them "
                    "to remove it if none of their processes is running, or choose another folder: with hydra.run.dir "
                    "or hydra.sweep.dir for a run, with store.path or SFT_LAB_STORE for the store"
                ) from error

    return Lock


def _owner(file: Path) -> str:
    user = file.lstat().st_uid
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def _sign(handle: int) -> None:
    with suppress(OSError):  # on a full disk the name is not written, but the lock works
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{socket.gethostname()} {os.getpid()}\n".encode(), 0)


def holder(file: Path) -> Holder | None:
    """Return the holder of a lock that is taken; None if its file does not name one."""
    try:
        host, pid = file.read_text(encoding="utf-8", errors="replace").split()
        return Holder(host, int(pid))
    except (OSError, ValueError):
        return None


def is_taken(file: Path) -> bool:
    """Return whether a process holds a lock at this moment; if none does, its file is removed."""
    from filelock import Timeout

    if not file.exists():
        return False
    try:
        with file_lock(file).acquire(timeout=0):
            file.unlink(missing_ok=True)
    except Timeout:
        return True
    except (OSError, FolderError):  # a folder that this user cannot write
        return False
    return False


@contextmanager
def holding(file: Path, title: str) -> Iterator[None]:
    """Hold a lock; while another process has it, wait and log which one.

    Args:
        file: of the lock.
        title: of what the lock guards, for the log.
    """
    from filelock import Timeout

    lock = file_lock(file)
    try:
        lock.acquire(timeout=LOG_AFTER)
    except Timeout:
        log.info("%s: %s is working on it; waiting", title, holder(file) or "another process")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def lock_problem(folder: Path, *, several_machines: bool) -> str:
    """Return why locks in a folder cannot be trusted; empty if they can.

    Args:
        folder: it need not exist; what counts is the file system it is or would be on.
        several_machines: whether the locks must work between machines too.
    """
    while not os.path.exists(folder) and folder != folder.parent:  # noqa: PTH110 - False for an impossible path
        folder = folder.parent
    if several_machines and (problem := _local_mount(folder.resolve())):
        return problem
    return _test_locks(folder)


@lru_cache
def _test_locks(folder: Path) -> str:
    """Take one lock twice, through two open files, and return what is wrong unless the second is refused."""
    # A store in use has lock files; with one of those, `plan` leaves no trace.
    used = next((file for file in folder.glob("*.lock") if not file.name.startswith(".")), None)
    # Named like a temporary file, which other commands ignore.
    file = used or folder / f".sft_lab-{uuid.uuid4().hex[:8]}{TEMPORARY}"
    handles = []
    try:
        handles.append(os.open(file, os.O_RDWR if used else os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        handles.append(os.open(file, os.O_RDWR))
    except OSError:  # not writable, which the first write will report
        return ""
    else:
        return _lock_twice(folder, *handles)
    finally:
        for handle in handles:
            os.close(handle)
        if handles and not used:
            file.unlink(missing_ok=True)


def _lock_twice(folder: Path, first: int, second: int) -> str:
    try:
        for handle in (first, second):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # some file systems say EACCES for EAGAIN
        return ""
    except OSError as error:
        return f"the file system of {folder} does not support file locks ({error.strerror})"
    return f"the file system of {folder} lets two processes hold the same lock"


def _local_mount(folder: Path) -> str:
    """Return why the locks of the folder's file system are local to one machine; empty if they are not."""
    mount, file_system, options = Path("/"), "", set[str]()
    for line in MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        _, escaped_path, line_system, line_options, *_ = line.split(" ")
        # A blank in a path is written as \040. Of two mounts on one path the later one counts.
        path = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), escaped_path))
        if folder.is_relative_to(path) and path.is_relative_to(mount):
            mount, file_system, options = path, line_system, set(line_options.split(","))

    if local_options := sorted(options & LOCAL):
        cause = f"{mount} ({file_system}) is mounted with {local_options[0]}"
    elif file_system in LOCAL_KINDS:
        cause = f"{mount} is mounted by {file_system.partition('.')[2]}"
    else:
        return ""
    return f"{cause}, so its locks work on one machine only, but jobs run on several"
