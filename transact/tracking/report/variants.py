"""The recoveries of one cut beside each other: the run's own, and its variants."""

from __future__ import annotations

from typing import Any

from transact.config import VARIANTS
from transact.tracking.report.blocks import Named, Section, Table
from transact.tracking.report.rounds import models
from transact.tracking.report.run_files import RunFiles, Values, values_in
from transact.tracking.report.words import MISSING, number, short

OWN = "this run"


def variants_section(run: RunFiles) -> Section | None:
    if not run.variants:
        return None
    names = list(dict.fromkeys(name for each in run.variants for name in _changed(run, each)))
    shown = [name for name in names if name not in ("tokens", "variant")]
    rows = [_row(OWN, run, shown), *(_row(each.path.name, each, shown) for each in run.variants)]
    headings = ["recovery", "state", "tokens", "peak learning rate", *shown, "perplexity recovered"]
    links = {each.path.name: f"{VARIANTS}/{each.path.name}/report.html" for each in run.variants}
    table = Table(headings=headings, rows=rows, links=links)
    title = "Recoveries of this cut"
    return Section(name="variants", title=title, blocks=[Named(title=title, table=table)])


def _changed(run: RunFiles, variant: RunFiles) -> list[str]:
    """Settings of recovery in which they differ."""
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
