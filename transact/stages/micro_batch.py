"""The memory of a job at its worst moments, and the micro-batch that follows from it where `auto` leaves it open."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from transact.config.machines import AUTO, LARGEST_MICRO_BATCH, EngineConfig
from transact.config.run import RunConfig
from transact.engine.free_memory import free_bytes_of_rank
from transact.engine.gram_memory import FLOAT32_BYTES, FREE_SHARE, GIB
from transact.engine.memory import estimate_memory, is_offloaded, is_on_cpu, optimizer_bytes
from transact.engine.trained import Trained
from transact.geometry import Geometry
from transact.models.shard_writer import WRITE_BUFFER_BYTES
from transact.rounds import Outline, Stage
from transact.stages.job import Job

RECORDED = "engine"  # key of run.json: the settings that a run began with where they were left to it
SETTLED = ("micro_batch_sequences", "activation_checkpointing")
WORST = ("calibrate", "gram", "shapes", "slice", "recover")
Moments = list[tuple[Stage, Geometry]]  # stages that may need the most memory, and the model that each works on


def moments(outline: Outline) -> Moments:
    """Return the stages that may need the most memory, and the model that each works on.

    These are the first calibration, whose model is the largest, with its pass for Gram matrices and its cut, the search
    for shapes, and every recovery; an evaluation where none of them is left to do.
    """
    found = [(stage, outline.at_work(stage)) for stage in outline.stages if stage.kind in WORST]
    first = min((stage.round or 0 for stage, _ in found if stage.kind == "calibrate"), default=None)
    found = [each for each in found if each[0].kind in ("shapes", "recover") or each[0].round == first]
    last = outline.rounds[-1]
    return found or [(Stage("evaluate", last.number), last.geometry)]


def trained(stages: Moments) -> Moments:
    return [(stage, geometry) for stage, geometry in stages if stage.kind == "recover"]


def host_bytes(config: RunConfig, parent: Geometry, stages: Moments, ranks: int) -> dict[str, int]:
    """Return the bytes of CPU memory that a rank needs besides.

    These are the best weights seen in a recovery, twice, for while better ones replace them (all of them at ZeRO stage
    0), the buffer through which a training checkpoint is written, an offloaded optimizer, and the hidden states of
    sequential calibration.
    """
    found = {}
    for _, geometry in trained(stages)[:1]:
        parameters = Trained.of(geometry, config.recover).parameters
        shared_by = ranks if config.engine.zero_stage else 1
        found["best_weights"] = 2 * round(parameters * FLOAT32_BYTES / shared_by)
        found["write_buffer"] = WRITE_BUFFER_BYTES
        if is_offloaded(config):
            # Gradients are copied there for the step, in float32.
            state = optimizer_bytes(parameters, config.engine, ranks)
            found["offloaded_optimizer"] = round(state + parameters * FLOAT32_BYTES / ranks)
    if config.prune.method.refit == "sequential" and any(stage.kind == "calibrate" for stage, _ in stages):
        found["hidden_states"] = round(hidden_stream_bytes(parent, config, ranks))
    return found


def hidden_stream_bytes(geometry: Geometry, config: RunConfig, ranks: int) -> float:
    """Return the bytes of hidden states that sequential calibration keeps in CPU memory of one rank, at most.

    The residual streams of the dense and of the cut model; while attention is fitted the dense one between attention
    and MLP too; and the inputs of the projection that is fitted.
    """
    tokens = config.prune.calibration_sequences * config.data.sequence_length
    attention = geometry.hidden_size + geometry.num_attention_heads * geometry.head_dim
    width = 2 * geometry.hidden_size + max(attention, geometry.intermediate_size)
    return tokens * width * FLOAT32_BYTES / ranks


def peak_bytes(config: RunConfig, parent: Geometry, stages: Moments, ranks: int) -> float:
    """Return the bytes of the worst moment of the job as it is configured."""
    return max(estimate_memory(each, config, ranks, stage.kind, parent=parent).total() for stage, each in stages)


# A micro-batch of fewer tokens is so quickly computed that gathering the weights for it takes a larger share than
# recomputation does: by the arithmetic of LLaMA-7B on 8 H100, measured on none.
ENOUGH_TOKENS = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """A micro-batch, and what it needs of a rank at the job's worst moment.

    Attributes:
        sequences: of a forward on each rank.
        recomputes: whether the backward computes activations again.
        why: this one is taken.
        stage: name of the stage with the worst moment.
        needed: bytes of a rank then.
        usable: bytes that a rank has for it.
    """

    sequences: int
    recomputes: bool
    why: str
    stage: str
    needed: float
    usable: float

    @property
    def fits(self) -> bool:
        return self.needed <= self.usable

    def of(self, engine: EngineConfig) -> EngineConfig:
        """Return the engine's settings with this micro-batch."""
        return replace(engine, micro_batch_sequences=self.sequences, activation_checkpointing=self.recomputes)

    def words(self) -> str:
        """Return in one line what is taken, why, and what it needs."""
        many = "sequence" if self.sequences == 1 else "sequences"
        activations = "recomputed in the backward" if self.recomputes else "kept for the backward"
        short = "" if self.fits else ": memory may run out"
        return (
            f"micro-batch: {self.sequences} {many} a rank, activations {activations} ({self.why}); {self.stage} needs "
            f"{self.needed / GIB:.2f} GiB of the {self.usable / GIB:.2f} that may be filled, {FREE_SHARE:.0%} of what "
            f"is free{short}"
        )


