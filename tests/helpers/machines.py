"""Machines of a network, as Linux namespaces: each has its own name, address and processes, and can be lost.

They share the disk, as machines of a cluster share a file system. All of it is gone when the test is over.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--pid")
ADDRESSES = {"node1": "10.77.0.1", "node2": "10.77.0.2"}


class Machine:
    """A machine of its own: what runs there dies with it.

    Attributes:
        name: its host name.
        address: in the network of all.
    """

    def __init__(self, name: str, address: str, hosts: Path) -> None:
        self.name, self.address = name, address
        begin = (
            f"hostname {name} && mount --bind {hosts} /etc/hosts && ip link set lo up && echo && exec sleep infinity"
        )
        alone = ["--fork", "--kill-child", "--mount-proc", "--propagation=private"]
        self._holder = subprocess.Popen(["unshare", *NAMESPACES, *alone, "sh", "-c", begin], stdout=subprocess.PIPE)
        assert self._holder.stdout
        assert self._holder.stdout.readline() == b"\n"
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text()
        self.init = int(children.split()[0])

    def on(self, *words: str) -> list[str]:
        """Give the command that does this on the machine, in the working folder of here."""
        return ["nsenter", "--target", str(self.init), *NAMESPACES, f"--wd={Path.cwd()}", *words]

    def do(self, *words: str) -> None:
        """Do this on the machine."""
        subprocess.check_call(self.on(*words))

    def unplug(self) -> None:
        """Cut its network, without a word to anybody."""
        self.do("ip", "link", "set", "eth0", "down")

    def plug_in(self) -> None:
        """Give it its network back."""
        self.do("ip", "link", "set", "eth0", "up")

    def end(self) -> None:
        """Kill all that runs there at once."""
        self._holder.kill()
        self._holder.wait()


class ThisMachine:
    """The machine that the tests run on, reached over loopback alone."""

    name = socket.gethostname().partition(".")[0]
    address = "127.0.0.1"

    def on(self, *words: str) -> list[str]:
        """Give the command as it is."""
        return list(words)


def impossible() -> str:
    """Say why there can be no such machines here; nothing if there can."""
    if os.geteuid():
        return "namespaces need root"
    missing = [name for name in ("unshare", "nsenter", "ip", "hostname") if not shutil.which(name)]
    return f"not installed: {', '.join(missing)}" if missing else ""


@contextmanager
def two(folder: Path) -> Iterator[tuple[Machine, Machine]]:
    """Start two machines, ``node1`` and ``node2``, at a switch; both are ended afterwards.

    Args:
        folder: for their list of names.
    """
    hosts = folder / "hosts"
    hosts.write_text("".join(f"{at} {name}\n" for name, at in {"localhost": "127.0.0.1", **ADDRESSES}.items()))
    switch = Machine("switch", "", hosts)
    nodes: list[Machine] = []
    try:
        switch.do("ip", "link", "add", "bridge", "type", "bridge")
        switch.do("ip", "link", "set", "bridge", "up")
        for name, address in ADDRESSES.items():
            nodes.append(node := Machine(name, address, hosts))
            ends = [["name", "eth0", "netns", str(node.init)], ["name", name, "netns", str(switch.init)]]
            subprocess.check_call(["ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1]])
            switch.do("ip", "link", "set", name, "master", "bridge", "up")
            node.do("ip", "address", "add", f"{address}/24", "dev", "eth0")
            node.plug_in()
        yield nodes[0], nodes[1]
    finally:
        for machine in (*nodes, switch):
            machine.end()
