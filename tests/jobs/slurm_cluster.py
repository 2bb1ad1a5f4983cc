"""A Slurm of one machine, reached over loopback alone: the real daemons, in a folder of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
# Two cores whatever the machine has, since jobs are of one core each. A job queued again waits as long as a credential
# lives, two minutes by default. Accounts are not kept: there is no sacct.
CONF = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={slurmd}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
"""


def missing() -> list[str]:
    """Give the daemons that are not installed (Debian: munge, slurmctld, slurmd, slurm-client)."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    return [name for name in (*DAEMONS, "sbatch") if not shutil.which(name, path=path)]


@contextmanager
def running(root: Path) -> Iterator[dict[str, str]]:
    """Start the daemons, give the environment for Slurm's commands, and end the daemons."""
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin", "SLURM_CONF": str(root / "slurm.conf")}
    for name in ("munge", "state", "spool"):
        (root / name).mkdir(mode=0o700)
    (root / "munge" / "key").write_bytes(os.urandom(1024))
    (root / "munge" / "key").chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    user = "root" if os.geteuid() == 0 else os.environ["USER"]
    conf = CONF.format(host=host, ctld=_free_port(), slurmd=_free_port(), user=user, root=root)
    (root / "slurm.conf").write_text(conf)
    at = root / "munge"
    munged = ["munged", "--foreground", "--force", f"--socket={at}/socket", f"--key-file={at}/key",
              f"--pid-file={at}/pid", f"--log-file={at}/log", f"--seed-file={at}/seed"]  # fmt: skip
    with ExitStack() as stack:
        for command, up in ((munged, _munge_is_up(at)), (["slurmctld", "-D"], _ctld_is_up), (["slurmd", "-D"], _idle)):
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(_end, process)
            _wait(lambda up=up: up(environment), root)
        yield environment


def _munge_is_up(at: Path):
    return lambda environment: (at / "socket").exists()


def _ctld_is_up(environment: dict[str, str]) -> bool:
    return subprocess.run(["scontrol", "ping"], env=environment, capture_output=True, check=False).returncode == 0


def _idle(environment: dict[str, str]) -> bool:
    return subprocess.check_output(["sinfo", "--noheader", "--format=%T"], env=environment, text=True).strip() == "idle"


def _wait(holds, root: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
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
