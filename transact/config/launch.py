"""Where the processes of a job come from: the settings of conf/launch/."""

from __future__ import annotations

from dataclasses import dataclass, field

from transact.checks import require, require_at_least, require_choice, require_positive

LAUNCH_KINDS = ("inline", "local", "slurm")


@dataclass(kw_only=True, slots=True)
class LaunchConfig:
    """Where the processes come from. The settings from `nodes` on are those of SLURM."""

    kind: str = "inline"
    """"inline" (the processes that are there: this one, torchrun's or srun's), "local" (processes of this machine) or
    "slurm" (a batch job)."""
    processes: int = 1
    """Ranks that launch=local starts."""
    timeout_minutes: int = 10_080
    """Minutes that the job may take; with SLURM its time limit, after which it is queued again."""
    wait: bool = True
    """Whether the command follows the job to its end; false: it submits and returns."""
    nodes: int = 1
    """Nodes of the SLURM job."""
    tasks_per_node: int = 1
    """Ranks on each node, where there are no GPUs."""
    gpus_per_node: int = 0
    """GPUs of each node, one rank for each; 0: none."""
    cpus_per_task: int | None = None
    """Cores for each rank. null: what the cluster gives."""
    partition: str | None = None
    """The SLURM partition. null: the cluster's default."""
    account: str | None = None
    """The account that is charged. null: the cluster's default."""
    qos: str | None = None
    """The quality of service. null: the cluster's default."""
    memory: str | None = None
    """Memory per node, as sbatch takes it: 200G; 0 is all of a node. null: what the cluster gives."""
    constraint: str | None = None
    """Features that a node must have, as sbatch takes them. null: none."""
    signal_delay_seconds: int = 300
    """Seconds before the time limit at which the job is told to save."""
    max_timeouts: int = 100
    """Time limits that one job may meet, each followed by another start."""
    max_preemptions: int = 100
    """Times that SLURM may take the nodes from one job."""
    max_failures: int = 3
    """Times that a rank of one job may die or fail."""
    max_running: int | None = None
    """Points of a sweep that may run at a time. null: all."""
    options: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch, without the dashes."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell before the ranks start. They are left out of every record of the run."""
    srun_options: list[str] = field(default_factory=list)
    """Further options of srun."""
    python: str | None = None
    """The interpreter of the ranks, in a container for example. null: the one that submits."""
    shared_folder: bool = False
    """true: output_dir is on every node, whatever it looks like from here."""

    def __post_init__(self) -> None:
        require_choice("launch.kind", self.kind, LAUNCH_KINDS)
        require_positive("launch", self, "processes", "timeout_minutes", "nodes", "tasks_per_node")
        counts = ("gpus_per_node", "signal_delay_seconds", "max_timeouts", "max_preemptions", "max_failures")
        require_at_least("launch", self, 0, *counts)
        for name in ("cpus_per_task", "max_running"):
            value = getattr(self, name)
            require(f"launch.{name}", value, value is None or value > 0, "it must be above 0, or null")
        inline_is_one = self.kind != "inline" or self.processes == 1
        elsewhere = "launch=inline runs in the processes it finds (torchrun starts several); use launch=local"
        require("launch.processes", self.processes, inline_is_one, elsewhere)
        if self.kind == "slurm":
            self._check_slurm()

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
        for name in ("partition", "account", "qos", "memory", "constraint"):
            value = getattr(self, name)
            require(f"launch.{name}", value, value is None or bool(value.strip()), "give a name, or null")
        for name, lines in (("setup", self.setup), ("srun_options", self.srun_options)):
            require(f"launch.{name}", lines, all("\n" not in line for line in lines), "one line in each entry")
        for name in self.options:
            plain = bool(name) and name[0] != "-" and not any(mark.isspace() or mark == "=" for mark in name)
            require("launch.options", name, plain, "give options as {reservation: NAME}, without dashes")

    @property
    def ranks_per_node(self) -> int:
        return self.gpus_per_node or self.tasks_per_node

    @property
    def num_ranks(self) -> int:
        """That are started; launch=inline starts none, and counts as one."""
        return self.nodes * self.ranks_per_node if self.kind == "slurm" else self.processes
