"""A SLURM cluster of one machine, with its own daemons, ports and files, which is removed when the test ends."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DAEMONS = ("slurmctld", "slurmd")
MISSING = next((name for name in (*DAEMONS, "sbatch") if shutil.which(name) is None), None)

# The daemons run as the user of the tests, without munge and control groups. The node has more cores than most machines,
# because jobs in the documentation would wait for ever on a node with fewer cores than they request.
CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
CryptoType=crypto/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/slurmctld
SlurmdSpoolDir={folder}/slurmd
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=64000 State=UNKNOWN
PartitionName=standard Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def _free_ports(count: int) -> list[int]:
    """Return the numbers of free ports of this machine."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def slurm(*command: str) -> str:
    """Return what a command of SLURM prints, such as ``squeue``."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def running_jobs() -> list[str]:
    """Return the ids of the jobs that run."""
    return slurm("squeue", "--noheader", "--states=RUNNING", "--format=%i").split()


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Path]:
    """Run the daemons and yield the configuration file, which ``SLURM_CONF`` must name."""
    host = socket.gethostname().split(".")[0]
    for name in DAEMONS:
        (folder / name).mkdir(parents=True)
    configuration = folder / "slurm.conf"
    text = CONFIGURATION.format(host=host, user=getpass.getuser(), folder=folder, ports=_free_ports(2))
    configuration.write_text(text)
    environment = os.environ | {"SLURM_CONF": str(configuration)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    daemons = [subprocess.Popen([name, "-D"], env=environment, **quiet) for name in DAEMONS]
    try:
        deadline = time.monotonic() + 60
        query = ["sinfo", "--noheader", "--format=%T"]
        while subprocess.run(query, env=environment, capture_output=True, text=True).stdout.strip() != "idle":
            assert all(daemon.poll() is None for daemon in daemons), (folder / "slurmd.log").read_text()
            assert time.monotonic() < deadline, (folder / "slurmctld.log").read_text()
            time.sleep(0.1)
        yield configuration
    finally:
        subprocess.run(["scancel", "--user", getpass.getuser()], env=environment, **quiet)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)
