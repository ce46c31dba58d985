"""Compare which units two devices keep: the engine on the job's device against stock transformers on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.random_models import load_stock_model, write_random_model
from benchmarks.workload import quiet_job, random_texts, run_config
from transact.config.inputs import ArchitectureConfig
from transact.config.machines import EngineConfig
from transact.config.pruning import MethodConfig
from transact.distributed.process import ProcessGroup
from transact.geometry import Geometry
from transact.models.hooks import collect_statistics
from transact.models.llama import read_geometry
from transact.pruning.criteria import Criteria, Evidence
from transact.pruning.selection import Goal, Rules, Selection, make_selection
from transact.pruning.statistics import ActivationStatistics
from transact.stages.calibrate import collect
from transact.stages.job import Job
from transact.stages.texts import Texts

DTYPES = ("float32", "bfloat16")


def channel_agreement(
    folder: Path, architecture: ArchitectureConfig, engine: EngineConfig, group: ProcessGroup, *, sequence_length: int
) -> dict[str, float]:
    """Return the share of kept units that both keep, by the device's dtype; the CPU's is float32 (collective)."""
    model, geometry = folder / "model", read_geometry(architecture.to_model_config())
    write_random_model(model, architecture, group)
    config = run_config(
        folder,
        model=model,
        engine=engine,
        sequence_length=sequence_length,
        batch_sequences=engine.micro_batch * group.world_size,
        num_steps=1,
        calibration_sequences=8 * group.world_size,
        other_sequences=group.world_size,
    )
    texts = random_texts(folder, config, group, vocab_size=geometry.vocab_size)
    job = quiet_job(config, geometry, group)
    target = job.outline.rounds[0].geometry

    def kept_on_cpu() -> set[tuple[str | int, ...]]:
        return kept_units(selection_of(cpu_statistics(job, texts, model, geometry), target, geometry))

    expected = group.on_main(kept_on_cpu)
    agreement = {}
    for dtype in DTYPES:
        here = replace(job, config=replace(config, engine=replace(engine, dtype=dtype)))
        found = kept_units(selection_of(collect(here, texts, model)[0], target, geometry))
        agreement[dtype] = len(found & expected) / len(expected)
    return agreement


@torch.no_grad()
def cpu_statistics(job: Job, texts: Texts, model_folder: Path, geometry: Geometry) -> ActivationStatistics:
    """Collect the statistics of the same calibration sequences on the CPU, without an engine."""
    config = job.config
    positions = texts.order.reserved(config.recover.validation_sequences, config.prune.calibration_sequences)
    tokens = texts.train.sequences(positions)
    model = load_stock_model(model_folder, "float32").eval()
    with collect_statistics(model, geometry) as collector:
        for batch in torch.split(tokens, config.engine.micro_batch):
            model(input_ids=batch, use_cache=False, logits_to_keep=1)
    return collector.statistics(tokens.numel())


def selection_of(statistics: ActivationStatistics, target: Geometry, source: Geometry) -> Selection:
    """Select units by activation norms alone: everything else is computed from them on one device."""
    evidence = Evidence(geometry=source, statistics=statistics)
    norms = MethodConfig(pair_score="norm_product", values="norm", channels="norm")
    scores = Criteria.of(norms).score(evidence)
    return make_selection(scores, source, Goal(target=target, parent=source), Rules())


def kept_units(selection: Selection) -> set[tuple[str | int, ...]]:
    """Return the kept units as a set, each under a name of its own."""
    pairs = {("pair", pair) for pair in selection.rotary_pairs(0, 0)}
    dims = {
        ("dim", layer, head, dim)
        for layer, heads in enumerate(selection.value_dims)
        for head, kept in enumerate(heads)
        for dim in kept
    }
    channels = {("channel", layer, channel) for layer, kept in enumerate(selection.channels) for channel in kept}
    return {*pairs, *dims, *channels}
