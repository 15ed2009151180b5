"""A Slurm of two nodes on this machine: munged, slurmctld and two slurmd, each node with a network and processes of its own."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.head import running

#: Names of the nodes; the first also has the controller.
NODES = ("one", "two")
#: Debian's packages: munge, slurmctld, slurmd, slurm-client; unshare is of util-linux.
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "unshare")
#: Credentials are forgotten soon (a job that is requeued waits as long as they live), and no rest is taken before scheduling.
CONFIG = """\
ClusterName=ortho
SlurmctldHost=one({addresses[0]})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
JobRequeue=1
KillWait=10
MinJobAge=3600
ReturnToService=2
NodeName=one NodeAddr={addresses[0]} CPUs=2 RealMemory=4000
NodeName=two NodeAddr={addresses[1]} CPUs=2 RealMemory=4000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def missing() -> str | None:
    """Why no Slurm can be started here; none where it can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"no Slurm here: {', '.join(absent)} (Debian: munge slurmctld slurmd slurm-client)"
    return None if os.geteuid() == 0 else "network namespaces need root"


class Slurm:
    """A running Slurm; jobs are submitted on its first node."""

    def __init__(self, folder: Path, inside: list[str]) -> None:
        self.folder = folder
        self._inside = inside
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "SLURM_", "SBATCH_"))}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path, "HOME": str(folder)}
        self.env = {**kept, **own, "RAY_DISABLE_MEMORY_MONITOR": "1"}

    def run(self, *words: object, **variables: str) -> str:
        """The output of one of Slurm's commands."""
        command = [*self._inside, *map(str, words)]
        env = self.env | variables
        done = subprocess.run(command, env=env, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, ExitCode, Restarts, ..."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def log(self, number: str) -> str:
        file = self.folder / f"ortho-{number}.log"
        return file.read_text() if file.is_file() else ""


@contextmanager
def two_nodes(folder: Path, hosts: list[list[str]], addresses: tuple[str, str]) -> Iterator[Slurm]:
    """A Slurm on two hosts, given by the command that runs another inside each; `folder` has all its files."""
    folder.chmod(0o755)
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, addresses=addresses))
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    slurm = Slurm(folder, hosts[0])
    munged = ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
    munged += [
        f"--pid-file={folder}/munged.pid",
        f"--log-file={folder}/munged.log",
        f"--seed-file={folder}/munged.seed",
    ]
    apart = ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c"]
    with ExitStack() as stack:
        stack.enter_context(running(munged, slurm.env, folder / "munged.out"))
        controller = [*hosts[0], "unshare", "--uts", "sh", "-c", "hostname one; exec slurmctld -D -i"]
        stack.enter_context(running(controller, slurm.env, folder / "slurmctld.out"))
        for name, inside in zip(NODES, hosts, strict=True):
            daemon = [*inside, *apart, f"hostname {name}; exec slurmd -D -N {name}"]
            stack.enter_context(running(daemon, slurm.env, folder / f"slurmd-{name}.out"))
        end = time.monotonic() + 60
        while slurm.run("sinfo", "--noheader", "--states=idle", "--format=%D") != "2":
            assert time.monotonic() < end, (folder / "slurmctld.log").read_text()
            time.sleep(0.3)
        yield slurm
