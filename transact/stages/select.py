"""Select: choose the units that stay. Ranks judge the layers in turn; the outcome is the same on every rank."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from transact.config.pruning import MethodConfig, PruneConfig
from transact.dimensions import loses_ordered_heads
from transact.distributed.process import ProcessGroup
from transact.engine.model_folder import layer_groups
from transact.files import publish, read_json, temporary_name, write_json
from transact.geometry import Geometry, geometry_changes
from transact.models.folder import geometry_of
from transact.models.llama import down_projection, layer_of, layer_weights, output_projection
from transact.models.tensor_files import ModelReader
from transact.pruning.activation_maps import ActivationMap, activation_maps
from transact.pruning.criteria import Criteria, Evidence, Scores, magnitude_scores, stack_scores
from transact.pruning.greedy_obs import block_order, elimination_path
from transact.pruning.pair_gains import PART_COVARIANCE
from transact.pruning.refit import LayerGram, Ridge
from transact.pruning.selection import Chosen, Goal, Rules, Selection, make_selection
from transact.rounds import Round, tokens_per_batch
from transact.runs.run_folder import RoundFolder
from transact.stages.calibrate import read_gram, read_statistics
from transact.stages.job import Job


def write_maps(maps: dict[str, ActivationMap], path: Path) -> None:
    """Write `<kind>.norms` (layers, channels) float32, and `<kind>.kept` (layers, channels) uint8 where it is known.

    `<kind>.sizes` (layers,) int32 are the channels that each layer has; behind those of a narrower one are zeros.
    """
    tensors = {f"{kind}.norms": each.norms.float() for kind, each in maps.items()}
    tensors |= {f"{kind}.sizes": each.sizes.to(torch.int32) for kind, each in maps.items()}
    tensors |= {f"{kind}.kept": each.kept.to(torch.uint8) for kind, each in maps.items() if each.kept is not None}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary_name(path))
    publish(temporary_name(path), path)


def map_figures(maps: dict[str, ActivationMap]) -> dict[str, float]:
    """Return `calibrate/...`: norms over all channels and layers, and the mean share of a layer's squares that is kept.

    Kinds differ in scale, so each has figures of its own. Those of the MLP, where most channels are, carry no kind in
    their names.
    """
    figures: dict[str, float] = {}
    for kind, each in maps.items():
        ending = "" if kind == "intermediate" else f"_{kind}"
        figures[f"calibrate/norm_mean{ending}"] = each.mean_norm()
        figures[f"calibrate/norm_max{ending}"] = float(each.norms.max())
        kept = each.kept_energy()
        if kept is not None:
            figures[f"calibrate/kept_energy{ending}"] = float(kept.mean())
    return figures


Result = TypeVar("Result")
Paths = dict[int, list[Tensor]]  # width -> of each layer, the channels that are kept: (width,), or all of fewer


def collect_evidence(job: Job, model_folder: Path, statistics: Path) -> Evidence:
    """Collect the evidence that scores rest on, whatever the target (collective, equal on every rank)."""
    method, source = job.config.prune.method, geometry_of(model_folder)
    return Evidence(
        geometry=source,
        statistics=read_statistics(statistics),
        magnitude=_magnitudes(job, model_folder, source) if Criteria.of(method).looks_at_weights else None,
        seed=job.config.seed,
    )


def decide(
    config: PruneConfig,
    evidence: Evidence,
    target: Geometry,
    channels: Paths | None,
    *,
    parent: Geometry,
    head_orders: Sequence[Sequence[int]] | None = None,
) -> Selection:
    """Return the selection for one target.

    Args:
        channels: as `greedy_channels` returns them.
        head_orders: of each layer the key-value heads in the order in which they go; None: by their scores.
    """
    method, source = config.method, evidence.geometry
    rules = Rules(
        unit=method.attention,
        pair_scope=method.pair_scope,
        pairs_in_progression=config.rotary_pairs == "progression",
        value_basis=method.values if method.has_basis() else "dims",
        method={name: value for name, value in asdict(method).items() if name != "gram_gib"},
    )
    kept = None
    if channels is not None:
        kept = [channels[each.intermediate_size][layer].tolist() for layer, each in enumerate(target.widths())]
    criteria, cuts_pairs = Criteria.of(method), target.head_dim < source.head_dim
    return make_selection(
        criteria.score(evidence),
        source,
        Goal(target=target, parent=parent),
        rules,
        chosen=Chosen(channels=kept, head_orders=head_orders),
        norm_shares=evidence.statistics.norm_shares(source) if cuts_pairs else None,
        part_covariance=evidence.statistics[PART_COVARIANCE] if criteria.gives_gains(source) and cuts_pairs else None,
    )


def greedy_channels(
    job: Job, model_folder: Path, grams: Path, widths: Collection[int], share: tuple[float, float] = (0.0, 1.0)
) -> Paths | None:
    """Return the channels that greedy OBS keeps of each layer, by width; None where the method chooses otherwise.

    Collective, equal on every rank. The path of one elimination serves all widths. share: of the stage, as in
    `Job.progress`.
    """
    if job.config.prune.method.channels != "obs":
        return None
    source, device = geometry_of(model_folder), job.group.device
    owns = [each.intermediate_size for each in source.widths()]
    if min(widths) >= max(owns):  # no Gram matrix needs to be read
        return {width: [torch.arange(own) for own in owns] for width in widths}
    job.check_seen("the folder of Gram matrices", grams)
    with (
        ModelReader(model_folder) as reader,
        job.progress("choose MLP channels", source.num_layers, unit="layers", share=share) as bar,
    ):

        def keep(layer: int) -> dict[int, Tensor]:
            weight = reader.tensor(down_projection(layer)).to(device)
            return best_channels(weight, read_gram(grams, layer, device), widths, job.config.prune.method)

        kept = in_turns(job.group, source.num_layers, keep, after=partial(bar.advance, job.group.world_size))
    return {width: [paths[width] for paths in kept] for width in widths}


def orders_of_heads(job: Job, model_folder: Path, grams: Path, targets: Sequence[Geometry]) -> list[list[int]] | None:
    """Return of each layer the key-value heads in the order in which they go; None where no order is needed.

    Collective, equal on every rank.
    """
    source, method = geometry_of(model_folder), job.config.prune.method
    if not loses_ordered_heads(job.config.prune, source, targets):
        return None
    job.check_seen("the folder of Gram matrices", grams)
    with ModelReader(model_folder) as reader:

        def order(layer: int) -> list[int]:
            weight = reader.tensor(output_projection(layer)).float().to(job.group.device)
            return order_of_heads(weight, read_gram(grams, layer, job.group.device), source, method)

        return in_turns(job.group, source.num_layers, order)


def order_of_heads(output: Tensor, gram: LayerGram, geometry: Geometry, method: MethodConfig) -> list[int]:
    """Return one layer's key-value heads in the order in which they go, each with the query heads that share it.

    output: weight of o_proj, (hidden_size, num_attention_heads * head_dim).
    """
    size = geometry.queries_per_key_value_head * geometry.head_dim
    return block_order(output, gram.attention_output, size, Ridge.of(method))


def best_channels(weight: Tensor, gram: LayerGram, widths: Collection[int], method: MethodConfig) -> dict[int, Tensor]:
    """Return the channels of one layer that greedy OBS keeps, by width: (width,) int32 on the CPU.

    weight: of down_proj, (hidden_size, intermediate_size), on the device that computes.
    """
    path = elimination_path(weight.float(), gram.intermediate.to(weight.device), widths, Ridge.of(method))
    return {width: chosen.to("cpu", torch.int32) for width, chosen in path.items()}


def select(
    job: Job,
    round_: Round,
    model_folder: Path,
    files: RoundFolder,
    *,
    measured: Selection | None = None,
    head_orders: Sequence[Sequence[int]] | None = None,
) -> None:
    """Write selection.json, and the maps of activations beside it (collective).

    Args:
        measured: the selection of the split that was chosen, for the first round; taken as it is where it leads to this
            round's dimensions.
        head_orders: as in `decide`.
    """
    evidence, parent = collect_evidence(job, model_folder, files.statistics), job.outline.parent
    if measured is not None and (measured.source, measured.target) == (evidence.geometry, round_.geometry):
        made = measured
    else:
        widths = {each.intermediate_size for each in round_.geometry.widths()}
        channels = greedy_channels(job, model_folder, files.grams, widths)
        if head_orders is None:
            head_orders = orders_of_heads(job, model_folder, files.grams, [round_.geometry])
        settings = _settings_of(round_, job.config.prune)
        made = decide(settings, evidence, round_.geometry, channels, parent=parent, head_orders=head_orders)
    if not job.group.is_main:
        return
    job.say(f"round {round_.number}: {describe_cut(made)}, {made.reached:.1%} of all parameters removed")
    maps = activation_maps(evidence.statistics, made)
    write_maps(maps, files.maps)
    figures = map_figures(maps) | {
        "prune/parameters": made.target.parameters(),
        "prune/remove_fraction": made.reached,
        "prune/head_dim": made.target.head_dim,
        "prune/num_attention_heads": made.target.mean("num_key_value_heads") * made.target.queries_per_key_value_head,
        "prune/intermediate_size": made.target.mean("intermediate_size"),
        "prune/kv_bytes_per_token": made.target.kv_bytes_per_token(),
    }
    tokens = round_.first_sequence * job.config.data.sequence_length
    job.tracker.log(figures, step=tokens // tokens_per_batch(job.config), tokens=tokens, round=round_.number)
    write_json(files.selection, made.to_json())


def _settings_of(round_: Round, config: PruneConfig) -> PruneConfig:
    """Return a round's settings: without gains where a later round cuts pairs.

    A pair's score grows with its gain, so that round would keep pairs that stand in for others, and recovery would end
    worse (docs/log.md). What gains rest on is summed in every round all the same.
    """
    if not round_.cuts_pairs_later:
        return config
    return replace(config, method=replace(config.method, pair_gains="none"))


def describe_cut(made: Selection) -> str:
    """Return the dimensions that change, as in "head_dim 32 -> 24, intermediate_size 640 -> 277"."""
    return geometry_changes(made.source, made.target)


def read_selection(path: Path) -> Selection:
    return Selection.from_json(read_json(path))


def _magnitudes(job: Job, model_folder: Path, source: Geometry) -> Scores:
    """Score the units of every layer by the magnitude of their weights (collective)."""
    with ModelReader(model_folder) as reader:
        names = {layer_of(group[0]): group for group in layer_groups(reader.files)}

        def score(layer: int) -> Scores:
            weights = layer_weights({name: reader.tensor(name) for name in names[layer]})
            assert weights is not None
            return magnitude_scores(weights, source.of_layer(layer))

        return stack_scores(in_turns(job.group, source.num_layers, score))


def in_turns(
    group: ProcessGroup, count: int, find: Callable[[int], Result], *, after: Callable[[], object] | None = None
) -> list[Result]:
    """Return `find` of 0 to count - 1 in their order, on every rank; each is found by one rank (collective).

    after: what every rank calls after each of its turns, such as the advance of a progress bar, which includes the
        group's `turn`; None: that `turn` alone.
    """
    mine = {}
    for number in group.turns(count):
        if number is not None:
            mine[number] = find(number)
        (after or group.turn)()
    found = {number: result for theirs in group.gather(mine) for number, result in theirs.items()}
    return [found[number] for number in range(count)]
