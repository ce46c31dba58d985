"""FLAP (arXiv 2312.11983) as a criterion, in the form that stock models can take: uniform widths, and no bias.

A unit's score is how much its input fluctuates over the calibration text, times the squared norm of the weights that
read it: of a channel the column of down_proj, of a query head the mean over its columns of o_proj. FLAP itself compares
scores across layers and puts the mean of what is gone into a bias; neither is stock.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from transact.geometry import Geometry
from transact.models.llama import down_projection, layer_of, layer_weights
from transact.models.tensor_files import ModelReader
from transact.pruning.criteria import Criteria, Scores
from transact.pruning.selection import Goal, Rules, Selection, make_selection
from transact.pruning.statistics import ATTENTION_OUTPUT, INTERMEDIATE, ActivationStatistics, Statistic
from transact.rounds import Round
from transact.stages.job import Job
from transact.stages.select import collect_evidence


def channel_sums(activation: Tensor) -> Tensor:
    """Sum each channel over all leading dims: (..., C) -> (C,) float64, also inside a batch: signs cancel."""
    return activation.detach().reshape(-1, activation.shape[-1]).double().sum(dim=0)


ATTENTION_OUTPUT_SUM = Statistic(
    name="attention_output_sum",
    observes=("attention_output",),
    shape=lambda geometry: (geometry.num_attention_heads, geometry.head_dim),
    of_batch=lambda output, geometry: channel_sums(output).view(-1, geometry.head_dim),
)
INTERMEDIATE_SUM = Statistic(
    name="intermediate_sum",
    observes=("intermediate",),
    shape=lambda geometry: (geometry.intermediate_size,),
    of_batch=lambda intermediate, geometry: channel_sums(intermediate),
)
SUMS = (ATTENTION_OUTPUT_SUM, INTERMEDIATE_SUM)


def fluctuation(statistics: ActivationStatistics, squares: Statistic, sums: Statistic) -> Tensor:
    """Return the variance of each channel over the calibration tokens, in the shape of the sums."""
    count = statistics.num_tokens
    return statistics[squares] / count - (statistics[sums] / count).square()


def flap_scores(
    statistics: ActivationStatistics, columns: tuple[Tensor, Tensor], geometry: Geometry
) -> dict[str, Tensor]:
    """Return the scores of query heads, (layers, heads), and of channels, (layers, channels).

    columns: squared norms of the columns of o_proj, (layers, heads, head_dim), and of down_proj, (layers, channels).
    """
    output, down = columns
    heads = fluctuation(statistics, ATTENTION_OUTPUT, ATTENTION_OUTPUT_SUM) * output
    channels = fluctuation(statistics, INTERMEDIATE, INTERMEDIATE_SUM) * down
    return {"heads": heads.mean(dim=-1), "channels": channels}


def column_energy(parent: Path, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Return the squared norms of the columns of every layer's o_proj and down_proj, as `flap_scores` takes them."""
    output, down = [], []
    with ModelReader(parent) as reader:
        for layer in range(geometry.num_layers):
            names = {name: reader.tensor(name) for name in reader.files if layer_of(name) == layer}
            weights = layer_weights(names)
            assert weights is not None and down_projection(layer) in names
            output.append(weights.output.double().square().sum(dim=0).view(-1, geometry.head_dim))
            down.append(weights.down.double().square().sum(dim=0))
    return torch.stack(output), torch.stack(down)


def flap_selection(job: Job, round_: Round, parent: Path) -> Selection:
    """Return FLAP's selection for the dimensions of a round that cuts whole heads."""
    evidence = collect_evidence(job, parent, job.round(round_.number).statistics)
    source = evidence.geometry
    found = flap_scores(evidence.statistics, column_energy(parent, source), source)
    scores: Scores = replace(Criteria.of(job.config.prune.method).score(evidence), **found)
    goal = Goal(target=round_.geometry, parent=source)
    return make_selection(scores, source, goal, Rules(unit="heads", method={"name": "flap"}))
