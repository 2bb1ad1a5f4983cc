"""A Slurm: the real daemons in a folder of their own, on this machine over loopback alone, or on several machines."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from machines import Machine, ThisMachine
from patience import PATIENCE

DAEMONS = ("munged", "slurmctld", "slurmd")
# Two cores whatever there are, since jobs are of one core each. A job queued again waits as long as a credential
# lives, two minutes by default; a machine that is silent for fifteen seconds is lost, five minutes by default. Accounts
# are not kept: there is no sacct.
CONF = """
ClusterName=loopback
SlurmctldHost={first.name}({first.address})
SlurmctldPort={ctld}
SlurmdPort={slurmd}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=5
SlurmdTimeout=15
SchedulerParameters=sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
"""


def missing() -> list[str]:
    """Give the daemons that are not installed (Debian: munge, slurmctld, slurmd, slurm-client)."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    return [name for name in (*DAEMONS, "sbatch") if not shutil.which(name, path=path)]


@contextmanager
def running(root: Path, machines: Sequence[Machine | ThisMachine] = (ThisMachine(),)) -> Iterator[dict[str, str]]:
    """Start the daemons, give the environment for Slurm's commands, and end the daemons.

    Args:
        root: for all that the daemons write.
        machines: two cores in all; Slurm's commands are given on the first.
    """
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin", "SLURM_CONF": str(root / "slurm.conf")}
    for name in ("munge", "state"):
        (root / name).mkdir(mode=0o700)
    (root / "munge" / "key").write_bytes(os.urandom(1024))
    (root / "munge" / "key").chmod(0o600)
    first = machines[0]
    user = "root" if os.geteuid() == 0 else os.environ["USER"]
    nodes = "\n".join(
        f"NodeName={one.name} NodeAddr={one.address} CPUs={2 // len(machines)} State=UNKNOWN" for one in machines
    )
    ports = {"ctld": _free_port(), "slurmd": _free_port()}
    (root / "slurm.conf").write_text(CONF.format(first=first, nodes=nodes, user=user, root=root, **ports))
    at = root / "munge"
    munged = ["munged", "--foreground", "--force", f"--socket={at}/socket", f"--key-file={at}/key",
              f"--pid-file={at}/pid", f"--log-file={at}/log", f"--seed-file={at}/seed"]  # fmt: skip

    def says(*words: str) -> str | None:
        done = subprocess.run(first.on(*words), env=environment, capture_output=True, text=True, check=False)
        return None if done.returncode else done.stdout.strip()

    with ExitStack() as stack:

        def start(machine: Machine | ThisMachine, *words: str) -> None:
            nothing = subprocess.DEVNULL
            process = subprocess.Popen(machine.on(*words), env=environment, stdout=nothing, stderr=nothing)
            stack.callback(_end, process)

        start(first, *munged)
        _wait((at / "socket").exists, root)
        start(first, "slurmctld", "-D")
        _wait(lambda: says("scontrol", "ping") is not None, root)
        for machine in machines:
            start(machine, "slurmd", "-D")
        _wait(lambda: says("sinfo", "--noheader", "--format=%T") == "idle", root)
        yield environment


def _wait(holds, root: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        said = [f"{file.name}: {file.read_text()[-800:]}" for file in root.glob("*.log")]
        assert time.monotonic() < deadline, "\n".join(said)
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
