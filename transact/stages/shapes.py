"""Shapes: find the widths for every layer that all rounds go towards, by measuring candidates on validation text.

Attention has the head_dim that the run ends with; heads and MLPs are whole, in one sharded model that is opened once. A
candidate is this model with other forwards: its MLPs and o_proj compute with what a layer keeps, by weights refitted
for it. Its loss is the divergence of its next-token distributions from the dense parent's. Sequential corrections come
with the cut itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from transact.data.order import micro_batches
from transact.dimensions import search_space
from transact.engine.engine import Engine, open_engine
from transact.engine.memory import REMEMBERED_FITS
from transact.files import read_json, remove_flat, write_json, write_text
from transact.geometry import Geometry, Widths
from transact.models.folder import geometry_of
from transact.models.llama import layer_of, layer_weights
from transact.models.loss_head import Teaching
from transact.models.narrowing import Narrow, narrowing
from transact.models.tensor_files import ModelReader
from transact.pruning.criteria import Criteria, Evidence
from transact.pruning.limits import shape_bounds
from transact.pruning.refit import LayerGram, Ridge, nested_errors, refit
from transact.pruning.selection import Selection, best_indices
from transact.pruning.shape_search import CHANNELS, HEADS, ShapeSpace, search_shapes
from transact.pruning.slicing import cut_attention
from transact.pruning.weights import LayerWeights
from transact.rounds import shape_evaluations
from transact.runs.run_folder import RoundFolder
from transact.stages.calibrate import read_gram
from transact.stages.evaluate import mean_loss
from transact.stages.job import Job
from transact.stages.recover.validation import validation_positions
from transact.stages.select import collect_evidence, decide, greedy_channels, in_turns, order_of_heads
from transact.stages.slice import slice_in_parallel
from transact.stages.texts import Texts

Channels = Callable[[int, int], Tensor]  # from a layer and a width to the channels that stay, (width,) ascending
ELIMINATED_WIDTHS = 64  # of an MLP whose channels are chosen by elimination, at most


def choose_shapes(job: Job, texts: Texts, start: Geometry, parent: Path, files: RoundFolder) -> None:
    """Write shapes.json: the chosen dimensions, and in which order a layer's heads go; the log beside it (collective).

    Shapes are measured as one cut of the dense parent, in however many rounds it will then be made.

    Args:
        start: the dimensions that the search begins with.
        parent: the dense model, which is cut, and whose distributions count.
        files: of the first round.
    """
    config, whole = job.config, job.outline.parent
    space = _space(job, start, whole)
    evaluations = shape_evaluations(config.prune, job.outline.parent)
    teachings = _teachings(job, texts, parent)
    evidence = collect_evidence(job, parent, files.statistics)
    channels = _channels(job, parent, files.grams, space, evidence)
    leaving = _leaving(job, parent, files.grams, space, channels)
    orders = [each.heads for each in leaving]
    errors = {dimension: [each.errors[dimension] for each in leaving] for dimension in (CHANNELS, HEADS)}
    base = replace(whole, head_dim=space.start.head_dim)
    selection = decide(config.prune, evidence, base, None, parent=whole)
    trial = files.shape_base if base != whole else parent
    if base != whole:
        slice_in_parallel(job, parent, selection, trial, files.grams)
        job.check_seen("the model that shapes are measured on", trial)
    fits = Fits(job, parent, files.grams, selection, orders, channels)
    log = ShapeLog(job, files.shape_log, start, [files.statistics, files.grams])
    with (
        open_engine(trial, config.engine, job.group) as engine,
        narrowing(engine.module, fits.current),
        job.progress("measure shapes", evaluations, unit="shapes") as bar,
    ):

        def measure(shape: Geometry) -> float:
            loss = log.known(shape)
            if loss is None:
                fits.take(shape)
                loss = _divergence(job, texts, engine, teachings)
                log.add(shape, loss)
            bar.advance(1, divergence=loss)
            return loss

        chosen, least = search_shapes(space, measure, evaluations, errors)
    begun = log.known(space.start)
    job.say(f"shapes: divergence {begun:.4f} -> {least:.4f} nats per token, {log.count} shapes measured")
    if job.group.is_main:
        if base != whole:
            remove_flat(trial)
        divergence = {"start": begun, "chosen": least}
        found = {"start": space.start.to_dict(), "chosen": chosen.to_dict(), "head_orders": orders}
        write_json(files.shapes, found | {"divergence": divergence, "evaluations": log.count})
        _track(job, chosen, log)


def _space(job: Job, start: Geometry, whole: Geometry) -> ShapeSpace:
    limits, multiples = job.outline.limits, search_space(job.config.prune, whole).multiples
    multiple = multiples.intermediate_size
    if job.config.prune.method.channels == "obs":  # every width has a set of channels of its own
        multiple *= max(1, math.ceil(whole.intermediate_size / (multiple * ELIMINATED_WIDTHS)))
    return ShapeSpace(
        start=start,
        bounds=shape_bounds(start, limits, job.outline.ends),
        largest=whole,
        multiple=multiple,
        row=multiples.row,
        meets=lambda shape: limits is None or not limits.broken(shape),
    )


def _track(job: Job, chosen: Geometry, log: ShapeLog) -> None:
    """Log what every layer ends with and the path of the search as tables."""
    group = chosen.queries_per_key_value_head
    layers = [
        [
            layer,
            each.intermediate_size,
            group * each.num_key_value_heads,
            each.num_key_value_heads,
            chosen.head_dim // 2,
        ]
        for layer, each in enumerate(chosen.widths())
    ]
    columns = ["layer", "intermediate_size", "num_attention_heads", "num_key_value_heads", "rotary_pairs"]
    job.tracker.log_table("prune/shapes", columns, layers, tokens=0, round=1)
    path = zip(log.losses, accumulate(log.losses, min), strict=True)
    rows = [[number, loss, lowest] for number, (loss, lowest) in enumerate(path, start=1)]
    columns = ["shape", "divergence", "lowest_so_far"]
    job.tracker.log_table("prune/shape_search", columns, rows, tokens=0, round=1)


def read_shapes(path: Path) -> tuple[Geometry, list[list[int]]]:
    """Return the chosen dimensions, and of each layer the key-value heads in the order in which they go."""
    found = read_json(path)
    return Geometry.from_dict(found["chosen"]), found["head_orders"]


def _teachings(job: Job, texts: Texts, parent: Path) -> list[Teaching]:
    """Return what the dense parent says of this rank's validation text, a micro-batch each (collective)."""
    positions, config = validation_positions(job, texts), job.config
    turns = micro_batches(len(positions), config.engine.micro_batch, job.group.rank, job.group.world_size)
    batches = [positions[slice(*(turn or (0, 1)))] for turn in turns]
    with open_engine(parent, config.engine, job.group) as engine, torch.no_grad():
        head = engine.output_weight()
        # One by one: batches of a last turn may be shorter.
        hidden = [
            engine.final_hidden([texts.train.sequences(own)], [texts.train.position_ids(own)])[0].clone()
            for own in batches
        ]
    return [Teaching(hidden=each, head=head, weight=1.0, temperature=1.0) for each in hidden]


