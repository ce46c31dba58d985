"""Settings of the machines: ranks and their precision, what starts them, and what an estimate assumes of them."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from transact.config.accelerators import BY_NAME
from transact.config.inputs import DTYPES
from transact.config.setting import LONGEST_PATH, Allowed, allowed_in, require, setting, shown

AUTO = "auto"
FLASH_ATTENTION = (
    "flash_attention_2",
    "flash_attention_3",
    "kernels-community/flash-attn2",
    "kernels-community/flash-attn3",
    "kernels-community/vllm-flash-attn3",
)
ATTENTION_KINDS = ("sdpa", "eager", *FLASH_ATTENTION)
KERNELS = ("liger",)
VERIFY_KINDS = ("sample", "full")
DEVICES = ("auto", "cpu", "cuda")
OFFLOAD_DEVICES = ("cpu",)
DEEPSPEED_NAME = Allowed(
    longest=200, pattern=r"[a-z0-9_]+(\.[a-z0-9_]+)*", words="settings of DeepSpeed, with dots between the levels"
)
# Settings of DeepSpeed, with all below them, that the program itself makes or relies on, and what stands for them here.
DEEPSPEED_OWN = {
    "train_batch_size": "recover.batch_sequences",
    "train_micro_batch_size_per_gpu": "engine.micro_batch_sequences",
    "gradient_accumulation_steps": "recover.batch_sequences and engine.micro_batch_sequences",
    "gradient_clipping": "recover.gradient_clipping",
    "optimizer": "recover.learning_rate, recover.weight_decay, recover.beta1 and recover.beta2",
    "scheduler": "recover.decay and recover.warmup_fraction",
    "bf16": "engine.dtype",
    "fp16": "engine.dtype",
    "amp": "engine.dtype",
    "torch_autocast": "engine.dtype",
    "data_types": "",
    "communication_data_type": "",
    "timers": "",
    "compression_training": "",
    "data_efficiency": "",
    "curriculum_learning": "",
    "progressive_layer_drop": "",
    "elasticity": "",
    "autotuning": "",
    "tensor_parallel": "",
    "compile": "",
    "zero_allow_untested_optimizer": "",
    "zero_force_ds_cpu_optimizer": "engine.offload_optimizer",
    "zero_optimization.stage": "engine.zero_stage",
    "zero_optimization.reduce_bucket_size": "engine.reduce_bucket_elements",
    "zero_optimization.allgather_bucket_size": "engine.reduce_bucket_elements",
    "zero_optimization.stage3_prefetch_bucket_size": "engine.prefetch_elements",
    "zero_optimization.stage3_max_reuse_distance": "engine.live_elements",
    "zero_optimization.stage3_max_live_parameters": "engine.live_elements",
    "zero_optimization.stage3_param_persistence_threshold": "",
    "zero_optimization.stage3_module_granularity_threshold": "",
    "zero_optimization.leaf_module": "",
    "zero_optimization.memory_efficient_linear": "",
    "zero_optimization.offload_optimizer": "engine.offload_optimizer",
    "zero_optimization.offload_param": "",
    "zero_optimization.cpu_offload": "engine.offload_optimizer",
    "zero_optimization.cpu_offload_param": "",
    "zero_optimization.zenflow": "",
    "zero_optimization.sub_group_size": "",
    "zero_optimization.elastic_checkpoint": "",
    "zero_optimization.zero_hpz_partition_size": "",
    "zero_optimization.zero_quantized_weights": "",
    "zero_optimization.zero_quantized_nontrainable_weights": "",
    "zero_optimization.zero_quantized_gradients": "",
}
ASSUMED_MFU = 0.25  # model FLOPs utilisation, where nobody has measured one
MINUTES_OF_A_YEAR = 525_600
LARGEST_MICRO_BATCH = 2**16
MOST_SAVING = 0.05  # of the time of a recovery, which makes its checkpoints rarer where saving is slow


@dataclass(kw_only=True, slots=True)
class CheckpointEveryConfig:
    """Limits on what a recovery may lose: a checkpoint is due when either has passed since the last one."""

    minutes: float | None = setting(20.0, above=0, at_most=MINUTES_OF_A_YEAR)
    """Minutes between two checkpoints of a recovery; stretched where saving takes more than a twentieth of the time.
    null: not by time."""
    tokens: int | None = setting(None, at_least=1, at_most=10**15)
    """Tokens between two checkpoints of a recovery. null: not by tokens."""


@dataclass(kw_only=True, slots=True)
class EngineConfig:
    """Settings of how the work is spread over ranks and computed."""

    zero_stage: int = setting(3, at_least=0, at_most=3)
    """What DeepSpeed splits over the ranks: 0 nothing, 1 the optimizer, 2 gradients too, 3 weights too. Gradients
    of micro-batches are summed in float32; at stage 0 in the dtype of the computation."""
    dtype: str = setting("float32", choices=DTYPES)
    """"float32" or "bfloat16": of the computation. Master weights are float32 always."""
    device: str = setting("auto", choices=DEVICES)
    """"auto" (CUDA where there is a GPU), "cpu" or "cuda"."""
    attention: str = setting("sdpa", choices=ATTENTION_KINDS)
    """The attention implementation, as transformers names it: "sdpa" or "eager", and on GPUs in bfloat16 one of flash
    attention, which needs its package or pip install 'transact[gpu]'. Its backward adds in any order: what a run
    trains with it is not the same to the bit when it is repeated or goes on, unless FLASH_ATTENTION_DETERMINISTIC=1 is
    set, which is slower. The export is checked with sdpa."""
    kernels: str | None = setting(None, choices=KERNELS)
    """"liger": fused kernels for norms, rotary positions, SwiGLU and the loss of cross-entropy, on GPUs; they need
    pip install 'transact[gpu]'. null: PyTorch's own operations."""
    micro_batch_sequences: int | str = setting(8, at_least=1, at_most=LARGEST_MICRO_BATCH, choices=(AUTO,))
    """Sequences of a forward on each rank; bounds the memory of activations. "auto": the most that fit into free
    memory and divide a rank's part of the batch (of calibration, without recovery), chosen once when the run starts,
    and kept when it goes on. Where the batch is left to the tokens of recovery and is smaller, that many."""
    activation_checkpointing: bool | str = setting(False, choices=(AUTO,))
    """Compute activations again in the backward instead of keeping them: less memory, more work. "auto": where without
    it only a small micro-batch would fit."""
    reduce_bucket_elements: int = setting(5_000_000, at_least=1, at_most=2_000_000_000)
    """Elements that DeepSpeed gathers or reduces in one call."""
    prefetch_elements: int = setting(50_000_000, at_least=0, at_most=2_000_000_000)
    """Elements of weights that ZeRO stage 3 gathers before the layers at work need them."""
    live_elements: int = setting(1_000_000_000, at_least=0, at_most=10**12)
    """Elements of gathered weights that ZeRO stage 3 keeps for the backward instead of gathering them once more: in
    bfloat16 2 bytes each."""
    offload_optimizer: str | None = setting(None, choices=OFFLOAD_DEVICES)
    """"cpu": at ZeRO stages 1 to 3 Adam's moments and the float32 masters are in the machine's memory, and its cores
    make the step. null: on the device."""
    deepspeed: dict[str, Any] = setting(factory=dict, entries=(0, 100), keys=DEEPSPEED_NAME)
    """Further settings of DeepSpeed, which come last, with dots between the levels:
    +engine.deepspeed={zero_optimization.overlap_comm: false}. Those that the program relies on are refused; outside
    zero_optimization DeepSpeed itself passes over names that it does not know."""
    collective_timeout_minutes: float = setting(30.0, at_least=0.01, at_most=10_080)
    """Minutes without progress after which a job that hangs is ended, with the stacks of all ranks."""
    checkpoint_every: CheckpointEveryConfig = field(default_factory=CheckpointEveryConfig)
    """How much of a recovery may be lost: a checkpoint is due when either has passed since the last one."""
    verify: str = setting("sample", choices=VERIFY_KINDS)
    """How a restart sees that the parent is the same: "sample" (sizes, headers, a sample of the weights: seconds) or
    "full" (every byte, which the ranks read once at each start)."""

    def __post_init__(self) -> None:
        splits = self.offload_optimizer is None or self.zero_stage > 0
        require(
            "engine.offload_optimizer", self.offload_optimizer, splits, "with engine.zero_stage=0 it is on the device"
        )
        if self.attention in FLASH_ATTENTION:
            require("engine.attention", self.attention, self.device != "cpu", "it needs a GPU (engine.device=cuda)")
            bfloat16 = self.dtype == "bfloat16"
            require("engine.attention", self.attention, bfloat16, "it computes in engine.dtype=bfloat16 alone")
        on_gpu = self.kernels is None or self.device != "cpu"
        require("engine.kernels", self.kernels, on_gpu, "they need a GPU (engine.device=cuda)")
        for name, value in self.deepspeed.items():
            owner = next((each for each in DEEPSPEED_OWN if _is_within(name, each) or _is_within(each, name)), None)
            instead = DEEPSPEED_OWN.get(owner or "")
            words = f"use {instead}" if instead else "the program relies on a value of its own"
            require(f"engine.deepspeed.{name}", value, owner is None, words)

    @property
    def micro_batch(self) -> int:
        """Return engine.micro_batch_sequences as a number; "auto" must have been settled."""
        assert isinstance(self.micro_batch_sequences, int), self.micro_batch_sequences
        return self.micro_batch_sequences

    @property
    def recomputes(self) -> bool:
        """Return engine.activation_checkpointing as a flag; "auto" must have been settled."""
        assert isinstance(self.activation_checkpointing, bool), self.activation_checkpointing
        return self.activation_checkpointing

    def repeatable(self) -> EngineConfig:
        """Return settings without kernels whose gradients differ from run to run, or that change what hooks see."""
        return replace(self, attention="eager" if self.attention == "eager" else "sdpa", kernels=None)

    def plain(self) -> EngineConfig:
        """Return settings in float32, for comparisons, without kernels that round otherwise."""
        return replace(self.repeatable(), dtype="float32")

    @property
    def is_settled(self) -> bool:
        return AUTO not in (self.micro_batch_sequences, self.activation_checkpointing)


