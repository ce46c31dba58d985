"""The page of one run, made from the files in its folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from transact.config.inputs import of_what
from transact.runs.verdict import LIVE
from transact.tracking.report.channels import channels_section
from transact.tracking.report.drawing import (
    MISSING,
    Block,
    Code,
    Named,
    Note,
    Page,
    Section,
    Table,
    duration,
    moment,
    number,
    share,
    short,
)
from transact.tracking.report.quantized import quantized_section
from transact.tracking.report.results import efficiency_section, evaluation_section
from transact.tracking.report.rounds import models, rounds_section, variants_section
from transact.tracking.report.run_files import Row, RunFiles, Values, figure, values_in
from transact.tracking.report.shapes import shapes_section
from transact.tracking.report.training import latest_speed, speed_section, training_section

SILENT_SECONDS = 900.0  # without a change of its files, after which a running run may have been killed
MOST_ALERTS = 100


def run_page(run: RunFiles) -> Page:
    sections = [
        _alerts(run.rows),
        training_section(run),
        rounds_section(run),
        shapes_section(run),
        variants_section(run),
        channels_section(run),
        evaluation_section(run),
        efficiency_section(run),
        quantized_section(run),
        speed_section(run),
        _configuration(run),
    ]
    return Page(
        title=f"{run.name}, from {run.parent_name}" if run.parent_name else run.name,
        state=run.state,
        lines=_lines(run),
        tiles=_tiles(run),
        sections=[section for section in sections if section is not None],
        is_live=run.state in LIVE,
    )


def _lines(run: RunFiles) -> list[str]:
    lines = []
    cut = values_in(run.record, "cut")
    if cut:
        lines.append(f"A further recovery of the cut of {cut.get('run')}.")
    data = values_in(run.config, "data")
    for text, setting in {"held-out": "evaluation", "validation": "train"}.items():
        of = of_what({"loss_of": values_in(data, setting).get("loss"), "packing": data.get("packing")})
        if of:
            lines.append(f"Perplexity on {text} text is that{of}.")
    stage, error = run.record.get("stage"), run.record.get("error")
    if run.state == "running" and stage:
        lines.append(f"At work on {stage}.")
    if error:
        lines.append(f"{run.state.capitalize()}: {error}")
    elif run.state not in ("running", "done") and stage:
        lines.append(f"It had come to {stage}.")
    silent = None if run.last_sign is None else time.time() - run.last_sign
    # Other stages may work longer than that without a line in a file.
    is_training = run.state == "running" and str(stage).endswith("/recover")
    if is_training and silent is not None and silent > SILENT_SECONDS:
        lines.append(f"No sign of life for {duration(silent)}: it may have been killed.")
    return lines


def _tiles(run: RunFiles) -> list[tuple[str, str, str]]:
    found = models(run)
    parent = found[0][1] if found else {}
    last = found[-1][1] if len(found) > 1 else {}
    tiles, of = [], "" if run.is_pretrained else "of the parent"
    if parent:
        tiles += [
            _tile("parameters", parent.get("parameters"), last.get("parameters"), of),
            _tile("KV bytes per token", parent.get("kv_bytes_per_token"), last.get("kv_bytes_per_token"), of),
            _perplexity_tile(found, of),
        ]
    tokens, total = _tokens(run)
    if tokens is not None:
        speed = latest_speed(run.rows)
        remark = f"of {short(total)}" + (f", {speed} tokens/s" if speed else "") + _adapters(run)
        tiles.append(("tokens of recovery", short(tokens), remark))
    seconds = [entry.get("seconds") for entry in values_in(run.record, "stages").values() if isinstance(entry, dict)]
    known = [value for each in seconds if (value := figure(each)) is not None]
    if known:
        restarts = run.record.get("restarts")
        ranks = run.record.get("world_size")
        told = f"{ranks} rank{'' if ranks == 1 else 's'}, {restarts} restart{'' if restarts == 1 else 's'}"
        tiles.append(("time of finished stages", duration(sum(known)), told))
    return tiles


def _adapters(run: RunFiles) -> str:
    """Say that low-rank adapters are trained; empty where all weights are."""
    recover = values_in(run.config, "recover")
    if recover.get("method") != "lora":
        return ""
    return f", by adapters of rank {values_in(recover, 'lora').get('rank')}"


def _tile(label: str, before: Any, after: Any, of: str) -> tuple[str, str, str]:
    """Return a tile of a model that has been cut, or of the first one. of: what that is."""
    if figure(after) is None:
        return label, short(before), of
    return label, short(after), f"{share(after, before)} of the parent's {short(before)}"


def _perplexity_tile(found: Sequence[tuple[str, Values]], of: str) -> tuple[str, str, str]:
    parent = found[0][1].get("perplexity")
    measured = [
        (label, each.get("perplexity")) for label, each in found[1:] if figure(each.get("perplexity")) is not None
    ]
    if not measured:
        return "perplexity", number(parent), ", ".join(filter(None, (of, "on held-out text")))
    label, value = measured[-1]
    return "perplexity", number(value), f"after {label}; the parent's is {number(parent)}"


def _tokens(run: RunFiles) -> tuple[float | None, float | None]:
    """Return the tokens trained on so far, and those that were asked for."""
    done = [value for row in run.rows if (value := figure(row.get("tokens"))) is not None]
    return max(done, default=None), figure(values_in(run.config, "recover").get("tokens"))


def _alerts(rows: Sequence[Row]) -> Section | None:
    """Return the table of alerts: lines of metrics.jsonl that say in words what went wrong."""
    found = [row for row in rows if any(name == "alert" or name.startswith("alert/") for name in row)]
    if not found:
        return None
    cells = [[_time(row), f"round {row.get('round')}", short(row.get("tokens")), _alert_text(row)] for row in found]
    shown = cells[-MOST_ALERTS:]
    note = f"The latest {len(shown)} of {len(cells)}." if len(shown) < len(cells) else ""
    table = Table(headings=["time", "round", "tokens", "what happened"], rows=shown, note=note)
    return Section(name="alerts", title="Alerts", blocks=[Named(title="Alerts", table=table)])


def _time(row: Row) -> str:
    seconds = figure(row.get("time"))
    return MISSING if seconds is None else moment(seconds)


def _alert_text(row: Row) -> str:
    return ": ".join(str(value) for name, value in row.items() if name == "alert" or name.startswith("alert/"))


def _configuration(run: RunFiles) -> Section:
    blocks: list[Block] = []
    commands = {
        "The command, from the same checkout": run.config.get("command"),
        "The command of the whole sweep": run.config.get("sweep_command"),
    }
    blocks += [Code(title=title, text=str(text)) for title, text in commands.items() if text]
    revision = run.record.get("git_revision")
    if revision:
        blocks.append(Note(text=f"Revision {revision}."))
    if run.config_text:
        blocks.append(Code(title="config.yaml", text=run.config_text, is_folded=True))
    versions = values_in(run.record, "versions")
    if versions:
        rows = [[name, str(version)] for name, version in versions.items()]
        blocks.append(Named(title="Versions", table=Table(headings=["package", "version"], rows=rows)))
    places = _places(run)
    if places:
        table = Table(
            headings=["what", "in the run's folder"], rows=[list(each) for each in places.items()], links=places
        )
        blocks.append(Named(title="Files", table=table))
    return Section(name="configuration", title="How to get it again", blocks=blocks)


def _places(run: RunFiles) -> dict[str, str]:
    names = {
        "the exported model": "export",
        "quantised variants": "quantized",
        "the summary": "result.json",
        "every figure over time": "metrics.jsonl",
        "stages, digests, restarts": "run.json",
    }
    return {what: name for what, name in names.items() if (run.path / name).exists()}