def _divergence(job: Job, texts: Texts, engine: Engine, teachings: list[Teaching]) -> float:
    """Return the mean divergence from the dense parent's distributions, in nats per token (collective)."""
    positions, micro_batch = validation_positions(job, texts), job.config.engine.micro_batch
    return mean_loss(engine, texts.train, positions, micro_batch, job.group, teachings=teachings)


class Leaving(NamedTuple):
    """In which order a layer's heads go, and the errors of its refits, on the CPU.

    Attributes:
        heads: key-value heads, the first to go first.
        errors: dimension -> error by how much stays, as `nested_errors`.
    """

    heads: list[int]
    errors: dict[str, Tensor]


def _leaving(job: Job, source: Path, grams: Path, space: ShapeSpace, channels: Channels) -> list[Leaving]:
    """Return how each layer's heads and channels go; ranks share the layers (collective)."""
    geometry, ridge = geometry_of(source), Ridge.of(job.config.prune.method)
    size = geometry.queries_per_key_value_head * geometry.head_dim
    job.check_seen("the folder of Gram matrices", grams)
    with ModelReader(source) as reader:

        def leave(layer: int) -> Leaving:
            weights, gram = _layer(reader, layer, job.group.device), read_gram(grams, layer, job.group.device)
            heads = order_of_heads(weights.output, gram, geometry, job.config.prune.method)
            inputs = (torch.tensor(heads[::-1]).unsqueeze(1) * size + torch.arange(size)).flatten()
            by_input = nested_errors(weights.output, gram.attention_output, inputs.to(job.group.device), ridge)
            order = _channel_order(space, partial(channels, layer)).to(job.group.device)
            by_channel = nested_errors(weights.down, gram.intermediate, order, ridge)
            return Leaving(heads, {CHANNELS: by_channel.cpu(), HEADS: by_input[::size].cpu()})

        return in_turns(job.group, geometry.num_layers, leave)


def _channel_order(space: ShapeSpace, channels: Callable[[int], Tensor]) -> Tensor:
    """Return a layer's channels so that those that stay at a width come before the others, as near as widths are."""
    most = space.largest.intermediate_size
    stays = torch.zeros(most, dtype=torch.int64)
    for width in space.sizes(CHANNELS):
        if width < most:
            stays[channels(width)] += 1
    return stays.argsort(descending=True, stable=True)


def _layer(reader: ModelReader, layer: int, device: torch.device) -> LayerWeights:
    names = [name for name in reader.files if layer_of(name) == layer]
    weights = layer_weights({name: reader.tensor(name).float().to(device) for name in names})
    assert weights is not None
    return weights


def _channels(job: Job, source: Path, grams: Path, space: ShapeSpace, evidence: Evidence) -> Channels:
    """Return how the channels follow from layer and width (collective)."""
    most, start = space.largest.intermediate_size, space.start.intermediate_size
    # The search begins with a width that need not be one of the coarser steps between those it measures.
    widths = {*range(space.multiple, most, space.multiple), start} - {most}
    paths = greedy_channels(job, source, grams, widths)
    if paths is not None:
        return lambda layer, width: paths[width][layer].long()
    scores = Criteria.of(job.config.prune.method).score(evidence).channels
    return lambda layer, width: best_indices(scores[layer], width)