def _is_within(name: str, section: str) -> bool:
    return f"{name}.".startswith(f"{section}.")


LAUNCH_KINDS = ("inline", "local", "slurm")
LONGEST_SIGNAL_DELAY_SECONDS = 65_535  # of sbatch
SIGNAL_DELAY_SECONDS = 300  # at least, where launch.signal_delay_seconds is null
TRANSPORT = Allowed(
    longest=64,
    pattern=r"(NCCL|TORCH_NCCL|GLOO|UCX|FI)_[A-Z0-9_]+",
    words="a variable of NCCL, gloo, UCX or libfabric, as NCCL_SOCKET_IFNAME",
)
OPTION = Allowed(longest=64, pattern=r"[A-Za-z0-9][A-Za-z0-9_-]*", words="an option of sbatch without dashes")


@dataclass(kw_only=True, slots=True)
class LaunchConfig:
    """Settings of what starts the ranks. Those from `nodes` on are for SLURM."""

    kind: str = setting("inline", choices=LAUNCH_KINDS)
    """"inline" (the processes that are there: this one, torchrun's or srun's), "local" (processes of this machine) or
    "slurm" (a batch job)."""
    processes: int = setting(1, at_least=1, at_most=1024)
    """Ranks that launch=local starts."""
    timeout_minutes: int = setting(10_080, at_least=1, at_most=525_600)
    """Minutes that the job may take; with SLURM its time limit, after which it is queued again."""
    wait: bool = True
    """Whether the command follows the job to its end (in a sweep: one point after another); false: it starts the
    job, says how to follow and stop it, and returns (no sweep on one machine, whose points would all run at once)."""
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
    signal_delay_seconds: int | None = setting(None, at_least=0, at_most=LONGEST_SIGNAL_DELAY_SECONDS)
    """Seconds before the time limit at which the job is told to save: the time to finish a step and write. null: 300,
    or more where each rank has much to write."""
    transport: dict[str, str] = setting(factory=dict, entries=(0, 100), keys=TRANSPORT)
    """Variables of NCCL and gloo that every rank sets: {NCCL_SOCKET_IFNAME: ib0, GLOO_SOCKET_IFNAME: ib0}. A job says
    at its start which are set, these and those of its environment."""
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
        # A batch script of the user's own has a warning before the time limit as well.
        others = {"signal_delay_seconds"} if self.kind == "inline" else {"timeout_minutes", "wait"}
        own = {"kind", "processes", "transport"} | others
        for declared in fields(self):
            value = getattr(self, declared.name)
            made = declared.default_factory
            default = declared.default if made is MISSING else made()
            if declared.name not in own and value != default:
                given = f"launch.{declared.name}={shown(value, allowed_in(declared))}"
                raise ValueError(f"{given} is not allowed: launch={self.kind} has no use for it")

    def _check_slurm(self) -> None:
        instead = "launch=slurm counts in launch.nodes, and launch.gpus_per_node or launch.tasks_per_node"
        require("launch.processes", self.processes, self.processes == 1, instead)
        early = (self.signal_delay_seconds or 0) < 60 * self.timeout_minutes
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
        """Ranks that the command starts; launch=inline starts none, and counts as one."""
        return self.nodes * self.ranks_per_node if self.kind == "slurm" else self.processes


