"""Layers that differ: what each of them keeps, and the path of the search that found it."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from transact.geometry import Geometry
from transact.tracking.report.drawing import COLOURS, Block, Chart, Section, Table, axis, bars, layer_axis, line, number
from transact.tracking.report.run_files import RunFiles, Values, figure, values_in

PARTS = ("MLP channels", "key-value heads", "rotary pairs")


def shapes_section(run: RunFiles) -> Section | None:
    """Return the shapes of the last round that was cut and the search for them; None where all layers are alike."""
    blocks: list[Block] = []
    cuts = [each.selection for each in run.rounds if each.selection] or [{}]
    shape, whole = _geometry(values_in(cuts[-1], "target")), _geometry(values_in(cuts[0], "source"))
    if shape is not None and whole is not None and shape.layers:
        blocks.append(_widths(shape, whole))
    blocks += [chart for each in run.rounds if (chart := _search(each.shape_log, f"round {each.number}")) is not None]
    return Section(name="shapes", title="Shapes of the layers", blocks=blocks) if blocks else None


def _geometry(values: Values) -> Geometry | None:
    try:
        return Geometry.from_dict(values)
    except (TypeError, ValueError, AttributeError):
        return None


def _widths(shape: Geometry, whole: Geometry) -> Chart:
    """Return the chart of every layer's share of the channels, heads and rotary pairs that it had."""
    layers = [str(layer) for layer in range(shape.num_layers)]
    kept = [(each.intermediate_size, each.num_key_value_heads, shape.head_dim // 2) for each in shape.widths()]
    had = whole.intermediate_size, whole.num_key_value_heads, whole.head_dim // 2
    data = [
        bars(label, layers, [each[place] / most for each in kept], COLOURS[place])
        for place, (label, most) in enumerate(zip(PARTS, had, strict=True))
    ]
    rows = [
        [str(layer), number(channels), number(heads * shape.queries_per_key_value_head), number(heads), number(pairs)]
        for layer, (channels, heads, pairs) in enumerate(kept)
    ]
    return Chart(
        name="widths",
        title="What every layer keeps",
        summary=(
            f"Shares of what {shape.num_layers} layers had in the parent: {had[0]} channels of an MLP, {had[1]} "
            f"key-value heads, and {had[2]} rotary pairs of each head, of which all layers keep the same number."
        ),
        views={
            "all": {
                "data": data,
                "layout": {"xaxis": layer_axis(len(layers)), "yaxis": axis("share kept", range=[0, 1])},
            }
        },
        table=Table(
            headings=["layer", "intermediate_size", "query heads", "key-value heads", "rotary pairs"], rows=rows
        ),
    )


def _search(log: list[dict[str, Any]], label: str) -> Chart | None:
    """Return the chart of every measured shape's divergence and of the lowest so far."""
    losses = [loss for row in log if (loss := figure(row.get("divergence"))) is not None]
    if len(losses) < 2:
        return None
    points = [(float(turn), loss) for turn, loss in enumerate(losses, start=1)]
    lowest = [(float(turn), loss) for turn, loss in enumerate(accumulate(losses, min), start=1)]
    data = [line("measured", points, COLOURS[0]), line("lowest so far", lowest, COLOURS[1])]
    improved = [place for place, (_, loss) in enumerate(lowest) if place == 0 or loss < lowest[place - 1][1]]
    layout = {"xaxis": axis("shapes measured"), "yaxis": axis("divergence from the parent (nats per token)")}
    return Chart(
        name=f"shape-search-{label.replace(' ', '-')}",
        title=f"Search for shapes, {label}",
        summary=f"{len(losses)} shapes were measured; the divergence fell from {losses[0]:.4f} to {min(losses):.4f}.",
        views={label: {"data": data, "layout": layout}},
        table=Table(
            headings=["shape", "lowest divergence so far"],
            rows=[[str(place + 1), number(lowest[place][1])] for place in improved],
        ),
    )
