"""Where the processes of a job come from: the settings of conf/launch/."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields

from transact.checks import require
from transact.config.setting import LONGEST_PATH, Allowed, allowed_in, setting

LAUNCH_KINDS = ("inline", "local", "slurm")
OPTION = Allowed(longest=64, pattern=r"[A-Za-z0-9][A-Za-z0-9_-]*", words="an option of sbatch without dashes")


@dataclass(kw_only=True, slots=True)
class LaunchConfig:
    """Where the processes come from. The settings from `nodes` on are those of SLURM."""

    kind: str = setting("inline", choices=LAUNCH_KINDS)
    """"inline" (the processes that are there: this one, torchrun's or srun's), "local" (processes of this machine) or
    "slurm" (a batch job)."""
    processes: int = setting(1, at_least=1, at_most=1024)
    """Ranks that launch=local starts."""
    timeout_minutes: int = setting(10_080, at_least=1, at_most=525_600)
    """Minutes that the job may take; with SLURM its time limit, after which it is queued again."""
    wait: bool = True
    """Whether the command follows the job to its end (in a sweep: one point after another); false: it starts the
    job, says how to follow and stop it, and returns."""
    nodes: int = setting(1, at_least=1, at_most=100_000)
    """Nodes of the SLURM job."""
    tasks_per_node: int = setting(1, at_least=1, at_most=1024)
    """Ranks on each node, where there are no GPUs."""
    gpus_per_node: int = setting(0, at_least=0, at_most=1024)
    """GPUs of each node, one rank for each; 0: none."""
    cpus_per_task: int | None = setting(None, at_least=1, at_most=10_000)
    """Cores for each rank. null: what the cluster gives."""
    partition: str | None = setting(None)
    """The SLURM partition. null: the cluster's default."""
    account: str | None = setting(None)
    """The account that is charged. null: the cluster's default."""
    qos: str | None = setting(None)
    """The quality of service. null: the cluster's default."""
    memory: str | None = setting(None)
    """Memory per node, as sbatch takes it: 200G; 0 is all of a node. null: what the cluster gives."""
    constraint: str | None = setting(None)
    """Features that a node must have, as sbatch takes them: "a100&nvlink". null: none."""
    signal_delay_seconds: int = setting(300, at_least=0, at_most=65_535)
    """Seconds before the time limit at which the job is told to save: the time to finish a step and write."""
    max_timeouts: int = setting(100, at_least=0, at_most=10**6)
    """Time limits that one job may meet, each followed by another start."""
    max_preemptions: int = setting(100, at_least=0, at_most=10**6)
    """Times that SLURM may take the nodes from one job: preemption, scontrol requeue, a node that broke down."""
    max_failures: int = setting(3, at_least=0, at_most=10**6)
    """Times that a rank of one job may die or fail."""
    max_running: int | None = setting(None, at_least=1, at_most=10**6)
    """Points of a sweep that may run at a time. null: all."""
    options: dict[str, str] = setting(factory=dict, entries=(0, 100), keys=OPTION)
    """Further options of sbatch, without the dashes: {reservation: my_reservation, exclude: node013}."""
    setup: list[str] = setting(factory=list, longest=10_000, is_secret=True)
    """Lines of shell before the ranks start: [module load cuda/12.8, source /my/venv/bin/activate]. They are left
    out of every record of the run."""
    srun_options: list[str] = setting(factory=list, entries=(0, 100))
    """Further options of srun: [--container-image=/images/transact.sqsh, --container-mounts=/data]."""
    python: str | None = setting(None, longest=LONGEST_PATH)
    """The interpreter of the ranks, in a container for example. null: the one that submits."""
    shared_folder: bool = False
    """true: output_dir is on every node, whatever it looks like from here."""

    def __post_init__(self) -> None:
        inline_is_one = self.kind != "inline" or self.processes == 1
        elsewhere = "launch=inline runs in the processes it finds (torchrun starts several); use launch=local"
        require("launch.processes", self.processes, inline_is_one, elsewhere)
        if self.kind == "slurm":
            self._check_slurm()
        else:
            self._check_nothing_is_ignored()

    def _check_nothing_is_ignored(self) -> None:
        own = ("kind", "processes") if self.kind == "inline" else ("kind", "processes", "timeout_minutes", "wait")
        for declared in fields(self):
            value = getattr(self, declared.name)
            made = declared.default_factory
            default = declared.default if made is MISSING else made()
            if declared.name not in own and value != default:
                shown = "(not shown)" if allowed_in(declared).is_secret else repr(value)
                raise ValueError(f"launch.{declared.name}={shown} is not allowed: launch={self.kind} has no use for it")

    def _check_slurm(self) -> None:
        instead = "launch=slurm counts in launch.nodes, and launch.gpus_per_node or launch.tasks_per_node"
        require("launch.processes", self.processes, self.processes == 1, instead)
        early = self.signal_delay_seconds < 60 * self.timeout_minutes
        delay = f"it must be below the time limit (launch.timeout_minutes={self.timeout_minutes})"
        require("launch.signal_delay_seconds", self.signal_delay_seconds, early, delay)
        both = self.gpus_per_node == 0 or self.tasks_per_node == 1
        require(
            "launch.tasks_per_node", self.tasks_per_node, both, "with launch.gpus_per_node there is a rank for each"
        )

    @property
    def ranks_per_node(self) -> int:
        return self.gpus_per_node or self.tasks_per_node

    @property
    def num_ranks(self) -> int:
        """That are started; launch=inline starts none, and counts as one."""
        return self.nodes * self.ranks_per_node if self.kind == "slurm" else self.processes
