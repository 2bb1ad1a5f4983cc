"""A small strace: counts the durable writes of a process, and kills it at the n-th.

Python's own hooks do not see what the Rust of safetensors and the C++ of pyarrow and torch write; the kernel does.
Linux on x86-64.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_CALLS = {
    1: "write", 18: "pwrite64", 20: "writev", 40: "sendfile", 74: "fsync", 75: "fdatasync", 76: "truncate",
    77: "ftruncate", 82: "rename", 83: "mkdir", 84: "rmdir", 85: "creat", 86: "link", 87: "unlink", 88: "symlink",
    2: "open", 257: "openat", 258: "mkdirat", 263: "unlinkat", 264: "renameat", 265: "linkat", 266: "symlinkat",
    296: "pwritev", 316: "renameat2", 326: "copy_file_range",
}  # fmt: skip
_PATH_FIRST = {"open", "creat", "truncate", "rename", "mkdir", "rmdir", "link", "unlink", "symlink"}
_PATH_SECOND = {"openat", "mkdirat", "unlinkat", "renameat", "renameat2", "linkat", "symlinkat"}  # behind a folder's fd
_MAKES = {"mkdir", "mkdirat"}
_TAKES = {"unlink", "unlinkat", "rmdir", "rename", "renameat", "renameat2"}
_AT_CWD = -100

_TRACEME, _CONT, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 7, 0x4200, 0x420E
_FOLLOW = 0x2 | 0x4 | 0x8 | 0x10  # children by fork, vfork and clone, and exec
_SECCOMP, _EXITKILL = 0x80, 0x100000
_EVENT_SECCOMP = 7
_WALL = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long
_libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]


def can_trace() -> bool:
    """Whether this is a machine whose system calls are known here."""
    return platform.machine() == "x86_64" and platform.system() == "Linux"


@dataclass
class Write:
    """A durable write: a file or folder made, emptied, renamed, removed or synced, or a row of writes to one file.

    Attributes:
        call: the system call.
        path: it works on.
        pieces: system calls in the row.
    """

    call: str
    path: str
    pieces: int = 1


@dataclass
class Ended:
    """How a traced process ended.

    Attributes:
        code: its exit code, or minus the signal that killed it.
        writes: its durable writes, the one it was killed in included.
    """

    code: int
    writes: list[Write]


def trace(work: Callable[[], int], root: Path, kill_at: int | None = None, piece: int = 1) -> Ended:
    """Do ``work`` in a forked process and follow its durable writes below ``root``.

    Args:
        work: gives the exit code.
        root: what is written elsewhere does not count.
        kill_at: the number, from 1, of the write that the process is killed in by SIGKILL: before it is done, but
            where bytes are written, after half of them.
        piece: which system call of a row of writes that is.
    """
    pid = os.fork()
    if not pid:
        _begin_traced()
        os._exit(work())
    os.waitpid(pid, 0)
    _ptrace(_SETOPTIONS, pid, _FOLLOW | _SECCOMP | _EXITKILL)
    _ptrace(_CONT, pid, 0)
    writes: list[Write] = []
    known = {pid}
    while True:
        task, status = os.waitpid(-1, _WALL)
        if not os.WIFSTOPPED(status):
            if task == pid:
                return Ended(os.waitstatus_to_exitcode(status), writes)
            continue
        number, event = os.WSTOPSIG(status), status >> 16
        if event == _EVENT_SECCOMP and _takes_part(task, pid):
            found = _durable(task, str(root))
            if found:
                _count(writes, found[0])
                if len(writes) == kill_at and writes[-1].pieces == piece:
                    _write_half(task, *found)
                    os.kill(pid, signal.SIGKILL)
                    continue
        begins = task not in known and number == signal.SIGSTOP
        known.add(task)
        _ptrace(_CONT, task, 0 if event or begins else number)


def _count(writes: list[Write], found: Write) -> None:
    if writes and "write" in found.call and writes[-1].call == found.call and writes[-1].path == found.path:
        writes[-1].pieces += 1
    else:
        writes.append(found)


def _takes_part(task: int, pid: int) -> bool:
    """Whether the task is a thread of the process, and not of a program it has started."""
    return Path(f"/proc/{pid}/task/{task}").exists()


def _durable(task: int, root: str) -> tuple[Write, tuple[int, ...]] | None:
    """Look at the system call a task is about to make."""
    buffer = ctypes.create_string_buffer(96)
    _ptrace(_GET_SYSCALL_INFO, task, ctypes.addressof(buffer), size=len(buffer))
    number, *arguments = struct.unpack_from("<7Q", buffer.raw, 24)
    call = _CALLS[number]
    if call in _PATH_FIRST:
        path = _path(task, _AT_CWD, arguments[0])
    elif call in _PATH_SECOND:
        path = _path(task, ctypes.c_int(arguments[0]).value, arguments[1])
    else:
        path = _target(task, arguments[0])
    if not (path == root or path.startswith(f"{root}/")):
        return None
    there = os.path.lexists(path)
    if call in {"open", "openat"}:
        flags = arguments[1 if call == "open" else 2]
        changes = bool(flags & os.O_TRUNC) if there else bool(flags & os.O_CREAT)
    else:
        changes = not there if call in _MAKES else there if call in _TAKES else True
    return (Write(call, path), tuple(arguments)) if changes else None


def _path(task: int, folder: int, address: int) -> str:
    with Path(f"/proc/{task}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        name = os.fsdecode(memory.read(4096).partition(b"\0")[0])
    base = Path(f"/proc/{task}/cwd").readlink() if folder == _AT_CWD else Path(_target(task, folder))
    return os.path.normpath(base / name)


def _target(task: int, descriptor: int) -> str:
    try:
        return str(Path(f"/proc/{task}/fd/{ctypes.c_int(descriptor).value}").readlink())
    except OSError:
        return ""


def _write_half(task: int, write: Write, arguments: tuple[int, ...]) -> None:
    """Write the first half of what the task is about to write; of other calls, nothing."""
    if "write" not in write.call:
        return
    descriptor, address, length, offset = arguments[:4]
    with Path(f"/proc/{task}/mem").open("rb", buffering=0) as memory:

        def read(address: int, length: int) -> bytes:
            memory.seek(address)
            return memory.read(length)

        if write.call.endswith("v"):
            parts = struct.iter_unpack("<QQ", read(address, 16 * length))
            content = b"".join(read(*part) for part in parts)
        else:
            content = read(address, length)
    facts = dict(line.split(":\t") for line in Path(f"/proc/{task}/fdinfo/{descriptor}").read_text().splitlines()[:2])
    flags, at = int(facts["flags"], 8), offset if write.call.startswith("p") else int(facts["pos"])
    with Path(f"/proc/{task}/fd/{descriptor}").open("r+b", buffering=0) as file:
        file.seek(*((0, os.SEEK_END) if flags & os.O_APPEND else (at, os.SEEK_SET)))
        file.write(content[: len(content) // 2])


def _begin_traced() -> None:
    """Let the parent follow this process, and have the kernel stop it at the calls of ``_CALLS`` alone."""
    _ptrace(_TRACEME, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    jumps = sorted(_CALLS)
    program = struct.pack("<HBBI", 0x20, 0, 0, 0)  # load the call's number
    for index, number in enumerate(jumps):  # equal: jump to the last line, which stops
        program += struct.pack("<HBBI", 0x15, len(jumps) - index, 0, number)
    program += struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)  # allow
    program += struct.pack("<HBBI", 0x06, 0, 0, 0x7FF00000)  # stop for the tracer
    lines = ctypes.create_string_buffer(program, len(program))
    filtering = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(lines))
    given = ctypes.create_string_buffer(filtering, len(filtering))
    if _libc.prctl(38, 1, None, 0, 0) or _libc.prctl(22, 2, ctypes.addressof(given), 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _ptrace(request: int, task: int, data: int, size: int = 0) -> None:
    if _libc.ptrace(request, task, size, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request}: {os.strerror(number)}")
