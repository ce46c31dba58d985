"""Charts of the activations that calibration measured, by layer and channel, and of the channels that were kept."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np

from transact.tracking.report.drawing import (
    COLOURS,
    MISSING,
    Block,
    Chart,
    Figure,
    Section,
    Table,
    axis,
    layer_axis,
    line,
    number,
)
from transact.tracking.report.run_files import KINDS, ActivationMap, Array, RoundFiles, RunFiles

CELLS = 450_000  # of all heat maps together, a byte each: what keeps the page below 3 MB
MOST_COLUMNS, FEWEST_COLUMNS = 256, 16
DECADES = 3.0  # below the largest norm of a map; smaller norms all get the lowest colour
STEPS = 255
SHORT = {"attention_output": "attention output", "intermediate": "MLP", "query": "queries", "key": "keys"}


def channels_section(run: RunFiles) -> Section | None:
    """Return charts of redundancy and kept energy, and heat maps; None where there are no maps."""
    rounds = [each for each in run.rounds if each.maps]
    if not rounds:
        return None
    columns = columns_of(rounds)
    blocks: list[Block] = [_redundancy(rounds)]
    energy = _kept_energy(rounds)
    blocks += [energy] if energy else []
    blocks += [_heat_map(kind, rounds, columns) for kind in KINDS if any(kind in each.maps for each in rounds)]
    return Section(name="channels", title="Activations and kept channels", blocks=blocks)


def columns_of(rounds: Sequence[RoundFiles]) -> int:
    """Return how many columns each heat map may have so that all of them together are small enough."""
    rows = sum(2 * len(each.norms) for one in rounds for each in one.maps.values())
    return max(FEWEST_COLUMNS, min(MOST_COLUMNS, CELLS // rows))


def _by_layer(name: str, title: str, y_title: str, found: dict[str, dict[str, Array]], told: str) -> Chart:
    """Return a chart of lines over layers, from `found`: round -> series -> (layers,)."""
    views = {}
    for label, named in found.items():
        traces = [
            line(SHORT[kind], [(layer, float(value)) for layer, value in enumerate(values)], COLOURS[turn])
            for turn, (kind, values) in enumerate(named.items())
        ]
        layout = {"xaxis": layer_axis(len(next(iter(named.values())))), "yaxis": axis(y_title, range=[0, 1.05])}
        views[label] = {"data": traces, "layout": layout}
    kinds = list(dict.fromkeys(kind for named in found.values() for kind in named))
    rows = [
        [f"{label}, layer {layer}", *(f"{named[kind][layer]:.3f}" if kind in named else MISSING for kind in kinds)]
        for label, named in found.items()
        for layer in range(len(next(iter(named.values()))))
    ]
    last, named = list(found.items())[-1]
    means = ", ".join(f"{SHORT[kind]} {values.mean():.2f}" for kind, values in named.items())
    return Chart(
        name=name,
        title=title,
        summary=f"{told} Means over the layers in {last}: {means}.",
        views=views,
        table=Table(headings=["", *(SHORT[kind] for kind in kinds)], rows=rows),
    )


def _redundancy(rounds: Sequence[RoundFiles]) -> Chart:
    kinds = ("attention_output", "intermediate")
    found = {
        f"round {each.number}": {kind: each.maps[kind].redundancy() for kind in kinds if kind in each.maps}
        for each in rounds
    }
    told = "Redundancy by layer: 0 where all channels carry the same energy, near 1 where few carry all."
    return _by_layer("redundancy", "Redundancy", "redundancy", {key: each for key, each in found.items() if each}, told)


def _kept_energy(rounds: Sequence[RoundFiles]) -> Chart | None:
    found: dict[str, dict[str, Array]] = {}
    for one in rounds:
        energies = {kind: one.maps[kind].kept_energy() for kind in KINDS if kind in one.maps}
        shares = {kind: each for kind, each in energies.items() if each is not None}
        if shares:
            found[f"round {one.number}"] = shares
    told = "Share of the squared activations that is in kept channels, by layer."
    return _by_layer("kept-energy", "Kept energy", "share of energy kept", found, told) if found else None


def _heat_map(kind: str, rounds: Sequence[RoundFiles], columns: int) -> Chart:
    maps = {f"round {each.number}": each.maps[kind] for each in rounds if kind in each.maps}
    layers, channels = next(reversed(maps.values())).norms.shape
    return Chart(
        name=f"map-{kind.replace('_', '-')}",
        title=KINDS[kind],
        summary=f"Heat map of {layers} layers by {channels} channels: norms of activations above, kept channels below. "
        + _told(next(reversed(maps.values()))),
        views={label: heat_map(each, columns) for label, each in maps.items()},
        table=_table(maps),
        height=460 if any(each.kept is not None for each in maps.values()) else 300,
        is_wide=True,
    )


def _told(one: ActivationMap) -> str:
    if one.kept is None:
        return "Values got a basis from the data before they were cut, so no channel is marked."
    return f"{one.kept.sum() / one.sizes.sum():.1%} of the channels are kept."


def heat_map(one: ActivationMap, columns: int) -> Figure:
    """Draw norms by colour, on a logarithmic scale, and below them the share of channels that are kept."""
    norms, kept = one.binned(columns)
    channels = one.norms.shape[1]
    size = -(-channels // norms.shape[1])
    low, high = _range(norms)
    levels = np.clip((np.log10(np.maximum(norms, 10**low)) - low) / (high - low), 0, 1)
    traces = [
        _trace(levels, size, "norm", "y", 1.0 if kept is None else 0.44)
        | {"levels": {"low": low, "high": high, "is_logarithm": True}, "hovertemplate": _hover("norm", size)}
    ]
    layers = layer_axis(len(norms)) | {"autorange": "reversed"}
    layout = {
        "xaxis": axis("channel" if size == 1 else f"channel (a column is {size} of them)"),
        "yaxis": layers | {"domain": [0.56, 1] if kept is not None else [0, 1]},
    }
    if kept is not None:
        traces.append(
            _trace(kept, size, "kept", "y2", 0.44)
            | {"levels": {"low": 0.0, "high": 1.0, "is_logarithm": False}, "hovertemplate": _hover("kept", size)}
        )
        layout["yaxis2"] = layers | {"domain": [0, 0.44]}
        layout["xaxis"]["anchor"] = "y2"
    return {"data": traces, "layout": layout}


def _range(norms: Array) -> tuple[float, float]:
    """Return the powers of ten at the two ends of the colours."""
    largest = float(norms.max())
    if largest <= 0:
        return -1.0, 0.0
    high = float(np.log10(largest))
    smallest = float(np.log10(norms[norms > 0].min()))
    return max(high - DECADES, min(smallest, high - 0.1)), high


def _trace(levels: Array, size: int, name: str, y_axis: str, length: float) -> Figure:
    """Return a heat map trace whose figures are bytes, which the page's script decodes."""
    encoded = base64.b64encode(np.round(levels * STEPS).astype(np.uint8).tobytes()).decode("ascii")
    return {
        "type": "heatmap",
        "name": name,
        "bytes": encoded,
        "columns": levels.shape[1],
        "x0": (size - 1) / 2,
        "dx": size,
        "yaxis": y_axis,
        "colorbar": {"title": {"text": name}, "len": length, "y": 1 if y_axis == "y" else 0}
        | {"yanchor": "top" if y_axis == "y" else "bottom", "thickness": 12},
    }


def _hover(name: str, size: int) -> str:
    value = "%{customdata:.3g}" if name == "norm" else "%{customdata:.0%}"
    around = "channel %{x:.0f}" if size == 1 else f"{size} channels around %{{x:.0f}}"
    return f"layer %{{y}}, {around}<br>{name}: {value}<extra></extra>"


def _table(maps: dict[str, ActivationMap]) -> Table:
    rows = []
    for label, one in maps.items():
        energy = one.kept_energy()
        for layer, norms in enumerate(one.norms):
            size = int(one.sizes[layer])
            kept = MISSING if one.kept is None else f"{int(one.kept[layer].sum()):,} of {size:,}"
            share = MISSING if energy is None else f"{energy[layer]:.1%}"
            figures = [number(float(norms.sum() / size)), number(float(norms.max()))]
            rows.append([f"{label}, layer {layer}", *figures, kept, share])
    return Table(headings=["", "mean norm", "largest norm", "channels kept", "energy kept"], rows=rows)
