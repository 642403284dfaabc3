"""A whole Slurm on this machine, as whoever runs the tests: daemons of our own on loopback, all files in one folder."""

from __future__ import annotations

import getpass
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = (*DAEMONS, "sbatch", "srun", "scontrol", "scancel", "squeue", "sinfo")
# Debian keeps the daemons where the PATH of a user does not lead.
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

# Nodes that say of themselves to have GPUs and more cores than there are: the jobs of an array run side by side. Both are
# this machine; the second is there for jobs that spread over two.
CONFIGURATION = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=1
KillWait=20
GresTypes=gpu
NodeName=DEFAULT CPUs=8 RealMemory=65536 Gres=gpu:4 State=UNKNOWN
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port}
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second_port}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=node Default=YES PriorityTier=1 GraceTime=60 State=UP
PartitionName=urgent Nodes=node PriorityTier=2 State=UP
PartitionName=both Nodes=node,node2 PriorityTier=1 GraceTime=60 State=UP
"""


def missing() -> str:
    """What keeps the cluster from being started, and how to get it; "" if all is there."""
    absent = [name for name in COMMANDS if not shutil.which(name, path=PATH)]
    return f"no {', '.join(absent)}: apt-get install slurm-wlm munge" if absent else ""


class Cluster:
    """Slurm with two nodes; `with Cluster(folder)` starts its daemons, and ends them and their jobs.

    Args:
        folder: an empty one of ours, with a short path: a socket lies in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # What a job around the tests has set would be taken for that of theirs.
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        self.environment = {**outside, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> Cluster:
        self.folder.chmod(0o755)  # munged insists that everybody could reach its socket
        for name in ("state", "spool", "spool/node", "spool/node2"):
            (self.folder / name).mkdir(mode=0o700)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        values = {"folder": self.folder, "user": getpass.getuser(), "host": socket.gethostname().split(".")[0]}
        ports = {name: _free_port() for name in ("controller_port", "node_port", "second_port")}
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(**values, **ports))
        for number in range(4):
            (self.folder / f"gpu{number}").touch()
        (self.folder / "gres.conf").write_text(f"NodeName=node,node2 Name=gpu File={self.folder}/gpu[0-3]\n")
        try:
            files = [f"--{name}-file={self.folder / f'munge.{name}'}" for name in ("key", "pid", "log", "seed")]
            self._start("munged", "--foreground", f"--socket={self.folder / 'munge.socket'}", *files)
            self._wait_for((self.folder / "munge.socket").exists)
            self._start("slurmctld", "-D", "-i")
            for node in ("node", "node2"):
                self._start("slurmd", "-D", "-N", node)
            self._wait_for(lambda: self.call("sinfo", "-N", "-p", "both", "-h", "-o", "%T", check=False) == "idle\nidle")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.call("scancel", "--me", check=False)
            wait_until(lambda: not self.call("squeue", "--noheader", check=False), 60, "the jobs to end")
        finally:
            self._stop()

    def call(self, *command: str, check: bool = True, **environment: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(command, env={**self.environment, **environment}, capture_output=True, text=True, timeout=120)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of one."""
        return dict(re.findall(r"(\w+)=(\S*)", self.call("scontrol", "show", "job", "--oneliner", job)))

    def _start(self, name: str, *arguments: str) -> None:
        with open(self.folder / f"{name}.out", "wb") as out:
            command = [shutil.which(name, path=PATH), *arguments]
            self._daemons.append(subprocess.Popen(command, env=self.environment, stdout=out, stderr=out))

    def _stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _wait_for(self, condition) -> None:
        def ready() -> bool:
            assert all(d.poll() is None for d in self._daemons), self._complaints()
            return condition()

        wait_until(ready, 60, "Slurm to start", self._complaints, every=0.1)

    def _complaints(self) -> str:
        files = [f for pattern in ("*.out", "*.log") for f in sorted(self.folder.glob(pattern))]
        return "\n".join(f"{f.name}: {f.read_text(errors='replace')[-2000:]}" for f in files)


def wait_until(condition, seconds: float, what: str, complaints=lambda: "", every: float = 0.5):
    """The first true value of `condition()`; AssertionError with `complaints()` if there is none in time."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}\n{complaints()}"
        time.sleep(every)
    return value


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