def settle(job: Job) -> EngineConfig:
    """Return the engine's settings with a number for each `auto`, and say and record which (collective).

    A run that goes on keeps what it began with, also where another machine would allow more or less: the order of sums,
    and with it the last bits of the result, depends on it. Only where another number of ranks makes that impossible a
    new choice is made.
    """
    config, group = job.config, job.group
    if config.engine.is_settled:
        return config.engine
    (least,) = group.maxima(-free_bytes_of_rank(group.device))
    before = group.broadcast(job.folder.record.get(RECORDED) if group.is_main else None)
    device = replace(config.engine, device=group.device.type)
    here = replace(config, engine=device, estimate=replace(config.estimate, accelerator=None))
    chosen = choose(here, job.outline, group.world_size, -least, before)
    job.say(chosen.words())
    engine = chosen.of(config.engine)
    if group.is_main:
        job.folder.note(**{RECORDED: {name: getattr(engine, name) for name in SETTLED}})
    return engine


def choose(
    config: RunConfig, outline: Outline, ranks: int, memory: float, before: dict[str, Any] | None = None
) -> MicroBatch:
    """Return the micro-batch for engine settings of `auto`.

    The largest that fits without recomputation, if that is large enough to keep a rank busy or recomputation would
    allow no larger one; else the largest with it. Where nothing fits, the one that needs the least.

    Args:
        memory: bytes that a rank can take, of which a share stays free.
        before: the settings that the run began with, by name; None for a new run.
    """
    divided, batch = "a batch", config.recover.batch
    if not config.recover.tokens:
        divided, batch = "calibration", config.prune.calibration_sequences
    per_rank = batch // ranks
    began = config.engine if before is None else _settled_as(config.engine, before)
    if before is not None and per_rank % began.micro_batch == 0:
        kept = _tried(config, outline, ranks, memory, began.micro_batch, began.recomputes)
        if kept.fits:
            return replace(kept, why="as this run began")
        now = choose(config, outline, ranks, memory)
        instead = f"engine.micro_batch_sequences={now.sequences} engine.activation_checkpointing={now.recomputes}"
        return replace(kept, why=f"as this run began; {instead.lower()} needs {now.needed / GIB:.2f} GiB")
    sizes = _divisors(per_rank) if config.engine.micro_batch_sequences == AUTO else [config.engine.micro_batch]
    options = [False, True] if config.engine.activation_checkpointing == AUTO else [config.engine.recomputes]
    tried = {
        recomputes: [_tried(config, outline, ranks, memory, size, recomputes) for size in sizes]
        for recomputes in options
    }
    best = [found[0] for found in ([each for each in tried[one] if each.fits] for one in options) if found]
    if not best:
        return replace(tried[options[-1]][-1], why="the least that can be asked for")
    taken = best[0]
    if taken.sequences * config.data.sequence_length < ENOUGH_TOKENS:
        taken = max(best, key=lambda each: each.sequences)  # the first of equals, without recomputation
    why = f"all {per_rank}" if taken.sequences == per_rank else f"the most that fit, of {per_rank}"
    why += f" that {divided} has for it"
    if taken.recomputes and len(options) > 1:
        why += f"; without recomputation {'none' if best[0].recomputes else best[0].sequences}"
    if before is not None:
        why += f"; the {began.micro_batch} that this run began with do not divide these"
    return replace(taken, why=why)


def _settled_as(engine: EngineConfig, before: dict[str, Any]) -> EngineConfig:
    return replace(engine, **{name: before[name] for name in SETTLED if getattr(engine, name) == AUTO})


def _divisors(count: int) -> list[int]:
    """Return the divisors of a number that a micro-batch may have, the largest first."""
    small = [each for each in range(1, math.isqrt(count) + 1) if count % each == 0]
    found = {size for each in small for size in (each, count // each) if size <= LARGEST_MICRO_BATCH}
    return sorted(found, reverse=True)


def _tried(config: RunConfig, outline: Outline, ranks: int, memory: float, size: int, recomputes: bool) -> MicroBatch:
    engine = replace(config.engine, micro_batch_sequences=size, activation_checkpointing=recomputes)
    usable = FREE_SHARE * memory
    # Gram matrices fill what is left, and no more.
    config = replace(config, engine=engine, estimate=replace(config.estimate, memory_gib=usable / GIB))
    stages = _moments_of_points(config, outline)
    needed = [
        (estimate_memory(geometry, config, ranks, stage.kind, parent=outline.parent).total(), stage.name)
        for stage, geometry in stages
    ]
    most, stage_name = max(needed)
    # On CPUs what is kept in the machine's memory lies beside it.
    besides = sum(host_bytes(config, outline.parent, stages, ranks).values()) if is_on_cpu(config) else 0
    return MicroBatch(
        sequences=size, recomputes=recomputes, why="", stage=stage_name, needed=most + besides, usable=usable
    )


def _moments_of_points(config: RunConfig, outline: Outline) -> Moments:
    """Return the moments that the choice rests on.

    The cut itself is left out, which hardly depends on it. In a sweep every model counts as large as the parent: points
    choose alike, and share what they make of the parent.
    """
    stages = [(stage, geometry) for stage, geometry in moments(outline) if stage.kind != "slice"]
    stages += [(stage, candidate) for stage, _ in trained(stages)[-1:] for candidate in outline.candidates]
    return stages if config.share_dir is None else [(stage, outline.parent) for stage, _ in stages]
