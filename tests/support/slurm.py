"""A real SLURM on this machine: one controller and a few nodes, in a folder and on ports of its own.

Any user may run it; nothing outside its folder is read or written. The nodes are called 127.0.0.2, 127.0.0.3 and so
on, so that their names resolve everywhere. Partitions: `main`, whose jobs `high` preempts, and `elsewhere`, whose
only node is another machine, which is down.

    python -m tests.support.slurm FOLDER      starts one and prints how to use it; Ctrl-C ends it
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.ranks import free_port

GRACE_SECONDS = 40  # between the signal that announces a preemption and the kill
KILL_WAIT_SECONDS = 30  # between SIGTERM and SIGKILL; SLURM's own default
LOST_SECONDS = 20  # without a sign of life: the node is down
SYSTEM_PATH = "/usr/sbin:/sbin"  # where the daemons are

CONFIGURATION = """\
ClusterName=transact
FirstJobId={ports[0]}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
PlugStackConfig=/dev/null
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait={kill_wait}
OverTimeLimit=0
Waittime=0
InactiveLimit=0
MinJobAge=3600
TCPTimeout=2
SlurmctldTimeout=30
SlurmdTimeout={lost}
{nodes}
NodeName=far NodeHostname=another-machine NodeAddr=127.0.0.9 Port={ports[1]} CPUs=1 State=DOWN
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={grace}
PartitionName=high Nodes={names} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=elsewhere Nodes=far MaxTime=INFINITE State=UP PriorityTier=1
"""


def is_installed() -> bool:
    return all(shutil.which(name, path=search_path()) for name in ("slurmctld", "slurmd", "sbatch", "srun", "scontrol"))


def search_path() -> str:
    return f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"


def wait_for(is_so: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.1)


@dataclass
class Slurm:
    """A running cluster."""

    folder: Path
    num_nodes: int = 2
    cpus_per_node: int = 2
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def nodes(self) -> list[str]:
        return [f"127.0.0.{number + 2}" for number in range(self.num_nodes)]

    def environment(self) -> dict[str, str]:
        """What commands need to talk to this cluster and no other."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": search_path()}

    def start(self) -> None:
        for name in ("state", "log", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True)
        self._write_configuration()
        self._start_daemon("controller", ["slurmctld", "-D", "-c"])
        for node in self.nodes:
            self.start_node(node)
        wait_for(lambda: len(self.idle_nodes()) == self.num_nodes, 60, f"all nodes idle (logs: {self.folder / 'log'})")

    def _write_configuration(self) -> None:
        host = socket.gethostname().partition(".")[0]
        ports = [free_port() for _ in range(2 + self.num_nodes)]
        lines = [
            f"NodeName={node} NodeHostname={host} NodeAddr={node} Port={port} CPUs={self.cpus_per_node} "
            "RealMemory=4000 Gres=gpu:1 State=UNKNOWN"
            for node, port in zip(self.nodes, ports[2:], strict=True)
        ]
        text = CONFIGURATION.format(
            host=host,
            ports=ports,
            user=getpass.getuser(),
            folder=self.folder,
            kill_wait=KILL_WAIT_SECONDS,
            lost=LOST_SECONDS,
            nodes="\n".join(lines),
            names=",".join(self.nodes),
            grace=GRACE_SECONDS,
        )
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")  # a GPU as far as SLURM can tell

    def start_node(self, node: str) -> None:
        self._start_daemon(node, ["slurmd", "-D", "-N", node])

    def kill_node(self, node: str) -> None:
        """The node's daemon dies without a word, and with it all that it runs."""
        self.daemons[node].kill()
        self.daemons[node].wait()
        for process in self._processes_of(node):
            _kill(process)

    def _start_daemon(self, name: str, command: list[str]) -> None:
        with (self.folder / "log" / name).open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [*command, "-f", str(self.folder / "slurm.conf")],
                env=self.environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self, *command: str, cwd: Path | None = None, shell: dict[str, str] | None = None) -> str:
        """A command of SLURM; its output. shell: the environment that it is called in."""
        around = os.environ if shell is None else shell
        environment = {name: value for name, value in around.items() if not name.startswith("SLURM")}
        done = subprocess.run(
            command,
            env=environment | self.environment(),
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def idle_nodes(self) -> set[str]:
        try:
            return set(self.run("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").split())
        except AssertionError:  # the controller is not there yet
            return set()

    @contextlib.contextmanager
    def drained(self) -> Iterator[None]:
        """Inside, what runs goes on, and nothing is started."""
        names = f"NodeName={','.join(self.nodes)}"
        self.run("scontrol", "update", names, "State=DRAIN", "Reason=test")
        try:
            yield
        finally:
            self.run("scontrol", "update", names, "State=RESUME")

    def job_state(self, job: str) -> str:
        return self.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")

    def jobs(self) -> list[str]:
        """Those that wait or run."""
        return sorted(self.run("squeue", "-h", "-o", "%i").split(), key=int)  # it shows those that wait first

    def wait_for_state(self, job: str, *states: str, seconds: float) -> str:
        wait_for(lambda: self.job_state(job) in states, seconds, f"job {job} {' or '.join(states)}")
        return self.job_state(job)

    def restarts(self, job: str) -> int:
        (word,) = [word for word in self.run("scontrol", "show", "job", job).split() if word.startswith("Restarts=")]
        return int(word.partition("=")[2])

    def ranks_of(self, job: str) -> dict[int, int]:
        """Rank -> process, of the job's running step."""
        return {
            int(each["SLURM_PROCID"]): process
            for process, each in self._environments()
            if each.get("SLURM_JOB_ID") == job
            and "SLURM_PROCID" in each
            and each.get("SLURM_STEP_NUM_TASKS")
            and _name(_parent(process)) == "slurmstepd"
        }

    def _processes_of(self, node: str) -> list[int]:
        """Everything that runs on a node: what jobs have started there, and the daemons of their steps."""
        ours = [process for process, each in self._environments() if each.get("SLURMD_NODENAME") == node]
        return [*{_parent(process) for process in ours if _name(_parent(process)) == "slurmstepd"}, *ours]

    def _own_processes(self) -> list[int]:
        """Steps, their daemons, and all that they have started; not the commands that talk to the cluster."""
        found = self._environments()
        return [process for process, each in found if "SLURM_JOB_ID" in each or _name(process) == "slurmstepd"]

    def _environments(self) -> list[tuple[int, dict[str, str]]]:
        """Processes that know of this cluster, with their environments."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                pairs = (each.partition("=") for each in path.read_bytes().decode(errors="replace").split("\0"))
                environment = {name: value for name, _, value in pairs}
            except OSError:
                continue
            if environment.get("SLURM_CONF") == str(self.folder / "slurm.conf"):
                found.append((int(path.parent.name), environment))
        return found

    def stop(self) -> None:
        """The state of a cluster that ends here is of no worth: nothing is asked, everything is killed."""
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()
        for process in self._own_processes():
            _kill(process)


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _status(process: int, field_name: str) -> str:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(f"{field_name}:")), "")


def _parent(process: int) -> int:
    return int(_status(process, "PPid") or 0)


def _name(process: int) -> str:
    return _status(process, "Name")


def main() -> None:
    slurm = Slurm(Path(sys.argv[1]).resolve())
    slurm.start()
    try:
        print(f"export SLURM_CONF={slurm.environment()['SLURM_CONF']}", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        slurm.stop()


if __name__ == "__main__":
    main()