class Fits:
    """The output projections of a shape, refitted for what each layer keeps; every rank makes all of them.

    Attributes:
        current: of the shape that was taken last, by layer and dimension, on the device; what is whole is not in it.
    """

    def __init__(
        self,
        job: Job,
        source: Path,
        grams: Path,
        selection: Selection,
        orders: list[list[int]],
        channels: Channels,
    ) -> None:
        """Take what the weights follow from.

        Args:
            selection: the cut of attention that all shapes share.
            orders: in which a layer's key-value heads go.
        """
        self._job, self._source, self._grams, self._selection = job, source, grams, selection
        self._orders, self._channels = orders, channels
        self._ridge, self._device = Ridge.of(job.config.prune.method), job.group.device
        self._dtype = getattr(torch, job.config.engine.dtype)
        self._made: dict[tuple[int, str], dict[int, Narrow]] = {}  # on the CPU
        self._sizes: dict[tuple[int, str], int] = {}  # of `current`
        self.current: dict[tuple[int, str], Narrow] = {}

    def take(self, shape: Geometry) -> None:
        """Make `current` that of a shape."""
        whole = self._selection.source
        for layer, widths in enumerate(shape.widths()):
            for dimension, size in asdict(widths).items():
                key = layer, dimension
                if size == getattr(whole, dimension):
                    self.current.pop(key, None)
                elif self._sizes.get(key) != size or key not in self.current:
                    kept, weight = self._narrow(layer, dimension, size)
                    self.current[key] = kept.to(self._device), weight.to(self._device)
                self._sizes[key] = size

    def _narrow(self, layer: int, dimension: str, size: int) -> Narrow:
        made = self._made.setdefault((layer, dimension), {})
        found = made.pop(size) if size in made else self._fit(layer, dimension, size)
        made[size] = found  # the one that was used last is at the end
        while len(made) > REMEMBERED_FITS:
            del made[next(iter(made))]
        return found

    def _fit(self, layer: int, dimension: str, size: int) -> Narrow:
        gram = read_gram(self._grams, layer, self._device)
        with ModelReader(self._source) as reader:
            weights = _layer(reader, layer, self._device)
        fit = {CHANNELS: self._fit_channels, HEADS: self._fit_heads}[dimension]
        kept, weight = fit(weights, gram, layer, size)
        return kept.cpu(), weight.to("cpu", self._dtype)

    def _fit_channels(self, weights: LayerWeights, gram: LayerGram, layer: int, width: int) -> Narrow:
        kept = self._channels(layer, width).to(self._device)
        return kept, refit(weights.down, gram.intermediate, kept, self._ridge)

    def _fit_heads(self, weights: LayerWeights, gram: LayerGram, layer: int, count: int) -> Narrow:
        target = self._selection.target
        size = target.queries_per_key_value_head * target.head_dim
        heads = torch.tensor(sorted(self._orders[layer][-count:]))
        kept = (heads.unsqueeze(1) * size + torch.arange(size)).flatten()
        kept = kept.to(self._device)
        transform = cut_attention(weights, self._selection, layer, gram).transform[kept]
        return kept, refit(weights.output, gram.attention_output, transform, self._ridge)


class ShapeLog:
    """A file with a line for every shape that was measured, from which a search that was stopped goes on."""

    def __init__(self, job: Job, path: Path, start: Geometry, made_of: Sequence[Path] = ()) -> None:
        """Read what was measured for the same start, of the same files of this run; nothing else counts."""
        self._job, self._path = job, path
        begin = {"start": start.to_dict(), "made_of": job.made_of(*made_of)}
        rows = job.group.on_main(lambda: _rows(path))
        rows = rows if rows[:1] == [begin] else [begin]
        self._losses = {_key(row["widths"]): row["divergence"] for row in rows[1:]}
        if job.group.is_main:  # without a line that was cut short
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))

    @property
    def losses(self) -> list[float]:
        """The divergence of every shape, in the order in which they were measured."""
        return list(self._losses.values())

    @property
    def count(self) -> int:
        return len(self._losses)

    def known(self, shape: Geometry) -> float | None:
        return self._losses.get(_key([asdict(each) for each in shape.widths()]))

    def add(self, shape: Geometry, loss: float) -> None:
        widths = [asdict(each) for each in shape.widths()]
        self._losses[_key(widths)] = loss
        if self._job.group.is_main:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"widths": widths, "divergence": loss}) + "\n")


def _key(widths: list[dict[str, int]]) -> str:
    return json.dumps(widths, sort_keys=True)


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log up to one that a kill has cut short, or that is damaged."""
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            if found:
                row = {
                    "widths": [asdict(Widths(**each)) for each in row["widths"]],
                    "divergence": float(row["divergence"]),
                }
        except (ValueError, TypeError, KeyError):
            break
        found.append(row)
    return found