@dataclass(kw_only=True, slots=True)
class EstimateConfig:
    """Assumptions of `mode=estimate` about the machines. No run depends on them."""

    num_ranks: int | None = setting(None, at_least=1, at_most=10**6)
    """Ranks of the job that is estimated. null: those that the launch settings or torchrun's environment start."""
    accelerator: str | None = setting(None, choices=tuple(BY_NAME))
    """What a rank runs on: h100, a100_80gb and so on, as in transact/config/accelerators.py. null: not said."""
    memory_gib: float | None = setting(None, above=0, at_most=10**6)
    """GiB that a rank can use. null: the accelerator's, or not said."""
    tokens_per_second: float | None = setting(None, at_least=1e-3, at_most=1e12)
    """Measured throughput of recovery before any cut, of all ranks. null: from the accelerator and estimate.mfu."""
    throughput_file: str | None = setting(None, longest=LONGEST_PATH)
    """A results file of benchmarks.throughput from the same kind of machines, instead of that. null: none."""
    mfu: float | None = setting(None, at_least=1e-4, at_most=1)
    """Model FLOPs utilisation, where no throughput is given. null: what `make gpu-check` measured on such an
    accelerator, or else 0.25, which was counted from what a recovery makes a GPU do, and measured on none."""
    node_gb_per_second: float = setting(2.0, at_least=1e-3, at_most=1e6)
    """Assumed GB (10^9 bytes) per second that a node reads from, or writes to, the shared file system. Without
    launch=slurm eight ranks count as a node."""
    price_per_gpu_hour: float | None = setting(None, above=0, at_most=1e9)
    """What a rank costs for an hour, in any currency. null: no costs are shown."""

    def __post_init__(self) -> None:
        one = self.tokens_per_second is None or self.throughput_file is None
        require("estimate.throughput_file", self.throughput_file, one, "give it or estimate.tokens_per_second")
