"""What every round cut and what it cost in perplexity, and the recoveries of one cut beside each other."""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import quote

from transact.config.pruning import VARIANTS
from transact.geometry import Geometry
from transact.tracking.report.drawing import (
    COLOURS,
    MISSING,
    Block,
    Chart,
    Named,
    Section,
    Table,
    axis,
    bars,
    line,
    number,
    share,
    short,
)
from transact.tracking.report.run_files import RunFiles, Values, figure, values_in

LARGEST_LOSS = 700.0  # nats; the exponential of more could overflow a float
DIMENSIONS = {
    "head_dim": "head_dim",
    "num_attention_heads": "query heads",
    "num_key_value_heads": "key-value heads",
    "intermediate_size": "intermediate_size",
}


def models(run: RunFiles) -> list[tuple[str, Values]]:
    """Return the name and known figures of the parent and of the model after every round with a finished selection.

    The figures are dimensions (means over layers that differ), "parameters", "kv_bytes_per_token", the perplexities
    "sliced" and "recovered", and "perplexity": that of the model at the end of the round, which is only sliced where
    there is no recovery.
    """
    parent = values_in(run.dense, "geometry") or next((values_in(each.selection, "source") for each in run.rounds), {})
    dense = run.dense.get("perplexity")
    found = [("parent", parent | _counts(run.dense) | {"recovered": dense, "perplexity": dense})] if parent else []
    for each in run.rounds:
        geometry = values_in(each.selection, "target")
        sliced, recovered = (values_in(each.evaluation, role) for role in ("sliced", "recovered"))
        end = recovered or sliced
        known = geometry | _counts_of(geometry) | _counts(end) | {"perplexity": end.get("perplexity")}
        known |= {"sliced": sliced.get("perplexity"), "recovered": recovered.get("perplexity")}
        if geometry:
            found.append((f"round {each.number}", known))
    return found


def _counts(evaluation: Values) -> Values:
    return {name: evaluation[name] for name in ("parameters", "kv_bytes_per_token") if name in evaluation}


def _counts_of(geometry: Values) -> Values:
    try:
        cut = Geometry.from_dict(geometry)
    except (TypeError, ValueError):
        return {}
    means = {name: cut.mean(name) for name in ("num_key_value_heads", "intermediate_size")} if cut.layers else {}
    if means:
        means["num_attention_heads"] = cut.queries_per_key_value_head * means["num_key_value_heads"]
    return means | {"parameters": cut.parameters(), "kv_bytes_per_token": cut.kv_bytes_per_token()}


def rounds_section(run: RunFiles) -> Section | None:
    found = models(run)
    if len(found) < 2:
        return None
    blocks: list[Block] = [Named(title="Dimensions and perplexity", table=_table(found)), _dimensions(found)]
    chart = _perplexities(found)
    splits = _splits(run.split)
    blocks += [each for each in (chart, splits) if each is not None]
    return Section(name="rounds", title="Rounds", blocks=blocks)


def _splits(split: Values) -> Named | None:
    """Return the table of all measured ways to share the cut between MLP, dims of heads and key-value heads."""
    candidates = split.get("candidates")
    rows: list[list[str]] = []
    for each in candidates if isinstance(candidates, list) else []:
        geometry = values_in(each, "geometry") if isinstance(each, dict) else {}
        loss = figure(each.get("loss")) if geometry else None
        if geometry:
            rows.append(
                [
                    "chosen" if geometry == split.get("chosen") else "",
                    *(number(geometry.get(name)) for name in DIMENSIONS),
                    short(each.get("parameters")),
                    number(None if loss is None or loss > LARGEST_LOSS else math.exp(loss)),
                ]
            )
    if not rows:
        return None
    headings = ["", *DIMENSIONS.values(), "parameters", "perplexity on validation text"]
    return Named(title="Splits between attention and MLP that were measured", table=Table(headings=headings, rows=rows))


def _table(found: list[tuple[str, Values]]) -> Table:
    parent = found[0][1]
    changing = [name for name in DIMENSIONS if any(each.get(name) != parent.get(name) for _, each in found)]
    rows = [
        [
            label,
            *(number(each.get(name)) for name in changing),
            short(each.get("parameters")),
            share(each.get("parameters"), parent.get("parameters")),
            number(each.get("kv_bytes_per_token")),
            number(each.get("sliced")),
            number(each.get("recovered")),
        ]
        for label, each in found
    ]
    counted = ["parameters", "of parent", "KV bytes/token", "perplexity sliced", "recovered"]
    return Table(headings=["", *(DIMENSIONS[name] for name in changing), *counted], rows=rows)


