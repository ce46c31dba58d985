"""The whole configuration of a run, and the checks that concern several of its parts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from transact.config.inputs import DataConfig, ModelConfig, TextConfig
from transact.config.machines import EngineConfig, EstimateConfig, LaunchConfig
from transact.config.outputs import EvalConfig, ExportConfig, TrackConfig
from transact.config.pruning import PruneConfig, RecoverConfig
from transact.config.setting import LONGEST_PATH, require, require_one_per_round, setting

MODES = ("prune", "pretrain", "tokenize", "estimate")
TOKENIZE_SUFFIX = "_tokenize"  # of the folder of such a job, beside that of the run
KEPT_ROUNDS = ("last", "all")
LONGEST_NAME = 100  # characters: of a folder, which takes 255 bytes, beside what others add to it
LONGEST_COMMAND = 2**20


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """Everything a run depends on; written to `config.yaml` of its folder."""

    name: str = setting(
        longest=LONGEST_NAME,
        pattern=r"[^./\\%\s][^/\\%\s]*",
        words=r"a folder's name without spaces, / \ %, no dot first",
    )
    """The run's name, and its folder's unless output_dir says otherwise."""
    output_dir: str = setting("outputs/${name}", longest=LONGEST_PATH)
    """The run's folder."""
    share_dir: str | None = setting(None, longest=LONGEST_PATH)
    """Where the points of a sweep share what is the same for all of them; set by the sweep. null: not part of one."""
    mode: str = setting("prune", choices=MODES)
    """"prune", "pretrain" (train from random weights), "tokenize" (download and tokenise on CPUs what a run of the same
    settings needs, with its logs beside the run's folder) or "estimate" (say what would be done and needed)."""
    seed: int = setting(0, at_least=0, at_most=2**32 - 1)
    """Of the order of the text, of random weights and of random scores."""
    keep_rounds: str = setting("last", choices=KEPT_ROUNDS)
    """Whose model folders (sliced, recovered) stay: the "last" round's, or those of "all" rounds, which a variant of an
    earlier round's recovery needs."""
    model: ModelConfig
    """Which model is pruned."""
    data: DataConfig
    """The text."""
    prune: PruneConfig
    """What is cut, how much, and how it is chosen."""
    recover: RecoverConfig
    """Continued pretraining after each cut."""
    engine: EngineConfig
    """How the work is spread over ranks and computed."""
    track: TrackConfig
    """Where figures go besides metrics.jsonl."""
    launch: LaunchConfig
    """Where the processes come from."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """What is written besides the folder for transformers."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """What is measured of the parent and of the final model."""
    estimate: EstimateConfig = field(default_factory=EstimateConfig)
    """What mode=estimate assumes of the machines."""
    command: str | None = setting(None, longest=LONGEST_COMMAND)
    """The line that goes on with this run; set by the command itself. null: not started by one."""
    sweep_command: str | None = setting(None, longest=LONGEST_COMMAND)
    """The line of the sweep that this run is a point of; set by the command itself. null: not part of one."""

    @property
    def point_name(self) -> str:
        """Name that tells this point of a sweep, or this variant, from the others; empty for a run by itself."""
        is_alone = self.share_dir is None and self.recover.variant is None
        return "" if is_alone else Path(self.output_dir).name

    @property
    def variant_of(self) -> Path | None:
        """Folder of the run whose cut this variant recovers once more; None where this is no variant."""
        return None if self.recover.variant is None else Path(self.output_dir).parents[1]

    def texts(self) -> dict[str, TextConfig]:
        """Return every text that the run reads, by the setting that describes it."""
        further = {f"eval.texts.{name}": text for name, text in self.eval.texts.items()}
        return {**self.data.training_texts(), "data.evaluation": self.data.evaluation, **further}

    def without_setup(self) -> RunConfig:
        """Return a copy for records without launch.setup: lines of shell for a cluster's nodes may hold keys."""
        return replace(self, launch=replace(self.launch, setup=[]))

    def __post_init__(self) -> None:
        for name in ("token_shares", "learning_rates"):
            require_one_per_round(f"recover.{name}", getattr(self.recover, name), self.prune.rounds)
        if self.mode == "pretrain":
            alone = self.recover.objective == "cross_entropy"
            require("recover.objective", self.recover.objective, alone, "mode=pretrain has no parent to distil from")
            tokens = self.recover.tokens
            require("recover.tokens", tokens, tokens > 0, "mode=pretrain trains: it must be above 0")
            whole = self.recover.method == "full"
            require("recover.method", self.recover.method, whole, "mode=pretrain trains all weights")
            missing = "mode=pretrain needs model.architecture, and no model.path but model=demo_random or alike"
            require("model.architecture", self.model.architecture, self.model.architecture is not None, missing)
            variant = self.recover.variant
            require("recover.variant", variant, variant is None, "mode=pretrain has no cut to recover once more")
            for name, text in self.texts().items():
                field, words = text.messages_field, "mode=pretrain makes a tokenizer, which has no chat template"
                require(f"{name}.messages_field", field, field is None, words)
                made = "mode=pretrain makes a tokenizer of its own, which has made no tokens yet"
                require(f"{name}.source", text.source, text.source != "tokens", made)
            is_chat = self.eval.chat_template
            require("eval.chat_template", is_chat, not is_chat, "mode=pretrain makes a tokenizer without one")
        for name, text in self.texts().items():
            runs = "it runs code of yours on every rank: allow that with data.trust_code=true"
            require(f"{name}.filter", text.filter, text.filter is None or self.data.trust_code, runs)
        if self.data.train.adaptive:
            can_adapt = self.mode != "pretrain" and self.recover.variant is None
            of_a_run = (
                "weights follow the parent's losses over all rounds of a run: no mode=pretrain, no recover.variant"
            )
            require("data.train.adaptive", True, can_adapt, of_a_run)
        if self.mode == "tokenize":
            self._check_tokenizing()
        is_alone = self.export.hub is None or self.share_dir is None
        chosen = (
            "the points of a sweep would replace each other there; add it to the command of the one that you choose"
        )
        require("export.hub", self.export.hub, is_alone, chosen)
        if self.mode != "pretrain":
            require("model.path", self.model.path, bool(self.model.path), "a local folder or a hub id")

    def _check_tokenizing(self) -> None:
        gpus, variant = self.launch.gpus_per_node, self.recover.variant
        cpus = "mode=tokenize asks for no GPUs; launch.tasks_per_node=N starts N processes on each node"
        require("launch.gpus_per_node", gpus, gpus == 0, cpus)
        require("recover.variant", variant, variant is None, "mode=tokenize takes the settings of the run itself")
        require(
            "mode",
            self.mode,
            self.share_dir is None,
            "it is one job, without -m: the points of a sweep find its tokens",
        )


# Settings that a finished stage does not depend on: changing these in an existing run folder is no conflict. Stages
# that depend on eval record in run.json the settings that they ran with, and run again where these have changed. How
# the work is spread over memory and ranks changes only the order of sums; a run that ran out of memory must be able to
# go on.
FREE_SECTIONS = (
    "track",
    "launch",
    "output_dir",
    "share_dir",
    "export",
    "eval",
    "estimate",
    "command",
    "sweep_command",
    "keep_rounds",
)
FREE_SETTINGS = (
    "engine.activation_checkpointing",
    "engine.micro_batch_sequences",
    "engine.zero_stage",
    "engine.verify",
    "engine.collective_timeout_minutes",
    "engine.reduce_bucket_elements",
    "engine.prefetch_elements",
    "engine.live_elements",
    "engine.offload_optimizer",
    "engine.checkpoint_every.minutes",
    "engine.checkpoint_every.tokens",
    "prune.method.gram_gib",
    "data.token_store",
    "data.trust_code",
    "recover.max_skipped_steps",
)