def _dimensions(found: list[tuple[str, Values]]) -> Chart:
    parent = found[0][1]
    wanted = {**DIMENSIONS, "parameters": "parameters", "kv_bytes_per_token": "KV bytes"}
    shares = {
        name: [_share(each.get(name), parent.get(name)) for _, each in found]
        for name in wanted
        if any(each.get(name) != parent.get(name) for _, each in found)
    }
    labels = [label for label, _ in found]
    traces = [
        bars(wanted[name], _ticks(labels), values, COLOURS[turn % len(COLOURS)])
        for turn, (name, values) in enumerate(shares.items())
    ]
    y_axis = axis("share of the parent's", tickformat=".0%", range=[0, 1.05])
    layout = {"xaxis": axis("round", type="category"), "yaxis": y_axis, "barmode": "group"}
    last = ", ".join(f"{wanted[name]} {values[-1]:.1%}" for name, values in shares.items() if values[-1] is not None)
    rows = [
        [label, *(MISSING if values[turn] is None else f"{values[turn]:.1%}" for values in shares.values())]
        for turn, label in enumerate(labels)
    ]
    return Chart(
        name="dimensions",
        title="Dimensions, as shares of the parent's",
        summary=f"Dimensions after every round as shares of the parent's. After {labels[-1]}: {last}.",
        views={"": {"data": traces, "layout": layout}},
        table=Table(headings=["", *(wanted[name] for name in shares)], rows=rows),
    )


def _share(part: Any, whole: Any) -> float | None:
    above, below = figure(part), figure(whole)
    return None if above is None or not below else round(above / below, 5)


def _perplexities(found: list[tuple[str, Values]]) -> Chart | None:
    labels = [label for label, _ in found]
    kinds = {"sliced": "sliced", "recovered": "recovered (parent: as it is)"}
    values = {kind: [figure(each.get(kind)) for _, each in found] for kind in kinds}
    if not any(value is not None for value in values["sliced"]):
        return None
    traces = [
        line(label, [], colour) | {"x": _ticks(labels), "y": values[kind], "mode": "lines+markers"}
        for (kind, label), colour in zip(kinds.items(), (COLOURS[1], COLOURS[0]), strict=False)
    ]
    layout = {"xaxis": axis("round", type="category"), "yaxis": axis("perplexity on held-out text", type="log")}
    last = next(turn for turn in reversed(range(len(labels))) if values["sliced"][turn] is not None)
    told = ", ".join(f"{number(values[kind][last])} {kind}" for kind in kinds if values[kind][last] is not None)
    rows = [[label, *(number(values[kind][turn]) for kind in kinds)] for turn, label in enumerate(labels)]
    return Chart(
        name="perplexity-by-round",
        title="Perplexity by round",
        summary=f"Perplexity on held-out text. Parent: {number(values['recovered'][0])}. {labels[last]}: {told}.",
        views={"": {"data": traces, "layout": layout}},
        table=Table(headings=["", "sliced", "recovered"], rows=rows),
    )


def _ticks(labels: list[str]) -> list[str]:
    """Return short labels, for a phone: parent, 1, 2 and so on."""
    return [label.removeprefix("round ") for label in labels]


OWN = "this run"


def variants_section(run: RunFiles) -> Section | None:
    if not run.variants:
        return None
    names = list(dict.fromkeys(name for each in run.variants for name in _changed(run, each)))
    shown = [name for name in names if name not in ("tokens", "variant")]
    rows = [_row(OWN, run, shown), *(_row(each.path.name, each, shown) for each in run.variants)]
    headings = ["recovery", "state", "tokens", "peak learning rate", *shown, "perplexity recovered"]
    links = {each.path.name: f"{VARIANTS}/{quote(each.path.name)}/report.html" for each in run.variants}
    table = Table(headings=headings, rows=rows, links=links)
    title = "Recoveries of this cut"
    return Section(name="variants", title=title, blocks=[Named(title=title, table=table)])


def _changed(run: RunFiles, variant: RunFiles) -> list[str]:
    """Return the settings of recovery in which the variant differs from the run."""
    before, after = _recover(run), _recover(variant)
    return [name for name in after if before.get(name) != after[name]]


def _recover(run: RunFiles) -> Values:
    return values_in(run.config, "recover")


def _row(name: str, run: RunFiles, shown: list[str]) -> list[str]:
    rates = [each.get("learning_rate") for each in run.result.get("rounds") or [] if isinstance(each, dict)]
    found = models(run)
    recovered = found[-1][1].get("recovered") if len(found) > 1 else None
    cells = [_cell(_recover(run).get(each)) for each in shown]
    peaks = ", ".join(number(each) for each in rates) or MISSING
    return [name, run.state, short(_recover(run).get("tokens")), peaks, *cells, number(recovered)]


def _cell(value: Any) -> str:
    return MISSING if value is None else number(value) if isinstance(value, int | float) else str(value)
